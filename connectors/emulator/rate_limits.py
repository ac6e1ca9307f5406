"""Rate limits of the emulator: requests and tokens per minute, and the headers with the remaining amounts."""

import time
from collections.abc import Callable
from math import ceil

from aiohttp import web

from connectors.emulator.api import ApiError

USED_TOKENS = web.RequestKey("rowmill_used", int)
"""Tokens that an answered request used."""


class MinuteBucket:
    """A token bucket with a rate per minute and a burst of one second (at least 1)."""

    def __init__(self, per_minute: int, now: Callable[[], float]) -> None:
        self._now = now
        self._rate = per_minute / 60
        self._size = max(1.0, self._rate)
        self._level = self._size
        self._refilled_at = now()

    def refill(self) -> None:
        """Add what has accrued since the last refill."""
        now = self._now()
        self._level = min(self._size, self._level + (now - self._refilled_at) * self._rate)
        self._refilled_at = now

    def take(self, amount: float) -> None:
        """Remove an amount, possibly into debt; a negative amount is a refund."""
        self._level = min(self._size, self._level - amount)

    @property
    def level(self) -> float:
        """The available amount; negative for a debt."""
        return self._level

    def seconds_until(self, level: float) -> float:
        """Seconds until the bucket reaches a level."""
        return max(0.0, (level - self._level) / self._rate)

    @property
    def seconds_until_full(self) -> float:
        """Seconds until the bucket is full."""
        return self.seconds_until(self._size)


class RequestLimits:
    """Limits on all requests together; None means unlimited."""

    def __init__(
        self,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_minute = {"requests": requests_per_minute, "tokens": tokens_per_minute}
        self._buckets = {
            name: MinuteBucket(per_minute, now)
            for name, per_minute in self._per_minute.items()
            if per_minute is not None
        }

    def __bool__(self) -> bool:
        return bool(self._buckets)

    def admit(self, tokens: int) -> None:
        """Admit a request of about so many tokens; ApiError 429 if it must wait.

        A request is admitted while any token is available, and may take the bucket into debt.
        """
        for bucket in self._buckets.values():
            bucket.refill()
        requests, budget = self._buckets.get("requests"), self._buckets.get("tokens")
        if requests is not None and requests.level < 1 - 1e-6:
            raise self._refusal("requests", requests.seconds_until(1))
        if budget is not None and budget.level <= 0:
            raise self._refusal("tokens", budget.seconds_until(1))
        if requests is not None:
            requests.take(1)
        if budget is not None:
            budget.take(tokens)

    def settle(self, reserved: int, used: int) -> None:
        """Correct the reserved amount of a request to what it used."""
        if (budget := self._buckets.get("tokens")) is not None:
            budget.take(used - reserved)

    def headers(self) -> dict[str, str]:
        """The current `x-ratelimit-*` headers, without those of unlimited amounts."""
        headers: dict[str, str] = {}
        for name, bucket in self._buckets.items():
            bucket.refill()
            headers[f"x-ratelimit-limit-{name}"] = str(self._per_minute[name])
            headers[f"x-ratelimit-remaining-{name}"] = str(max(0, int(bucket.level)))
            headers[f"x-ratelimit-reset-{name}"] = duration(bucket.seconds_until_full)
        return headers

    def _refusal(self, name: str, wait: float) -> ApiError:
        return ApiError(
            429,
            f"Rate limit reached for {name}: Limit {self._per_minute[name]} per min. Please try again in "
            f"{duration(wait)}.",
            type=name,
            code="rate_limit_exceeded",
            headers=wait_headers(wait),
        )


def wait_headers(seconds: float) -> dict[str, str]:
    """The `retry-after` headers."""
    return {"retry-after": str(ceil(seconds)), "retry-after-ms": str(ceil(seconds * 1000))}


def duration(seconds: float) -> str:
    """A duration in OpenAI's format: `6ms`, `1s`, `8.64s`, `6m0s`, `1h0m0s`."""
    milliseconds = ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    formatted_seconds = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{formatted_seconds}"
    return f"{minutes}m{formatted_seconds}" if minutes else formatted_seconds
