"""The online dispatcher with a real ledger: what is recorded when, what is retried, and what is not sent any more."""

import asyncio
from datetime import UTC
from typing import Any

import pytest

from connectors.records import Call, Reply, RowError
from connectors.transport.client import RequestError
from pipelines.dispatch.request_types import DailyBudget, RetryLimits
from pipelines.ledger.ledger import Ledger
from pipelines.pricing.run_budget import RunBudget
from tests.unit.dispatch.conftest import Dispatch, ScriptedTransport, make_requests, wait_for


class StoppingObserver:
    """An observer that stops the run as soon as an exchange is in the ledger."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch

    def record_wait(self, *arguments: object) -> None:
        """Nothing to do."""

    def record_exchange(self, *arguments: object) -> None:
        self._dispatch.dispatcher.stop("enough")

    def record_batch_stage(self, *arguments: object) -> None:
        """Nothing to do."""


def any_answer(answer: object) -> bool:
    return True


async def outcomes_of(dispatch: Dispatch, count: int) -> list[bytes | str | None]:
    """Send so many requests to their end; return the answer, or the class of the error, of each."""
    dispatch.dispatcher.start()
    submission = await dispatch.pending.submit(dispatch.route, make_requests(count), any_answer)
    await submission.done.wait()
    await dispatch.dispatcher.close(10)
    outcomes = [submission.outcomes[request.fingerprint] for request in make_requests(count)]
    return [one.answer if one.error is None else one.error.error_class for one in outcomes]


async def test_no_request_leaves_before_its_senders_last_answer_is_in_the_ledger(
    ledger: Ledger, transport: ScriptedTransport
) -> None:
    transport.is_released.set()
    assert await outcomes_of(Dispatch(ledger, transport, RunBudget(None, 0)), 5) == [b"answered"] * 5
    assert transport.entries == [(1, 0), (1, 1), (1, 2), (1, 3), (1, 4)]


async def test_outcomes_on_their_way_into_the_ledger_are_delivered_although_the_run_is_cancelled(
    ledger: Ledger, transport: ScriptedTransport
) -> None:
    dispatch = Dispatch(ledger, transport, RunBudget(None, 0), concurrency=3)
    dispatch.dispatcher.start()
    submission = await dispatch.pending.submit(dispatch.route, make_requests(3), any_answer)
    await wait_for(lambda: len(transport.sent) == 3)
    transport.is_released.set()
    # The senders have the replies now, and the ledger has not confirmed that it has the outcomes.
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(dispatch.dispatcher._recordings) == 3
    assert (dispatch.counters.in_flight, dispatch.counters.answered) == (3, 3)
    await dispatch.dispatcher.close(0)
    assert (dispatch.counters.in_flight, dispatch.counters.answered) == (0, 0)
    assert sorted(submission.outcomes) == [request.fingerprint for request in make_requests(3)]
    assert ledger.query("select count(*) from noted") == [(0,)]


async def test_a_request_that_waits_for_the_daily_budget_is_not_sent_after_the_run_has_stopped(
    ledger: Ledger, transport: ScriptedTransport
) -> None:
    dispatch = Dispatch(
        ledger, transport, RunBudget(None, 0), concurrency=2, daily_budget=DailyBudget(10, UTC), max_cost=10
    )
    refused: list[int] = []
    record_pending = ledger.record_pending

    def observed(pending: Any, day: Any = None) -> "asyncio.Future[bool]":
        recording = record_pending(pending, day)
        recording.add_done_callback(lambda done: None if done.result() else refused.append(pending.exchange_id))
        return recording

    ledger.record_pending = observed  # type: ignore[method-assign]
    dispatch.state.observer = StoppingObserver(dispatch)
    dispatch.dispatcher.start()
    await dispatch.pending.submit(dispatch.route, make_requests(2), any_answer)
    await wait_for(lambda: refused)
    transport.is_released.set()
    await wait_for(lambda: dispatch.state.stop_reason)
    await dispatch.dispatcher.close(10)
    assert transport.sent == [b"0"]
    assert dispatch.state.stop_reason == "enough"


async def test_a_request_that_waits_until_midnight_takes_from_the_budget_of_the_new_day(
    ledger: Ledger, transport: ScriptedTransport
) -> None:
    dates = ["2026-11-30"]

    class Calendar(DailyBudget):
        def today(self) -> str:
            return dates[-1]

    dispatch = Dispatch(
        ledger, transport, RunBudget(None, 0), concurrency=2, daily_budget=Calendar(10, UTC), max_cost=10, tokens=1000
    )
    dispatch.dispatcher.start()
    submission = await dispatch.pending.submit(dispatch.route, make_requests(2), any_answer)
    await wait_for(lambda: len(transport.sent) == 1)
    dates.append("2026-12-01")
    transport.is_released.set()
    await submission.done.wait()
    await dispatch.dispatcher.close(10)
    assert (len(submission.outcomes), dispatch.state.stop_reason) == (2, "finished")
    assert {day for (day,) in ledger.query("select day from days")} == set(dates)


async def test_what_is_recorded_while_the_run_stops_is_not_sent_and_costs_nothing(
    ledger: Ledger, transport: ScriptedTransport
) -> None:
    transport.is_released.set()
    dispatch = Dispatch(ledger, transport, RunBudget(None, 0), daily_budget=DailyBudget(100, UTC), max_cost=10)
    dispatch.state.observer = StoppingObserver(dispatch)
    dispatch.dispatcher.start()
    submission = await dispatch.pending.submit(dispatch.route, make_requests(3), any_answer)
    await wait_for(lambda: dispatch.state.stop_reason)
    await dispatch.dispatcher.close(10)
    assert transport.sent == [b"0"]
    assert len(submission.outcomes) == 1
    assert ledger.query("select count(*) from noted") == [(0,)]
    assert ledger.query("select spent from days") == [(0,)]


async def test_a_ledger_that_cannot_be_written_ends_the_run(ledger: Ledger, transport: ScriptedTransport) -> None:
    dispatch = Dispatch(ledger, transport, RunBudget(None, 0), concurrency=2)
    dispatch.dispatcher.start()
    submission = await dispatch.pending.submit(dispatch.route, make_requests(4), any_answer)
    await wait_for(lambda: len(transport.sent) == 2)
    ledger.write("drop table exchanges")
    transport.is_released.set()
    await submission.done.wait()
    await dispatch.dispatcher.close(10)
    assert submission.outcomes == {}
    assert "no such table: exchanges" in str(dispatch.state.failure)
    assert dispatch.state.stop_reason == "OperationalError: no such table: exchanges"


async def test_a_cancelled_exchange_counts_as_spent_at_its_maximum_cost(
    ledger: Ledger, transport: ScriptedTransport
) -> None:
    dispatch = Dispatch(ledger, transport, RunBudget(100, 0), max_cost=40)
    dispatch.dispatcher.start()
    await dispatch.pending.submit(dispatch.route, make_requests(1), any_answer)
    await wait_for(lambda: transport.sent)
    await dispatch.dispatcher.close(0)
    assert (dispatch.budget.spent, dispatch.budget.reserved) == (40, 0)
    assert ledger.query("select error_class, cost from exchanges") == [("unknown", 40)]
    assert dispatch.counters.in_flight == 0


async def test_a_request_that_the_budget_cannot_cover_stops_the_run_unsent(
    ledger: Ledger, transport: ScriptedTransport
) -> None:
    dispatch = Dispatch(ledger, transport, RunBudget(100, 70), max_cost=40)
    dispatch.dispatcher.start()
    submission = await dispatch.pending.submit(dispatch.route, make_requests(1), any_answer)
    await submission.done.wait()
    await dispatch.dispatcher.close(10)
    assert (dispatch.state.stop_reason, transport.sent, submission.outcomes) == ("budget", [], {})
    assert (dispatch.budget.spent, dispatch.budget.reserved) == (70, 0)


@pytest.mark.parametrize("group_size", [1, 8], ids=["alone", "shared"])
async def test_requests_that_share_an_exchange_are_divided_before_the_budget_stops_the_run(
    ledger: Ledger, transport: ScriptedTransport, group_size: int
) -> None:
    dispatch = Dispatch(ledger, transport, RunBudget(100, 70), max_cost=10, group_size=group_size, tokens=10)
    transport.is_released.set()
    dispatch.dispatcher.start()
    submission = await dispatch.pending.submit(dispatch.route, make_requests(8), any_answer)
    await submission.done.wait()
    await dispatch.dispatcher.close(10)
    assert (dispatch.state.stop_reason, dispatch.budget.reserved) == ("budget", 0)
    assert len(submission.outcomes) == 3


@pytest.mark.parametrize("daily", [False, True], ids=["job", "day"])
async def test_after_a_reply_above_its_reservation_only_what_is_in_flight_can_exceed_the_budget(
    ledger: Ledger, transport: ScriptedTransport, daily: bool
) -> None:
    """Each costs five times its maximum, as from a server that ignores `max_tokens`."""
    budget = RunBudget(None if daily else 200, 0, daily)
    day = DailyBudget(200, UTC) if daily else None
    dispatch = Dispatch(ledger, transport, budget, concurrency=3, daily_budget=day, max_cost=10, tokens=50)
    dispatch.dispatcher.start()
    submission = await dispatch.pending.submit(dispatch.route, make_requests(20), any_answer)
    await wait_for(lambda: len(transport.sent) == 3)
    transport.is_released.set()
    await submission.done.wait()
    await dispatch.dispatcher.close(10)
    assert dispatch.state.stop_reason == ("budget_day" if daily else "budget")
    # Three were in flight at the first reply, by which one more was known to fit.
    assert (len(transport.sent), budget.spent) == (4, 200)


async def test_a_transient_error_is_retried_and_uses_an_attempt(ledger: Ledger) -> None:
    replies = iter([Reply(503, {}, b"", 1.0), Reply(200, {}, b"answered", 1.0)])
    transport = ScriptedTransport(ledger, lambda call: next(replies))
    transport.is_released.set()
    dispatch = Dispatch(ledger, transport, RunBudget(None, 0))
    assert await outcomes_of(dispatch, 1) == [b"answered"]
    assert (dispatch.counters.requests, dispatch.counters.retries) == (2, 1)
    assert ledger.query("select attempt, http_status from exchanges order by seq") == [(1, 503), (2, 200)]


async def test_a_request_fails_after_its_last_attempt(ledger: Ledger) -> None:
    transport = ScriptedTransport(ledger, lambda call: RequestError("timeout", "no reply", 1.0, True))
    transport.is_released.set()
    dispatch = Dispatch(ledger, transport, RunBudget(None, 0), RetryLimits(attempts=3, first_wait=0.001))
    assert await outcomes_of(dispatch, 1) == ["timeout"]
    assert len(transport.sent) == 3


async def test_a_group_with_one_refused_request_is_halved_until_that_request_is_alone(ledger: Ledger) -> None:
    def reply(call: Call) -> Reply:
        is_refused = b"5" in (call.body or b"").split(b",")
        return Reply(400, {}, b"{}", 1.0) if is_refused else Reply(200, {}, b"answered", 1.0)

    transport = ScriptedTransport(ledger, reply)
    transport.is_released.set()
    dispatch = Dispatch(ledger, transport, RunBudget(None, 0), group_size=8)
    results = await outcomes_of(dispatch, 8)
    assert results == [b"answered"] * 5 + ["bad_request"] + [b"answered"] * 2
    assert transport.sent == [b"0,1,2,3,4,5,6,7", b"0,1,2,3", b"4,5,6,7", b"4,5", b"6,7", b"4", b"5"]


@pytest.mark.parametrize(("status", "error_class"), [(401, "access_denied"), (403, "access_denied")])
async def test_a_denied_key_stops_the_run(ledger: Ledger, status: int, error_class: str) -> None:
    transport = ScriptedTransport(ledger, lambda call: Reply(status, {}, b"{}", 1.0))
    transport.is_released.set()
    dispatch = Dispatch(ledger, transport, RunBudget(None, 0))
    dispatch.dispatcher.start()
    submission = await dispatch.pending.submit(dispatch.route, make_requests(2), any_answer)
    await submission.done.wait()
    await dispatch.dispatcher.close(10)
    assert (dispatch.state.stop_reason or "").startswith(f"{error_class}: test says: ")
    assert len(transport.sent) == 1


async def test_a_row_whose_file_has_disappeared_fails_without_an_exchange(
    ledger: Ledger, transport: ScriptedTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport.is_released.set()
    dispatch = Dispatch(ledger, transport, RunBudget(None, 0))

    def missing(group: object) -> Call:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(dispatch.route.endpoint, "call", missing)
    dispatch.dispatcher.start()
    submission = await dispatch.pending.submit(dispatch.route, make_requests(1), any_answer)
    await submission.done.wait()
    await dispatch.dispatcher.close(10)
    (outcome,) = submission.outcomes.values()
    message = "a file of this row cannot be read any more: No such file or directory"
    assert outcome.error == RowError("input", message)
    assert transport.sent == []


async def test_while_the_run_is_paused_nothing_is_sent_and_what_is_in_flight_lands(
    ledger: Ledger, transport: ScriptedTransport
) -> None:
    dispatch = Dispatch(ledger, transport, RunBudget(None, 0), concurrency=2)
    dispatch.dispatcher.start()
    submission = await dispatch.pending.submit(dispatch.route, make_requests(6), any_answer)
    await wait_for(lambda: len(transport.sent) == 2)
    dispatch.state.pause()
    transport.is_released.set()
    await wait_for(lambda: len(submission.outcomes) == 2)
    await asyncio.sleep(0.05)
    assert (transport.sent, dispatch.counters.in_flight, dispatch.route.limiters[0].in_flight) == ([b"0", b"1"], 0, 0)
    dispatch.state.resume()
    await submission.done.wait()
    assert sorted(transport.sent) == [b"0", b"1", b"2", b"3", b"4", b"5"]
    await dispatch.dispatcher.close(10)


async def test_a_request_that_waits_for_its_permit_when_the_pause_begins_is_sent_after_it(
    ledger: Ledger, transport: ScriptedTransport
) -> None:
    transport.is_released.set()
    dispatch = Dispatch(ledger, transport, RunBudget(None, 0), concurrency=3)
    limiter = dispatch.route.limiters[0]
    limiter.set_share(1.0, 1.0, 0)
    dispatch.dispatcher.start()
    submission = await dispatch.pending.submit(dispatch.route, make_requests(3), any_answer)
    await wait_for(lambda: dispatch.route.limiters[1].in_flight == 3)
    dispatch.state.pause()
    limiter.set_share(1.0, 1.0, None)
    await wait_for(lambda: dispatch.route.limiters[1].in_flight == 0)
    assert (transport.sent, limiter.in_flight, limiter.requests.used) == ([], 0, 0.0)
    dispatch.state.resume()
    await submission.done.wait()
    assert sorted(transport.sent) == [b"0", b"1", b"2"]
    await dispatch.dispatcher.close(10)


async def test_a_stop_ends_a_pause_and_leaves_what_was_not_sent(ledger: Ledger, transport: ScriptedTransport) -> None:
    dispatch = Dispatch(ledger, transport, RunBudget(None, 0), concurrency=2)
    dispatch.state.pause()
    dispatch.dispatcher.start()
    submission = await dispatch.pending.submit(dispatch.route, make_requests(4), any_answer)
    await asyncio.sleep(0.01)
    dispatch.dispatcher.stop("drained")
    await submission.done.wait()
    await dispatch.dispatcher.close(10)
    assert (transport.sent, submission.outcomes, ledger.query("select * from noted")) == ([], {}, [])


async def test_a_budget_that_is_short_during_a_pause_may_be_raised_before_the_run_goes_on(
    ledger: Ledger, transport: ScriptedTransport
) -> None:
    budget = RunBudget(10, 0)
    dispatch = Dispatch(ledger, transport, budget, concurrency=2, max_cost=8)
    dispatch.dispatcher.start()
    submission = await dispatch.pending.submit(dispatch.route, make_requests(2), any_answer)
    await wait_for(lambda: len(transport.sent) == 1)
    dispatch.state.pause()
    budget.spent += 5
    transport.is_released.set()
    await wait_for(lambda: len(submission.outcomes) == 1)
    await asyncio.sleep(0.02)
    assert dispatch.state.stop_reason is None
    budget.set_limit(100)
    dispatch.state.resume()
    await submission.done.wait()
    assert len(transport.sent) == 2
    await dispatch.dispatcher.close(10)


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (4, 2), (2, 2)])
async def test_a_changed_concurrency_counts_from_the_next_request_on(
    ledger: Ledger, transport: ScriptedTransport, monkeypatch: pytest.MonkeyPatch, before: int, after: int
) -> None:
    dispatch = Dispatch(ledger, transport, RunBudget(None, 0), concurrency=before)
    dispatch.dispatcher.start()
    submission = await dispatch.pending.submit(dispatch.route, make_requests(12), any_answer)
    await wait_for(lambda: len(transport.sent) == before)
    dispatch.dispatcher.set_concurrency(after)
    in_flight = list[int]()

    def answer(call: object) -> Reply:
        in_flight.append(len(transport.sent) - len(in_flight))
        return Reply(200, {}, b"answered", 1.0)

    monkeypatch.setattr(transport, "_reply", answer)
    if after > before:
        await wait_for(lambda: len(transport.sent) == after)
    transport.is_released.set()
    await submission.done.wait()
    assert sorted(transport.sent) == sorted(b"%d" % number for number in range(12))
    assert max(in_flight[max(before, after) :]) <= after
    await dispatch.dispatcher.close(10)
