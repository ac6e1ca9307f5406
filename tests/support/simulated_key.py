"""Simulated provider key and its senders on a virtual clock: minutes pass in moments, always in the same way."""

import asyncio
import random
import selectors
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pipelines.limits.provider_limiter import ProviderLimiter

T = TypeVar("T")


class VirtualClock(selectors.SelectSelector):
    """A selector that moves its clock forward instead of waiting."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "deadlock: every task waits for another one"
        self.now += max(timeout, 1e-7)
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop on a virtual clock."""

    def __init__(self) -> None:
        self._clock = VirtualClock()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def run_in_virtual_time(work: Callable[[Callable[[], float]], Coroutine[Any, Any, T]]) -> T:
    """Run the coroutine that `work` makes of the clock."""
    loop = VirtualTimeLoop()
    try:
        return loop.run_until_complete(work(loop.time))
    finally:
        loop.close()


@dataclass
class SimulatedKey:
    """A key with a limit of requests or tokens, in a sliding minute or in a bucket of a second's worth."""

    requests: int | None = None
    tokens: int | None = None
    window: bool = False
    seen: deque[tuple[float, float]] = field(default_factory=deque)
    level: float = 0.0
    filled: float | None = None

    @property
    def limit(self) -> int:
        return self.requests or self.tokens or 0

    def _amount(self, tokens: float) -> float:
        return 1.0 if self.requests else tokens

    def wait(self, now: float, tokens: float) -> float:
        """Return the seconds until the request would pass; 0: it passes now."""
        amount = self._amount(tokens)
        rate = self.limit / 60
        if self.window:
            while self.seen and self.seen[0][0] <= now - 60:
                self.seen.popleft()
            if self.used + amount > self.limit:
                return self.seen[0][0] + 60 - now + 0.001
        else:
            before = now - 1 if self.filled is None else self.filled
            self.level, self.filled = min(max(1.0, rate), self.level + (now - before) * rate), now
            if self.level < min(amount, rate):
                return (min(amount, rate) - self.level) / rate + 0.001
            self.level -= amount
        self.seen.append((now, amount))
        return 0.0

    @property
    def used(self) -> float:
        return float(len(self.seen)) if self.requests else sum(amount for _, amount in self.seen)

    @property
    def remaining(self) -> int:
        return max(0, int(self.limit - self.used if self.window else self.level))


@dataclass
class RandomlyRefusingKey(SimulatedKey):
    """A key that also refuses a random share of all requests, whatever their rate."""

    share: float = 0.1
    retry_after: float = 1e-9
    rng: random.Random = field(default_factory=lambda: random.Random(3))

    def wait(self, now: float, tokens: float) -> float:
        if self.rng.random() < self.share:
            return self.retry_after
        return super().wait(now, tokens) if self.requests else 0.0


@dataclass
class Traffic:
    """Outcome of the requests: (second, tokens) of each that passed, second of each that was refused."""

    passed: list[tuple[float, float]] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    requests_per_minute: float | None = None
    """The limiter's rate at the end."""

    def used_share(self, per_minute: float, start: float, end: float, tokens: bool = False) -> float:
        """Return which share of the limit was used between two times."""
        return sum(amount if tokens else 1 for at, amount in self.passed if start <= at < end) / (
            per_minute / 60 * (end - start)
        )

    @property
    def refused_share(self) -> float:
        return len(self.refused) / (len(self.passed) + len(self.refused))


def simulate(
    key: SimulatedKey,
    seconds: float,
    *,
    configured: tuple[float | None, float | None] = (None, None),
    senders: int = 150,
    headers: bool = False,
    states_wait: bool = True,
    estimate: int = 125,
    changes: tuple[tuple[float, Callable[[SimulatedKey], None]], ...] = (),
    others: float = 0.0,
    share: float = 1.0,
    answer_seconds: tuple[float, float] = (0.1, 0.3),
) -> Traffic:
    """Let so many senders call as fast as their limiter permits.

    `configured`: limits of requests and tokens a minute; `estimate`: tokens reserved for a request; `others`: requests
    a second of another program; `share`: of the key's limit, what this process has; `answer_seconds`: from, to.
    """

    async def run(now: Callable[[], float]) -> Traffic:
        limiter = ProviderLimiter(configured[0], configured[1], None, 900, 60, now)
        limiter.set_share(share, share, None)
        start, rng, traffic, due = now(), random.Random(7), Traffic(), deque(changes)

        async def send_requests() -> None:
            while now() - start < seconds:
                tokens = rng.randint(50, 200)
                permit = await limiter.acquire(estimate)
                await asyncio.sleep(rng.uniform(0.005, 0.015))
                while due and now() - start >= due[0][0]:
                    due.popleft()[1](key)
                wait = key.wait(now(), tokens)
                at, limit, left = now() - start, key.limit, key.remaining
                if not wait:
                    await asyncio.sleep(rng.uniform(*answer_seconds))
                if headers:
                    limits, lefts = ((limit, None), (left, None)) if key.requests else ((None, limit), (None, left))
                    limiter.update_from_headers(limits, lefts)
                if wait:
                    traffic.refused.append(at)
                    limiter.record_refusal(permit, wait if states_wait else None)
                else:
                    traffic.passed.append((at, tokens))
                    limiter.record_success(permit)
                limiter.release(permit, estimate, None if wait else tokens)

        async def send_from_another_program() -> None:
            while others and now() - start < seconds:
                await asyncio.sleep(1 / others)
                key.wait(now(), 1)

        await asyncio.gather(send_from_another_program(), *(send_requests() for _ in range(senders)))
        traffic.requests_per_minute = limiter.effective_requests_per_minute
        return traffic

    return run_in_virtual_time(run)
