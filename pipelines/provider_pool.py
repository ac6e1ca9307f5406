"""A pool as the rest of the house sees it: one provider, whose limits are those of its members together."""

from collections.abc import Sequence
from dataclasses import replace

from connectors.contracts import Provider


def as_one(name: str, members: Sequence[Provider]) -> Provider:
    """The provider that stands for the pool; its name, not its members', is part of a request's fingerprint."""
    return replace(
        members[0],
        name=name,
        api_key=None,
        requests_per_minute=_together([member.requests_per_minute for member in members]),
        tokens_per_minute=_together([member.tokens_per_minute for member in members]),
        concurrency=_together([member.concurrency for member in members]),
        prices={},
        on_this_machine=all(member.on_this_machine for member in members),
    )


def _together(limits: Sequence[int | None]) -> int | None:
    known = [limit for limit in limits if limit is not None]
    return sum(known) if len(known) == len(limits) else None
