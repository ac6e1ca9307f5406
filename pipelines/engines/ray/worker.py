"""A worker of a run on Ray: it runs the chunks that it is assigned; its ledger and its limits are remote actors."""

import asyncio
import contextlib
import pickle
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from msgspec import Struct, field
from msgspec.structs import replace

from connectors.contracts import EmbeddingFacts, Provider, TableShape
from connectors.documents.document_reader import DocumentReader
from connectors.documents.document_store import DocumentStore
from connectors.errors import JobError
from connectors.media.media_reader import MediaReader
from connectors.transport.client import HttpTransport, RequestTimeouts
from pipelines.config.job import Job
from pipelines.config.loaded_job import LoadedJob
from pipelines.config.workspace import Workspace
from pipelines.dispatch.chunks import Chunk
from pipelines.dispatch.counters import RunCounters, StepCounters
from pipelines.dispatch.dispatch_state import DispatchState
from pipelines.dispatch.faults.setup_faults import FirstRows, Signature
from pipelines.dispatch.local_steps.document_run import DocumentAccess
from pipelines.dispatch.local_steps.run_steps import all_run_steps, has_large_rows
from pipelines.dispatch.online_dispatcher import OnlineDispatcher
from pipelines.dispatch.pending_requests import PendingRequests
from pipelines.dispatch.provider_routes import build_job_limiter, build_routes
from pipelines.dispatch.request_types import DailyBudget, RetryLimits
from pipelines.dispatch.step_runner import (
    MAX_OPEN_BYTES,
    MAX_OPEN_ROWS,
    MAX_RENDERING_CHUNKS,
    AnyRunStep,
    RunStep,
    StepRunner,
)
from pipelines.engines.ray.deduplicating_dispatcher import DeduplicatingDispatcher
from pipelines.engines.ray.ledger import RemoteLedger
from pipelines.engines.ray.limits import JOB, LeaseRenewal, RemoteBudget, RunTerms
from pipelines.engines.ray.telemetry import TelemetryBatch, TelemetryRecorder
from pipelines.engines.ray.timing import WorkerTimings, limit_waits
from pipelines.limits.provider_limiter import ProviderLimiter
from pipelines.monitoring.run_view import RunView
from pipelines.preparation.prepared_job import build_media_reader, endpoint_steps, prepare_steps
from pipelines.pricing.run_budget import RunBudget
from pipelines.runtime.event_loop import reduce_gc
from pipelines.runtime.open_files import affordable_connections

COMMITTER_COLUMNS = ("_key", "_part", "_in_errors", "_row_fingerprint")
"""Columns of a chunk that the committer needs in addition to those of the results."""


class WorkerConfig(Struct, frozen=True):
    """What a worker needs to know of the run; it holds no secret."""

    loaded: LoadedJob
    workspace: Workspace
    source_schema: pa.Schema
    learned: Mapping[tuple[str, str, str], tuple[str | None, EmbeddingFacts]]
    """(step, provider, model) -> what the ledger knows of the model: the structured mode, and its embeddings."""
    kept_rungs: frozenset[str]
    """See Inputs."""
    run_id: str
    is_retrying: bool
    shape: TableShape
    """Of the job's tables."""
    files: tuple[str, Path]
    """The sink's files_prefix and files_folder."""
    senders: int
    has_budget: bool
    daily_budget: DailyBudget | None
    is_observed: bool
    """Whether the driver has an observer of exchanges."""
    shared_file: Path
    """A file that every machine must see if rows or answers come with files."""

    @property
    def job(self) -> Job:
        return self.loaded.job


class WorkerReport(Struct):
    """How far a worker is."""

    counters: RunCounters = field(default_factory=RunCounters)
    spent: int = 0
    reserved: int = 0
    stop_reason: str | None = None
    failure: Exception | None = None
    hold_reason: str | None = None
    """What it waits for at this moment, as text."""
    telemetry: TelemetryBatch = field(default_factory=TelemetryBatch)
    """What the driver's observer does not have yet."""
    timings: WorkerTimings = field(default_factory=WorkerTimings)
    first_rows: Mapping[tuple[str, str], FirstRows] = field(default_factory=dict)
    """See SetupFaults, as for the next."""
    setup_signatures: frozenset[tuple[str, Signature]] = frozenset()


class WorkerActor:
    """Runs chunks through the steps. All its calls run in one event loop."""

    async def set_up(
        self,
        config: WorkerConfig,
        providers: Mapping[str, Sequence[Provider]],
        number: int,
        first: int,
        ledger: Any,
        limiter: Any,
    ) -> None:
        """Prepare the steps and begin to send.

        `providers`: name in a step -> the providers that are asked, with their keys, which stay in this process's
        memory. `ledger`, `limiter`: the handles of their actors. `first`: what the ledger's `begin` returned.
        """
        reduce_gc()
        self._cpu_began = time.process_time()
        self._config = config
        self._scratch = tempfile.TemporaryDirectory(prefix="rowmill-")
        self._ledger = RemoteLedger(ledger, number, first)
        # In a thread: reading job files and models takes a moment.
        self._steps, limiters = await asyncio.to_thread(self._prepare, config, providers)
        job = config.job
        self._counters = RunCounters(
            steps={step.name: StepCounters() for step in self._steps if isinstance(step, RunStep)}
        )
        has_daily_limit = config.daily_budget is not None
        self._budget = RemoteBudget(limiter, number) if config.has_budget else RunBudget(None, 0, has_daily_limit)
        timeouts = RequestTimeouts(job.timeouts.connect, job.timeouts.idle, job.timeouts.total)
        senders, _ = affordable_connections(config.senders)
        self._transport = HttpTransport(timeouts, senders)
        self._state = DispatchState(config.is_retrying)
        online = OnlineDispatcher(
            PendingRequests(self._ledger, self._counters, self._state, config.run_id),
            self._ledger,
            self._transport,
            self._budget,
            RetryLimits(job.retry.attempts, job.retry.longest_wait, job.retry.longest_hold),
            senders,
            config.daily_budget,
            releases_job_limit_early=True,
        )
        self._online = online
        self._terms = RunTerms()
        self._dispatcher = DeduplicatingDispatcher(online, self._ledger)
        self._recorder = TelemetryRecorder()
        if config.is_observed:
            self._state.observer = self._recorder
        self._limiters = limiters
        for one in limiters.values():
            self._state.on_pause(one.record_run_pause)
        provider_limiters = {name: limiter for name, limiter in limiters.items() if name != JOB}
        self._view = RunView(self._counters, self._dispatcher, provider_limiters)
        self._runners: set[StepRunner] = set()
        self._progressed = asyncio.Event()
        renewal = LeaseRenewal(limiter, number, limiters, self._budget, online.wait_until_recorded, self._apply_terms)
        await renewal.renew()
        self._renewal_task = asyncio.create_task(self._renew_leases(renewal))
        self._dispatcher.start()

    def _prepare(
        self, config: WorkerConfig, providers: Mapping[str, Sequence[Provider]]
    ) -> tuple[Sequence[AnyRunStep], Mapping[str, ProviderLimiter]]:
        """Return (steps, limiters by name)."""
        embeddings = {(provider, model): facts for (_, provider, model), (_, facts) in config.learned.items()}
        every_step = prepare_steps(
            config.loaded,
            config.source_schema,
            providers,
            lambda provider, step: config.learned[step.name, step.provider, step.model][0],
            False,
            lambda provider, model: embeddings[provider.name, model],
            config.kept_rungs,
        )
        steps = endpoint_steps(every_step)
        has_files = any(step.file_columns or has_large_rows(step) for step in every_step)
        if has_files and not config.shared_file.exists():
            raise JobError(
                config.workspace.folder,
                "is not seen by every machine of the Ray cluster, and rows of this job come with files",
                "put the workspace on a shared file system at the same path, or run with --engine local",
            )
        self._media: MediaReader = build_media_reader(config.workspace, steps, Path(self._scratch.name), config.files)
        limiters: dict[str, ProviderLimiter] = {}
        job_limiter = build_job_limiter(config.job)
        run_steps = build_routes(
            config.job, config.workspace, steps, self._ledger, config.run_id, limiters, job_limiter
        )
        limiters[JOB] = job_limiter
        # Requests in flight are limited for the job, not for each worker.
        job_limiter.concurrency = config.job.limits.concurrency
        children = Path(self._scratch.name) / "children"
        prefix, folder = config.files
        store = DocumentStore(config.workspace.documents, config.workspace.folder)
        pages = Path(self._scratch.name) / "pages"
        self._documents = DocumentAccess(self._media, DocumentReader(), store, prefix, folder, pages)
        return all_run_steps(every_step, run_steps, config.shape, children, self._documents), limiters

    async def wait_for_room(self) -> None:
        """Return when another chunk is needed."""
        while self._state.stop_reason is None and (
            sum(runner.rendering for runner in self._runners) >= MAX_RENDERING_CHUNKS
            or sum(runner.open_rows for runner in self._runners) >= MAX_OPEN_ROWS
            or sum(runner.open_bytes for runner in self._runners) >= MAX_OPEN_BYTES
        ):
            self._progressed.clear()
            await self._progressed.wait()
        await self._dispatcher.wait_for_capacity()

    async def run_chunk(self, chunk: Chunk) -> AsyncIterator[Chunk]:
        """Yield the finished rows of a chunk, in pieces as they finish; rows never sent are left out."""
        finished: asyncio.Queue[Chunk | None] = asyncio.Queue()
        config = self._config
        runner = StepRunner(
            self._steps,
            self._dispatcher,
            config.run_id,
            finished.put_nowait,
            config.is_retrying,
            self._media,
            lambda route, request, answer: self._ledger.store_answer(
                request.fingerprint, route.route_id, request.body, answer
            ),
            config.files[1],
        )
        runner.progressed = self._progressed
        self._runners.add(runner)
        runner.submit(chunk)
        joining = asyncio.create_task(runner.join())
        joining.add_done_callback(lambda _: finished.put_nowait(None))
        while (piece := await finished.get()) is not None:
            yield self._for_committer(piece)
        self._runners.discard(runner)
        self._progressed.set()
        if isinstance(runner.failure, Exception):
            self._state.failure = self._state.failure or runner.failure

    async def report(self, seconds: float, recorded: int) -> WorkerReport:
        """Report after so many seconds, or as soon as it stops. `recorded`: see TelemetryRecorder.since."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._dispatcher.stopped.wait()
        failure = self._state.failure
        if failure is not None and not _can_be_pickled(failure):
            failure = RuntimeError(f"{type(failure).__name__}: {failure}")
        return WorkerReport(
            self._counters,
            self._budget.spent,
            self._budget.reserved,
            self._state.stop_reason,
            failure,
            self._view.hold_reason() if self._state.stop_reason is None and not self._state.is_paused else None,
            self._recorder.since(recorded),
            WorkerTimings(
                limit_waits(self._limiters),
                self._ledger.waited_seconds,
                self._budget.waited_seconds,
                time.process_time() - self._cpu_began,
            ),
            self._state.setup_faults.first_rows,
            frozenset(self._state.setup_faults.signatures),
        )

    async def stop(self, reason: str) -> None:
        """See Dispatcher."""
        self._dispatcher.stop(reason)
        self._progressed.set()

    async def cancel(self) -> None:
        """See Dispatcher."""
        self._dispatcher.cancel()

    async def close(self, grace: float, recorded: int) -> WorkerReport:
        """Wait for what is in flight, at most `grace` seconds; return the last report."""
        await self._dispatcher.close(grace)
        await self._transport.close()
        await self._documents.close()
        await self._media.close()
        self._renewal_task.cancel()
        self._scratch.cleanup()
        return await self.report(0, recorded)

    def _apply_terms(self, terms: RunTerms) -> None:
        """Pause or resume, and put other limits in force."""
        if terms.is_paused:
            self._state.pause()
        else:
            self._state.resume()
        limits = terms.limits
        if limits is None or terms.limits == self._terms.limits:
            return
        self._terms = terms
        senders, _ = affordable_connections(terms.senders)
        self._transport.set_connections(senders)
        self._online.set_concurrency(senders)
        job_limiter = self._limiters[JOB]
        job_limiter.concurrency = limits.concurrency
        job_limiter.set_configured(limits.requests_per_minute, limits.tokens_per_minute)

    async def _renew_leases(self, renewal: LeaseRenewal) -> None:
        try:
            await renewal.run()
        except OSError as exc:
            self._state.failure = self._state.failure or exc
            await self.stop(str(exc))

    def _for_committer(self, piece: Chunk) -> Chunk:
        """Return the rows without the columns that only the steps needed."""
        needed = {*COMMITTER_COLUMNS, *self._config.shape.results.names}
        tables = [
            table.select([name for name in table.column_names if name in needed])
            for table in (piece.table, *piece.failed, *piece.childless)
        ]
        failed = len(piece.failed) + 1
        return replace(piece, table=tables[0], failed=tables[1:failed], childless=tables[failed:])


def _can_be_pickled(failure: Exception) -> bool:
    try:
        pickle.loads(pickle.dumps(failure))
    except (pickle.PicklingError, TypeError, AttributeError):
        return False
    return True
