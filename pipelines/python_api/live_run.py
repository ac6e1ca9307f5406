"""A run from a notebook: a child process with a live progress line, stopped by interrupting the cell."""

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import Mapping
from html import escape
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import orjson

from connectors.errors import JobError, Locked
from pipelines.config.loaded_job import read_job_file
from pipelines.config.overrides import Overrides
from pipelines.config.workspace import find_workspace
from pipelines.monitoring.progress import format_progress
from pipelines.monitoring.run_heartbeat import read_last_heartbeat
from pipelines.runtime.child_process import parent_pipe, rowmill_command, rowmill_environment
from pipelines.runtime.run_report import RunReport

# A child process handles Ctrl-C as on the command line, does not touch the notebook's event loop and signals, and
# returns its memory. -P: do not import a folder named pipelines in the current directory.
_COMMAND = (*rowmill_command(), "run")
UPDATE_SECONDS = 0.5
"""Interval between updates of the progress line."""


async def run(
    job: str | PathLike[str],
    *,
    limit: int | None = None,
    provider: str | None = None,
    sink: str | PathLike[str] | None = None,
    budget_usd: float | None = None,
    delivery: str | None = None,
    changes: Mapping[str, Any] | None = None,
    new_run: bool = False,
    schema_change: Literal["cast", "backfill"] | None = None,
) -> RunReport:
    """Run a job as `rowmill run JOB` does, `await`ed in a cell. `changes`: those of `--set`, key path -> value.

    Interrupting the cell works like Ctrl-C: requests in flight finish and are stored; a second interrupt exits at once.
    Raises JobError if nothing could be sent and Locked if the job is already running. The report describes runs that
    stop or have failed rows.
    """
    assignments = tuple(f"{key}={json.dumps(value)}" for key, value in (changes or {}).items())
    overrides = Overrides(assignments, limit, provider, None if sink is None else str(sink), budget_usd, delivery)
    path = Path(job)
    flags = [*overrides.flags(), *(["--new-run"] if new_run else []), "--json", "--quiet"]
    flags += [f"--schema-change={schema_change}"] if schema_change is not None else []
    line_display = _ProgressLine(path)
    with parent_pipe() as stdin:
        process = await asyncio.create_subprocess_exec(
            *_COMMAND,
            str(path),
            *flags,
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=rowmill_environment(),
            start_new_session=True,
        )
        output = asyncio.create_task(process.communicate())
        try:
            while not output.done():
                await asyncio.wait((output,), timeout=UPDATE_SECONDS)
                line_display.update()
        except asyncio.CancelledError:
            await _stop(process, output)
            line_display.end("interrupted; run it again and it goes on where it stopped")
            raise
    out, err = output.result()
    if not out:
        line_display.end("the process ended without a report")
        raise RuntimeError(f"{job}: ended with exit code {process.returncode}: {err.decode(errors='replace').strip()}")
    report = RunReport.from_json(orjson.loads(out.splitlines()[-1]))
    if report.rows is None:
        line_display.end(str(report.stopped))
        message = str(report.stopped)
        raise Locked(message) if report.exit_code == Locked.exit_code else JobError("", message)
    line_display.end(f"{report.rows_ok:,} of {report.rows:,} rows done in {report.seconds:.1f} s")
    return report


async def _stop(process: asyncio.subprocess.Process, output: asyncio.Task[Any]) -> None:
    """Interrupt the run and wait for its end; a second interrupt does not wait."""
    while not output.done():
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        # A cancellation here is a second interrupt.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait((output,))


class _ProgressLine:
    """A line of the notebook that is overwritten while the run proceeds; nothing outside a notebook."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._began = time.time()
        self._heartbeat = _heartbeat_location(path)
        self._handle: Any = None
        ipython = sys.modules.get("IPython")
        if ipython is not None and ipython.get_ipython() is not None:
            line_display = import_module("IPython.display")
            self._html = line_display.HTML
            self._handle = line_display.display(self._html(self._html_line("starting")), display_id=True)

    def update(self) -> None:
        """Show the progress once the run has written any."""
        if self._handle is None or self._heartbeat is None:
            return
        state, name = self._heartbeat
        heartbeat = read_last_heartbeat(state, name)
        if heartbeat is None or heartbeat["began"] < self._began:
            return
        line = format_progress(name, heartbeat, 200)
        bar = f'<progress max="{heartbeat["rows"] or 1}" value="{heartbeat["rows_done"]}"></progress>'
        self._show(f"{bar} {escape(line)}")

    def end(self, words: str) -> None:
        """Show the final line."""
        self._show(self._html_line(words))

    def _show(self, page: str) -> None:
        if self._handle is not None:
            self._handle.update(self._html(page))

    def _html_line(self, words: str) -> str:
        return f"<div>{escape(self._path.name)}: {escape(words)}</div>"


def _heartbeat_location(path: Path) -> tuple[Path, str] | None:
    """(state folder, job name) of a run's heartbeat file; None for a job file that the run will refuse."""
    try:
        name = read_job_file(path).name
        return None if name is None else (find_workspace(path).state, name)
    except JobError:
        return None
