"""The budget of one run: every request sets its worst case aside before it is sent, and settles it afterwards."""

import asyncio
import time


class RunBudget:
    """Money in pico-dollars; `limit` None: nothing is refused, all is counted."""

    def __init__(self, limit: int | None, spent: int) -> None:
        """`spent`: by earlier invocations of the same run, requests of unknown outcome at their worst case."""
        self.limit = limit
        self.spent = spent
        self.reserved = 0
        self.waited_seconds = 0.0
        """Seconds that requests waited for money to come back, added up over all of them."""
        self._settled = asyncio.Event()

    @property
    def remaining(self) -> int | None:
        """What may still be set aside; None without a limit."""
        return None if self.limit is None else self.limit - self.spent - self.reserved

    async def acquire(self, worst: int | None) -> bool:
        """Set the worst case aside, waiting while requests in flight may still give some back; False where it
        will not fit whatever they give back, or where a limit meets a request that nothing bounds."""
        if self.limit is None:
            self.reserved += worst or 0
            return True
        if worst is None:
            return False
        while self.spent + self.reserved + worst > self.limit:
            if self.reserved == 0 or self.spent + worst > self.limit:
                return False
            self._settled.clear()
            began = time.monotonic()
            await self._settled.wait()
            self.waited_seconds += time.monotonic() - began
        self.reserved += worst
        return True

    def settle(self, worst: int | None, cost: int | None) -> None:
        """Give back what was set aside, and count what was really spent."""
        self.reserved -= worst or 0
        self.spent += cost or 0
        self._settled.set()
