"""Routes, groups of requests and the sums over them."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from connectors.records import NO_USAGE, Request, Usage
from pipelines.dispatch.counters import RunCounters, StepCounters
from pipelines.dispatch.read_buffer import LARGE_ANSWER_BYTES
from pipelines.dispatch.request_types import (
    DailyBudget,
    Exchange,
    RequestGroup,
    expected_group_tokens,
    expected_output_tokens,
    total_cost,
)
from pipelines.ledger.entries import SettledExchange
from pipelines.pricing.run_budget import RunBudget
from tests.unit.dispatch.conftest import make_requests, make_route


def test_a_total_with_an_unknown_cost_is_unknown() -> None:
    assert (total_cost([1, 2]), total_cost([1, None]), total_cost([])) == (3, None, 0)


@pytest.mark.parametrize(("bound", "tokens"), [(None, 200.0), (50, 50.0), (500, 200.0)])
def test_an_answer_is_expected_to_be_as_long_as_recent_ones_within_its_bound(bound: int | None, tokens: float) -> None:
    assert expected_output_tokens(Request(b"f" * 16, b"", 0, bound, ("1",)), 200.0) == tokens


@pytest.mark.parametrize(("bounds", "tokens"), [((50, 50, 50), 150), ((None, None), 401), ((50, None, 500), 451)])
def test_the_answers_of_a_group_are_expected_to_be_as_long_as_all_of_them(
    bounds: tuple[int | None, ...], tokens: int
) -> None:
    requests = [Request(b"f" * 16, b"", 0, bound, ("1",)) for bound in bounds]
    assert expected_group_tokens(requests, 200.4) == tokens


def test_a_route_learns_how_long_answers_are_from_its_exchanges() -> None:
    counters, route = RunCounters(steps={"answer": StepCounters()}), make_route()
    settled = SettledExchange(1, 1, 1, b"[]", bytes(32), 0, usage=Usage(10, 0, 800), cost=5)
    route.record_exchange(counters, settled)
    assert route.mean_output_tokens == 200 + (400 - 200) / 20
    route.record_exchange(counters, SettledExchange(1, 1, 1, b"[]", bytes(16), 0, usage=NO_USAGE))
    assert route.mean_output_tokens == 210
    assert (counters.steps["answer"].exchanges, counters.cost) == (2, 5)


def test_the_halves_of_a_group_start_with_no_attempt_of_their_own() -> None:
    group = RequestGroup(make_route(), tuple(make_requests(5)), attempts=2, exchanges=3)
    first, second = group.halves()
    assert (first.requests, second.requests) == (group.requests[:2], group.requests[2:])
    assert [(half.attempts, half.exchanges) for half in (first, second)] == [(0, 3), (0, 3)]


@pytest.mark.parametrize(("size", "is_large"), [(LARGE_ANSWER_BYTES, False), (LARGE_ANSWER_BYTES + 1, True)])
def test_an_exchange_is_large_by_the_bytes_of_its_answers(size: int, is_large: bool) -> None:
    route = make_route()
    exchange = Exchange(RequestGroup(route, ()), route, 0, RunBudget(None, 0).reserve(0))
    assert not exchange.is_large
    exchange.settled = SettledExchange(1, 1, 1, b"[]", b"", 0, answers=((b"f", b"", bytes(size), None),))
    assert exchange.is_large == is_large


def test_the_day_of_a_budget_begins_in_its_time_zone() -> None:
    ahead = timezone(timedelta(hours=14))
    assert DailyBudget(0, ahead).today() in {
        (datetime.now(UTC) + timedelta(hours=14)).date().isoformat(),
        datetime.now(ahead).date().isoformat(),
    }
