"""The table of pending requests: submissions, equal requests, requests in parts, and the end of a run."""

import asyncio

import pytest

from connectors.records import RowError
from pipelines.dispatch.counters import RunCounters, StepCounters
from pipelines.dispatch.dispatch_state import DispatchState
from pipelines.dispatch.pending_requests import PendingRequests, Submission
from pipelines.dispatch.read_buffer import ReadBuffer
from pipelines.dispatch.request_types import Outcome, RequestGroup
from pipelines.ledger.ledger import Ledger
from tests.unit.dispatch.conftest import make_requests, make_route, wait_for, with_parts


def any_answer(fingerprint: bytes, answer: object) -> bool:
    return True


def outcome_of(answer: bytes) -> Outcome:
    return Outcome(answer, None, 1, "run", 17, was_sent=True)


@pytest.fixture
def groups() -> list[RequestGroup]:
    return []


@pytest.fixture
def pending(ledger: Ledger, groups: list[RequestGroup]) -> PendingRequests:
    table = PendingRequests(ledger, RunCounters(steps={"answer": StepCounters()}), DispatchState(), "run", 0.5)
    table.enqueue = groups.append
    return table


async def test_equal_requests_are_sent_once_and_resolved_for_all(
    pending: PendingRequests, groups: list[RequestGroup]
) -> None:
    route, (request, other) = make_route(), make_requests(2)
    first = await pending.submit(route, [request], any_answer)
    second = await pending.submit(route, [request, other], any_answer)
    assert [group.requests for group in groups] == [(request,), (other,)]
    # A row that waits for another one's answer has none yet.
    assert pending.counters.steps["answer"].skipped == 0
    for group in groups:
        pending.resolve(group, [b"yes"])
    assert first.outcomes[request.fingerprint] is second.outcomes[request.fingerprint]
    assert (first.done.is_set(), second.done.is_set()) == (True, True)
    step = pending.counters.steps["answer"]
    assert (step.asked, step.skipped, step.answered) == (2, 1, 2)


async def test_rows_that_are_submitted_again_while_they_wait_are_counted_once(
    pending: PendingRequests, groups: list[RequestGroup], ledger: Ledger
) -> None:
    route, (request, stored) = make_route(), make_requests(2)
    route_id = ledger.register_route("earlier", "job", "answer", "test", "chat", "m")
    first = await pending.submit(route, [request, stored], any_answer)
    first.is_abandoned = True
    await ledger.store_answer(stored.fingerprint, route_id, b"1", b"stored")
    pending.resolve(groups[0].halves()[1] if len(groups) == 1 else groups[1], [b"stored"])
    await pending.submit(route, [request, stored], any_answer, is_first=False)
    step = pending.counters.steps["answer"]
    assert (step.asked, step.skipped, step.answered) == (2, 0, 1)


async def test_a_request_that_fails_before_it_is_submitted_again_is_not_sent_again(
    pending: PendingRequests, groups: list[RequestGroup]
) -> None:
    route, (request, other) = make_route(), make_requests(2)
    for one in (request, other):
        first = await pending.submit(route, [one], any_answer)
        first.is_abandoned = True
        pending.expect_again(first.pending)
    pending.resolve_with_error(groups[0], RowError("timeout", "slow"))
    again = await pending.submit(route, [request, other], any_answer, is_first=False)
    assert {key: outcome.error for key, outcome in again.outcomes.items()} == {
        request.fingerprint: RowError("timeout", "slow")
    }
    pending.resolve(groups[1], [b"yes"])
    assert (again.outcomes[other.fingerprint].answer, again.done.is_set()) == (b"yes", True)
    assert [group.requests for group in groups] == [(request,), (other,)]
    # The error is not that of a row that comes later.
    await pending.submit(route, [request], any_answer)
    assert len(groups) == 3


async def test_a_stored_answer_is_used_if_the_caller_finds_it_usable(
    pending: PendingRequests, groups: list[RequestGroup], ledger: Ledger
) -> None:
    route_id = ledger.register_route("earlier", "job", "answer", "test", "chat", "m")
    (request,) = make_requests(1)
    await ledger.store_answer(request.fingerprint, route_id, b"0", b"stored")
    submission = await pending.submit(make_route(), [request], any_answer)
    (outcome,) = submission.outcomes.values()
    assert (outcome.answer, outcome.was_sent, pending.is_from_this_run(outcome)) == (b"stored", False, False)
    assert groups == []
    await pending.submit(make_route(), [request], lambda fingerprint, answer: False)
    assert [group.requests for group in groups] == [(request,)]


async def test_the_parts_of_a_request_are_sent_alone_and_their_answers_stored_together(
    pending: PendingRequests, groups: list[RequestGroup], ledger: Ledger
) -> None:
    whole, *parts = make_requests(3)
    route_id = ledger.register_route("run", "job", "answer", "test", "chat", "m")
    submission = await pending.submit(make_route(route_id), [with_parts(whole, parts)], any_answer)
    await wait_for(lambda: len(groups) == 2)
    for group, answer in zip(groups, (b"a", b"b"), strict=True):
        pending.resolve(group, [answer])
    await submission.done.wait()
    assert submission.outcomes[whole.fingerprint].answer == b"a+b"
    assert ledger.lookup([whole.fingerprint])[whole.fingerprint].reply == b"a+b"


async def test_a_request_fails_with_the_first_error_of_its_parts(
    pending: PendingRequests, groups: list[RequestGroup]
) -> None:
    whole, *parts = make_requests(3)
    submission = await pending.submit(make_route(), [with_parts(whole, parts)], any_answer)
    await wait_for(lambda: len(groups) == 2)
    pending.resolve(groups[0], [b"a"])
    pending.resolve_with_error(groups[1], RowError("bad_request", "too long"))
    await submission.done.wait()
    assert submission.outcomes[whole.fingerprint].error == RowError("bad_request", "too long")


async def test_requests_that_another_process_claims_are_not_sent(
    pending: PendingRequests, groups: list[RequestGroup]
) -> None:
    mine, other = make_requests(2)
    pending.claim = lambda route, requests, is_usable: [mine]
    submission = await pending.submit(make_route(), [mine, other], any_answer)
    assert [group.requests for group in groups] == [(mine,)]
    assert submission.pending == {mine.fingerprint, other.fingerprint}


async def test_after_a_stop_submissions_end_once_nothing_can_resolve_them(pending: PendingRequests) -> None:
    submission = await pending.submit(make_route(), make_requests(1), any_answer)
    pending.counters.in_flight, pending.open_batches = 1, 1
    pending.state.stop("interrupted")
    assert not submission.done.is_set()
    pending.counters.in_flight = 0
    pending.end_abandoned()
    assert not submission.done.is_set()
    pending.open_batches = 0
    pending.end_abandoned()
    assert (submission.done.is_set(), submission.outcomes, len(submission.pending)) == (True, {}, 1)


async def test_an_empty_submission_is_done_at_once(pending: PendingRequests) -> None:
    assert (await pending.submit(make_route(), [], any_answer)).done.is_set()


async def test_too_many_failed_rows_stop_the_run(pending: PendingRequests) -> None:
    pending.record_settled(100, failed=51)
    assert pending.state.stop_reason == "failed_share: 51 of 100 rows failed, more than limits.failed_share 0.5 allows"


async def test_everyone_is_informed_of_a_resolved_request(pending: PendingRequests, groups: list[RequestGroup]) -> None:
    resolved: list[bytes] = []
    pending.on_resolved = resolved.append
    (request,) = make_requests(1)
    await pending.submit(make_route(), [request], any_answer)
    assert request.fingerprint in pending
    pending.resolve(groups[0], [b"yes"])
    assert (resolved, request.fingerprint in pending) == ([request.fingerprint], False)


def test_large_answers_are_ready_before_the_submission_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.dispatch.pending_requests.EARLY_READ_BYTES", 10)
    buffer = ReadBuffer()
    submission = Submission({b"a", b"b", b"c"}, buffer)
    submission.resolve(b"a", outcome_of(b"123"))
    assert (submission.ready.is_set(), buffer.nbytes) == (False, 0)
    submission.resolve(b"b", outcome_of(b"1234567"))
    assert (submission.ready.is_set(), submission.done.is_set(), buffer.nbytes) == (True, False, 10)
    outcomes, nbytes = submission.drain()
    assert (sorted(outcomes), nbytes, submission.ready.is_set()) == ([b"a", b"b"], 10, False)
    submission.resolve(b"c", outcome_of(b"1"))
    assert (submission.ready.is_set(), submission.done.is_set(), buffer.nbytes) == (True, True, 11)


def test_an_abandoned_submission_takes_no_more_outcomes() -> None:
    submission = Submission({b"a"}, ReadBuffer(), is_abandoned=True)
    submission.resolve(b"a", outcome_of(b"123"))
    assert (submission.outcomes, submission.pending) == ({}, {b"a"})


async def test_a_part_task_that_fails_stops_the_run(
    pending: PendingRequests, groups: list[RequestGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> bytes:
        raise ValueError("a defect")

    route = make_route()
    monkeypatch.setattr(route.endpoint, "merge_parts", broken)
    whole, part = make_requests(2)
    await pending.submit(route, [with_parts(whole, [part])], any_answer)
    await wait_for(lambda: groups)
    pending.resolve(groups[0], [b"a"])
    await wait_for(lambda: pending.state.stop_reason)
    await asyncio.sleep(0)
    assert pending.state.stop_reason == "ValueError: a defect"
