"""`--engine ray`: the driver reads and commits as ever, workers on a Ray cluster take the chunks through the steps."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

from connectors.errors import JobError
from pipelines.batch.store import BatchLedger
from pipelines.config.loaded_job import LoadedJob
from pipelines.config.workspace_file import LOCAL
from pipelines.dispatch.request_types import ExchangeObserver
from pipelines.dispatch.step_runner import Chunk
from pipelines.engines.local_engine import Engine, RunContext, local_engine
from pipelines.engines.ray.ledger import Account, LedgerActor, answered
from pipelines.engines.ray.limits import JOB, Limit, LimiterActor
from pipelines.engines.ray.telemetry import Heard, tell
from pipelines.engines.ray.timing import Looked, add_up
from pipelines.engines.ray.worker import Report, WorkerActor, WorkerConfig
from pipelines.monitoring.bottleneck import RemoteTimings

LOOK_EVERY = 0.5
"""Seconds between the reports of a worker."""

CONNECT = 10.0
"""Seconds that a cluster has to take a connection."""

LOSSES = 3
"""Workers that may die before the run stops, for each that it began with."""

OBJECTS = 256 << 20
"""Bytes of the object store of a cluster that is started for one run: chunks pass through it, nothing stays."""

COUNTED = (
    "requests", "retries", "rate_limited", "in_flight", "input_tokens", "output_tokens", "cost", "unpriced", "settled",
    "settled_failed",
)  # fmt: skip
TOKENS = ("input_tokens", "output_tokens")
OF_STEPS = ("exchanges", "asked", "answered", "skipped", "failed", "cost", "busy_seconds")
"""What is added up over the workers, of Tally and of StepTally."""


def check_ray(loaded: LoadedJob) -> None:
    """JobError where the job cannot run on Ray, or Ray is not there."""
    if find_spec("ray") is None:
        raise JobError("--engine ray", "Ray is not installed", "add it with: pip install 'rowmill[ray]'")
    if os.environ.get("RAY_ADDRESS", "").startswith("ray://"):
        raise JobError(
            "RAY_ADDRESS",
            "is that of a Ray Client server, and the ledger must lie on a machine of the cluster",
            "run on one of them, with RAY_ADDRESS=auto",
        )
    if loaded.job.delivery == "batch":
        raise JobError(loaded.locate("delivery"), "batches need no workers", "run with --engine local")


def ray_engine(work: RunContext) -> Engine:
    """The workers of the cluster that RAY_ADDRESS names, else of one that is started on this machine for this run."""
    if work.counters.rows_left == 0:
        # Nothing will be asked: no cluster is needed to find that out.
        return local_engine(work)
    ready, job = work.prepared, work.prepared.job
    if BatchLedger(work.ledger, job.name).has_open_batches():
        raise JobError(job.name, "batches of an earlier run are open", "run once with --engine local, it ends them")
    _connect()
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) > 1 and any(member.name == LOCAL for step in ready.steps for member in step.members):
        raise JobError(job.name, "provider local listens on this machine only", "run with --engine local")
    cores = int(ray.cluster_resources().get("CPU", 1))
    crew = WorkerPool(work, max(1, min(cores, job.limits.concurrency)))
    looked = {name: limit for name, limit in crew.limits.items() if name != JOB}
    return Engine(crew, crew.rows, looked, {}, crew.end, crew.limits[JOB], crew.elsewhere)


def _connect() -> None:
    # Nothing of a run is anybody else's business.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    address = os.environ.get("RAY_ADDRESS") or "local"
    alone = {"include_dashboard": False, "object_store_memory": OBJECTS} if address == "local" else {}
    try:
        if ":" in address:
            # Ray itself asks for minutes where nobody listens.
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), CONNECT).close()
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **alone)
    except (OSError, RuntimeError, ValueError) as exc:
        told = f"{type(exc).__name__}: {_first_line(exc)}"
        raise JobError("RAY_ADDRESS", f"no cluster to use at {address} ({told})", "start one, or unset it") from exc


@dataclass(slots=True)
class Under:
    """A chunk at a worker, and which of its rows have not come back."""

    chunk: Chunk
    left: set[str]


@dataclass(slots=True)
class Worker:
    """One worker as the driver sees it."""

    number: int
    actor: Any
    equipped: bool = False
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    chunks: list[Under] = field(default_factory=list)
    report: Report = field(default_factory=Report)
    heard: int = 0
    """How many of its exchanges, and waits, the observer was told of."""


class Rows:
    """Chunks on their way to workers; for the driver what Travel is for one process."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self.queue: asyncio.Queue[Chunk] = asyncio.Queue()
        self.progressed = asyncio.Event()
        self.failure: BaseException | None = None
        self._open = 0

    @property
    def rendering(self) -> int:
        """Chunks that no worker has taken yet."""
        return self.queue.qsize()

    @property
    def open_rows(self) -> int:
        """Rows under way at each worker."""
        return self._open // self._workers

    @property
    def open_bytes(self) -> int:
        """Each worker sees to its own."""
        return 0

    def submit(self, chunk: Chunk) -> None:
        """See Travel."""
        self._open += len(chunk.keys)
        self.queue.put_nowait(chunk)

    async def join(self) -> None:
        """See Travel."""
        while self._open:
            self.progressed.clear()
            await self.progressed.wait()

    async def taken(self) -> Chunk:
        """The next one for a worker."""
        chunk = await self.queue.get()
        self.progressed.set()
        return chunk

    def left(self, rows: int) -> None:
        """Rows have come back, or will not."""
        self._open -= rows
        self.progressed.set()

    def drop(self) -> None:
        """Those that no worker has taken are left for another run."""
        while not self.queue.empty():
            self.left(len(self.queue.get_nowait().keys))


class WorkerPool:
    """The workers: each is handed chunks while it wants some; what one leaves behind when it dies, others do."""

    def __init__(self, work: RunContext, workers: int) -> None:
        self.stopped: str | None = None
        self.waiting_for: str | None = f"{workers} workers on Ray to begin"
        self.left_running = 0
        self.observer: ExchangeObserver | None = None
        self.failure: Exception | None = None
        self.rows = Rows(workers)
        self._work = work
        self._size = workers
        self._workers: dict[int, Worker] = {}
        self._number = 0
        # What this invocation did before there were workers.
        self._lost = [Report(replace(work.counters, steps={}, times=replace(work.counters.times)))]
        self._spent_before = work.budget.spent
        self._began = time.monotonic()
        self.elsewhere = RemoteTimings(workers)
        ready = work.prepared
        concurrency = ready.job.limits.concurrency
        self._providers = {step.model.provider: tuple(step.members) for step in ready.steps}
        self._members = {member.name: member for step in ready.steps for member in step.members}
        of_job = ready.job.limits
        self.limits = {JOB: Looked(of_job.requests_per_minute, of_job.tokens_per_minute, None)} | {
            name: Looked(member.requests_per_minute, member.tokens_per_minute, member.concurrency)
            for name, member in self._members.items()
        }
        self._kit = WorkerConfig(
            ready.loaded,
            ready.workspace,
            ready.reader.schema,
            {
                step.model.name: (step.context.structured_mode, step.context.embedding_dimensions)
                for step in ready.steps
            },
            work.run.run_id,
            work.retrying,
            tuple(ready.shape.results.names),
            (ready.sink.files_prefix, ready.sink.files_folder.absolute()),
            # Requests in flight are leased: a worker with more to do than others may have twice its part.
            min(concurrency, -(-2 * concurrency // workers)),
            work.budget.limit is not None,
            work.daily_budget,
            False,
            ready.workspace.state / "locks" / f"{ready.job.name}.lock",
        )

    def start(self) -> None:
        """Begin: the actors of ledger and limits beside this process, then the workers."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ready, purse = self._work.prepared, self._work.budget
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        beside = ray.remote(num_cpus=0, max_concurrency=100_000, scheduling_strategy=here)
        self._ledger = beside(LedgerActor).remote(self._work.ledger.path.absolute(), ready.job.name)
        of_job = ready.job.limits
        limits = {JOB: Limit(of_job.requests_per_minute, of_job.tokens_per_minute, of_job.concurrency)}
        for member in self._members.values():
            shared = None if member.name == LOCAL else f"{member.name} {member.base_url}"
            limits[member.name] = Limit(
                member.requests_per_minute, member.tokens_per_minute, member.concurrency, shared
            )
        self._limiter = beside(LimiterActor).remote(ready.workspace.state, limits, purse.remaining)
        self._opened = self._limiter.start.remote()
        for _ in range(self._size):
            self._hire()

    async def wait_for_capacity(self) -> None:
        """Chunks are taken as they are wanted: there is nothing to wait for here."""

    def stop(self, reason: str) -> None:
        """See FanOut."""
        if self.stopped is None:
            self.stopped = reason
        self.rows.drop()
        for worker in self._equipped:
            worker.actor.stop.remote(reason)

    def cancel(self) -> None:
        """See FanOut."""
        for worker in self._equipped:
            worker.actor.cancel.remote()

    async def close(self, grace: float) -> None:
        """See FanOut."""
        self.stop(self.stopped or "finished")
        await asyncio.gather(*(self._guarded(worker, self._last_words(worker, grace)) for worker in self._equipped))
        for task in [task for worker in self._workers.values() for task in worker.tasks]:
            task.cancel()
        self._reckon()

    async def end(self) -> None:
        """Close the ledger, give back what was leased, let the cluster go."""
        import ray

        with contextlib.suppress(OSError):
            await asyncio.gather(answered(self._ledger.close.remote()), answered(self._limiter.close.remote()))
        ray.shutdown()

    # One worker.

    @property
    def _equipped(self) -> list[Worker]:
        return [worker for worker in self._workers.values() if worker.equipped]

    def _hire(self) -> None:
        import ray

        self._number += 1
        hired = ray.remote(num_cpus=1, max_concurrency=100_000, scheduling_strategy="SPREAD")(WorkerActor).remote()
        worker = self._workers[self._number] = Worker(self._number, hired)
        self._begin(worker, self._serve(worker))

    def _begin(self, worker: Worker, doing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._guarded(worker, doing))
        worker.tasks.append(task)
        task.add_done_callback(worker.tasks.remove)

    async def _guarded(self, worker: Worker, doing: Coroutine[Any, Any, None]) -> None:
        """Do it; where the worker turns out to be dead, others do its work; all else that breaks ends the run."""
        from ray.exceptions import RayError, RayTaskError

        try:
            try:
                await doing
            except RayTaskError as exc:
                raise exc.cause from None
            except RayError as exc:
                await self._lose(worker, exc)
        except Exception as exc:  # noqa: BLE001 - it ends the run, which raises it again or tells it
            self.failure = self.failure or exc
            self.stop(f"{type(exc).__name__}: {exc}")

    async def _serve(self, worker: Worker) -> None:
        number, actor = worker.number, worker.actor
        await answered(self._opened)
        first = await answered(self._ledger.begin.remote(number))
        # In a call of their own arguments: keys are nowhere but in the memory of those who send.
        kit = replace(self._kit, observed=self.observer is not None)
        await actor.set_up.remote(kit, self._providers, number, first, self._ledger, self._limiter)
        worker.equipped = True
        self.elsewhere.startup_seconds = self.elsewhere.startup_seconds or time.monotonic() - self._began
        if self.stopped is not None:
            actor.stop.remote(self.stopped)
        self._begin(worker, self._look(worker))
        while self.stopped is None:
            await actor.room.remote()
            chunk = await self.rows.taken()
            under = Under(chunk, set(chunk.keys))
            worker.chunks.append(under)
            self._begin(worker, self._carry(worker, under))

    async def _carry(self, worker: Worker, under: Under) -> None:
        pieces = worker.actor.carry.options(num_returns="streaming").remote(under.chunk)
        async for coming in pieces:
            piece: Chunk = await coming
            failed = [table.column("_key").to_pylist() for table in piece.failed]
            under.left.difference_update(piece.keys, *failed)
            self._work.on_finished(piece)
        worker.chunks.remove(under)
        self.rows.left(len(under.chunk.keys))

    async def _look(self, worker: Worker) -> None:
        while worker.report.stopped is None:
            self._hear(worker, await worker.actor.report.remote(LOOK_EVERY, worker.heard))
            self._reckon()
        self.failure = self.failure or worker.report.failure
        self.stop(worker.report.stopped)

    async def _last_words(self, worker: Worker, grace: float) -> None:
        self._hear(worker, await worker.actor.close.remote(grace, worker.heard))
        self.failure = self.failure or worker.report.failure

    def _hear(self, worker: Worker, report: Report) -> None:
        worker.report = replace(report, heard=Heard())
        if self.observer is not None:
            worker.heard = tell(self.observer, self._members, report.heard, worker.heard)

    async def _lose(self, worker: Worker, why: Exception) -> None:
        """A worker has died: what it had asked is unknown, its chunks go to others, another takes its place."""
        if self._workers.pop(worker.number, None) is None:
            return
        for task in worker.tasks:
            if task is not asyncio.current_task():
                task.cancel()
        account: Account = await answered(self._ledger.gone.remote(worker.number))
        spent = account.cost + account.unknown
        await answered(self._limiter.gone.remote(worker.number, spent))
        written = {name: getattr(account, name) for name in ("requests", "cost", "unpriced", *TOKENS)}
        tally = replace(worker.report.tally, in_flight=0, **written)
        self._lost.append(Report(tally, spent, waited=worker.report.waited))
        for under in worker.chunks:
            left = [row for row, key in enumerate(under.chunk.keys) if key in under.left]
            self.rows.left(len(under.chunk.keys))
            if left:
                self.rows.submit(under.chunk.take(left))
        if self.stopped is not None:
            self.rows.drop()
        elif (died := len(self._lost) - 1) > LOSSES * self._size:
            self.stop(f"{died} workers on Ray died, the last with: {_first_line(why)}; mend that, run again")
        else:
            self._hire()

    def _reckon(self) -> None:
        """Add up what the workers tell."""
        reports = [*self._lost, *(worker.report for worker in self._workers.values())]
        tally, purse = self._work.counters, self._work.budget
        for name in COUNTED:
            setattr(tally, name, sum(getattr(report.tally, name) for report in reports))
        for step, counted in tally.steps.items():
            told = [report.tally.steps[step] for report in reports if step in report.tally.steps]
            for name in OF_STEPS:
                setattr(counted, name, sum(getattr(one, name) for one in told))
        purse.spent = self._spent_before + sum(report.spent for report in reports)
        purse.reserved = sum(report.reserved for report in reports)
        purse.waited_seconds = sum(report.waited.budget for report in reports)
        add_up([(report.tally.times, report.waited) for report in reports], self.limits, tally.times, self.elsewhere)
        self.waiting_for = next((report.held for report in reports if report.held is not None), None)
        share = self._work.prepared.job.limits.failed_share
        if share is not None and self.stopped is None and (words := tally.too_many_failed(share)) is not None:
            self.stop(words)


def _first_line(exc: Exception) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0]
