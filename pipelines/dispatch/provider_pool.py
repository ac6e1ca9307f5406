"""Pools: several providers that share a step's work, chosen by what each has left, left out where a key is denied."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isinf

from connectors.records import Request, RowError
from pipelines.dispatch.request_types import Route
from pipelines.limits.token_bucket import wait_for_event


@dataclass(slots=True)
class ProviderPool:
    """The members that a step may ask, each a lane of its own with its allowance, price and leg."""

    members: Sequence[Route]
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        for member in self.members:
            member.limiters[0].watchers.append(self._moved)

    @property
    def active_members(self) -> list[Route]:
        """The members that are still asked."""
        return [member for member in self.members if member.limiters[0].excluded_reason is None]

    def max_cost(self, request: Request) -> int | None:
        """The most that the request can cost at the dearest member that is still asked."""
        amounts = [member.max_cost(request) for member in self.active_members or self.members]
        known = [amount for amount in amounts if amount is not None]
        return max(known) if len(known) == len(amounts) else None

    async def pick(self, avoid: Route | None) -> Route | None:
        """The member that may be asked now and has most left; None where no member is left.

        `avoid`: the one that failed the request before: only where no other can be asked now.
        """
        async with self._turn:
            while present := self.active_members:
                self._moved.clear()
                free = [member for member in present if member.limiters[0].delay <= 0]
                if free:
                    others = [member for member in free if member is not avoid]
                    return min(others or free, key=_load)
                seconds = min(member.limiters[0].delay for member in present)
                await wait_for_event(self._moved, None if isinf(seconds) else max(seconds, 0.001))
            return None

    def exclude(self, member: Route, error: RowError) -> bool:
        """Ask this member nothing more; whether others are left."""
        member.limiters[0].excluded_reason = f"{error.error_class}: {error.message}"
        self._moved.set()
        return bool(self.active_members)


def _load(member: Route) -> float:
    return member.limiters[0].load
