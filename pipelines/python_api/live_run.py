"""A run from Python: a child process with a live view, stopped by interrupting the cell or the script."""

import asyncio
import contextlib
import json
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import orjson

from connectors.errors import JobError, Locked, RowmillError
from pipelines.analysis.results import open_results
from pipelines.config.from_python.passed_job import JobLike, PassedJob
from pipelines.config.loaded_job import LoadedJob
from pipelines.config.overrides import Overrides
from pipelines.monitoring.json_log import DEFECT_MESSAGE
from pipelines.python_api.live_view import UPDATE_SECONDS, LiveView
from pipelines.python_api.spilled_rows import spill_rows
from pipelines.runtime.child_process import parent_pipe, rowmill_command, rowmill_environment
from pipelines.runtime.run_report import RunReport
from pipelines.runtime.scratch_dir import scratch_folder

if TYPE_CHECKING:
    from pipelines.python_api.spilled_rows import Rows

# A child process handles Ctrl-C as on the command line, does not touch the caller's event loop and signals, and
# returns its memory. -P: do not import a folder named pipelines in the current directory.
_COMMAND = (*rowmill_command(), "run")


async def run(
    job: JobLike,
    *,
    rows: "Rows | None" = None,
    workspace: str | PathLike[str] | None = None,
    limit: int | None = None,
    provider: str | None = None,
    sink: str | PathLike[str] | None = None,
    budget_usd: float | None = None,
    delivery: str | None = None,
    changes: Mapping[str, Any] | None = None,
    new_run: bool = False,
    schema_change: Literal["cast", "backfill"] | None = None,
) -> RunReport:
    """Run a job as `rowmill run JOB` does, `await`ed in a cell.

    `job`: the path of a job file, its keys as a dict, or a `Job`. `rows`: a table in place of the job's source.
    `workspace`: the folder where relative paths start; None: that of the job file, or the current folder.
    `changes`: those of `--set`, key path -> value.

    Interrupting the cell works like Ctrl-C: requests in flight finish and are stored; a second interrupt exits at once.
    Raises JobError if nothing could be sent and Locked if the job is already running. The report describes runs that
    stop or have failed rows.
    """
    call = _Call.of(job, workspace, limit, provider, sink, budget_usd, delivery, changes, new_run, schema_change)
    loaded = call.load(rows is not None)
    view = LiveView(loaded.workspace.state, loaded.job.name, call.name)
    updates = asyncio.create_task(_update(view))
    with _closing(view) as end:
        try:
            report = await _run_child(call, loaded, rows)
        finally:
            updates.cancel()
        end(report)
    return report


def run_sync(
    job: JobLike,
    *,
    rows: "Rows | None" = None,
    workspace: str | PathLike[str] | None = None,
    limit: int | None = None,
    provider: str | None = None,
    sink: str | PathLike[str] | None = None,
    budget_usd: float | None = None,
    delivery: str | None = None,
    changes: Mapping[str, Any] | None = None,
    new_run: bool = False,
    schema_change: Literal["cast", "backfill"] | None = None,
) -> RunReport:
    """Run a job like `run`, without `await`: in scripts, and in notebooks whose event loop is running."""
    call = _Call.of(job, workspace, limit, provider, sink, budget_usd, delivery, changes, new_run, schema_change)
    loaded = call.load(rows is not None)
    view = LiveView(loaded.workspace.state, loaded.job.name, call.name)
    with _closing(view) as end:
        report = _in_thread(_run_child(call, loaded, rows), view)
        end(report)
    return report


@dataclass(frozen=True, slots=True)
class _Call:
    """The arguments of a call, but the rows."""

    passed: PassedJob
    overrides: Overrides
    flags: tuple[str, ...]

    @classmethod
    def of(
        cls,
        job: JobLike,
        workspace: str | PathLike[str] | None,
        limit: int | None,
        provider: str | None,
        sink: str | PathLike[str] | None,
        budget_usd: float | None,
        delivery: str | None,
        changes: Mapping[str, Any] | None,
        new_run: bool,
        schema_change: str | None,
    ) -> Self:
        assignments = tuple(f"{key}={json.dumps(value)}" for key, value in (changes or {}).items())
        overrides = Overrides(assignments, limit, provider, None if sink is None else str(sink), budget_usd, delivery)
        flags = [*overrides.flags(), *(["--new-run"] if new_run else []), "--json", "--quiet"]
        flags += [f"--schema-change={schema_change}"] if schema_change is not None else []
        return cls(PassedJob.of(job, workspace), overrides, tuple(flags))

    @property
    def name(self) -> str:
        """What the live view calls the job."""
        job = self.passed.job
        return str(job["name"]) if isinstance(job, dict) else Path(job).name

    def load(self, has_rows: bool) -> LoadedJob:
        """Validate the job; its file of rows is not there yet."""
        return replace(self.passed, rows="rows.parquet" if has_rows else None).load(self.overrides)


async def _run_child(call: _Call, loaded: LoadedJob, rows: "Rows | None") -> RunReport:
    """Run the job in a child process; cancelled, it interrupts the child and waits for its end."""
    passed = call.passed
    with contextlib.ExitStack() as until_end:
        if isinstance(passed.job, str) and passed.workspace is None and rows is None:
            arguments = [passed.job]
        else:
            scratch = until_end.enter_context(scratch_folder(loaded.workspace.state))
            if rows is not None:
                passed = replace(passed, rows=str(scratch / "rows.parquet"))
                await spill_rows(rows, scratch / "rows.parquet")
            request = scratch / "job.json"
            request.write_bytes(passed.to_json())
            arguments = ["--passed", str(request)]
        process = await asyncio.create_subprocess_exec(
            *_COMMAND,
            *arguments,
            *call.flags,
            stdin=until_end.enter_context(parent_pipe()),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=rowmill_environment(),
            start_new_session=True,
        )
        output = asyncio.create_task(process.communicate())
        try:
            await asyncio.wait((output,))
        except asyncio.CancelledError:
            await _stop(process, output)
            raise
    out, err = output.result()
    problems = err.decode(errors="replace").strip()
    if not out:
        raise RuntimeError(f"{call.name}: ended with exit code {process.returncode}: {problems}")
    report = RunReport.from_json(orjson.loads(out.splitlines()[-1]))
    message = str(report.stopped)
    if report.exit_code == Locked.exit_code:
        raise Locked(message)
    if report.exit_code == JobError.exit_code:
        raise JobError("", message)
    if message == DEFECT_MESSAGE:
        sys.stderr.write(f"{problems}\n")
    return replace(report, open_tables=lambda: open_results(loaded))


async def _stop(process: asyncio.subprocess.Process, output: asyncio.Task[Any]) -> None:
    """Interrupt the run and wait for its end; a second interrupt does not wait."""
    while not output.done():
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        # A cancellation here is a second interrupt.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait((output,))


def _in_thread(running: Coroutine[Any, Any, RunReport], view: LiveView) -> RunReport:
    """Run a coroutine on the event loop of another thread: the caller's may be running. Ctrl-C cancels it."""
    ended: Future[RunReport] = Future()
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []
    began = threading.Event()

    async def main() -> RunReport:
        task = asyncio.current_task()
        assert task is not None
        loops.append((asyncio.get_running_loop(), task))
        began.set()
        return await running

    def work() -> None:
        try:
            ended.set_result(asyncio.run(main()))
        except BaseException as exc:  # noqa: BLE001 - raised by the caller
            ended.set_exception(exc)

    threading.Thread(target=work, name="rowmill-run").start()
    is_interrupted = False
    while not ended.done():
        try:
            # Not `Thread.join`, which takes an interrupted thread for one that has ended.
            wait((ended,), UPDATE_SECONDS)
            view.update()
        except KeyboardInterrupt:
            is_interrupted = True
            began.wait()
            loop, task = loops[0]
            with contextlib.suppress(RuntimeError):  # the loop has just ended
                loop.call_soon_threadsafe(task.cancel)
    if is_interrupted:
        raise KeyboardInterrupt
    return ended.result()


async def _update(view: LiveView) -> None:
    while True:
        await asyncio.sleep(UPDATE_SECONDS)
        view.update()


@contextlib.contextmanager
def _closing(view: LiveView) -> Iterator[Callable[[RunReport], None]]:
    """Show how the run has ended, by its report or by what was raised."""

    def end(report: RunReport) -> None:
        view.end(f"{report.rows_ok or 0:,} of {report.rows or 0:,} rows done in {report.seconds or 0:.1f} s")

    try:
        yield end
    except (asyncio.CancelledError, KeyboardInterrupt):
        view.end("interrupted; run it again and it goes on where it stopped")
        raise
    except RuntimeError:
        view.end("the process ended without a report")
        raise
    except RowmillError as exc:
        view.end(str(exc))
        raise
