"""Who takes the rows of a run through its steps: this process, or the workers of a Ray cluster."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from connectors.transport.client import HttpTransport, RequestTimeouts
from pipelines.batch.dispatcher import BatchDispatcher, BatchOptions
from pipelines.batch.store import BatchLedger
from pipelines.config.batch_rules import next_deadline
from pipelines.dispatch.counters import RunCounters
from pipelines.dispatch.dispatcher import OnlineDispatcher
from pipelines.dispatch.provider_routes import build_routes, shared_limiters
from pipelines.dispatch.request_types import DailyBudget, DispatchControl, RetryLimits
from pipelines.dispatch.step_runner import Chunk, RunStep, StepRunner
from pipelines.ledger.ledger import Ledger
from pipelines.limits.provider_limiter import ProviderLimiter
from pipelines.monitoring.bottleneck import RemoteTimings
from pipelines.preparation.prepared_job import PreparedJob, media_reader
from pipelines.pricing.run_budget import RunBudget
from pipelines.runtime.run_records import OpenRun


class ChunkRunner(Protocol):
    """Takes chunks of rows through the steps: `StepRunner`, or its stand-in on Ray."""

    failure: BaseException | None
    progressed: asyncio.Event

    @property
    def rendering(self) -> int: ...

    @property
    def open_rows(self) -> int: ...

    @property
    def open_bytes(self) -> int: ...

    def submit(self, chunk: Chunk) -> None:
        """See Travel, as for all of these."""

    async def join(self) -> None: ...


@dataclass(frozen=True, slots=True)
class RunContext:
    """One invocation: what is to be done, and where it is counted."""

    prepared: PreparedJob
    ledger: Ledger
    run: OpenRun
    retrying: bool
    counters: RunCounters
    budget: RunBudget
    daily_budget: DailyBudget | None
    on_finished: Callable[[Chunk], None]
    """Takes finished chunks."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What does it."""

    dispatcher: DispatchControl
    runner: ChunkRunner
    limiters: Mapping[str, ProviderLimiter]
    """By provider, to be looked at."""
    shared_limiters: Mapping[str, ProviderLimiter]
    """Those to be shared with other processes of the workspace."""
    close: Callable[[], Awaitable[None]]
    """To be awaited after the fan-out is closed."""
    job_limiter: ProviderLimiter
    """The job's own limits, to be looked at."""
    remote_timings: RemoteTimings | None = None
    """What workers tell of themselves; None where this process does it all."""


def local_engine(work: RunContext) -> Engine:
    """This process."""
    ready, ledger, run = work.prepared, work.ledger, work.run
    job = ready.job
    transport = HttpTransport(
        RequestTimeouts(job.timeouts.connect, job.timeouts.idle, job.timeouts.total), job.limits.concurrency
    )
    batches = BatchLedger(ledger, job.name)
    kind = BatchDispatcher if job.delivery == "batch" or batches.any_open() else OnlineDispatcher
    fanout = kind(
        ledger,
        transport,
        work.budget,
        work.counters,
        RetryLimits(job.retry.attempts, job.retry.longest_wait, job.retry.longest_hold),
        job.limits.concurrency,
        run.run_id,
        work.daily_budget,
        job.limits.failed_share,
    )
    allowances: dict[str, ProviderLimiter] = {}
    media = media_reader(ready)
    steps = build_routes(ready, ledger, run.run_id, allowances)
    if isinstance(fanout, BatchDispatcher):
        fanout.deliver(_delivery(ready, batches, transport, steps))
    travel = StepRunner(
        steps,
        fanout,
        run.run_id,
        work.on_finished,
        work.retrying,
        media,
        lambda lane, request, answer: ledger.store_answer(request.fingerprint, lane.route_id, request.body, answer),
        ready.sink.files_folder,
    )

    async def close() -> None:
        await transport.close()
        await media.close()

    return Engine(fanout, travel, allowances, shared_limiters(ready, allowances), close, steps[0].route.limiters[1])


def _delivery(
    ready: PreparedJob, batches: BatchLedger, transport: HttpTransport, steps: Sequence[RunStep]
) -> BatchOptions:
    """By batches until the deadline; for a job that is delivered online by now, batches that it left are ended."""
    job, now = ready.job, datetime.now(UTC)
    deadline = now if job.delivery == "online" else None
    if job.deadline is not None:
        deadline = next_deadline(job.deadline, ready.workspace.zone, now)
    models = [(step.model.model, step.model.endpoint) for step in ready.steps]
    lanes = [(step.route, *model) for step, model in zip(steps, models, strict=True)]
    return BatchOptions(batches, ready.workspace.state / "batches" / job.name, transport, lanes, deadline)
