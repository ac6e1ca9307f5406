"""A run from Python: a child process with a live view, stopped by interrupting the cell or the script."""

import asyncio
import contextlib
import inspect
import json
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

import orjson
from msgspec import Struct
from msgspec.structs import replace

from connectors.errors import JobError, Locked, RowmillError
from pipelines.analysis.results import open_results
from pipelines.config.from_python.passed_job import JobLike, PassedJob
from pipelines.config.loaded_job import LoadedJob
from pipelines.config.overrides import NONE, Overrides
from pipelines.monitoring.json_log import DEFECT_MESSAGE
from pipelines.python_api.live_view import UPDATE_SECONDS, LiveView
from pipelines.python_api.spilled_rows import spill_rows
from pipelines.runtime.child_process import parent_pipe, rowmill_command, rowmill_environment
from pipelines.runtime.run_report import RunReport
from pipelines.runtime.scratch_dir import scratch_folder

if TYPE_CHECKING:
    from pipelines.python_api.spilled_rows import Rows

P = ParamSpec("P")
R = TypeVar("R")


def _run_call(
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
    engine: Literal["local", "ray"] = "local",
) -> "_Call":
    assignments = tuple(f"{key}={json.dumps(value)}" for key, value in (changes or {}).items())
    overrides = Overrides(assignments, limit, provider, None if sink is None else str(sink), budget_usd, delivery)
    flags = [*overrides.flags(), *(["--new-run"] if new_run else [])]
    flags += [f"--schema-change={schema_change}"] if schema_change is not None else []
    flags += [f"--engine={engine}"] if engine != "local" else []
    return _Call("run", PassedJob.of(job, workspace), rows, overrides, tuple(flags))


def _retry_call(
    job: JobLike,
    *,
    rows: "Rows | None" = None,
    workspace: str | PathLike[str] | None = None,
    classes: str | Iterable[str] | None = None,
) -> "_Call":
    names = (classes,) if isinstance(classes, str) else tuple(classes or ())
    flags = () if classes is None else (f"--class={','.join(names)}",)
    return _Call("retry", PassedJob.of(job, workspace), rows, NONE, flags)


def _with_parameters_of(described: Callable[P, Any]) -> Callable[[Callable[..., R]], Callable[P, R]]:
    """Give a function the parameters of another, for type checkers, editors and notebooks."""

    def decorate(function: Callable[..., R]) -> Callable[P, R]:
        signature = inspect.signature(described).replace(return_annotation="RunReport")
        function.__signature__ = signature  # type: ignore[attr-defined]
        return function

    return decorate


@_with_parameters_of(_run_call)
async def run(*args: Any, **arguments: Any) -> RunReport:
    """Run a job as `rowmill run JOB` does, `await`ed in a cell.

    `job`: the path of a job file, its keys as a dict, or a `Job`. `rows`: a table in place of the job's source.
    `workspace`: the folder where relative paths start; None: that of the job file, or the current folder.
    `changes`: those of `--set`, key path -> value. `engine`: `ray` sends the requests from the workers of a cluster.

    Interrupting the cell works like Ctrl-C: requests in flight finish and are stored; a second interrupt exits at once.
    Raises JobError if nothing could be sent and Locked if the job is already running. The report describes runs that
    stop or have failed rows.
    """
    return await _run_call(*args, **arguments).follow()


@_with_parameters_of(_run_call)
def run_sync(*args: Any, **arguments: Any) -> RunReport:
    """Run a job like `run`, without `await`: in scripts, and in notebooks whose event loop is running."""
    return _run_call(*args, **arguments).wait()


@_with_parameters_of(_retry_call)
async def retry(*args: Any, **arguments: Any) -> RunReport:
    """Run a job as `rowmill retry JOB` does: request failed rows again, also those that `run` does not request.

    `classes`: only rows of this error class, or of these, such as `length`; None: of all. `job`, `rows`, `workspace`,
    interrupts and errors are those of `run`.
    """
    return await _retry_call(*args, **arguments).follow()


@_with_parameters_of(_retry_call)
def retry_sync(*args: Any, **arguments: Any) -> RunReport:
    """Run a job like `retry`, without `await`: in scripts, and in notebooks whose event loop is running."""
    return _retry_call(*args, **arguments).wait()


class _Call(Struct, frozen=True):
    """One call: the command with its flags, the job and its rows."""

    command: str
    passed: PassedJob
    rows: "Rows | None"
    overrides: Overrides
    flags: tuple[str, ...]

    async def follow(self) -> RunReport:
        """Run the command and show its progress meanwhile."""
        loaded = self._load()
        view = LiveView(loaded.workspace.state, loaded.job.name, self.name)
        updates = asyncio.create_task(_update(view))
        with _closing(view) as end:
            try:
                report = await _run_child(self, loaded)
            finally:
                updates.cancel()
            end(report)
        return report

    def wait(self) -> RunReport:
        """Do the same while an event loop may be running in this thread."""
        loaded = self._load()
        view = LiveView(loaded.workspace.state, loaded.job.name, self.name)
        with _closing(view) as end:
            report = _in_thread(_run_child(self, loaded), view)
            end(report)
        return report

    @property
    def name(self) -> str:
        """The name of the job in the live view."""
        job = self.passed.job
        return str(job["name"]) if isinstance(job, dict) else Path(job).name

    def _load(self) -> LoadedJob:
        """Validate the job; its file of rows is not there yet."""
        return replace(self.passed, rows=None if self.rows is None else "rows.parquet").load(self.overrides)


async def _run_child(call: _Call, loaded: LoadedJob) -> RunReport:
    """Run the job in a child process; cancelled, it interrupts the child and waits for its end."""
    passed = call.passed
    with contextlib.ExitStack() as until_end:
        if isinstance(passed.job, str) and passed.workspace is None and call.rows is None:
            arguments = [passed.job]
        else:
            scratch = until_end.enter_context(scratch_folder(loaded.workspace.state))
            if call.rows is not None:
                passed = replace(passed, rows=str(scratch / "rows.parquet"))
                await spill_rows(call.rows, scratch / "rows.parquet")
            request = scratch / "job.json"
            request.write_bytes(passed.to_json())
            arguments = ["--passed", str(request)]
        # A child process handles Ctrl-C as on the command line, does not touch the caller's event loop and signals, and
        # returns its memory. -P: do not import a folder named pipelines in the current directory.
        process = await asyncio.create_subprocess_exec(
            *rowmill_command(),
            call.command,
            *arguments,
            *call.flags,
            "--json",
            "--quiet",
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
        view.end("interrupted; run it again to continue")
        raise
    except RuntimeError:
        view.end("the process ended without a report")
        raise
    except RowmillError as exc:
        view.end(str(exc))
        raise
