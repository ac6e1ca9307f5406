"""Progress of a run: the bar, plain lines, the estimate of the time left, `status`, `errors`, the closing summary."""

import asyncio
import json
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.config.workspace import find_workspace
from pipelines.dispatch.counters import RunCounters, StepCounters
from pipelines.formatting import render
from pipelines.monitoring import progress
from pipelines.monitoring.progress import format_progress, progress_bar
from pipelines.monitoring.run_heartbeat import read_heartbeat
from pipelines.monitoring.run_view import RunView
from pipelines.reporting.status_format import format_status
from pipelines.reporting.status_queries import job_statuses
from pipelines.runtime.locks import job_lock
from tests.behaviour.screens.conftest import Screen


class IdleDispatcher:
    """A dispatcher that waits for nothing."""

    state = SimpleNamespace(waiting_for=None, paused_since=None, stop_reason=None)


def view_of(counters: RunCounters) -> RunView:
    return RunView(counters, IdleDispatcher(), {})  # type: ignore[arg-type]


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
        "paused_since": None,
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
