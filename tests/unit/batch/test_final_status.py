"""How a batch ended: other names of states, refusals of all lines or of one, lines that may have been billed."""

from typing import Any

import pytest

from connectors.records import Reply, RowError
from pipelines.batch.files import ResultLine
from pipelines.batch.final_status import LOST, Refusals, completed_lines, missing_answer, status_of, token_limit
from pipelines.batch.settler import ResultReading

OK = Reply(200, {}, b"{}", 0.0)


def failed(*errors: dict[str, Any]) -> dict[str, Any]:
    return {"id": "batch_1", "status": "failed", "errors": {"data": list(errors)}}


@pytest.mark.parametrize(
    ("stated", "status"),
    [
        ("completed", "completed"),
        ("canceled", "cancelled"),
        ("CANCELLED", "cancelled"),
        ("JOB_STATE_SUCCEEDED", "completed"),
        ("SUCCESS", "completed"),
        ("TIMEOUT_EXCEEDED", "expired"),
        ("in_progress", "in_progress"),
        ("queued", "queued"),
        (None, None),
        (7, None),
    ],
)
def test_final_states_have_one_name(stated: object, status: str | None) -> None:
    assert status_of({"status": stated}) == status


@pytest.mark.parametrize(
    ("counts", "lines"), [({"completed": 3}, 3), ({"completed": "3"}, 3), ({"completed": None}, 0), (None, 0), ([], 0)]
)
def test_odd_counts_are_ignored(counts: object, lines: int) -> None:
    assert completed_lines({"request_counts": counts}) == lines


@pytest.mark.parametrize(
    ("error", "is_whole"),
    [
        ({"code": "model_not_found", "message": "m", "param": "body.model", "line": 1}, True),
        ({"code": "mismatched_model", "message": "All requests must have one model.", "line": 2}, True),
        ({"code": "unknown_parameter", "message": "m", "param": "body.reasoning.effort", "line": 1}, True),
        ({"code": "empty_file", "message": "m", "line": None}, True),
        ({"code": "insufficient_quota", "message": "m", "line": 1}, True),
        ({"code": "invalid_type", "message": "m", "param": "body.messages[0].content", "line": 1}, False),
        ({"code": "context_length_exceeded", "message": "too many tokens", "param": "body.input", "line": 1}, False),
        ({"code": "invalid_json_line", "message": "This line is not JSON.", "line": 1}, False),
        ({"code": "server_error", "message": "m", "line": None}, False),
        ({"code": "internal_error", "message": "m"}, False),
    ],
)
def test_a_refusal_concerns_all_lines_or_one(error: dict[str, Any], is_whole: bool) -> None:
    refusal = Refusals().of_whole_batch(failed(error), 10)
    assert (refusal is not None) == is_whole
    if refusal is not None:
        assert refusal.message == error["message"]


def test_the_same_refusal_of_a_second_batch_concerns_all_lines() -> None:
    refusals = Refusals()
    first = {"code": "c", "message": "line 3: 'a' is bad", "line": 3}
    other = {"code": "c", "message": "line 9: something else", "line": 9}
    again = {"code": "c", "message": "line 12: 'b' is bad", "line": 12}
    assert [refusals.of_whole_batch(failed(error), 20) is None for error in (first, other, again)] == [
        True, True, False,
    ]  # fmt: skip


def test_errors_in_a_plain_list_and_odd_errors_are_read() -> None:
    item = {"status": "failed", "errors": [{"message": "m", "line": "1"}, "odd", None]}
    refusal = Refusals().of_whole_batch(item, 3)
    assert refusal is not None
    assert refusal.message == "m"
    assert Refusals().of_whole_batch({"status": "failed", "errors": "odd"}, 3) is not None


@pytest.mark.parametrize(
    ("error", "limit"),
    [
        ({"code": "token_limit_exceeded", "message": "Limit: 2,000,000 enqueued tokens."}, 2_000_000),
        ({"code": None, "message": "Enqueued token limit reached for m"}, None),
    ],
)
def test_a_full_queue_is_no_refusal(error: dict[str, Any], limit: int | None) -> None:
    reached = token_limit(failed(error))
    assert reached is not None
    assert reached.limit == limit
    assert token_limit({**failed(error), "status": "cancelled"}) is None


def read(item: dict[str, Any], **lines: list[ResultLine]) -> set[int]:
    """Return which of ten lines may have been billed without an answer."""
    reading = ResultReading(item)
    answered: set[int | None] = set()
    for name, results in lines.items():
        for result in results:
            reading.add(f"{name}_file_id", result)
            answered |= {result.place} if result.reply is not None else set()
    return {place for place in range(10) if place not in answered and reading.is_billable(place)}


def answers(*places: int) -> list[ResultLine]:
    return [ResultLine(place, OK) for place in places]


EXPIRED = [ResultLine(place, None, "batch_expired", "too late") for place in range(6, 10)]


@pytest.mark.parametrize(
    ("item", "lines", "billable"),
    [
        ({"status": "completed"}, {"output": answers(*range(8))}, {8, 9}),
        ({"status": "completed"}, {"output": answers(*range(6)), "error": EXPIRED}, set()),
        ({"status": "expired"}, {"output": answers(*range(5)), "error": EXPIRED}, set()),
        (
            {"status": "expired", "request_counts": {"completed": 6}},
            {"output": answers(*range(5)), "error": EXPIRED},
            {5},
        ),
        ({"status": "cancelled", "request_counts": {"completed": 2}}, {"output": answers(0, 1)}, set()),
        ({"status": "cancelled", "request_counts": {"completed": 3}}, {"output": answers(0, 1)}, set(range(2, 10))),
        ({"status": "cancelled"}, {"output": [*answers(0), ResultLine(None, None)]}, set(range(1, 10))),
        ({"status": "cancelled"}, {"output": [*answers(0), ResultLine(4, None)]}, {4}),
        ({"status": LOST}, {}, set(range(10))),
        (failed({"message": "m"}), {}, set()),
    ],
    ids=[
        "complete, two in no file", "complete", "expired", "expired, one answer short", "cancelled",
        "cancelled, one answer short", "a line that nobody can attribute", "a line without a reply", "lost", "failed",
    ],
)  # fmt: skip
def test_lines_that_may_have_been_billed(
    item: dict[str, Any], lines: dict[str, list[ResultLine]], billable: set[int]
) -> None:
    assert read(item, **lines) == billable


def test_a_missing_output_file_is_a_loss_and_a_missing_error_file_is_none() -> None:
    item = {"id": "b", "status": "cancelled", "output_file_id": "out", "error_file_id": "err"}
    reading = ResultReading(item)
    reading.add_missing_file("error_file_id", RowError("bad_request", "gone", 404))
    assert (reading.loss(), reading.is_billable(0), reading.unread_files(False)) == (None, False, ["err"])
    reading.add_missing_file("output_file_id", RowError("bad_request", "gone", 404))
    assert (reading.is_billable(0), reading.unread_files(True)) == (True, ["out", "err"])
    assert missing_answer(item, None, None).error_class == "server"
