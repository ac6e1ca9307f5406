"""`--engine ray`: the driver reads and commits as in a local run, and workers on a Ray cluster run the chunks."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Coroutine
from importlib.util import find_spec
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from connectors.errors import JobError
from pipelines.batch.store import BatchLedger
from pipelines.config.job import JobLimits
from pipelines.config.loaded_job import LoadedJob
from pipelines.config.workspace_file import LOCAL
from pipelines.dispatch.chunks import Chunk
from pipelines.dispatch.counters import RunCounters
from pipelines.dispatch.dispatch_state import DispatchState
from pipelines.engines.local_engine import Engine, RunContext, local_engine
from pipelines.engines.ray.keys import KeyActor, key_commands, with_remote_keys
from pipelines.engines.ray.ledger import LedgerActor, WorkerEntries, actor_result
from pipelines.engines.ray.limits import JOB, LimiterActor, LimitSpec, RunTerms
from pipelines.engines.ray.telemetry import TelemetryBatch, observe
from pipelines.engines.ray.timing import ObservedLimit, add_up
from pipelines.engines.ray.worker import WorkerActor, WorkerConfig, WorkerReport
from pipelines.monitoring.bottleneck import RemoteTimings

REPORT_SECONDS = 0.5
"""Time between the reports of a worker."""

CONNECT_SECONDS = 10.0
"""Time that a cluster has to accept a connection."""

MAX_LOSSES_PER_WORKER = 3
"""Workers that may die before the run stops, for each that it began with."""

OBJECT_STORE_BYTES = 256 << 20
"""Size of the object store of a cluster that is started for one run: chunks pass through it, nothing stays."""

TOKEN_COUNTERS = ("input_tokens", "output_tokens")
RUN_COUNTERS = (
    "requests", "retries", "rate_limited", "in_flight", "answered", "cost", "unpriced", "settled", "settled_failed",
    "pack_verified", "pack_agreed", *TOKEN_COUNTERS,
)  # fmt: skip
STEP_COUNTERS = (
    "exchanges", "asked", "answered", "skipped", "failed", "schema_repairs", "cost", "busy_seconds",
)  # fmt: skip
"""The counters that are added up over the workers, of RunCounters and of StepCounters."""


def check_ray(loaded: LoadedJob) -> None:
    """Raise JobError if the job cannot run on Ray, or Ray is not installed."""
    if find_spec("ray") is None:
        raise JobError("--engine ray", "Ray is not installed", "add it with: pip install 'rowmill[ray]'")
    if os.environ.get("RAY_ADDRESS", "").startswith("ray://"):
        raise JobError(
            "RAY_ADDRESS",
            "is the address of a Ray Client server, but the ledger must be on a machine of the cluster",
            "run on one of them, with RAY_ADDRESS=auto",
        )
    if loaded.job.delivery == "batch":
        raise JobError(loaded.locate("delivery"), "batches do not need workers", "run with --engine local")


def ray_engine(context: RunContext) -> Engine:
    """Return the engine of the cluster at RAY_ADDRESS, or of one that is started on this machine for this run."""
    if context.counters.rows_left == 0:
        # Nothing will be sent: that needs no cluster.
        return local_engine(context)
    prepared, job = context.prepared, context.prepared.job
    if BatchLedger(context.ledger, job.name).has_open_batches():
        raise JobError(job.name, "batches of an earlier run are open", "run once with --engine local, it ends them")
    _connect()
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) > 1 and any(member.name == LOCAL for step in prepared.requested_steps for member in step.members):
        raise JobError(job.name, "provider local listens on this machine only", "run with --engine local")
    cores = int(ray.cluster_resources().get("CPU", 1))
    pool = WorkerPool(context, max(1, min(cores, job.limits.concurrency)))
    provider_limits = {name: limit for name, limit in pool.limits.items() if name != JOB}
    job_limit, concurrency = pool.limits[JOB], job.limits.concurrency
    return Engine(
        pool, pool.chunks, provider_limits, {}, pool.shut_down, job_limit, concurrency, pool.set_limits, pool.timings
    )


def _connect() -> None:
    # Data about a run must not leave the cluster.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    address = os.environ.get("RAY_ADDRESS") or "local"
    options = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES} if address == "local" else {}
    try:
        if ":" in address:
            # Ray itself retries for minutes if there is no server.
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **options)
    except (OSError, RuntimeError, ValueError) as exc:
        reason = f"{type(exc).__name__}: {_first_line(exc)}"
        raise JobError("RAY_ADDRESS", f"no cluster to use at {address} ({reason})", "start one, or unset it") from exc


class AssignedChunk(Struct):
    """A chunk at a worker, and the keys of its rows that are not finished."""

    chunk: Chunk
    unfinished: set[str]


class WorkerHandle(Struct):
    """One worker as the driver sees it."""

    number: int
    actor: Any
    is_ready: bool = False
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    chunks: list[AssignedChunk] = field(default_factory=list)
    report: WorkerReport = field(default_factory=WorkerReport)
    observed: int = 0
    """Telemetry records that were passed to the observer."""


class ChunkQueue:
    """Chunks on their way to workers; for the driver what StepRunner is for one process."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._queue: asyncio.Queue[Chunk] = asyncio.Queue()
        self.progressed = asyncio.Event()
        self.failure: BaseException | None = None
        self._open_rows = 0

    @property
    def rendering(self) -> int:
        """Chunks that no worker has taken yet."""
        return self._queue.qsize()

    @property
    def open_rows(self) -> int:
        """Unfinished rows of each worker, on average."""
        return self._open_rows // self._workers

    @property
    def open_bytes(self) -> int:
        """Always 0: each worker limits its own."""
        return 0

    def submit(self, chunk: Chunk) -> None:
        """See StepRunner."""
        self._open_rows += len(chunk.keys)
        self._queue.put_nowait(chunk)

    async def join(self) -> None:
        """See StepRunner."""
        while self._open_rows:
            self.progressed.clear()
            await self.progressed.wait()

    async def get(self) -> Chunk:
        """Return the next chunk for a worker."""
        chunk = await self._queue.get()
        self.progressed.set()
        return chunk

    def finish(self, rows: int) -> None:
        """Count rows that have finished, or never will."""
        self._open_rows -= rows
        self.progressed.set()

    def clear(self) -> None:
        """Leave the chunks that no worker has taken to another run."""
        while not self._queue.empty():
            self.finish(len(self._queue.get_nowait().keys))


class WorkerPool:
    """The workers of a run: each gets chunks as it needs them; the chunks of one that dies go to others."""

    def __init__(self, context: RunContext, workers: int) -> None:
        self.state = DispatchState()
        self.state.waiting_for = f"{workers} workers on Ray to begin"
        self.state.on_stop(self._stop_workers)
        self.state.on_pause(self._pause_workers)
        self.chunks = ChunkQueue(workers)
        self._context = context
        self._size = workers
        self._workers: dict[int, WorkerHandle] = {}
        self._last_number = 0
        self._began = time.monotonic()
        self._spent_before = context.budget.spent
        self._terms = RunTerms()
        # What this invocation did before there were workers counts as the report of a dead one.
        counters = replace(context.counters, steps={}, times=replace(context.counters.times))
        self._final_reports = [WorkerReport(counters)]
        self.timings = RemoteTimings(workers)
        prepared = context.prepared
        job, limits = prepared.job, prepared.job.limits
        self._providers = {step.model.provider: tuple(step.members) for step in prepared.requested_steps}
        self._members = {member.name: member for step in prepared.requested_steps for member in step.members}
        self.limits = {JOB: ObservedLimit(limits.requests_per_minute, limits.tokens_per_minute, None)} | {
            name: ObservedLimit(member.requests_per_minute, member.tokens_per_minute, member.concurrency)
            for name, member in self._members.items()
        }
        self._config = WorkerConfig(
            loaded=prepared.loaded,
            workspace=prepared.workspace,
            source_schema=prepared.reader.schema,
            learned={
                (step.model.name, step.model.provider, step.model.model): (
                    step.context.structured_mode,
                    step.context.embedding,
                )
                for step in prepared.requested_steps
            },
            kept_rungs=prepared.inputs.kept_rungs,
            run_id=context.run.run_id,
            is_retrying=context.is_retrying,
            shape=prepared.shape,
            files=(prepared.sink.files_prefix, prepared.sink.files_folder.absolute()),
            senders=self._senders(limits.concurrency),
            has_budget=context.budget.limit is not None,
            daily_budget=context.daily_budget,
            is_observed=False,
            shared_file=prepared.workspace.state / "locks" / f"{job.name}.lock",
        )

    def start(self) -> None:
        """Start the actors for ledger and limits on this machine, then the workers."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        prepared = self._context.prepared
        this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        on_this_node = ray.remote(num_cpus=0, max_concurrency=100_000, scheduling_strategy=this_node)
        self._ledger = on_this_node(LedgerActor).remote(
            self._context.ledger.path.absolute(), prepared.job.name, self._context.ledger.durability
        )
        limits = prepared.job.limits
        specs = {JOB: LimitSpec(limits.requests_per_minute, limits.tokens_per_minute, limits.concurrency)}
        for member in self._members.values():
            specs[member.name] = LimitSpec(
                member.requests_per_minute,
                member.tokens_per_minute,
                member.concurrency,
                None if member.name == LOCAL else f"{member.name} {member.base_url}",
            )
        if commands := key_commands(self._members):
            keys = on_this_node(KeyActor).remote(commands)
            self._providers = {
                name: tuple(with_remote_keys(member, keys) for member in members)
                for name, members in self._providers.items()
            }
        remaining = self._context.budget.remaining
        self._limiter = on_this_node(LimiterActor).remote(prepared.workspace.state, specs, remaining)
        self._limiter_started = self._limiter.start.remote()
        for _ in range(self._size):
            self._start_worker()

    async def wait_for_capacity(self) -> None:
        """Return at once: workers take chunks as they need them."""

    def stop(self, reason: str) -> None:
        """See Dispatcher."""
        self.state.stop(reason)

    def set_limits(self, limits: JobLimits, budget: int | None) -> None:
        """Put other limits and another budget in force; workers follow within half a second."""
        self._terms = replace(self._terms, limits=limits, senders=self._senders(limits.concurrency))
        self.limits[JOB].set_configured(limits.requests_per_minute, limits.tokens_per_minute)
        left: int | None = None
        if budget is not None:
            self._context.budget.set_limit(budget)
            left = budget - self._spent_before
        self._limiter.set_terms.remote(self._terms, left)

    def _pause_workers(self, is_paused: bool) -> None:
        self._terms = replace(self._terms, is_paused=is_paused)
        self._limiter.set_terms.remote(self._terms, None)

    def _senders(self, concurrency: int) -> int:
        # Requests in flight are leased: a worker with more to do than others may have twice its part.
        return min(concurrency, -(-2 * concurrency // self._size))

    def _stop_workers(self, reason: str) -> None:
        self.chunks.clear()
        for worker in self._ready_workers:
            worker.actor.stop.remote(reason)

    def cancel(self) -> None:
        """See Dispatcher."""
        for worker in self._ready_workers:
            worker.actor.cancel.remote()

    async def close(self, grace: float) -> None:
        """See Dispatcher."""
        self.stop(self.state.stop_reason or "finished")
        closing = [(worker, self._close_worker(worker, grace)) for worker in self._ready_workers]
        await asyncio.gather(*(self._guard(worker, work) for worker, work in closing))
        for task in [task for worker in self._workers.values() for task in worker.tasks]:
            task.cancel()
        self._update_counters()

    async def shut_down(self) -> None:
        """Close the ledger, return what was leased, and disconnect from the cluster."""
        import ray

        with contextlib.suppress(OSError):
            await asyncio.gather(actor_result(self._ledger.close.remote()), actor_result(self._limiter.close.remote()))
        ray.shutdown()

    # One worker.

    @property
    def _ready_workers(self) -> list[WorkerHandle]:
        return [worker for worker in self._workers.values() if worker.is_ready]

    def _start_worker(self) -> None:
        import ray

        self._last_number += 1
        actor = ray.remote(num_cpus=1, max_concurrency=100_000, scheduling_strategy="SPREAD")(WorkerActor).remote()
        worker = self._workers[self._last_number] = WorkerHandle(self._last_number, actor)
        self._start_task(worker, self._serve(worker))

    def _start_task(self, worker: WorkerHandle, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._guard(worker, work))
        worker.tasks.append(task)
        task.add_done_callback(worker.tasks.remove)

    async def _guard(self, worker: WorkerHandle, work: Coroutine[Any, Any, None]) -> None:
        """Do the work. If the worker turns out to be dead, others take over; any other failure ends the run."""
        from ray.exceptions import RayError, RayTaskError

        try:
            try:
                await work
            except RayTaskError as exc:
                raise exc.cause from None
            except RayError as exc:
                await self._replace(worker, exc)
        except Exception as exc:  # noqa: BLE001 - the run raises it again
            self.state.fail(exc)

    async def _serve(self, worker: WorkerHandle) -> None:
        number, actor = worker.number, worker.actor
        await actor_result(self._limiter_started)
        first = await actor_result(self._ledger.begin.remote(number))
        # Keys travel as arguments of a call: they are only in the memory of the processes that send.
        config = replace(self._config, is_observed=self.state.observer is not None)
        await actor.set_up.remote(config, self._providers, number, first, self._ledger, self._limiter)
        worker.is_ready = True
        self.timings.startup_seconds = self.timings.startup_seconds or time.monotonic() - self._began
        if self.state.stop_reason is not None:
            actor.stop.remote(self.state.stop_reason)
        self._start_task(worker, self._follow(worker))
        while self.state.stop_reason is None:
            await actor.wait_for_room.remote()
            chunk = await self.chunks.get()
            assigned = AssignedChunk(chunk, set(chunk.keys))
            worker.chunks.append(assigned)
            self._start_task(worker, self._run_chunk(worker, assigned))

    async def _run_chunk(self, worker: WorkerHandle, assigned: AssignedChunk) -> None:
        pieces = worker.actor.run_chunk.options(num_returns="streaming").remote(assigned.chunk)
        async for result in pieces:
            piece: Chunk = await result
            others = [table.column("_key").to_pylist() for table in (*piece.failed, *piece.childless)]
            assigned.unfinished.difference_update(piece.keys, *others)
            self._context.on_finished(piece)
        worker.chunks.remove(assigned)
        self.chunks.finish(len(assigned.chunk.keys))

    async def _follow(self, worker: WorkerHandle) -> None:
        while worker.report.stop_reason is None:
            self._add_report(worker, await worker.actor.report.remote(REPORT_SECONDS, worker.observed))
            self._update_counters()
        self.state.failure = self.state.failure or worker.report.failure
        self.stop(worker.report.stop_reason)

    async def _close_worker(self, worker: WorkerHandle, grace: float) -> None:
        self._add_report(worker, await worker.actor.close.remote(grace, worker.observed))
        self.state.failure = self.state.failure or worker.report.failure

    def _add_report(self, worker: WorkerHandle, report: WorkerReport) -> None:
        worker.report = replace(report, telemetry=TelemetryBatch())
        self.state.setup_faults.signatures.update(report.setup_signatures)
        if self.state.observer is not None:
            worker.observed = observe(self.state.observer, self._members, report.telemetry, worker.observed)

    async def _replace(self, worker: WorkerHandle, error: Exception) -> None:
        """Replace a worker that has died: its exchanges in flight are unknown, and its chunks go to others."""
        if self._workers.pop(worker.number, None) is None:
            return
        for task in worker.tasks:
            if task is not asyncio.current_task():
                task.cancel()
        entries: WorkerEntries = await actor_result(self._ledger.remove.remote(worker.number))
        spent = entries.cost + entries.unknown
        await actor_result(self._limiter.remove.remote(worker.number, spent))
        written = {name: getattr(entries, name) for name in ("requests", "cost", "unpriced", *TOKEN_COUNTERS)}
        counters = replace(worker.report.counters, in_flight=0, answered=0, **written)
        report = WorkerReport(counters, spent, timings=worker.report.timings, first_rows=worker.report.first_rows)
        self._final_reports.append(report)
        for assigned in worker.chunks:
            chunk = assigned.chunk
            unfinished = [row for row, key in enumerate(chunk.keys) if key in assigned.unfinished]
            self.chunks.finish(len(chunk.keys))
            if unfinished:
                self.chunks.submit(chunk.select(unfinished))
        losses = len(self._final_reports) - 1
        if self.state.stop_reason is not None:
            self.chunks.clear()
        elif losses > MAX_LOSSES_PER_WORKER * self._size:
            self.stop(f"{losses} workers on Ray died, the last with: {_first_line(error)}; fix that, run again")
        else:
            self._start_worker()

    def _update_counters(self) -> None:
        """Add up what the workers report."""
        reports = [*self._final_reports, *(worker.report for worker in self._workers.values())]
        counters, budget = self._context.counters, self._context.budget
        _add_counters(counters, [report.counters for report in reports])
        budget.spent = self._spent_before + sum(report.spent for report in reports)
        budget.reserved = sum(report.reserved for report in reports)
        budget.waited_seconds = sum(report.timings.budget for report in reports)
        times = [(report.counters.times, report.timings) for report in reports]
        add_up(times, self.limits, counters.times, self.timings)
        self.state.waiting_for = next((one.hold_reason for one in reports if one.hold_reason is not None), None)
        if (fault := self.state.setup_faults.merge([report.first_rows for report in reports])) is not None:
            self.stop(f"setup: {fault}")
        max_failed_share = self._context.prepared.job.limits.failed_share
        if max_failed_share is None or self.state.stop_reason is not None:
            return
        if (reason := counters.too_many_failed(max_failed_share)) is not None:
            self.stop(reason)


def _add_counters(counters: RunCounters, parts: list[RunCounters]) -> None:
    for name in RUN_COUNTERS:
        setattr(counters, name, sum(getattr(part, name) for part in parts))
    for note in (note for part in parts for note in part.notes):
        counters.add_note(note)
    for step, step_counters in counters.steps.items():
        step_parts = [part.steps[step] for part in parts if step in part.steps]
        for name in STEP_COUNTERS:
            setattr(step_counters, name, sum(getattr(part, name) for part in step_parts))


def _first_line(exc: Exception) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0]
