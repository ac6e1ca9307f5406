"""What is told while a run is under way, how the time left is reckoned, and what `status` shows of it."""

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
from pipelines.monitoring import progress
from pipelines.monitoring.progress import ThroughputMeter, format_progress, format_time_left, progress_figures
from pipelines.monitoring.run_heartbeat import read_heartbeat
from pipelines.monitoring.run_view import RunView
from pipelines.reporting.status_format import format_status
from pipelines.reporting.status_queries import job_statuses
from pipelines.runtime.locks import job_lock


class Nothing:
    """Stands for the parts of a run that hold nothing."""

    waiting_for = None


def watch_of(tally: RunCounters) -> RunView:
    return RunView(tally, Nothing(), {})  # type: ignore[arg-type]


def request(rows: int = 1) -> Request:
    return Request(b"", b"", 1, 1, keys=("k",) * rows)


class Simulated:
    """A run of two steps: senders take the oldest request that is ready, chunks are read while senders run dry, and a
    chunk's rows go on when all of them have landed. `pace`: requests a second that the provider takes at most."""

    def __init__(self, rows: int, took: tuple[float, float], share: float, senders: int, pace: float) -> None:
        self.tally = RunCounters(rows=rows, steps={"label": StepCounters(), "after": StepCounters()})
        self.now = 0.0
        self._took = dict(zip(("label", "after"), took, strict=True))
        self._share = share
        self._senders = senders
        self._each = 1 / pace
        self._next = 0.0
        self._unread = deque(min(CHUNK_ROWS, rows - start) for start in range(0, rows, CHUNK_ROWS))
        self._open: list[int] = []
        """Rows of each chunk that have not landed."""
        self._sizes: list[int] = []
        self._ready: deque[tuple[str, int]] = deque()
        self._in_flight: list[tuple[float, float, str, int]] = []

    @property
    def ended(self) -> bool:
        return not (self._unread or self._ready or self._in_flight)

    def until(self, moment: float) -> None:
        """Let time pass."""
        while True:
            self._send()
            if not self._in_flight or self._in_flight[0][0] > moment:
                break
            self._land(*heapq.heappop(self._in_flight))
        self.now = moment

    def _send(self) -> None:
        while len(self._in_flight) < self._senders:
            if len(self._ready) < self._senders and self._unread:
                size = self._unread.popleft()
                self._ready += [("label", len(self._open))] * size
                self._open.append(size)
                self._sizes.append(size)
                self.tally.steps["label"].ask([request(size)])
            if not self._ready:
                return
            name, chunk = self._ready.popleft()
            self._next = max(self.now, self._next + self._each)
            heapq.heappush(self._in_flight, (self._next + self._took[name], self.now, name, chunk))

    def _land(self, ended: float, taken: float, name: str, chunk: int) -> None:
        self.now = ended
        step = self.tally.steps[name]
        step.exchanges += 1
        step.land(request(), failed=False)
        self.tally.took(name, ended - taken - self._took[name], self._took[name], None)
        if name == "label":
            self._open[chunk] -= 1
            if not self._open[chunk]:
                asked = round(self._sizes[chunk] * self._share)
                self._ready += [("after", chunk)] * asked
                self.tally.steps["after"].ask([request(asked)])
                self.tally.steps["after"].pass_by(self._sizes[chunk] - asked, failed=False)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("took", [(1.0, 1.0), (0.5, 4.0), (4.0, 0.5)], ids=["alike", "slow at last", "slow at first"])
@pytest.mark.parametrize("pace", [1e6, 40.0], ids=["by answers", "by a limit"])
def test_from_a_third_of_the_run_on_the_time_left_is_within_a_tenth_of_the_truth(
    share: float, took: tuple[float, float], pace: float
) -> None:
    run = Simulated(6000, took, share, 64, pace)
    meter = ThroughputMeter(lambda: run.now)
    told: list[tuple[float, float]] = []
    while not run.ended:
        run.until(run.now + 1)
        left = progress_figures(watch_of(run.tally), meter.measure(watch_of(run.tally)))["seconds_left"]
        told.append((run.now, math.nan if left is None else float(str(left))))
    took_all = run.now
    third = [(now, left) for now, left in told if now > took_all / 3]
    assert max(abs(left - (took_all - now)) for now, left in third) <= 0.1 * took_all


def test_rows_count_as_they_land_and_not_by_the_chunk() -> None:
    tally = RunCounters(rows=10, begun_with=2, rows_ok=2, steps={"one": StepCounters()})
    for _ in range(3):
        tally.steps["one"].land(request(), failed=False)
    assert (tally.rows_landed, tally.rows_ok) == (5, 2)


def test_the_lines_of_a_run_are_short_and_say_what_matters_most(screen: Any) -> None:
    told: dict[str, Any] = {
        "rows": 120000, "rows_done": 48211, "rows_failed": 0, "share_done": 0.402, "requests": 50000,
        "requests_per_second": 412.3, "retries": 0, "in_flight": 200, "input_tokens": 12_200_000,
        "output_tokens": 900_000, "cost_usd": 1.8342, "seconds_left": 174, "held": None, "bound_by": None,
    }  # fmt: skip
    held = {**told, "rows_failed": 12, "retries": 3, "held": "openai asks to wait 20 s"}
    shown = [
        format_progress("reviews", told, 120),
        format_progress("reviews", held, 120),
        format_progress("reviews", held, 79),
        format_progress("reviews", held, 50),
    ]
    shown.append(format_progress("reviews", {**told, "cost_usd": None, "seconds_left": None, "share_done": None}, 120))
    screen("progress.txt", "\n".join(shown) + "\n")
    assert [len(text) <= width for text, width in zip(shown, (120, 120, 79, 50, 120), strict=True)] == [True] * 5


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (59, "59 s"), (174, "2 min 50 s"), (1300, "21 min"), (7500, "2 h 05 min")]
)
def test_the_time_left_is_told_no_finer_than_it_is_known(seconds: int, words: str) -> None:
    assert format_time_left(seconds) == words


async def test_on_a_terminal_one_line_is_written_over_and_gone_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    tally = RunCounters(rows=10, steps={"one": StepCounters()})
    task = asyncio.create_task(progress.progress_display("job", quiet=False)(watch_of(tally)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    said = capsys.readouterr().err
    assert said.startswith("\rjob  0 of 10 rows")
    assert said.endswith("\r\x1b[K")
    assert "\n" not in said


async def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    await progress.progress_display("job", quiet=True)(watch_of(RunCounters()))
    assert capsys.readouterr() == ("", "")


def test_status_shows_a_run_that_is_under_way_and_forgets_its_figures_afterwards(
    workspace: Any, provider: Any, cli: Any
) -> None:
    workspace.csv(40)
    job = workspace.job(limits="{concurrency: 1}")
    gate = threading.Event()

    async def held(path: str, body: dict[str, Any], count: int) -> None:
        if count == 20:
            await asyncio.to_thread(gate.wait, 30)

    provider.script = held
    told: list[dict[str, Any]] = []
    state = workspace.folder / ".rowmill"

    def look() -> None:
        while not told or told[-1]["rows_done"] < 20:
            live = read_heartbeat(state, "job")
            told.extend([live] if live else [])
        told.extend(job_statuses(find_workspace(job)))  # type: ignore[arg-type]
        gate.set()

    looking = threading.Thread(target=look)
    looking.start()
    assert cli.run(job)["rows_ok"] == 40
    looking.join()
    assert (told[-2]["rows"], told[-2]["rows_done"], told[-2]["job"]) == (40, 20, "job")
    assert (told[-1]["state"], told[-1]["rows_ok"], told[-1]["rows_left"]) == ("running", 20, 20)
    assert read_heartbeat(state, "job") is None
    assert not (state / "running/job.json").exists()
    (ended,) = job_statuses(find_workspace(job))
    assert (ended["state"], ended["rows_ok"], ended["share_done"]) == ("closed", 40, None)


def test_figures_that_a_killed_run_left_behind_are_not_believed(workspace: Any) -> None:
    state = workspace.folder / ".rowmill"
    workspace.write(".rowmill/running/job.json", json.dumps({"rows": 1}))
    assert read_heartbeat(state, "job") is None
    with job_lock(state, "job"):
        assert read_heartbeat(state, "job") == {"rows": 1}


def test_status_is_a_line_a_job_that_fits_a_terminal(screen: Any) -> None:
    usual: dict[str, Any] = {
        "job": "reviews", "run_id": "r", "state": "closed", "started": "2026-11-24T12:00:00+00:00", "ended": None,
        "exit_code": 0, "rows": 3000, "rows_ok": 3000, "rows_failed": 0, "rows_left": 0, "requests": 3000,
        "cost_usd": 0.0412, "stopped": None, "share_done": None, "seconds_left": None, "held": None, "bound_by": None,
    }  # fmt: skip
    rows = [
        {**usual, "bound_by": "the limit of openai, 3,000 requests a minute (87 % of the time); "
         "ask for a higher one, or add a provider (a pool)"},
        {**usual, "job": "articles", "exit_code": 1, "rows_ok": 2990, "rows_failed": 10, "cost_usd": 3.2},
        {**usual, "job": "nightly-tickets", "state": "running", "share_done": 0.41, "seconds_left": 174, "rows_ok": 900,
         "held": "openai asks to wait 20 s"},
        {**usual, "job": "summaries", "state": "open", "exit_code": 3, "stopped": "budget: $5.000000 is spent"},
        {**usual, "job": "killed", "state": "open", "exit_code": None, "rows": None, "cost_usd": None},
    ]  # fmt: skip
    shown = format_status(rows, datetime(2026, 11, 24, 14, 30, tzinfo=UTC))
    screen("status.txt", shown + "\n")
    assert max(len(text) for text in shown.splitlines()) <= 80


def test_errors_are_told_by_class_before_single_rows(workspace: Any, provider: Any, cli: Any) -> None:
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
    assert lines[0] == "4 rows failed"
    assert lines[2].split() == ["rows", "step", "class", "http", "message"]
    assert lines[3].split(maxsplit=4) == ["4", "answer", "bad_request", "400", "Too long a text."]
    assert "… and 2 more (--limit N)" in lines
    assert lines[-1].strip() == f"rowmill retry {job}"
    assert cli("errors", job, "--json") == 0
    assert len(cli.out.splitlines()) == 4


def test_the_closing_words_tell_each_steps_cost_and_the_next_command(workspace: Any, cli: Any) -> None:
    workspace.csv(4)
    steps = (
        '[{name: a, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }}"}]}, '
        '{name: b, endpoint: chat, provider: test, model: m, messages: [{user: "{{ a }}"}]}]'
    )
    job: Path = workspace.job(steps=steps)
    assert cli("run", job) == 0
    assert "    a: 4 requests, $0.000080" in cli.out
    assert "    b: 4 requests, $0.000080" in cli.out
    assert cli.out.rstrip().endswith(f"next: rowmill report {job}")
    assert f"results  {workspace.folder}/out/results/*.parquet" in cli.out


def test_the_pace_begins_with_the_first_answer() -> None:
    tally, now = RunCounters(rows=10, steps={"one": StepCounters()}), [0.0]
    pace = ThroughputMeter(lambda: now[0])
    for moment, ended in ((5.0, 0), (6.0, 1), (7.0, 6), (9.0, 16)):
        now[0], tally.steps["one"].exchanges = moment, ended
        speed = pace.measure(watch_of(tally))
    # Nobody has measured how long they took: every exchange counts as one.
    assert (speed.requests_per_second, speed.work_per_second) == (pytest.approx(15 / 3), pytest.approx(15 / 3))
