"""A pace: so many units a minute, evenly spread; what was used is paid off by waiting, so estimates can be settled."""

import asyncio

from aiolimiter import AsyncLimiter

BURST_SECONDS = 0.25
"""Seconds' worth that may leave at once after a pause. More would be refused by a provider that counts by the second;
less would lose what a stall of this process kept back."""

PIECE = 0.05
"""Seconds that are paid at a time: in between, a pace that has changed takes effect."""

NOTHING = 1e-9
"""Units: what rounding leaves of a debt is none."""


class TokenBucket:
    """Units leave evenly. AsyncLimiter is a bucket of time here, one second a second: so the pace may change at any
    moment, an amount may be larger than the bucket, and what was reserved too much comes back, none of which
    it offers for amounts."""

    def __init__(self, per_second: float | None = None) -> None:
        """`per_second` None: nothing waits, all is counted."""
        self.per_second = per_second
        self.used = 0.0
        """Units charged so far, corrected by what was settled."""
        self._time = AsyncLimiter(BURST_SECONDS, BURST_SECONDS)
        self._owed = 0.0

    @property
    def is_ready(self) -> bool:
        """Whether `paid` would return at once."""
        if self._owed <= NOTHING or self.per_second is None:
            return True
        seconds = self._owed / self.per_second if self.per_second > 0 else BURST_SECONDS * 2
        return seconds <= PIECE and self._time.has_capacity(seconds)

    @property
    def delay(self) -> float:
        """Seconds until it is ready, at the most."""
        if self.is_ready or not self.per_second:
            return 0.0
        return self._owed / self.per_second

    async def wait(self) -> None:
        """Wait until what was charged before is paid off. For one caller at a time."""
        while self._owed > NOTHING and self.per_second is not None:
            # A pace of nothing at all is no pace to wait out: the caller waits for a better one.
            part = min(self._owed / self.per_second, PIECE) if self.per_second > 0 else PIECE
            await self._time.acquire(part)
            self._owed -= part * (self.per_second or 0.0)

    def consume(self, units: float) -> None:
        """Units that leave now; they are paid off before the next ones leave."""
        self.used += units
        if self.per_second is None:
            self._owed = 0.0
            return
        self._owed += units

    def drain(self) -> None:
        """Nothing leaves in a burst: more than this pace may have left just before."""
        if self.per_second is not None:
            self._owed = max(self._owed, BURST_SECONDS * self.per_second)

    def settle(self, reserved: float, used: float) -> None:
        """Correct an earlier charge by what was really used."""
        self.used += used - reserved
        if self.per_second is not None:
            # What comes back is used at once or soon: a credit of minutes would be a burst.
            self._owed = max(self._owed + used - reserved, -BURST_SECONDS * self.per_second)


async def wait_for_event(event: asyncio.Event, seconds: float | None) -> None:
    """Wait until it is set, or so many seconds are over; None: however long it takes."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
