"""Group limits: which groups wait, which are sent in parts, and what a run learns from refusals."""

from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from connectors.contracts import BaseEndpoint
from connectors.records import Request, RowError
from pipelines.limits.group_limits import GroupLimits


@dataclass(eq=False)
class Group:
    """Requests that share an exchange."""

    requests: tuple[Request, ...]


class Endpoint(BaseEndpoint):
    """Reads a limit from the message; has no simpler encoding."""

    def group_limit(self, problem: RowError, size: int) -> int | None:
        return int(problem.message) if problem.message.isdigit() else None


class Stored:
    """What was written to the ledger."""

    def __init__(self) -> None:
        self.writes: list[tuple[int | None, str | None]] = []

    async def store(self, max_requests: int | None, encoding: str | None) -> None:
        self.writes.append((max_requests, encoding))

    def run(self, write: Coroutine[Any, Any, None] | None) -> None:
        if write is not None:
            try:
                write.send(None)
            except StopIteration:
                return


def group(size: int, start: int = 0) -> Group:
    return Group(tuple(Request(bytes([n]) * 16, b"", 1, 0) for n in range(start, start + size)))


def terms(stored: Stored) -> GroupLimits[Group]:
    endpoint: Any = Endpoint()
    return GroupLimits(endpoint, None, None, stored.store)


def refused(message: str) -> RowError:
    return RowError("bad_request", message, 400)


def test_larger_groups_wait_for_the_first_and_smaller_ones_do_not() -> None:
    them = terms(Stored())
    first, second, third = group(4), group(4, 4), group(8, 8)
    assert (them.begin(first), them.begin(second), them.begin(third)) == (True, False, False)
    assert them.record_accepted(first) is None
    assert them.end(first) == [second, third]
    assert (them.begin(second), them.begin(third), them.begin(group(9, 16))) == (True, True, False)


def test_a_first_group_without_a_reply_lets_the_next_one_go() -> None:
    them = terms(Stored())
    first, second = group(4), group(4, 4)
    assert (them.begin(first), them.begin(second)) == (True, False)
    assert them.end(first) == [second]
    assert them.begin(second)


def test_a_stated_limit_is_stored_and_groups_are_sent_in_parts() -> None:
    stored = Stored()
    them = terms(stored)
    first = group(10)
    assert them.begin(first)
    is_again, write = them.record_refused(first, refused("4"))
    stored.run(write)
    assert (is_again, stored.writes) == (True, [(4, None)])
    assert [len(part) for part in them.parts(first.requests)] == [4, 4, 2]


def test_a_limit_that_no_refusal_states_is_stored_once_all_requests_are_accepted() -> None:
    stored = Stored()
    them = terms(stored)
    first = group(8)
    assert them.begin(first)
    assert them.record_refused(first, refused("no")) == (True, None)
    halves = [Group(part) for part in them.parts(first.requests)]
    assert [len(half.requests) for half in halves] == [4, 4]
    assert them.record_accepted(halves[0]) is None
    stored.run(them.record_accepted(halves[1]))
    assert (stored.writes, them.max_requests) == ([(4, None)], 4)


def test_a_single_refused_request_lifts_the_limit_that_it_has_caused() -> None:
    stored = Stored()
    them = terms(stored)
    first = group(2)
    assert them.begin(first)
    assert them.record_refused(first, refused("no")) == (True, None)
    good, bad = (Group(part) for part in them.parts(first.requests))
    assert them.record_accepted(good) is None
    assert them.record_refused(bad, refused("no")) == (False, None)
    assert (them.parts(group(8).requests), stored.writes) == ((group(8).requests,), [])


def test_a_group_that_is_replaced_by_its_parts_holds_nobody_up() -> None:
    them = terms(Stored())
    first, second = group(8), group(8, 8)
    assert (them.begin(first), them.begin(second)) == (True, False)
    assert them.record_refused(first, refused("no")) == (True, None)
    assert them.end_split(first) == [second]
