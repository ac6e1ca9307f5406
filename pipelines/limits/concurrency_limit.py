"""Concurrency limit: how many requests are in flight at a provider, first in, first out."""

import asyncio
import time
from collections import deque
from collections.abc import Callable


class ConcurrencyLimit:
    """Counting semaphore of requests in flight, with the wait times of its users."""

    def __init__(self, slots: int | None, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._slots = slots
        self.in_flight = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self.watchers: list[asyncio.Event] = []
        """Set whenever a request may be sent that could not be sent before."""
        self.contended: set[str] = set()
        """Which of requests, tokens and slots were waited for since the set was last cleared."""
        self.wait_seconds = {"slots": 0.0, "requests": 0.0, "tokens": 0.0, "hold": 0.0}
        """Total seconds that requests waited, by cause."""

    @property
    def _is_full(self) -> bool:
        return self._slots is not None and (self.in_flight >= self._slots or bool(self._waiters))

    async def _acquire_slot(self) -> None:
        """Wait for a slot; `_admit_waiters` counts it for the waiter."""
        self.contended.add("slots")
        free = asyncio.get_running_loop().create_future()
        self._waiters.append(free)
        began = self._now()
        try:
            await free
            self.wait_seconds["slots"] += self._now() - began
        except asyncio.CancelledError:
            if free.done() and not free.cancelled():
                self._release_slot()
            raise

    def _admit_waiters(self) -> None:
        while self._waiters and (self._slots is None or self.in_flight < self._slots):
            free = self._waiters.popleft()
            if not free.done():
                self.in_flight += 1
                free.set_result(None)

    def _release_slot(self) -> None:
        self.in_flight -= 1
        self._notify()

    def _notify(self) -> None:
        """Admit waiters and set the watchers: a request may be sent that could not be sent before."""
        if self._waiters:
            self._admit_waiters()
        for watcher in self.watchers:
            watcher.set()
