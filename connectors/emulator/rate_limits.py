"""Real limits of the local provider: requests and tokens a minute, and the headers that tell what is left."""

import time
from collections.abc import Callable
from math import ceil

from aiohttp import web

from connectors.emulator.api import ApiError

USED_TOKENS = web.RequestKey("rowmill_used", int)
"""Of a request that has been answered: the tokens that it used."""


class MinuteBucket:
    """So many a minute, a second's worth (at least 1) at once."""

    def __init__(self, per_minute: int, now: Callable[[], float]) -> None:
        self._now = now
        self._rate = per_minute / 60
        self._size = max(1.0, self._rate)
        self._level = self._size
        self._filled = now()

    def fill(self) -> None:
        """What has come in since the last look."""
        now = self._now()
        self._level = min(self._size, self._level + (now - self._filled) * self._rate)
        self._filled = now

    def take(self, amount: float) -> None:
        """Take it; what is missing is owed. A negative amount comes back."""
        self._level = min(self._size, self._level - amount)

    @property
    def left(self) -> float:
        """How much is in it; below 0 what is owed."""
        return self._level

    def seconds_until(self, level: float) -> float:
        """Until so much is in it."""
        return max(0.0, (level - self._level) / self._rate)

    @property
    def seconds_until_full(self) -> float:
        """Until nothing is missing."""
        return self.seconds_until(self._size)


class RequestLimits:
    """What all requests together may take; None: no limit."""

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
        """One request of about so many tokens; ApiError 429 where it has to wait.

        A request is let in while anything is left of the tokens, and owes what it takes beyond.
        """
        for bucket in self._buckets.values():
            bucket.fill()
        requests, budget = self._buckets.get("requests"), self._buckets.get("tokens")
        if requests is not None and requests.left < 1 - 1e-6:
            raise self._refusal("requests", requests.seconds_until(1))
        if budget is not None and budget.left <= 0:
            raise self._refusal("tokens", budget.seconds_until(1))
        if requests is not None:
            requests.take(1)
        if budget is not None:
            budget.take(tokens)

    def settle(self, reserved: int, used: int) -> None:
        """Correct what was taken for a request by what it really used."""
        if (budget := self._buckets.get("tokens")) is not None:
            budget.take(used - reserved)

    def headers(self) -> dict[str, str]:
        """`x-ratelimit-*` as of now; nothing for what has no limit."""
        told: dict[str, str] = {}
        for name, bucket in self._buckets.items():
            bucket.fill()
            told[f"x-ratelimit-limit-{name}"] = str(self._per_minute[name])
            told[f"x-ratelimit-remaining-{name}"] = str(max(0, int(bucket.left)))
            told[f"x-ratelimit-reset-{name}"] = duration(bucket.seconds_until_full)
        return told

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
    """When to come back."""
    return {"retry-after": str(ceil(seconds)), "retry-after-ms": str(ceil(seconds * 1000))}


def duration(seconds: float) -> str:
    """As OpenAI writes it: `6ms`, `1s`, `8.64s`, `6m0s`, `1h0m0s`."""
    milliseconds = ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    written = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{written}"
    return f"{minutes}m{written}" if minutes else written
