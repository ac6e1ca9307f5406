"""Progress of a run: the bar, plain lines, the estimate of the time left, `status`, `errors`, the closing summary."""

import asyncio
import heapq
import json
import math
import sys
import threading
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from connectors.records import Request
from pipelines.config.workspace import find_workspace
from pipelines.dispatch.counters import RunCounters, StepCounters
from pipelines.dispatch.step_runner import CHUNK_ROWS
from pipelines.formatting import format_duration, render
from pipelines.monitoring import progress
from pipelines.monitoring.progress import ThroughputMeter, format_progress, progress_bar, progress_figures
from pipelines.monitoring.run_heartbeat import read_heartbeat
from pipelines.monitoring.run_view import RunView
from pipelines.reporting.status_format import format_status
from pipelines.reporting.status_queries import job_statuses
from pipelines.runtime.locks import job_lock
from tests.behaviour.screens.conftest import Screen


class IdleDispatcher:
    """A dispatcher that waits for nothing."""

    waiting_for = None


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


FIGURES: dict[str, Any] = {
    "rows": 120000, "rows_done": 48211, "rows_failed": 0, "share_done": 0.55, "requests": 50000,
    "requests_per_second": 412.3, "retries": 0, "in_flight": 200, "input_tokens": 12_200_000,
    "output_tokens": 900_000, "cost_usd": 1.8342, "seconds_left": 174, "held": None, "bound_by": None,
}  # fmt: skip
HELD = {**FIGURES, "rows_failed": 12, "retries": 3, "held": "openai asks to wait 20 s"}


def test_progress_lines_are_short_and_show_what_matters_most(screen: Screen) -> None:
    unknown = {**FIGURES, "cost_usd": None, "seconds_left": None, "share_done": None}
    cases = [(FIGURES, 120), (HELD, 120), (HELD, 79), (HELD, 50), (unknown, 120)]
    lines = [format_progress("reviews", figures, width) for figures, width in cases]
    screen("progress.txt", "\n".join(lines) + "\n")
    assert all(len(line) <= width for line, (_, width) in zip(lines, cases, strict=True))


def test_the_progress_bar_shows_the_percentage_of_the_rows_that_it_counts(screen: Screen) -> None:
    done = {**FIGURES, "rows": 3000, "rows_done": 3000, "seconds_left": 0}
    nothing = dict.fromkeys(("rows", "rows_done", "input_tokens", "output_tokens", "requests_per_second"), 0)
    cases = [
        ({**FIGURES, "rows": 3000, "rows_done": 1257}, 100),
        (HELD, 80),
        (HELD, 50),
        (done, 80),
        ({**FIGURES, **nothing}, 80),
    ]
    bars = [render(progress_bar("reviews", figures, width), width) for figures, width in cases]
    screen("progress-bar.txt", "\n\n".join(bars) + "\n")
    assert "1,257 of 3,000 rows (42 %)" in bars[0]
    for bar, (_, width) in zip(bars, cases, strict=True):
        assert max(len(line) for line in bar.splitlines()) <= width
        assert len(bar.splitlines()) == 2


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59, "59 s"), (174, "2 min 50 s"), (1300, "21 min"), (7500, "2 h 05 min")]
)
def test_the_time_left_is_no_finer_than_its_estimate(seconds: int, text: str) -> None:
    assert format_duration(seconds) == text


async def show_progress(monkeypatch: pytest.MonkeyPatch, term: str = "xterm", warning: str | None = None) -> None:
    """Show the progress of a run just once, on a terminal of 80 columns."""
    # Not in a fixture: capsys replaces stderr once more before an async test begins.
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", "80")
    counters = RunCounters(rows=10, steps={"one": StepCounters()})
    task = asyncio.create_task(progress.progress_display("job", is_quiet=False)(view_of(counters)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    if warning is not None:
        print(warning, file=sys.stderr)
    task.cancel()
    (ended,) = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(ended, asyncio.CancelledError)


async def test_a_terminal_shows_a_bar_that_is_gone_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = threading.active_count()
    await show_progress(monkeypatch)
    assert threading.active_count() == threads
    written = capsys.readouterr().err
    assert "0 of 10 rows (0 %)" in written
    assert written.endswith("\x1b[2K")
    # The cursor is visible all the time: a killed run leaves a usable terminal.
    assert written.rfind("\x1b[?25h") > written.rfind("\x1b[?25l")
    assert written.index("\x1b[?25h") < written.index("0 of 10 rows")


async def test_a_terminal_without_cursor_control_gets_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    await show_progress(monkeypatch, term="dumb")
    written = capsys.readouterr().err
    assert set(written.splitlines()) == {"job  0 of 10 rows (0 %) · 0 requests/s · 0 tokens · $0.0000"}


async def test_a_warning_is_printed_above_the_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await show_progress(monkeypatch, warning="a warning")
    assert "\x1b[2Ka warning\n" in capsys.readouterr().err


async def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    await progress.progress_display("job", is_quiet=True)(view_of(RunCounters()))
    assert capsys.readouterr() == ("", "")


def test_status_shows_a_run_in_progress_and_deletes_its_heartbeat_afterwards(
    workspace: Any, provider: Any, cli: Any
) -> None:
    workspace.csv(40)
    job = workspace.job(limits="{concurrency: 1}")
    gate = threading.Event()

    async def wait_at_20(path: str, body: dict[str, Any], count: int) -> None:
        if count == 20:
            await asyncio.to_thread(gate.wait, 30)

    provider.script = wait_at_20
    seen: list[dict[str, Any]] = []
    state = workspace.folder / ".rowmill"

    def watch() -> None:
        while not seen or seen[-1]["rows_done"] < 20:
            live = read_heartbeat(state, "job")
            seen.extend([live] if live else [])
        seen.extend(job_statuses(find_workspace(job)))  # type: ignore[arg-type]
        gate.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert cli.run(job)["rows_ok"] == 40
    watcher.join()
    assert (seen[-2]["rows"], seen[-2]["rows_done"], seen[-2]["job"]) == (40, 20, "job")
    assert (seen[-1]["state"], seen[-1]["rows_ok"], seen[-1]["rows_left"]) == ("running", 20, 20)
    assert read_heartbeat(state, "job") is None
    assert not (state / "running/job.json").exists()
    (ended,) = job_statuses(find_workspace(job))
    assert (ended["state"], ended["rows_ok"], ended["share_done"]) == ("closed", 40, None)


def test_the_heartbeat_of_a_killed_run_is_ignored(workspace: Any) -> None:
    state = workspace.folder / ".rowmill"
    workspace.write(".rowmill/running/job.json", json.dumps({"rows": 1}))
    assert read_heartbeat(state, "job") is None
    with job_lock(state, "job"):
        assert read_heartbeat(state, "job") == {"rows": 1}


def test_status_is_a_line_a_job_that_fits_a_terminal(screen: Screen) -> None:
    usual: dict[str, Any] = {
        "job": "reviews", "run_id": "r", "state": "closed", "started": "2026-11-24T12:00:00+00:00", "ended": None,
        "exit_code": 0, "rows": 3000, "rows_ok": 3000, "rows_failed": 0, "rows_left": 0, "requests": 3000,
        "cost_usd": 0.0412, "stopped": None, "share_done": None, "seconds_left": None, "held": None, "bound_by": None,
    }  # fmt: skip
    rows = [
        {**usual, "bound_by": "the limit of openai, 3,000 requests a minute (87 % of the time); "
         "ask for a higher limit, or add a provider (a pool)"},
        {**usual, "job": "articles", "exit_code": 1, "rows_ok": 2990, "rows_failed": 10, "cost_usd": 3.2},
        {**usual, "job": "nightly-tickets", "state": "running", "share_done": 0.41, "seconds_left": 174, "rows_ok": 900,
         "rows_left": 2100, "held": "openai asks to wait 20 s"},
        {**usual, "job": "summaries", "state": "open", "exit_code": 3, "stopped": "budget: $5.000000 is spent"},
        {**usual, "job": "killed", "state": "open", "exit_code": None, "rows": None, "cost_usd": None},
    ]  # fmt: skip
    shown = render(format_status(rows, datetime(2026, 11, 24, 14, 30, tzinfo=UTC)), 80)
    screen("status.txt", shown + "\n")
    assert max(len(text) for text in shown.splitlines()) <= 80


def test_errors_are_counted_by_class_before_single_rows(workspace: Any, provider: Any, cli: Any) -> None:
    workspace.csv(40)

    def script(path: str, body: dict[str, Any], count: int) -> Any:
        from aiohttp import web

        number = int(body["messages"][-1]["content"].split()[1])
        if number % 10 == 0:
            error = {"message": "Too long a text.", "type": "invalid_request_error", "code": "too_long"}
            return web.json_response({"error": error}, status=400)
        return None

    provider.script = script
    job = workspace.job()
    cli.run(job)
    assert cli("errors", job, "--limit", "2") == 0
    lines = cli.out.splitlines()
    assert lines[0] == "job: 4 rows failed"
    assert lines[2].split() == ["rows", "step", "class", "http", "message"]
    assert lines[4].split(maxsplit=4) == ["4", "answer", "bad_request", "400", "Too long a text."]
    assert "… and 2 more (--limit N)" in lines
    assert lines[-1].strip() == f"rowmill retry {job}"
    assert cli("errors", job, "--json") == 0
    assert len(cli.out.splitlines()) == 4


def test_the_closing_summary_has_the_cost_of_each_step_and_the_next_command(workspace: Any, cli: Any) -> None:
    workspace.csv(4)
    steps = (
        '[{name: a, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }}"}]}, '
        '{name: b, endpoint: chat, provider: test, model: m, messages: [{user: "{{ a }}"}]}]'
    )
    job: Path = workspace.job(steps=steps)
    assert cli("run", job) == 0
    words = [line.split() for line in cli.out.splitlines()]
    assert ["cost", "$0.000160"] in words
    assert ["step", "requests", "cost"] in words
    assert ["a", "4", "$0.000080"] in words and ["b", "4", "$0.000080"] in words
    assert words[-1] == ["next", "rowmill", "report", str(job)]
    assert f"results  {workspace.folder}/out/results/*.parquet" in cli.out


def test_throughput_is_measured_from_the_first_answer_on() -> None:
    counters, now = RunCounters(rows=10, steps={"one": StepCounters()}), [0.0]
    meter = ThroughputMeter(lambda: now[0])
    for moment, ended in ((5.0, 0), (6.0, 1), (7.0, 6), (9.0, 16)):
        now[0], counters.steps["one"].exchanges = moment, ended
        throughput = meter.measure(view_of(counters))
    # Nobody measured how long they took: every exchange counts as one.
    assert (throughput.requests_per_second, throughput.work_per_second) == (
        pytest.approx(15 / 3),
        pytest.approx(15 / 3),
    )
