"""Who takes the rows of a run through its steps: this process, or the workers of a Ray cluster."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from connectors.transport.client import HttpTransport, Timeouts
from pipelines.batch.dispatcher import BatchOut, Delivery
from pipelines.batch.store import BatchLedger
from pipelines.config.batch_rules import next_deadline
from pipelines.dispatch.counters import Tally
from pipelines.dispatch.dispatcher import FanOut
from pipelines.dispatch.provider_routes import lanes_of, shared_keys
from pipelines.dispatch.request_types import DayBudget, Sending, Tries
from pipelines.dispatch.step_runner import Chunk, Step, Travel
from pipelines.ledger.ledger import Ledger
from pipelines.limits.provider_limiter import Allowance
from pipelines.monitoring.bottleneck import Elsewhere
from pipelines.preparation.prepared_job import ReadyJob, media_reader
from pipelines.pricing.run_budget import Purse
from pipelines.runtime.run_records import OpenRun


class Travelling(Protocol):
    """Takes chunks of rows through the steps: `StepRunner`, or its stand-in on Ray."""

    failure: BaseException | None
    moved: asyncio.Event

    @property
    def looking(self) -> int: ...

    @property
    def open_rows(self) -> int: ...

    @property
    def open_bytes(self) -> int: ...

    def start(self, chunk: Chunk) -> None:
        """See Travel, as for all of these."""

    async def arrive(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Work:
    """One invocation: what is to be done, and where it is counted."""

    ready: ReadyJob
    ledger: Ledger
    run: OpenRun
    retrying: bool
    tally: Tally
    purse: Purse
    day: DayBudget | None
    finished: Callable[[Chunk], None]
    """Takes finished chunks."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What does it."""

    fanout: Sending
    travel: Travelling
    allowances: Mapping[str, Allowance]
    """By provider, to be looked at."""
    shared: Mapping[str, Allowance]
    """Those to be shared with other processes of the workspace."""
    close: Callable[[], Awaitable[None]]
    """To be awaited after the fan-out is closed."""
    of_job: Allowance
    """The job's own limits, to be looked at."""
    elsewhere: Elsewhere | None = None
    """What workers tell of themselves; None where this process does it all."""


def local_engine(work: Work) -> Engine:
    """This process."""
    ready, ledger, run = work.ready, work.ledger, work.run
    job = ready.job
    transport = HttpTransport(
        Timeouts(job.timeouts.connect, job.timeouts.idle, job.timeouts.total), job.limits.concurrency
    )
    batches = BatchLedger(ledger, job.name)
    kind = BatchOut if job.delivery == "batch" or batches.any_open() else FanOut
    fanout = kind(
        ledger,
        transport,
        work.purse,
        work.tally,
        Tries(job.retry.attempts, job.retry.longest_wait, job.retry.longest_hold),
        job.limits.concurrency,
        run.run_id,
        work.day,
        job.limits.failed_share,
    )
    allowances: dict[str, Allowance] = {}
    media = media_reader(ready)
    steps = lanes_of(ready, ledger, run.run_id, allowances)
    if isinstance(fanout, BatchOut):
        fanout.deliver(_delivery(ready, batches, transport, steps))
    travel = Travel(
        steps,
        fanout,
        run.run_id,
        work.finished,
        work.retrying,
        media,
        lambda lane, request, answer: ledger.keep(request.fingerprint, lane.leg, request.body, answer),
        ready.sink.files_folder,
    )

    async def close() -> None:
        await transport.close()
        await media.close()

    return Engine(fanout, travel, allowances, shared_keys(ready, allowances), close, steps[0].lane.allowances[1])


def _delivery(ready: ReadyJob, batches: BatchLedger, transport: HttpTransport, steps: Sequence[Step]) -> Delivery:
    """By batches until the deadline; for a job that is delivered online by now, batches that it left are ended."""
    job, now = ready.job, datetime.now(UTC)
    deadline = now if job.delivery == "online" else None
    if job.deadline is not None:
        deadline = next_deadline(job.deadline, ready.workspace.zone, now)
    models = [(step.model.model, step.model.endpoint) for step in ready.steps]
    lanes = [(step.lane, *model) for step, model in zip(steps, models, strict=True)]
    return Delivery(batches, ready.workspace.state / "batches" / job.name, transport, lanes, deadline)
