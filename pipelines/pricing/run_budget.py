"""The budget of one run: each request reserves its maximum cost before it is sent, and settles its actual cost after.

All amounts are pico-dollars.
"""

import asyncio
import time
from types import TracebackType


class BudgetExhausted(Exception):
    """The budget cannot cover a request, whatever the requests in flight give back."""


class RunBudget:
    """The money of one run. With `limit` None every request fits, and all costs are counted."""

    def __init__(self, limit: int | None, spent: int) -> None:
        """`spent`: by earlier invocations of the same run, requests of unknown outcome at their maximum cost."""
        self.limit = limit
        self.spent = spent
        self.reserved = 0
        self.waited_seconds = 0.0
        """Time that requests waited for money to come back, added up over all of them."""
        self._settled = asyncio.Event()
        self._excess = (1, 1)
        """(cost, maximum cost) of the request that cost most in relation to what was reserved for it."""

    def raised(self, max_cost: int | None) -> int | None:
        """Return the maximum cost of a request, raised if an earlier one has cost more than its own; None: unbounded.

        Some servers ignore `max_tokens`, or count tokens that cannot be known before.
        """
        if max_cost is None or self.limit is None:
            return max_cost
        cost, maximum = self._excess
        return -(-max_cost * cost // maximum)

    def record_excess(self, max_cost: int | None, cost: int | None) -> None:
        """Learn what a request has cost in relation to its maximum cost, before any raise."""
        if max_cost and cost and cost * self._excess[1] > max_cost * self._excess[0]:
            self._excess = (cost, max_cost)

    @property
    def remaining(self) -> int | None:
        """What can still be reserved; None without a limit."""
        return None if self.limit is None else self.limit - self.spent - self.reserved

    def reserve(self, max_cost: int | None) -> "Reservation":
        """Return a context manager that reserves the maximum cost of one exchange; None if nothing bounds it."""
        return Reservation(self, max_cost)

    async def acquire(self, max_cost: int | None) -> bool:
        """Reserve the amount, and wait while requests in flight may still give some back.

        Returns False if it cannot fit whatever they give back, or if a limit meets a request of unbounded cost.
        """
        if self.limit is None:
            self.reserved += max_cost or 0
            return True
        if max_cost is None:
            return False
        while self.limit is not None and self.spent + self.reserved + max_cost > self.limit:
            if self.reserved == 0 or self.spent + max_cost > self.limit:
                return False
            self._settled.clear()
            began = time.monotonic()
            await self._settled.wait()
            self.waited_seconds += time.monotonic() - began
        self.reserved += max_cost
        return True

    def set_limit(self, limit: int) -> None:
        """Replace the limit; requests that wait for money, or for more of it, see the new one."""
        self.limit = limit
        self._settled.set()

    def settle(self, max_cost: int | None, cost: int | None) -> None:
        """Release a reservation of `max_cost` and count the actual cost; None counts nothing."""
        self.reserved -= max_cost or 0
        self.spent += cost or 0
        self._settled.set()


class Reservation:
    """Money reserved for one exchange, by `async with budget.reserve(max_cost) as reservation`.

    A block that ends without `settle` releases the money if the request was not sent. After `mark_sent` it counts the
    maximum cost as spent, since the provider may have done and billed the work. Entering raises BudgetExhausted.
    """

    __slots__ = ("_budget", "_computed", "_is_kept", "_is_sent", "max_cost")

    def __init__(self, budget: RunBudget, max_cost: int | None) -> None:
        self._budget = budget
        self._computed = max_cost
        self.max_cost = budget.raised(max_cost)
        self._is_sent = False
        self._is_kept = False

    async def __aenter__(self) -> "Reservation":
        if not await self._budget.acquire(self.max_cost):
            raise BudgetExhausted
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._is_kept:
            self.settle(self.max_cost if self._is_sent else None)

    def change_to(self, max_cost: int | None) -> None:
        """Reserve another, lower amount instead."""
        self._computed, raised = max_cost, self._budget.raised(max_cost)
        reserved = raised if raised is None or self.max_cost is None else min(raised, self.max_cost)
        self._budget.settle((self.max_cost or 0) - (reserved or 0), None)
        self.max_cost = reserved

    def mark_sent(self) -> None:
        """Record that the request leaves: from now on its outcome may be unknown."""
        self._is_sent = True

    def keep_open(self) -> None:
        """Keep the reservation after the block ends, until somebody calls `settle`."""
        self._is_kept = True

    def settle(self, cost: int | None) -> None:
        """Release the reservation and count the actual cost; None counts nothing."""
        self._is_kept = True
        self._budget.record_excess(self._computed, cost)
        self._budget.settle(self.max_cost, cost)
