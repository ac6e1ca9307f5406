"""A run from a notebook: in a process of its own, shown as it goes, stopped by the cell's interrupt."""

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

# A process of its own: it takes Ctrl-C as on the command line, leaves the notebook's loop and signals alone, and gives
# its memory back. -P: a folder called pipelines in the current one is not ours.
_COMMAND = (*rowmill_command(), "run")
LOOK_SECONDS = 0.5
"""Between two looks at how far the run is."""


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
    """`rowmill run JOB` with its flags, `await`ed in a cell; `changes` are those of `--set`, key path -> value.

    The cell's interrupt stops it as Ctrl-C does: what is in flight lands and is kept; a second one leaves at once.
    JobError where nothing could be sent, Locked where the job runs already; a run that stops or whose rows fail says so
    in its report.
    """
    assignments = tuple(f"{key}={json.dumps(value)}" for key, value in (changes or {}).items())
    overrides = Overrides(assignments, limit, provider, None if sink is None else str(sink), budget_usd, delivery)
    path = Path(job)
    flags = [*overrides.flags(), *(["--new-run"] if new_run else []), "--json", "--quiet"]
    flags += [f"--schema-change={schema_change}"] if schema_change is not None else []
    shown = _Shown(path)
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
        said = asyncio.create_task(process.communicate())
        try:
            while not said.done():
                await asyncio.wait((said,), timeout=LOOK_SECONDS)
                shown.look()
        except asyncio.CancelledError:
            await _stop(process, said)
            shown.end("interrupted; run it again and it goes on where it stopped")
            raise
    out, err = said.result()
    if not out:
        shown.end("the process ended without a report")
        raise RuntimeError(f"{job}: ended with exit code {process.returncode}: {err.decode(errors='replace').strip()}")
    report = RunReport.from_json(orjson.loads(out.splitlines()[-1]))
    if report.rows is None:
        shown.end(str(report.stopped))
        message = str(report.stopped)
        raise Locked(message) if report.exit_code == Locked.exit_code else JobError("", message)
    shown.end(f"{report.rows_ok:,} of {report.rows:,} rows done in {report.seconds:.1f} s")
    return report


async def _stop(process: asyncio.subprocess.Process, said: asyncio.Task[Any]) -> None:
    """Interrupt the run and wait for its end; whoever interrupts again does not want to wait."""
    while not said.done():
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        # Cancelled while it waits: another interrupt.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait((said,))


class _Shown:
    """A line of the notebook that is written over as the run goes on; nothing where there is no notebook."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._began = time.time()
        self._noted = _noted(path)
        self._handle: Any = None
        ipython = sys.modules.get("IPython")
        if ipython is not None and ipython.get_ipython() is not None:
            shown = import_module("IPython.display")
            self._html = shown.HTML
            self._handle = shown.display(self._html(self._page("starting")), display_id=True)

    def look(self) -> None:
        """Show how far the run is, once it has noted anything."""
        if self._handle is None or self._noted is None:
            return
        state, name = self._noted
        result = read_last_heartbeat(state, name)
        if result is None or result["began"] < self._began:
            return
        words = format_progress(name, result, 200)
        self._show(f'<progress max="1" value="{result["share_done"] or 0}"></progress> {escape(words)}')

    def end(self, words: str) -> None:
        """The last that is shown."""
        self._show(self._page(words))

    def _show(self, page: str) -> None:
        if self._handle is not None:
            self._handle.update(self._html(page))

    def _page(self, words: str) -> str:
        return f"<div>{escape(self._path.name)}: {escape(words)}</div>"


def _noted(path: Path) -> tuple[Path, str] | None:
    """Where a run notes its figures, and under which name; None where the run itself will tell what is wrong there."""
    try:
        name = read_job_file(path).name
        return None if name is None else (find_workspace(path).state, name)
    except JobError:
        return None
