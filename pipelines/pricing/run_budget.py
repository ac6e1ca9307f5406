"""The budget of one run: each request reserves its maximum cost before it is sent, and settles its actual cost after.

All amounts are pico-dollars.
"""

import asyncio
import time
from types import TracebackType


class BudgetExhausted(Exception):
    """A budget cannot cover a request, whatever the requests in flight give back."""

    def __init__(self, name: str = "budget") -> None:
        """`name`: of the budget, as the reason to stop has it."""
        super().__init__(name)
        self.name = name


class RunBudget:
    """The money of one run. With `limit` None every request fits, and all costs are counted."""

    def __init__(self, limit: int | None, spent: int, has_daily_limit: bool = False) -> None:
        """Make the budget.

        Args:
            limit: None: every request fits.
            spent: by earlier invocations of the same run, requests of unknown outcome at their maximum cost.
            has_daily_limit: whether a daily budget limits the run as well.
        """
        self.limit = limit
        self.spent = spent
        self.reserved = 0
        """For the requests in flight, as their maximum costs were computed; `raised` says what they may cost."""
        self._has_daily_limit = has_daily_limit
        self.waited_seconds = 0.0
        """Time that requests waited for money to come back, added up over all of them."""
        self._settled = asyncio.Event()
        self._excess = (1, 1)
        """(cost, maximum cost) of the request that cost most in relation to what was reserved for it."""

    def raised(self, max_cost: int | None) -> int | None:
        """Return the maximum cost of a request, raised if an earlier one has cost more than its own; None: unbounded.

        Some servers ignore `max_tokens`, or count tokens that cannot be known before.
        """
        if max_cost is None or not self._is_limited:
            return max_cost
        cost, maximum = self._excess
        return -(-max_cost * cost // maximum)

    @property
    def is_raised(self) -> bool:
        """Whether a request has cost more than was reserved for it, so that all others may."""
        return self._excess != (1, 1)

    @property
    def _is_limited(self) -> bool:
        return self.limit is not None or self._has_daily_limit

    def record_excess(self, max_cost: int | None, cost: int | None) -> bool:
        """Learn what a request has cost in relation to its maximum cost, before any raise.

        Returns whether more is reserved from now on.
        """
        if not max_cost or not cost or cost * self._excess[1] <= max_cost * self._excess[0]:
            return False
        self._excess = (cost, max_cost)
        return self._is_limited

    @property
    def remaining(self) -> int | None:
        """What may still be spent; None without a limit."""
        return None if self.limit is None else self.limit - self._committed()

    @property
    def is_overdrawn(self) -> bool:
        """Whether what is spent and reserved is more than the limit, which was lowered, or a request has cost more."""
        return self.limit is not None and self._committed() > self.limit

    def _committed(self, max_cost: int = 0) -> int:
        """Return what is spent if every reserved request, and one more, costs as much as it may."""
        return self.spent + (self.raised(self.reserved + max_cost) or 0)

    def fits(self, max_cost: int | None) -> bool:
        """Return whether a request may be sent at once."""
        return self.limit is None or (max_cost is not None and self._committed(max_cost) <= self.limit)

    def reserve(self, max_cost: int | None) -> "Reservation":
        """Return a context manager that reserves the maximum cost of one exchange; None if nothing bounds it."""
        return Reservation(self, max_cost)

    async def acquire(self, max_cost: int | None) -> bool:
        """Reserve the amount, and wait while requests in flight may still give some back.

        Returns False if it cannot fit whatever they give back, or if a limit meets a request of unbounded cost.
        """
        while self.limit is not None and not self.fits(max_cost):
            if max_cost is None or self.reserved == 0 or self.spent + (self.raised(max_cost) or 0) > self.limit:
                return False
            self._settled.clear()
            began = time.monotonic()
            await self._settled.wait()
            self.waited_seconds += time.monotonic() - began
        self.reserved += max_cost or 0
        return True

    def set_limit(self, limit: int) -> None:
        """Replace the limit; requests that wait for money, or for more of it, see the new one."""
        self.limit = limit
        self._settled.set()

    def settle(self, max_cost: int | None, cost: int | None) -> None:
        """Release a reservation of `max_cost` and count the actual cost; None counts nothing."""
        self.record_excess(max_cost, cost)
        self.reserved -= max_cost or 0
        self.spent += cost or 0
        self._settled.set()


class Reservation:
    """Money reserved for one exchange, by `async with budget.reserve(max_cost) as reservation`.

    A block that ends without `settle` releases the money if the request was not sent. After `mark_sent` it counts the
    maximum cost as spent, since the provider may have done and billed the work. Entering raises BudgetExhausted.
    """

    __slots__ = ("_budget", "_computed", "_is_kept", "_is_sent")

    def __init__(self, budget: RunBudget, max_cost: int | None) -> None:
        self._budget = budget
        self._computed = max_cost
        self._is_sent = False
        self._is_kept = False

    @property
    def max_cost(self) -> int | None:
        """The most that the exchange may cost, by what is known of earlier ones."""
        return self._budget.raised(self._computed)

    async def __aenter__(self) -> "Reservation":
        if not await self._budget.acquire(self._computed):
            raise BudgetExhausted
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._is_kept:
            self.settle(self.max_cost if self._is_sent else None)

    def change_to(self, max_cost: int | None) -> None:
        """Reserve another, lower amount instead."""
        if max_cost is not None and self._computed is not None:
            max_cost = min(max_cost, self._computed)
        self._budget.settle((self._computed or 0) - (max_cost or 0), None)
        self._computed = max_cost

    def mark_sent(self) -> None:
        """Record that the request leaves: from now on its outcome may be unknown."""
        self._is_sent = True

    def record_cost(self, cost: int | None) -> bool:
        """Learn what the exchange has cost, before it is settled; return whether more is reserved from now on."""
        return self._budget.record_excess(self._computed, cost)

    def keep_open(self) -> None:
        """Keep the reservation after the block ends, until somebody calls `settle`."""
        self._is_kept = True

    def settle(self, cost: int | None) -> None:
        """Release the reservation and count the actual cost; None counts nothing."""
        self._is_kept = True
        self._budget.settle(self._computed, cost)
