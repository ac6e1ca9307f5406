"""The main loop of one run: read rows, dispatch their requests, commit finished rows, and find why it stopped."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from msgspec import Struct

from connectors.contracts import Commit
from connectors.errors import RowmillError, Stopped, from_os_error
from pipelines.control.run_control import RunControl
from pipelines.dispatch.chunks import Chunk
from pipelines.dispatch.counters import RunCounters, StepCounters
from pipelines.dispatch.dispatch_state import DRAINED, INTERRUPTED
from pipelines.dispatch.dispatcher import DispatchControl
from pipelines.dispatch.local_steps.run_steps import has_large_rows
from pipelines.dispatch.packing.packing import packing_of
from pipelines.dispatch.request_types import DailyBudget
from pipelines.dispatch.rescue.rescued_rows import record_ladders
from pipelines.dispatch.step_runner import (
    CHUNK_ROWS,
    FILE_CHUNK_ROWS,
    MAX_OPEN_BYTES,
    MAX_OPEN_ROWS,
    MAX_RENDERING_CHUNKS,
    OPEN_BATCH_ROWS,
)
from pipelines.engines.local_engine import ChunkRunner, Engine, RunContext, local_engine
from pipelines.execution.committer import Committer, rejected_lines
from pipelines.execution.run_steering import serve_control, steer_run
from pipelines.formatting import format_count
from pipelines.ledger.free_space import DISK_FULL, is_disk_full
from pipelines.ledger.ledger import Ledger, now_us
from pipelines.ledger.ledger_file import DAMAGE_REMEDY, FOLDER_REMEDY, lost_file
from pipelines.ledger.projection import encode_table
from pipelines.limits.limit_leases import share_limits
from pipelines.monitoring.bottleneck import TimeBreakdown
from pipelines.monitoring.json_log import DEFECT_MESSAGE, print_problem
from pipelines.monitoring.run_view import RunView
from pipelines.preparation.prepared_job import PreparedJob, PreparedStep
from pipelines.pricing.prices import PICO, usd
from pipelines.pricing.run_budget import RunBudget
from pipelines.runtime.locks import lock_path, sink_lock_path
from pipelines.runtime.run_options import RunOptions
from pipelines.runtime.run_records import OpenRun
from pipelines.runtime.run_report import ControlEvent
from pipelines.runtime.state_watch import StateWatch


class RunOutcome(Struct, frozen=True):
    """How an invocation ended."""

    exit_code: int
    stopped: str | None
    """The reason; None if every row was processed."""
    counters: RunCounters
    times: Mapping[str, Any] | None = None
    """Where the time of this invocation went (`TimeBreakdown.to_json`)."""
    control: Sequence[ControlEvent] = ()
    """What `rowmill control` has done."""
    defect: Exception | None = None
    """An unexpected exception that ended the run; it is printed with its traceback."""


async def run_job(
    ready: PreparedJob,
    ledger: Ledger,
    run: OpenRun,
    options: RunOptions,
    follow: Callable[[RunView], Awaitable[None]],
    make_engine: Callable[[RunContext], Engine] | None = None,
    earlier: RunCounters | None = None,
) -> RunOutcome:
    """Request every row that needs an answer, and commit the results; the caller holds the job's lock.

    `make_engine` makes the engine that sends the requests; None: this process. `earlier`: what this invocation has
    counted before, while it probed embedding dimensions.
    """
    counters = _start_counters(ready, options, earlier or RunCounters())
    return await _JobRun(ready, ledger, run, options, counters, make_engine or local_engine).run(follow)


def _start_counters(ready: PreparedJob, options: RunOptions, counters: RunCounters) -> RunCounters:
    """Add the rows of the job, and those that are done or have failed before."""
    counts = ready.selection.counts(options.retried_classes or frozenset())
    counters.rows = counts.rows + len(ready.reader.rejects)
    counters.rows_ok = counters.rows_reused = counts.done
    counters.rows_failed = len(ready.reader.rejects) + counts.failed_before
    if counts.failed_before:
        rows = format_count(counts.failed_before, "row")
        counters.add_note(
            f"{rows} failed in an earlier run for a reason of their own: not sent again by `run`; "
            f"`rowmill retry {ready.loaded.file.shown_path}` sends them"
        )
    counters.failed_now = ready.selection.count_new_rejects()
    counters.rows_done_before = counters.rows_ok + counters.rows_failed
    counters.has_children = any(step.kind == "each" for step in ready.local_steps)
    counters.steps = {
        step.model.name: StepCounters(requests_per_row=1 / _rows_per_request(step)) for step in ready.steps
    }
    return counters


class _JobRun:
    """One run: its budget, the engine that sends its requests, and the committer of its rows."""

    def __init__(
        self,
        ready: PreparedJob,
        ledger: Ledger,
        run: OpenRun,
        options: RunOptions,
        counters: RunCounters,
        make_engine: Callable[[RunContext], Engine],
    ) -> None:
        self._ready = ready
        self._ledger = ledger
        self._run_id = run.run_id
        self._options = options
        self._counters = counters
        job, shared = ready.job, ready.workspace.budget
        usd_of_job = None if job.budget is None else round(job.budget.usd * PICO)
        self._budget = RunBudget(usd_of_job, run.spent, shared is not None)
        usd_per_day = None if shared is None else round(shared.usd_per_day * PICO)
        self._daily_budget = None if usd_per_day is None else DailyBudget(usd_per_day, ready.workspace.zone)
        self._replaced_until = _last_commit(ledger) if ready.selection.is_table_rewritten else 0
        """Id of the last commit whose rows are not in the tables that are built from all rows."""
        self._committer = Committer(
            job.name, ready.sink, ready.sink_name, ready.shape, ledger, counters, run.run_id,
            ready.selection.failed_before,
        )  # fmt: skip
        self._engine = make_engine(
            RunContext(
                ready, ledger, run, options.retried_classes is not None, counters, self._budget, self._daily_budget,
                self._committer.add, options.on_request,
            )
        )  # fmt: skip
        self._dispatcher = self._engine.dispatcher
        self._committer.setup_faults = self._dispatcher.state.setup_faults

    async def run(self, follow: Callable[[RunView], Awaitable[None]]) -> RunOutcome:
        """Send the requests, commit the rows, and return how the run ended."""
        ready, ledger, engine, options = self._ready, self._ledger, self._engine, self._options
        if engine.notice is not None and not options.is_quiet:
            print_problem(engine.notice, options.log == "json", ready.job.name, self._run_id)
        deleted = ready.selection.deleted_keys() if ready.is_removing else None
        resolved = None if ready.is_limited else ready.selection.resolved_errors()
        if ready.reader.rejects or ready.selection.rejects_there:
            ready.sink.commit(rejected_lines(ready, self._run_id), f"{ledger.identity}-{ledger.writer:06d}-rejects")
        clock = TimeBreakdown(
            self._counters, engine.concurrency, ready.job.delivery, {"": engine.job_limiter, **engine.limiters},
            self._budget, lambda: ledger.write_seconds, engine.remote_timings,
        )  # fmt: skip
        view = RunView(self._counters, self._dispatcher, engine.limiters, clock)
        control = steer_run(ready, options, self._run_id, engine, view, self._budget)
        path = ledger.path
        with (
            contextlib.closing(_state_watch(ready, ledger)) as watch,
            _handle_signals(self._dispatcher, options.grace_seconds),
            share_limits(ready.workspace.state, engine.shared_limiters),
        ):
            stopped, failure = await self._process_rows(watch, clock, control, follow(view))
            stopped, failure = await self._finish(watch, path, stopped, failure, deleted, resolved)
        is_interrupted = stopped == INTERRUPTED and failure is None
        reason = self._stop_message(stopped, failure)
        failed = self._counters.rows_failed if options.fail_on == "any" else self._counters.failed_now
        code = 130 if is_interrupted else 3 if reason is not None else 1 if failed else 0
        clock.committing_seconds = self._committer.seconds
        defect = failure if reason == DEFECT_MESSAGE and isinstance(failure, Exception) else None
        return RunOutcome(code, reason, self._counters, clock.to_json(), tuple(control.events), defect)

    async def _process_rows(
        self, watch: StateWatch, clock: TimeBreakdown, control: RunControl, following: Awaitable[None]
    ) -> tuple[str | None, BaseException | None]:
        """Read the rows and send their requests until all are finished or something stops the run.

        Returns the reason why sending stopped, and what has failed.
        """
        dispatcher, runner, engine = self._dispatcher, self._engine.runner, self._engine
        dispatcher.start()
        commit_task = asyncio.create_task(_commit_when_due(self._committer, dispatcher, runner))
        watch_task = asyncio.create_task(watch.run(lambda path: dispatcher.stop(str(lost_file(path)))))
        progress_task = asyncio.ensure_future(following)
        control_task = asyncio.create_task(serve_control(self._ready, self._options, self._run_id, control))
        lag_task = asyncio.create_task(clock.measure_loop_lag())
        try:
            await self._feed_rows(clock, control)
            await runner.join()
        except (OSError, duckdb.Error, RowmillError):
            # Copies of the rows are in the state folder.
            if watch.lost_state() is None:
                raise
        finally:
            clock.end_sending()
            lag_task.cancel()
            watch_task.cancel()
            stopped = dispatcher.state.stop_reason
            await dispatcher.close(self._options.grace_seconds)
            await engine.close()
            commit_task.cancel()
            progress_task.cancel()
            control_task.cancel()
            commit_error, *_ = await asyncio.gather(commit_task, progress_task, control_task, return_exceptions=True)
        failure = dispatcher.state.failure or runner.failure
        if failure is None and isinstance(commit_error, Exception):
            failure = commit_error
        if stopped is None and dispatcher.state.setup_faults.joint_fault is not None:
            stopped = f"setup: {dispatcher.state.setup_faults.joint_fault}"
        return stopped, failure

    async def _feed_rows(self, clock: TimeBreakdown, control: RunControl) -> None:
        """Submit the rows to the engine chunk by chunk, as fast as it takes them."""
        ready, runner, dispatcher = self._ready, self._engine.runner, self._dispatcher
        files = any(has_large_rows(step) for step in ready.every_step)
        retried = self._options.retried_classes or frozenset()
        batches = ready.selection.batches(FILE_CHUNK_ROWS if files else CHUNK_ROWS, retried)

        def max_open_rows() -> int:
            if ready.job.delivery != "online":
                return OPEN_BATCH_ROWS
            # A server may answer faster than the files are written.
            return 2 * max(FILE_CHUNK_ROWS, control.settings.limits.concurrency) if files else MAX_OPEN_ROWS

        while dispatcher.state.stop_reason is None:
            began = time.perf_counter()
            batch = await asyncio.to_thread(next, batches, None)
            read, paused = time.perf_counter(), clock.paused_seconds
            clock.reading_seconds += read - began
            if batch is None:
                # An open source would hold 10 MB of DuckDB's memory until the last rows are committed.
                await asyncio.to_thread(ready.reader.close)
                return
            runner.submit(_chunk(batch))
            while dispatcher.state.stop_reason is None and (
                runner.rendering >= MAX_RENDERING_CHUNKS
                or runner.open_rows >= max_open_rows()
                or runner.open_bytes >= MAX_OPEN_BYTES
                or self._committer.is_full
            ):
                runner.progressed.clear()
                await runner.progressed.wait()
            clock.rendering_seconds += time.perf_counter() - read - (clock.paused_seconds - paused)
            await dispatcher.wait_for_capacity()

    async def _finish(
        self,
        watch: StateWatch,
        path: Path,
        stopped: str | None,
        failure: BaseException | None,
        deleted: pa.Table | None,
        resolved: pa.Table | None,
    ) -> tuple[str | None, BaseException | None]:
        """Commit the last rows; if every row was processed, clean up the tables. `path`: of the ledger at the start."""
        ready, ledger, committer = self._ready, self._ledger, self._committer
        lost_sink = watch.lost_sink()
        try:
            if (lost := watch.lost_state() or lost_sink) is not None:
                failure, stopped = lost_file(lost), None
            if (restored := await asyncio.to_thread(ledger.restore)) != path:
                failure = Stopped(f"{lost_file(path)}; what the run had written there is in {restored}")
            # The next run writes the missing tables again from the ledger.
            if lost_sink is None:
                await committer.commit()
                committer.reclassify()
                await committer.commit()
            if stopped is None and failure is None:
                await asyncio.to_thread(_finalize, ready, ledger, deleted, resolved, self._replaced_until)
                is_complete = not ready.is_limited and not ready.selection.is_restricted
                if self._options.retried_classes is None and is_complete:
                    record_ladders(ready, ledger)
        except (OSError, sqlite3.Error, RowmillError) as exc:
            failure = failure or exc
        return stopped, failure

    def _stop_message(self, stopped: str | None, failure: BaseException | None) -> str | None:
        """Return the reason for the user; None if every row was processed."""
        if failure is not None:
            return _stop_reason(failure)
        if stopped == DRAINED:
            rows = format_count(self._counters.rows_left, "row")
            return f"drained by `rowmill control`: {rows} left; run again to continue"
        if stopped == INTERRUPTED and (running := self._dispatcher.state.left_running):
            return f"{INTERRUPTED}: batches go on at the provider ({running}); the next run fetches them"
        if stopped is not None and stopped.startswith("budget"):
            return _budget_message(stopped, self._counters, self._budget, self._daily_budget)
        return stopped


def _rows_per_request(step: PreparedStep) -> int:
    """Return how many rows share a request, as an estimate until the first chunk has been requested."""
    if step.model.endpoint == "embeddings":
        return CHUNK_ROWS
    packing = packing_of(step.endpoint)
    return 1 if packing is None else packing.agreement.rows


def _state_watch(ready: PreparedJob, ledger: Ledger) -> StateWatch:
    state, sink = ready.workspace.state, ready.job.sink.location(ready.workspace.folder)
    locks = (lock_path(state, ready.job.name), sink_lock_path(state, sink))
    return StateWatch((state, ledger.path, *locks), (path for path in ready.sink.paths() if isinstance(path, Path)))


def _chunk(batch: pa.RecordBatch) -> Chunk:
    keys = batch.column("_key").to_pylist()
    return Chunk(pa.Table.from_batches([batch]), keys, [[] for _ in keys], [False] * len(keys))


async def _commit_when_due(committer: Committer, dispatcher: DispatchControl, runner: ChunkRunner) -> None:
    while True:
        await committer.wait_until_due()
        try:
            await committer.commit()
        except (OSError, sqlite3.Error, RowmillError) as exc:
            dispatcher.stop(_stop_reason(exc))
            raise
        finally:
            runner.progressed.set()


def _last_commit(ledger: Ledger) -> int:
    """Return the id of the last commit of any job; 0 without one."""
    ((last,),) = ledger.query("select coalesce(max(id), 0) from commits")
    return int(last)


def _finalize(
    ready: PreparedJob, ledger: Ledger, deleted: pa.Table | None, resolved: pa.Table | None, replaced_until: int
) -> None:
    """Clear resolved errors and remove deleted rows; only a run that processed every row may do so.

    `replaced_until`: commits up to this id are void once the tables built from all rows are in place.
    """
    insert = "insert into commits (job, sink, at, {}) values (?, ?, ?, ?)"
    if resolved is not None and resolved.num_rows:
        ledger.write(insert.format("cleared"), (ready.job.name, ready.sink_name, now_us(), encode_table(resolved)))
        shape = ready.shape
        ready.sink.commit(
            Commit(shape.results.empty_table(), {}, shape.errors.empty_table(), resolved),
            f"{ledger.identity}-{ledger.writer:06d}-cleared",
        )
    if deleted is not None and deleted.num_rows:
        ledger.write(insert.format("removed"), (ready.job.name, ready.sink_name, now_us(), encode_table(deleted)))
        ready.sink.remove(deleted, errors_too=True)
    ready.sink.finish()
    if replaced_until:
        # Otherwise `rebuild` would write rows again that the source has no more.
        void = "delete from commits where job = ? and sink = ? and id <= ?"
        ledger.write(void, (ready.job.name, ready.sink_name, replaced_until))


def _budget_message(stopped: str, counters: RunCounters, budget: RunBudget, daily_budget: DailyBudget | None) -> str:
    """Describe the budget, the rows left, and their cost at the price of the rows so far."""
    more = "--budget-usd"
    if stopped == "budget_day":
        limit = f"the day's budget of ${_format_dollars(daily_budget.limit if daily_budget else 0)} is nearly spent"
        more = "`usd_per_day` in rowmill.yaml, or tomorrow"
    else:
        limit = f"${usd(budget.spent):.6f} of the budget of ${usd(budget.limit or 0):.6f} is spent"
    rows = counters.rows_left
    left = f"{format_count(rows, 'row')} {'is' if rows == 1 else 'are'} left"
    message = f"budget: {limit} and the next request might not fit; {left}"
    if counters.settled and counters.cost:
        message += f", which would cost about ${usd(counters.cost) * rows / counters.settled:.6f} at the price so far"
    return f"{message}; run again with more ({more}) to continue"


def _format_dollars(pico: int) -> str:
    """Whole cents as 0.02, other amounts to the millionth as 0.000500."""
    return f"{usd(pico):.2f}" if pico % (PICO // 100) == 0 else f"{usd(pico):.6f}"


@contextlib.contextmanager
def _handle_signals(dispatcher: DispatchControl, grace: float) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM stops sending; requests in flight may finish. The second exits at once."""
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        if dispatcher.state.stop_reason == INTERRUPTED:
            if sys.stderr.isatty():
                # The prompt begins below the progress.
                os.write(sys.stderr.fileno(), b"\n")
            # Requests in flight are recorded: the next run settles them as unknown.
            os._exit(130)
        dispatcher.stop(INTERRUPTED)
        dispatcher.state.stop_reason = INTERRUPTED
        loop.call_later(grace, dispatcher.cancel)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        loop.add_signal_handler(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


def _stop_reason(failure: BaseException) -> str:
    """One line that names what stopped the run; the text of a defect is left out, since it may quote a row."""
    if is_disk_full(failure):
        return DISK_FULL
    if isinstance(failure, OSError):
        return str(from_os_error(failure))
    if isinstance(failure, sqlite3.DatabaseError) and not isinstance(failure, sqlite3.OperationalError):
        return f"the ledger cannot be read ({failure}); {DAMAGE_REMEDY}"
    if isinstance(failure, sqlite3.Error):
        return f"the ledger cannot be written ({failure}); {FOLDER_REMEDY}, then run again"
    if isinstance(failure, RowmillError):
        return str(failure)
    if isinstance(failure, Exception):
        return DEFECT_MESSAGE
    raise failure
