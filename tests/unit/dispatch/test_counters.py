"""The counters of a run and of its steps."""

from connectors.records import NO_USAGE, Request, Usage
from pipelines.dispatch.counters import RunCounters, StepCounters
from pipelines.ledger.entries import SettledExchange


def request_of(rows: int, repair_of: bytes | None = None) -> Request:
    keys = tuple(str(row) for row in range(rows))
    return Request(b"f" * 16, b"{}", 0, None, keys, repair_of=repair_of)


def test_a_repair_counts_its_rows_once() -> None:
    step = StepCounters()
    step.record_submitted([request_of(3), request_of(2, repair_of=b"x")])
    step.record_outcome(request_of(3), failed=False)
    step.record_outcome(request_of(2, repair_of=b"x"), failed=True)
    assert (step.asked, step.answered, step.failed) == (3, 3, 2)


def test_exchanges_left_assumes_groups_and_skipped_rows_as_so_far() -> None:
    step = StepCounters(exchanges=10, asked=60, answered=40, skipped=20)
    # 10 exchanges for 40 rows: 20 asked rows are open, and of 80 rows to come three quarters need a request.
    assert step.exchanges_left(160) == 0.25 * (20 + 80 * 0.75)


def test_exchanges_left_uses_the_estimate_until_a_row_is_answered() -> None:
    assert StepCounters(requests_per_row=0.5).exchanges_left(100) == 50


def test_usage_and_cost_are_counted_for_the_run_and_for_the_step() -> None:
    counters = RunCounters(steps={"answer": StepCounters()})
    counters.record_exchange("answer", Usage(10, 0, 5), 700)
    counters.record_exchange("answer", NO_USAGE, None)
    assert (counters.input_tokens, counters.output_tokens, counters.cost, counters.unpriced) == (10, 5, 700, 1)
    assert (counters.steps["answer"].exchanges, counters.steps["answer"].cost) == (2, 700)


def test_the_failed_share_is_judged_from_a_hundred_settled_rows_on() -> None:
    counters = RunCounters(settled=99, settled_failed=99)
    assert counters.too_many_failed(0.2) is None
    counters.settled, counters.settled_failed = 100, 20
    assert counters.too_many_failed(0.2) is None
    counters.settled_failed = 21
    assert counters.too_many_failed(0.2) == (
        "failed_share: 21 of 100 rows failed, more than limits.failed_share 0.2 allows"
    )


def test_the_time_of_an_exchange_is_divided_into_limits_network_and_the_rest() -> None:
    counters = RunCounters(steps={"answer": StepCounters()})
    settled = SettledExchange(1, 1, 1, b"[]", b"", 0, latency_ms=250.0)
    counters.record_timing("answer", 0.5, 0.75, settled)
    counters.record_timing("answer", 0.25, 0.5, None)
    times = counters.times
    assert (times.limit_seconds, times.network_seconds, times.other_seconds) == (0.75, 0.25, 1.0)
    assert counters.steps["answer"].busy_seconds == 2.0


def test_rows_finished_counts_rows_of_unfinished_chunks_and_never_more_than_there_are() -> None:
    first, last = StepCounters(answered=50, failed=5), StepCounters(answered=30, skipped=4, failed=2)
    counters = RunCounters(rows=100, rows_ok=10, rows_done_before=8, steps={"first": first, "last": last})
    assert counters.rows_finished == 8 + 34 + 5
    last.skipped = 200
    assert counters.rows_finished == 100
    assert counters.rows_left == 90
