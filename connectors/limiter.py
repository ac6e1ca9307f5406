"""Allowances: how fast one provider's key may be used, as told, as learned, and as the provider asks in between."""

import asyncio
import time
from collections.abc import Callable

from aiolimiter import AsyncLimiter

EASED = 0.9
"""A refusal where no limit is stated lowers the pace to this share of what was answered before it."""

RAISED = 1.05
"""Every RAISED_EVERY seconds without a refusal such a pace is raised by this factor."""

RAISED_EVERY = 5.0

OPEN_AFTER = 20
"""So many failures in a row, without one success between them, open the circuit of a provider."""


class TokenBucket:
    """Tokens a minute with reserve and settle: what was reserved too much comes back, too little is owed."""

    def __init__(self, per_minute: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._rate = per_minute / 60
        # A second's worth: more would let a burst through that a provider counting by the second refuses.
        self._size = max(1.0, self._rate)
        self._level = self._size
        self._filled = now()

    def wait(self, tokens: float) -> float:
        """Seconds until so many may be taken; an amount above the bucket's size takes the whole bucket."""
        self._fill()
        return max(0.0, (min(tokens, self._size) - self._level) / self._rate)

    def take(self, tokens: float) -> None:
        """Reserve; the level may fall below zero and is then paid off by waiting."""
        self._fill()
        self._level -= tokens

    def settle(self, reserved: float, used: float) -> None:
        """Correct an earlier reservation by what was really used."""
        self._level = min(self._size, self._level + reserved - used)

    def _fill(self) -> None:
        now = self._now()
        self._level = min(self._size, self._level + (now - self._filled) * self._rate)
        self._filled = now


def spread(requests_per_minute: float) -> AsyncLimiter:
    """aiolimiter's bucket holds a quarter of a second's worth (at least 1), or a minute's could leave at once."""
    size = max(1.0, requests_per_minute / 240)
    return AsyncLimiter(size, size * 60 / requests_per_minute)


class Allowance:
    """What one provider's key may send: waits are served in the order in which they came."""

    def __init__(
        self,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        concurrency: int | None,
        longest_hold: float,
        longest_wait: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now = now
        self.requests_per_minute = requests_per_minute
        self.tokens_per_minute = tokens_per_minute
        self._told_requests = requests_per_minute
        self._told_tokens = tokens_per_minute
        self._requests = spread(requests_per_minute) if requests_per_minute else None
        self._tokens = TokenBucket(tokens_per_minute, now) if tokens_per_minute else None
        self._slots = asyncio.Semaphore(concurrency) if concurrency else None
        self._turn = asyncio.Lock()
        self._held_until = 0.0
        self._longest_hold = longest_hold
        self._longest_wait = longest_wait
        self._failures = 0
        self._silent_since: float | None = None
        self._probing = False
        self._moved = asyncio.Event()
        self._answered = 0
        self._counting_since = now()
        self._eased = False

    @property
    def open_circuit(self) -> bool:
        """Whether the provider fails every request; single requests then try whether it is back."""
        return self._failures >= OPEN_AFTER

    @property
    def held_for(self) -> float:
        """Seconds until the provider may be asked again."""
        return max(0.0, self._held_until - self._now())

    async def take(self, tokens: int) -> None:
        """Wait until one request of so many tokens may be sent; follow it by `done`."""
        if self._slots is not None:
            await self._slots.acquire()
        try:
            if self._requests is None and self._tokens is None and not self._failures and not self._held_until:
                return
            async with self._turn:
                await self._unheld()
                if self._requests is not None:
                    await self._requests.acquire()
                if self._tokens is not None:
                    # Only the one in turn takes, and what settles meanwhile can only shorten the wait.
                    await asyncio.sleep(self._tokens.wait(tokens))
                    self._tokens.take(tokens)
                # A refusal may have come in while this one waited for its turn.
                await self._unheld()
                if self.open_circuit:
                    self._probing = True
                    self._moved.clear()
        except BaseException:
            if self._slots is not None:
                self._slots.release()
            raise

    async def _unheld(self) -> None:
        while True:
            if (pause := self._held_until - self._now()) > 0:
                await asyncio.sleep(pause)
            elif self._probing:
                await self._moved.wait()
            else:
                self._held_until = 0.0
                return

    def done(self, reserved: int, used: int | None) -> None:
        """The request has ended; `used`: its tokens, None where the reply did not tell."""
        if self._slots is not None:
            self._slots.release()
        if self._tokens is not None and used is not None:
            self._tokens.settle(reserved, used)

    def succeeded(self) -> None:
        """A request was answered: the provider lives."""
        if self._failures or self._probing:
            self._failures = 0
            self._probing = False
            self._moved.set()
        self._silent_since = None
        self._answered += 1
        if self._eased and self._now() - self._counting_since >= RAISED_EVERY:
            self._pace(RAISED * (self.requests_per_minute or 0))

    def failed(self) -> bool:
        """A request found no server or a failing one; whether that happened while the circuit was open."""
        was_open = self.open_circuit
        self._failures += 1
        if self._silent_since is None:
            self._silent_since = self._now()
        if self.open_circuit:
            waves = min(self._failures - OPEN_AFTER, 10)
            self._hold(min(self._longest_wait, 0.5 * 2**waves))
        self._probing = False
        self._moved.set()
        return was_open

    def refused(self, retry_after: float | None, attempt: int) -> None:
        """A 429: nobody sends until it is over. Without a time stated, the wait doubles with each refusal in turn."""
        now = self._now()
        if self._silent_since is None:
            self._silent_since = now
        elapsed = now - self._counting_since
        # Refusals come in bursts: one burst lowers the pace once.
        if (self._eased or self._requests is None) and self._tokens is None and self._answered and elapsed >= 0.5:
            self._eased = True
            self._pace(EASED * 60 * self._answered / elapsed)
        if retry_after is None:
            retry_after = min(self._longest_wait, 0.25 * 2 ** min(attempt, 10))
        self._hold(retry_after)
        self._probing = False
        self._moved.set()

    def silent_for(self) -> float:
        """Seconds since the last answer, while every request since then was refused or failed; 0 otherwise."""
        return 0.0 if self._silent_since is None else self._now() - self._silent_since

    def learn(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        """The provider's own limits, from its headers: held to where they are lower than what was configured."""
        requests = _lower(self._told_requests, requests_per_minute)
        if requests is not None and (self._eased or requests != self.requests_per_minute):
            self._eased = False
            self.requests_per_minute = requests
            self._requests = spread(requests)
        tokens = _lower(self._told_tokens, tokens_per_minute)
        if tokens != self.tokens_per_minute and tokens is not None:
            self.tokens_per_minute = tokens
            self._tokens = TokenBucket(tokens, self._now)

    def _pace(self, requests_per_minute: float) -> None:
        """A pace of our own finding, until the provider states its limit."""
        self.requests_per_minute = max(1.0, requests_per_minute)
        self._requests = spread(self.requests_per_minute)
        self._answered = 0
        self._counting_since = self._now()

    def _hold(self, seconds: float) -> None:
        self._held_until = max(self._held_until, self._now() + seconds)


def _lower(configured: float | None, stated: float | None) -> float | None:
    if stated is None or stated <= 0:
        return configured
    return stated if configured is None else min(configured, stated)
