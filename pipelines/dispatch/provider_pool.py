"""Provider pools: several providers share a step's work, and each request goes to the least loaded one."""

import asyncio
from collections.abc import Sequence
from math import isinf

from msgspec import Struct, field

from connectors.records import Request, RowError
from pipelines.dispatch.request_types import Route
from pipelines.limits.token_bucket import wait_for_event

PAYMENT_SECONDS = 0.2
"""Time between two payments of a rate limit, which collects at most BURST_SECONDS."""


class ProviderPool(Struct):
    """The members that a step may ask: each is a route with its own limiter, price and number."""

    members: Sequence[Route]
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        for member in self.members:
            member.limiters[0].watchers.append(self._changed)

    @property
    def active_members(self) -> list[Route]:
        """The members that are not excluded."""
        return [member for member in self.members if member.limiters[0].excluded_reason is None]

    def max_cost(self, request: Request) -> int | None:
        """Return the most that the request can cost at any active member."""
        costs = [member.max_cost(request) for member in self.active_members or self.members]
        known = [cost for cost in costs if cost is not None]
        return max(known) if len(known) == len(costs) else None

    async def pick(self, avoid: Route | None) -> Route | None:
        """Return the least loaded member that may be asked now; None if all are excluded.

        `avoid`: the member that failed the request; another one is picked even if the request has to wait for its rate
        limit, unless that one is paused or full.
        """
        async with self._turn:
            while active := self.active_members:
                self._changed.clear()
                for member in active:
                    await member.limiters[0].pay_off()
                free = [member for member in active if member.limiters[0].delay <= 0]
                if free:
                    if others := [member for member in free if member is not avoid]:
                        return min(others, key=lambda member: member.limiters[0].load)
                    healthy = [member for member in active if member is not avoid and _has_turns(member)]
                    return min(healthy or free, key=lambda member: member.limiters[0].delay)
                seconds = min(member.limiters[0].delay for member in active)
                await wait_for_event(
                    self._changed, None if isinf(seconds) else min(max(seconds, 0.001), PAYMENT_SECONDS)
                )
            return None

    def exclude(self, member: Route, error: RowError) -> bool:
        """Ask this member nothing more; return whether others are left."""
        member.limiters[0].excluded_reason = f"{error.error_class}: {error.message}"
        self._changed.set()
        return bool(self.active_members)


def _has_turns(member: Route) -> bool:
    """Whether a request that waits at the member will be sent as soon as its rate limit permits."""
    limiter = member.limiters[0]
    return not limiter.is_paused and not isinf(limiter.delay)
