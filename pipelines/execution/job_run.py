"""One invocation of a job: rows are fed to the fan-out, finished ones committed, and how it ended is told."""

import asyncio
import contextlib
import errno
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from connectors.contracts import Commit
from connectors.errors import RowmillError
from pipelines.dispatch.counters import RunCounters, StepCounters
from pipelines.dispatch.request_types import DailyBudget, DispatchControl
from pipelines.dispatch.step_runner import (
    ANSWERED_BY_FILES,
    CHUNK_ROWS,
    FILE_ROWS,
    LOOKING,
    OPEN_BYTES,
    OPEN_ROWS,
    Chunk,
)
from pipelines.engines.local_engine import ChunkRunner, Engine, RunContext, local_engine
from pipelines.execution.committer import Committer, rejected
from pipelines.ledger.ledger import Ledger, now_us
from pipelines.ledger.ledger_file import DAMAGE_REMEDY
from pipelines.ledger.projection import encode_table
from pipelines.limits.limit_leases import share_limits
from pipelines.monitoring.bottleneck import TimeBreakdown
from pipelines.monitoring.json_log import DEFECT_MESSAGE
from pipelines.monitoring.run_view import RunView
from pipelines.preparation.prepared_job import PreparedJob
from pipelines.pricing.prices import PICO, usd
from pipelines.pricing.run_budget import RunBudget
from pipelines.runtime.run_options import RunOptions
from pipelines.runtime.run_records import OpenRun

OPEN_BATCH_ROWS = 250_000 // CHUNK_ROWS * CHUNK_ROWS
"""The same where they go by batches: as many as five full files, about 1.6 kB of memory each beside what they say."""
INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Ended:
    """How an invocation ended."""

    exit_code: int
    stopped: str | None
    """None where it came to its end."""
    tally: RunCounters
    spent: int
    """Pico-dollars of the whole run, earlier invocations included."""
    times: Mapping[str, Any] | None = None
    """Where the time of this invocation went (RunClock.facts)."""
    defect: Exception | None = None
    """What nobody expected and ended the run: told with its traceback."""


async def run_job(
    ready: PreparedJob,
    ledger: Ledger,
    run: OpenRun,
    options: RunOptions,
    follow: Callable[[RunView], Awaitable[None]],
    make_engine: Callable[[RunContext], Engine] | None = None,
    earlier: RunCounters | None = None,
) -> Ended:
    """Request every row that needs an answer, and commit the results; the caller holds the job's lock.

    `make_engine` makes the engine that sends the requests; None: this process. `earlier`: what this invocation has
    counted before, while it probed embedding dimensions.
    """
    job = ready.job
    tally = earlier or RunCounters()
    counts = ready.selection.counts(options.retried_classes or frozenset())
    tally.rows = counts.rows + len(ready.reader.rejects)
    tally.rows_ok = tally.rows_reused = counts.done
    tally.rows_failed = len(ready.reader.rejects) + counts.failed_before
    tally.begun_with = tally.rows_ok + tally.rows_failed
    # Embeddings are asked for by the chunk; how many of a chunk's rows go together is known after the first.
    tally.steps = {
        step.model.name: StepCounters(a_row=1 / CHUNK_ROWS if step.model.endpoint == "embeddings" else 1.0)
        for step in ready.steps
    }
    purse = RunBudget(None if job.budget is None else round(job.budget.usd * PICO), run.spent)
    said = ready.workspace.budget
    day = None if said is None else DailyBudget(round(said.usd_per_day * PICO), ready.workspace.zone)
    committer = Committer(job.name, ready.sink, ready.sink_name, ready.shape, ledger, tally, run.run_id)
    work = RunContext(ready, ledger, run, options.retried_classes is not None, tally, purse, day, committer.add)
    engine = (make_engine or local_engine)(work)
    fanout, travel = engine.dispatcher, engine.runner
    departed = ready.selection.deleted_keys() if ready.is_removing else None
    settled = None if ready.is_limited else ready.selection.resolved_errors()
    failure: BaseException | None = None
    if ready.reader.rejects or ready.selection.rejects_there:
        ready.sink.commit(rejected(ready, run.run_id), f"{ledger.identity}-{ledger.writer:06d}-rejects")
    whole = {"": engine.job_limiter, **engine.limiters}
    senders = job.limits.concurrency
    clock = TimeBreakdown(
        tally, senders, job.delivery, whole, purse, lambda: ledger.write_seconds, engine.remote_timings
    )
    with _signals(fanout, options.grace_seconds), share_limits(ready.workspace.state, engine.shared_limiters):
        fanout.start()
        keeper = asyncio.create_task(_keep_committing(committer, fanout, travel))
        follower = asyncio.ensure_future(follow(RunView(tally, fanout, engine.limiters, purse, clock)))
        ticker = asyncio.create_task(clock.measure_loop_lag())
        try:
            await _feed(ready, travel, fanout, options.retried_classes, clock, committer)
            await travel.join()
        finally:
            clock.end_sending()
            ticker.cancel()
            stopped = fanout.stopped
            await fanout.close(options.grace_seconds)
            await engine.close()
            keeper.cancel()
            follower.cancel()
            ended, _ = await asyncio.gather(keeper, follower, return_exceptions=True)
        failure = fanout.failure or travel.failure
        if failure is None and isinstance(ended, Exception):
            failure = ended
        try:
            await committer.commit()
            if stopped is None and failure is None:
                await asyncio.to_thread(_round_off, ready, ledger, departed, settled)
        except (OSError, sqlite3.Error, RowmillError) as exc:
            failure = failure or exc
    if failure is not None:
        stopped = _why(failure)
    elif stopped is not None and stopped.startswith("budget"):
        stopped = _spent(stopped, tally, purse, day)
    interrupted = stopped == INTERRUPTED
    if interrupted and fanout.left_running:
        stopped = f"{INTERRUPTED}: batches go on at the provider ({fanout.left_running}); the next run fetches them"
    code = 130 if interrupted else 3 if stopped is not None else 1 if tally.rows_failed else 0
    clock.committing_seconds = committer.seconds
    defect = failure if stopped == DEFECT_MESSAGE and isinstance(failure, Exception) else None
    return Ended(code, stopped, tally, purse.spent, clock.to_json(), defect)


async def _feed(
    ready: PreparedJob,
    travel: ChunkRunner,
    fanout: DispatchControl,
    retry: frozenset[str] | None,
    clock: TimeBreakdown,
    committer: Committer,
) -> None:
    files = any(step.model.endpoint in ANSWERED_BY_FILES for step in ready.steps)
    batches = ready.selection.batches(FILE_ROWS if files else CHUNK_ROWS, retry or frozenset())
    most = OPEN_ROWS if ready.job.delivery == "online" else OPEN_BATCH_ROWS
    if files and ready.job.delivery == "online":
        # A server may answer faster than files are written.
        most = 2 * max(FILE_ROWS, ready.job.limits.concurrency)
    while fanout.stopped is None:
        began = time.perf_counter()
        batch = await asyncio.to_thread(next, batches, None)
        read = time.perf_counter()
        clock.reading_seconds += read - began
        if batch is None:
            # DuckDB would keep 10 MB until the end, when the last rows are committed.
            await asyncio.to_thread(ready.reader.close)
            return
        travel.submit(_chunk(batch))
        while fanout.stopped is None and (
            travel.rendering >= LOOKING or travel.open_rows >= most or travel.open_bytes >= OPEN_BYTES or committer.full
        ):
            travel.progressed.clear()
            await travel.progressed.wait()
        clock.rendering_seconds += time.perf_counter() - read
        await fanout.wait_for_capacity()


def _chunk(batch: pa.RecordBatch) -> Chunk:
    keys = batch.column("_key").to_pylist()
    return Chunk(pa.Table.from_batches([batch]), keys, [[] for _ in keys], [False] * len(keys))


async def _keep_committing(committer: Committer, fanout: DispatchControl, travel: ChunkRunner) -> None:
    while True:
        await committer.until_due()
        try:
            await committer.commit()
        except (OSError, sqlite3.Error, RowmillError) as exc:
            fanout.stop(_why(exc))
            raise
        finally:
            travel.progressed.set()


def _round_off(ready: PreparedJob, ledger: Ledger, departed: pa.Table | None, settled: pa.Table | None) -> None:
    """What only a run that has come to its end may do: clear errors that are none any more, remove rows that left."""
    note = "insert into commits (job, sink, at, {}) values (?, ?, ?, ?)"
    if settled is not None and settled.num_rows:
        ledger.write(note.format("cleared"), (ready.job.name, ready.sink_name, now_us(), encode_table(settled)))
        shape = ready.shape
        ready.sink.commit(
            Commit(shape.results.empty_table(), {}, shape.errors.empty_table(), settled),
            f"{ledger.identity}-{ledger.writer:06d}-cleared",
        )
    if departed is not None and departed.num_rows:
        ledger.write(note.format("removed"), (ready.job.name, ready.sink_name, now_us(), encode_table(departed)))
        ready.sink.remove(departed, errors_too=True)
    ready.sink.finish()


def _spent(stopped: str, tally: RunCounters, purse: RunBudget, day: DailyBudget | None) -> str:
    """What the budget was, what is left to do, and what that would cost at the price of the rows so far."""
    more = "--budget-usd"
    if stopped == "budget_day":
        limit = f"the day's budget of ${_dollars(day.limit if day else 0)} is nearly spent"
        more = "`usd_per_day` in rowmill.yaml, or tomorrow"
    else:
        limit = f"${usd(purse.spent):.6f} of the budget of ${usd(purse.limit or 0):.6f} is spent"
    rows = tally.rows_left
    told = f"budget: {limit} and the next request might not fit; {rows:,} rows are left"
    if tally.settled and tally.cost:
        told += f", at the price of those before about ${usd(tally.cost) * rows / tally.settled:.6f}"
    return f"{told}; run again with more ({more}), it goes on where it stopped"


def _dollars(pico: int) -> str:
    """Cents where those tell all, else millionths: 0.02, 0.000500."""
    return f"{usd(pico):.2f}" if pico % (PICO // 100) == 0 else f"{usd(pico):.6f}"


@contextlib.contextmanager
def _signals(fanout: DispatchControl, grace: float) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM stops sending and lets what is in flight land, a second leaves at once."""
    loop = asyncio.get_running_loop()

    def interrupted() -> None:
        if fanout.stopped == INTERRUPTED:
            # Whatever is in flight is noted: the next run settles it as unknown.
            os._exit(130)
        fanout.stop(INTERRUPTED)
        fanout.stopped = INTERRUPTED
        loop.call_later(grace, fanout.cancel)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        loop.add_signal_handler(number, interrupted)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


def _why(failure: BaseException) -> str:
    """What stopped the run, told in a line; of a defect of ours no more than that: its words may hold a row's."""
    full = isinstance(failure, OSError) and failure.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or (isinstance(failure, sqlite3.OperationalError) and "full" in str(failure)):
        return "disk full: make room and run again; answers that were received are kept in the ledger"
    if isinstance(failure, OSError):
        return f"cannot write: {failure}"
    if isinstance(failure, sqlite3.DatabaseError) and not isinstance(failure, sqlite3.OperationalError):
        return f"the ledger cannot be read ({failure}); {DAMAGE_REMEDY}"
    if isinstance(failure, sqlite3.Error):
        return f"the ledger cannot be written: {failure}"
    if isinstance(failure, RowmillError):
        return str(failure)
    if isinstance(failure, Exception):
        return DEFECT_MESSAGE
    raise failure
