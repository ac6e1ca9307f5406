"""Token bucket with debt: consumed units are paid off by waiting, so estimates can be settled afterwards."""

import asyncio

from aiolimiter import AsyncLimiter

BURST_SECONDS = 0.25
"""A burst after a pause has at most so many seconds' worth. A provider that counts by the second refuses more; less
would lose what a stall of this process delayed."""

WAIT_SLICE_SECONDS = 0.05
"""Longest wait at a time: in between, a changed rate takes effect."""

ROUNDING_UNITS = 1e-9
"""A smaller debt is a rounding error."""


class TokenBucket:
    """Rate limit of units a second, evenly spread.

    Its AsyncLimiter holds time, one second a second. So the rate may change at any moment, an amount may exceed the
    bucket, and unused reservations are refunded: AsyncLimiter offers none of these for amounts.
    """

    def __init__(self, per_second: float | None = None) -> None:
        """`per_second` None: nothing waits, but units are counted."""
        self.per_second = per_second
        self.used = 0.0
        """Units consumed so far, corrected by settlements."""
        self._time = AsyncLimiter(BURST_SECONDS, BURST_SECONDS)
        self._owed = 0.0

    @property
    def is_ready(self) -> bool:
        """Whether `wait` would return at once."""
        if self._owed <= ROUNDING_UNITS or self.per_second is None:
            return True
        seconds = self._owed / self.per_second if self.per_second > 0 else BURST_SECONDS * 2
        return seconds <= WAIT_SLICE_SECONDS and self._time.has_capacity(seconds)

    @property
    def delay(self) -> float:
        """Upper bound of the seconds until it is ready, if somebody waits, or pays off what is possible meanwhile."""
        if self.is_ready or not self.per_second:
            return 0.0
        return self._owed / self.per_second

    async def pay_off(self) -> None:
        """Pay off what the time since the last payment, at most BURST_SECONDS, is enough for. It does not wait."""
        while self._owed > ROUNDING_UNITS and self.per_second:
            part = min(self._owed / self.per_second, WAIT_SLICE_SECONDS)
            if not self._time.has_capacity(part):
                return
            await self._time.acquire(part)
            self._owed -= part * self.per_second

    async def wait(self) -> None:
        """Wait until the debt is paid off. For one caller at a time."""
        while self._owed > ROUNDING_UNITS and self.per_second is not None:
            # At rate zero the debt cannot be paid off: wait in slices for another rate.
            part = min(self._owed / self.per_second, WAIT_SLICE_SECONDS) if self.per_second > 0 else WAIT_SLICE_SECONDS
            await self._time.acquire(part)
            self._owed -= part * (self.per_second or 0.0)

    def consume(self, units: float) -> None:
        """Add units to the debt; they are paid off before the next ones are sent."""
        self.used += units
        if self.per_second is None:
            self._owed = 0.0
            return
        self._owed += units

    def drain(self) -> None:
        """Prevent a burst: more than this rate may have been sent just before."""
        if self.per_second is not None:
            self._owed = max(self._owed, BURST_SECONDS * self.per_second)

    def settle(self, reserved: float, used: float) -> None:
        """Replace a reservation by what was really used."""
        self.used += used - reserved
        if self.per_second is not None:
            # A larger credit would allow a burst.
            self._owed = max(self._owed + used - reserved, -BURST_SECONDS * self.per_second)


async def wait_for_event(event: asyncio.Event, seconds: float | None) -> None:
    """Wait until the event is set, or for so many seconds; None: without a limit."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
