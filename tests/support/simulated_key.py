"""A simulated provider's key with its limit, and senders that ask it by a clock that leaps: minutes pass in moments."""

import asyncio
import random
import selectors
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pipelines.limits.provider_limiter import ProviderLimiter

T = TypeVar("T")


class Leap(selectors.SelectSelector):
    """Instead of waiting, the clock leaps."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everybody waits for somebody else"
        self.now += max(timeout, 1e-7)
        return super().select(0)


class LeapingLoop(asyncio.SelectorEventLoop):
    """Minutes pass in moments, and always in the same way."""

    def __init__(self) -> None:
        self._leap = Leap()
        super().__init__(self._leap)

    def time(self) -> float:
        return self._leap.now


def leaping(work: Callable[[Callable[[], float]], Coroutine[Any, Any, T]]) -> T:
    """Run the coroutine that `work` makes of the clock."""
    loop = LeapingLoop()
    try:
        return loop.run_until_complete(work(loop.time))
    finally:
        loop.close()


@dataclass
class Key:
    """A provider's key with a limit of requests or tokens, in a sliding minute or in a bucket of a second's worth."""

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
        """Seconds until the request would pass; 0: it passes now."""
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
    def left(self) -> int:
        return max(0, int(self.limit - self.used if self.window else self.level))


@dataclass
class Moody(Key):
    """Refuses a share of whatever it is asked, beside what its limit asks for."""

    share: float = 0.1
    asks: float = 1e-9
    dice: random.Random = field(default_factory=lambda: random.Random(3))

    def wait(self, now: float, tokens: float) -> float:
        if self.dice.random() < self.share:
            return self.asks
        return super().wait(now, tokens) if self.requests else 0.0


@dataclass
class Seen:
    """What came of the requests: (second, tokens) of each that passed, seconds of the refused."""

    passed: list[tuple[float, float]] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    kept_per_minute: float | None = None
    """By the allowance at the end."""

    def share(self, per_minute: float, start: float, end: float, tokens: bool = False) -> float:
        """Of the limit, what was used between two moments."""
        return sum(amount if tokens else 1 for at, amount in self.passed if start <= at < end) / (
            per_minute / 60 * (end - start)
        )

    @property
    def refused_share(self) -> float:
        return len(self.refused) / (len(self.passed) + len(self.refused))


def drive(
    key: Key,
    seconds: float,
    *,
    told: tuple[float | None, float | None] = (None, None),
    senders: int = 150,
    headers: bool = False,
    states_wait: bool = True,
    guess: int = 125,
    changes: tuple[tuple[float, Callable[[Key], None]], ...] = (),
    others: float = 0.0,
    part: float = 1.0,
) -> Seen:
    """So many senders ask as fast as the allowance lets them; `others`: requests a second of another program. `part`:
    of the key's limit, what this process has."""

    async def run(now: Callable[[], float]) -> Seen:
        allowance = ProviderLimiter(told[0], told[1], None, 900, 60, now)
        allowance.set_share(part, part, None)
        began, dice, seen, due = now(), random.Random(7), Seen(), deque(changes)

        async def sender() -> None:
            while now() - began < seconds:
                tokens = dice.randint(50, 200)
                permit = await allowance.acquire(guess)
                await asyncio.sleep(dice.uniform(0.005, 0.015))
                while due and now() - began >= due[0][0]:
                    due.popleft()[1](key)
                wait = key.wait(now(), tokens)
                at, limit, left = now() - began, key.limit, key.left
                if not wait:
                    await asyncio.sleep(dice.uniform(0.1, 0.3))
                if headers:
                    limits, lefts = ((limit, None), (left, None)) if key.requests else ((None, limit), (None, left))
                    allowance.update_from_headers(limits, lefts)
                if wait:
                    seen.refused.append(at)
                    allowance.record_refusal(permit, wait if states_wait else None)
                else:
                    seen.passed.append((at, tokens))
                    allowance.record_success(permit)
                allowance.release(permit, guess, None if wait else tokens)

        async def another_program() -> None:
            while others and now() - began < seconds:
                await asyncio.sleep(1 / others)
                key.wait(now(), 1)

        await asyncio.gather(another_program(), *(sender() for _ in range(senders)))
        seen.kept_per_minute = allowance.effective_requests_per_minute
        return seen

    return leaping(run)
