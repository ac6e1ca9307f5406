"""The engines: the component that executes a run, and the one that does it in this process."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol

from msgspec import Struct

from connectors.documents.document_reader import DocumentReader
from connectors.documents.document_store import DocumentStore
from connectors.media.media_reader import MediaReader
from connectors.transport.client import HttpTransport, RequestTimeouts
from pipelines.batch.dispatcher import BatchDispatcher, BatchOptions
from pipelines.batch.store import BatchLedger
from pipelines.config.batch_rules import next_deadline
from pipelines.config.job import JobLimits
from pipelines.dispatch.chunks import Chunk
from pipelines.dispatch.counters import RunCounters
from pipelines.dispatch.dispatch_state import DispatchState
from pipelines.dispatch.dispatcher import DispatchControl, Dispatcher
from pipelines.dispatch.local_steps.document_run import DocumentAccess
from pipelines.dispatch.local_steps.run_steps import all_run_steps
from pipelines.dispatch.online_dispatcher import OnlineDispatcher
from pipelines.dispatch.pending_requests import PendingRequests
from pipelines.dispatch.provider_routes import build_job_limiter, build_routes, shared_limiters
from pipelines.dispatch.request_types import DailyBudget, RetryLimits
from pipelines.dispatch.step_runner import MAX_OPEN_ROWS, OPEN_BATCH_ROWS, RunStep, StepRunner
from pipelines.ledger.ledger import Ledger
from pipelines.limits.provider_limiter import ProviderLimiter
from pipelines.monitoring.bottleneck import RemoteTimings
from pipelines.preparation.prepared_job import PreparedJob, media_reader
from pipelines.pricing.run_budget import RunBudget
from pipelines.runtime.open_files import affordable_connections
from pipelines.runtime.run_records import OpenRun


class ChunkRunner(Protocol):
    """Runs chunks of rows through the steps: `StepRunner`, or the chunk queue of the Ray workers."""

    failure: BaseException | None
    progressed: asyncio.Event

    @property
    def rendering(self) -> int: ...

    @property
    def open_rows(self) -> int: ...

    @property
    def open_bytes(self) -> int: ...

    def submit(self, chunk: Chunk) -> None:
        """See StepRunner, as for all of these."""

    async def join(self) -> None: ...


class RunContext(Struct, frozen=True):
    """One invocation: the prepared job, and where its results and its costs are recorded."""

    prepared: PreparedJob
    ledger: Ledger
    run: OpenRun
    is_retrying: bool
    """Whether stored answers that made their row fail are requested again."""
    counters: RunCounters
    budget: RunBudget
    daily_budget: DailyBudget | None
    on_finished: Callable[[Chunk], None]
    """Takes finished chunks."""
    on_request: Callable[[bytes], None] | None = None
    """See RunOptions."""


class Engine(Struct, frozen=True):
    """The component that executes a run (local process or Ray workers)."""

    dispatcher: DispatchControl
    runner: ChunkRunner
    limiters: Mapping[str, ProviderLimiter]
    """By provider, for displays."""
    shared_limiters: Mapping[str, ProviderLimiter]
    """Those to be shared with other processes of the workspace."""
    close: Callable[[], Awaitable[None]]
    """To be awaited after the dispatcher is closed."""
    job_limiter: ProviderLimiter
    """Of the job's own limits, for displays."""
    concurrency: int
    """Requests that may be in flight at first: fewer than the job asks for if the process may not open as many files.
    """
    set_limits: Callable[[JobLimits, int | None], str | None]
    """Puts other limits in force, and a budget in pico-dollars; None: as before. Returns a line for the user."""
    remote_timings: RemoteTimings | None = None
    """What the workers report; None if this process does all the work."""
    notice: str | None = None
    """A line for the user before anything is sent."""


def local_engine(context: RunContext) -> Engine:
    """Return the engine that runs in this process."""
    prepared, ledger, run = context.prepared, context.ledger, context.run
    job = prepared.job
    concurrency, shortage = affordable_connections(job.limits.concurrency)
    notice = None if shortage is None else f"{prepared.loaded.locate('limits', 'concurrency')}: {shortage}"
    limiters: dict[str, ProviderLimiter] = {}
    # What reads the ledger comes first: nothing is open yet if it is damaged.
    job_limiter = build_job_limiter(job)
    steps = build_routes(job, prepared.workspace, prepared.steps, ledger, run.run_id, limiters, job_limiter)
    batches = BatchLedger(ledger, job.name)
    is_batch = job.delivery == "batch" or batches.has_open_batches()
    timeouts = job.timeouts
    transport = HttpTransport(RequestTimeouts(timeouts.connect, timeouts.idle, timeouts.total), concurrency)
    retry_limits = RetryLimits(job.retry.attempts, job.retry.longest_wait, job.retry.longest_hold)
    pending = PendingRequests(
        ledger, context.counters, DispatchState(context.is_retrying), run.run_id, job.limits.failed_share
    )
    pending.on_request = context.on_request
    for limiter in (job_limiter, *limiters.values()):
        pending.state.on_pause(limiter.record_run_pause)
    ledger.watch_free_space(concurrency, pending.state.stop)
    online = OnlineDispatcher(
        pending, ledger, transport, context.budget, retry_limits, concurrency, context.daily_budget
    )
    dispatcher: Dispatcher = online
    if is_batch:
        options = _batch_options(prepared, batches, transport, steps)
        dispatcher = BatchDispatcher(online, context.budget, retry_limits, context.daily_budget, options)
    media = media_reader(prepared)
    documents = _document_access(prepared, media)
    max_open_rows = OPEN_BATCH_ROWS if is_batch else MAX_OPEN_ROWS
    children = prepared.scratch / "children"
    runner = StepRunner(
        all_run_steps(prepared.every_step, steps, prepared.shape, children, documents, max_open_rows),
        dispatcher,
        run.run_id,
        context.on_finished,
        context.is_retrying,
        media,
        lambda route, request, answer: ledger.store_answer(request.fingerprint, route.route_id, request.body, answer),
        prepared.sink.files_folder,
    )

    async def close() -> None:
        await transport.close()
        await documents.close()
        await media.close()

    return Engine(
        dispatcher,
        runner,
        limiters,
        shared_limiters(prepared.steps, limiters),
        close,
        job_limiter,
        concurrency,
        _LimitSetter(context, transport, online, job_limiter).set_limits,
        notice=notice,
    )


class _LimitSetter:
    """Puts other limits in force while the run is in progress."""

    def __init__(
        self, context: RunContext, transport: HttpTransport, online: OnlineDispatcher, job_limiter: ProviderLimiter
    ) -> None:
        self._context = context
        self._transport = transport
        self._online = online
        self._job_limiter = job_limiter
        self._concurrency = context.prepared.job.limits.concurrency

    def set_limits(self, limits: JobLimits, budget: int | None) -> str | None:
        """See Engine."""
        shortage: str | None = None
        if limits.concurrency != self._concurrency:
            self._concurrency = limits.concurrency
            connections, shortage = affordable_connections(limits.concurrency)
            self._transport.set_connections(connections)
            self._online.set_concurrency(connections)
            self._context.ledger.watch_free_space(connections, self._online.state.stop)
        self._job_limiter.set_configured(limits.requests_per_minute, limits.tokens_per_minute)
        if budget is not None:
            self._context.budget.set_limit(budget)
        return shortage


def _document_access(prepared: PreparedJob, media: MediaReader) -> DocumentAccess:
    return DocumentAccess(
        media,
        DocumentReader(),
        DocumentStore(prepared.workspace.documents, prepared.workspace.folder),
        prepared.sink.files_prefix,
        prepared.sink.files_folder,
        prepared.scratch / "pages",
    )


def _batch_options(
    prepared: PreparedJob, batches: BatchLedger, transport: HttpTransport, steps: Sequence[RunStep]
) -> BatchOptions:
    """Return the options of the Batch API; for a job that is online by now, the open batches end at once."""
    job, now = prepared.job, datetime.now(UTC)
    deadline = now if job.delivery == "online" else None
    if job.deadline is not None:
        deadline = next_deadline(job.deadline, prepared.workspace.zone, now)
    requested = [one for step in steps for one in (step, *step.rungs)]
    routes = [
        (step.route, one.model.model, one.model.endpoint)
        for step, one in zip(requested, prepared.requested_steps, strict=True)
    ]
    return BatchOptions(batches, prepared.workspace.state / "batches" / job.name, transport, routes, deadline)
