"""Throughput and the estimate of the time left, against a simulated run."""

import heapq
import math
from collections import deque
from types import SimpleNamespace

import pytest

from connectors.records import Request
from pipelines.dispatch.counters import RunCounters, StepCounters
from pipelines.dispatch.step_runner import CHUNK_ROWS
from pipelines.monitoring.progress import ThroughputMeter, progress_figures
from pipelines.monitoring.run_view import RunView


class IdleDispatcher:
    """A dispatcher that waits for nothing."""

    state = SimpleNamespace(waiting_for=None, paused_since=None, stop_reason=None)


def view_of(counters: RunCounters) -> RunView:
    return RunView(counters, IdleDispatcher(), {})  # type: ignore[arg-type]


def request(rows: int = 1) -> Request:
    return Request(b"", b"", 1, 1, keys=("k",) * rows)


class SimulatedRun:
    """A run of two steps: senders take the oldest request that is ready, chunks are read while senders are idle, and a
    chunk goes to the next step when all of its rows are answered."""

    def __init__(self, rows: int, latency: tuple[float, float], share: float, senders: int, rate: float) -> None:
        """`share`: of the rows that the second step asks for. `rate`: maximum requests a second."""
        self.tally = RunCounters(rows=rows, steps={"label": StepCounters(), "after": StepCounters()})
        self.now = 0.0
        self._latency = dict(zip(("label", "after"), latency, strict=True))
        self._share = share
        self._senders = senders
        self._interval = 1 / rate
        self._next = 0.0
        self._unread = deque(min(CHUNK_ROWS, rows - start) for start in range(0, rows, CHUNK_ROWS))
        self._open: list[int] = []
        """Rows of each chunk without an answer."""
        self._sizes: list[int] = []
        self._ready: deque[tuple[str, int]] = deque()
        self._in_flight: list[tuple[float, float, str, int]] = []

    @property
    def is_complete(self) -> bool:
        return not (self._unread or self._ready or self._in_flight)

    def advance(self, moment: float) -> None:
        """Let time pass until a moment."""
        while True:
            self._send()
            if not self._in_flight or self._in_flight[0][0] > moment:
                break
            self._complete(*heapq.heappop(self._in_flight))
        self.now = moment

    def _send(self) -> None:
        while len(self._in_flight) < self._senders:
            if len(self._ready) < self._senders and self._unread:
                size = self._unread.popleft()
                self._ready += [("label", len(self._open))] * size
                self._open.append(size)
                self._sizes.append(size)
                self.tally.steps["label"].record_submitted([request(size)])
            if not self._ready:
                return
            name, chunk = self._ready.popleft()
            self._next = max(self.now, self._next + self._interval)
            heapq.heappush(self._in_flight, (self._next + self._latency[name], self.now, name, chunk))

    def _complete(self, ended: float, taken: float, name: str, chunk: int) -> None:
        self.now = ended
        step = self.tally.steps[name]
        step.exchanges += 1
        step.record_outcome(request(), failed=False)
        self.tally.record_timing(name, ended - taken - self._latency[name], self._latency[name], None)
        if name == "label":
            self._open[chunk] -= 1
            if not self._open[chunk]:
                asked = round(self._sizes[chunk] * self._share)
                self._ready += [("after", chunk)] * asked
                self.tally.steps["after"].record_submitted([request(asked)])
                self.tally.steps["after"].record_skipped(self._sizes[chunk] - asked, failed=False)


def test_requests_whose_replies_are_here_are_not_shown_as_in_flight() -> None:
    view = view_of(RunCounters(in_flight=5, answered=2))
    assert progress_figures(view, ThroughputMeter(lambda: 0.0).measure(view))["in_flight"] == 3


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("latency", [(1.0, 1.0), (0.5, 4.0), (4.0, 0.5)], ids=["equal", "second slow", "first slow"])
@pytest.mark.parametrize("rate", [1e6, 40.0], ids=["bound by latency", "bound by a rate limit"])
def test_after_a_third_of_the_run_the_time_left_is_within_a_tenth_of_the_truth(
    share: float, latency: tuple[float, float], rate: float
) -> None:
    run = SimulatedRun(6000, latency, share, 64, rate)
    meter = ThroughputMeter(lambda: run.now)
    estimates: list[tuple[float, float]] = []
    while not run.is_complete:
        run.advance(run.now + 1)
        left = progress_figures(view_of(run.tally), meter.measure(view_of(run.tally)))["seconds_left"]
        estimates.append((run.now, math.nan if left is None else float(str(left))))
    seconds = run.now
    later = [(now, left) for now, left in estimates if now > seconds / 3]
    assert max(abs(left - (seconds - now)) for now, left in later) <= 0.1 * seconds


def test_rows_count_as_they_are_answered_and_not_by_the_chunk() -> None:
    tally = RunCounters(rows=10, rows_done_before=2, rows_ok=2, steps={"one": StepCounters()})
    for _ in range(3):
        tally.steps["one"].record_outcome(request(), failed=False)
    assert (tally.rows_finished, tally.rows_ok) == (5, 2)


def test_throughput_is_measured_from_the_first_answer_on() -> None:
    counters, now = RunCounters(rows=10, steps={"one": StepCounters()}), [0.0]
    meter = ThroughputMeter(lambda: now[0])
    for moment, ended in ((5.0, 0), (6.0, 1), (7.0, 6), (9.0, 16)):
        now[0], counters.steps["one"].exchanges = moment, ended
        throughput = meter.measure(view_of(counters))
    # Their duration is not measured: every exchange counts as one.
    assert (throughput.requests_per_second, throughput.work_per_second) == (
        pytest.approx(15 / 3),
        pytest.approx(15 / 3),
    )
