"""Pools: several providers that share a step's work, chosen by what each has left, left out where a key is denied."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isinf

from connectors.records import Request, RowError
from pipelines.dispatch.request_types import Lane
from pipelines.limits.token_bucket import until


@dataclass(slots=True)
class Pool:
    """The members that a step may ask, each a lane of its own with its allowance, price and leg."""

    members: Sequence[Lane]
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        for member in self.members:
            member.allowances[0].watchers.append(self._moved)

    @property
    def present(self) -> list[Lane]:
        """The members that are still asked."""
        return [member for member in self.members if member.allowances[0].left_out is None]

    def worst(self, request: Request) -> int | None:
        """The most that the request can cost at the dearest member that is still asked."""
        amounts = [member.worst(request) for member in self.present or self.members]
        known = [amount for amount in amounts if amount is not None]
        return max(known) if len(known) == len(amounts) else None

    async def pick(self, avoid: Lane | None) -> Lane | None:
        """The member that may be asked now and has most left; None where no member is left.

        `avoid`: the one that failed the request before: only where no other can be asked now.
        """
        async with self._turn:
            while present := self.present:
                self._moved.clear()
                free = [member for member in present if member.allowances[0].delay <= 0]
                if free:
                    others = [member for member in free if member is not avoid]
                    return min(others or free, key=_load)
                seconds = min(member.allowances[0].delay for member in present)
                await until(self._moved, None if isinf(seconds) else max(seconds, 0.001))
            return None

    def leave_out(self, member: Lane, error: RowError) -> bool:
        """Ask this member nothing more; whether others are left."""
        member.allowances[0].left_out = f"{error.error_class}: {error.message}"
        self._moved.set()
        return bool(self.present)


def _load(member: Lane) -> float:
    return member.allowances[0].load
