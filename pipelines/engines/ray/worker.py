"""A worker of a run on Ray: the very same fan-out over the chunks that it is handed, its ledger and limits far away."""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from connectors.contracts import Provider
from connectors.errors import JobError
from connectors.media.media_reader import MediaReader
from connectors.records import Request
from connectors.transport.client import HttpTransport, RequestTimeouts
from pipelines.config.job import Job
from pipelines.config.loaded_job import LoadedJob
from pipelines.config.workspace import Workspace
from pipelines.dispatch.counters import RunCounters, StepCounters
from pipelines.dispatch.dispatcher import OnlineDispatcher
from pipelines.dispatch.provider_routes import build_routes
from pipelines.dispatch.request_types import DailyBudget, Exchange, Outcome, RetryLimits, Route
from pipelines.dispatch.step_runner import MAX_OPEN_BYTES, MAX_OPEN_ROWS, MAX_RENDERING_CHUNKS, Chunk, StepRunner
from pipelines.engines.ray.ledger import RemoteLedger
from pipelines.engines.ray.limits import JOB, Leasing, RemoteBudget
from pipelines.engines.ray.telemetry import Heard, Recorder
from pipelines.engines.ray.timing import Spent, waits_of
from pipelines.ledger.entries import StoredAnswer
from pipelines.limits.provider_limiter import ProviderLimiter
from pipelines.monitoring.run_view import RunView
from pipelines.preparation.prepared_job import PreparedStep, build_media_reader, prepare_steps
from pipelines.pricing.run_budget import RunBudget
from pipelines.runtime.event_loop import look_rarely

HANDED_ON = ("_key", "_part", "_in_errors", "_row_fingerprint")
"""Columns of a chunk that the committer needs beside those of the results."""


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What a worker needs to know of the run; it holds no secret."""

    loaded: LoadedJob
    workspace: Workspace
    source: pa.Schema
    found: Mapping[str, tuple[str | None, int | None]]
    """Step -> how its model was found to take typed output, and how long its vectors are."""
    run_id: str
    retrying: bool
    results: tuple[str, ...]
    """The columns of the results table, and of the key."""
    files: tuple[str, Path]
    """The sink's files_prefix and files_folder."""
    senders: int
    budgeted: bool
    day: DailyBudget | None
    observed: bool
    """Whether somebody wants to know of every exchange."""
    marker: Path
    """A file that every machine must see where rows or answers come with files."""

    @property
    def job(self) -> Job:
        return self.loaded.job


@dataclass(frozen=True, slots=True)
class Equipped:
    """The kit with its steps, as lanes are made of it."""

    job: Job
    workspace: Workspace
    steps: Sequence[PreparedStep]


@dataclass(slots=True)
class Report:
    """How far a worker is."""

    tally: RunCounters = field(default_factory=RunCounters)
    spent: int = 0
    reserved: int = 0
    stopped: str | None = None
    failure: Exception | None = None
    held: str | None = None
    """What makes it wait at this moment, in words."""
    heard: Heard = field(default_factory=Heard)
    """What the driver's observer has not been told yet."""
    waited: Spent = field(default_factory=Spent)


class DeduplicatingDispatcher(OnlineDispatcher):
    """A FanOut beside others: what another worker asks already is waited for, not asked again."""

    def __init__(self, far: RemoteLedger, *given: Any) -> None:
        super().__init__(far, *given)
        self._far = far
        self._elsewhere: set[asyncio.Task[None]] = set()
        self.over = asyncio.Event()
        """Set as soon as it has stopped."""

    def stop(self, reason: str) -> None:
        """See FanOut."""
        super().stop(reason)
        self.over.set()

    async def close(self, grace: float) -> None:
        """See FanOut."""
        for task in self._elsewhere:
            task.cancel()
        await super().close(grace)

    async def caught_up(self) -> None:
        """Wait until the exchanges that have ended by now are in the ledger."""
        if self._settling:
            await asyncio.wait(set(self._settling))

    async def _exchange(self, exchange: Exchange, permit: int) -> asyncio.Future[None] | None:
        settling = await super()._exchange(exchange, permit)
        if settling is not None and exchange.settled is not None:
            # Whoever waits for this place among the job's has its request noted right behind, with the same group.
            of_job = exchange.pack.route.limiters[1]
            for allowance, taken in exchange.taken:
                if allowance is of_job:
                    of_job.release(taken, exchange.tokens, exchange.settled.usage.tokens)
            exchange.taken = [one for one in exchange.taken if one[0] is not of_job]
        return settling

    def _queue(self, lane: Route, requests: Sequence[Request], usable: Callable[[StoredAnswer], bool]) -> None:
        elsewhere = self._far.take_elsewhere([request.fingerprint for request in requests])
        super()._queue(lane, [request for request in requests if request.fingerprint not in elsewhere], usable)
        if elsewhere:
            waited_for = {request.fingerprint: request for request in requests if request.fingerprint in elsewhere}
            task = asyncio.create_task(self._once_settled(lane, waited_for, usable))
            self._elsewhere.add(task)
            task.add_done_callback(self._elsewhere.discard)

    async def _once_settled(
        self, lane: Route, requests: dict[bytes, Request], usable: Callable[[StoredAnswer], bool]
    ) -> None:
        try:
            found = await self._far.settled(list(requests))
        except OSError as exc:
            self.failure = self.failure or exc
            self.stop(str(exc))
            return
        for mark, answer in found.items():
            if usable(answer):
                self.passed(lane.step, len(requests.pop(mark).keys), failed=answer.error is not None)
                self._land(mark, Outcome(answer.reply, answer.error, 1, answer.run_id, answer.at, True))
        self._queue(lane, list(requests.values()), usable)
        self._let_go()

    def _land(self, mark: bytes, outcome: Outcome) -> None:
        super()._land(mark, outcome)
        self._far.release(mark)


class WorkerActor:
    """Takes chunks through the steps. All calls of it run in one event loop."""

    async def set_up(
        self,
        kit: WorkerConfig,
        providers: Mapping[str, Sequence[Provider]],
        number: int,
        first: int,
        ledger: Any,
        limiter: Any,
    ) -> None:
        """`providers`: what steps name -> who is asked, with their keys, which stay in this process's memory.
        `ledger`, `limiter`: the handles of their actors; `first`: what the ledger's `begin` returned."""
        look_rarely()
        self._began = time.process_time()
        self._kit = kit
        self._scratch = tempfile.TemporaryDirectory(prefix="rowmill-")
        far = RemoteLedger(ledger, number, first)
        self._far = far
        steps, allowances = await asyncio.to_thread(self._equip, kit, providers)
        job = kit.job
        self._tally = RunCounters(steps={step.lane.step: StepCounters() for step in steps})
        self._purse = RemoteBudget(limiter, number) if kit.budgeted else RunBudget(None, 0)
        timeouts = RequestTimeouts(job.timeouts.connect, job.timeouts.idle, job.timeouts.total)
        self._transport = HttpTransport(timeouts, kit.senders)
        tries = RetryLimits(job.retry.attempts, job.retry.longest_wait, job.retry.longest_hold)
        self._fanout = DeduplicatingDispatcher(
            far, self._transport, self._purse, self._tally, tries, kit.senders, kit.run_id, kit.day
        )
        self._recorder = Recorder()
        if kit.observed:
            self._fanout.observer = self._recorder
        self._allowances: Mapping[str, ProviderLimiter] = allowances
        own = {name: allowance for name, allowance in allowances.items() if name != JOB}
        self._watch = RunView(self._tally, self._fanout, own)
        self._travels: set[StepRunner] = set()
        self._moved = asyncio.Event()
        leasing = Leasing(limiter, number, allowances, self._purse, self._fanout.caught_up)
        await leasing.renew()
        self._keeping = asyncio.create_task(self._keep_leasing(leasing))
        self._fanout.start()

    def _equip(self, kit: WorkerConfig, providers: Mapping[str, Sequence[Provider]]) -> Any:
        """(steps, allowances by name), in a thread: reading job files and models takes a moment."""
        found = {(step.provider, step.model): kit.found[step.name] for step in kit.job.steps}
        steps = prepare_steps(
            kit.loaded,
            kit.source,
            providers,
            lambda provider, model: found[provider.name, model][0],
            False,
            lambda provider, model: found[provider.name, model][1],
        )
        with_files = any(step.endpoint.media for step in steps) or any(_makes_files(step) for step in steps)
        if with_files and not kit.marker.exists():
            raise JobError(
                kit.workspace.folder,
                "is not seen by every machine of the Ray cluster, and rows of this job come with files",
                "put the workspace on a shared file system at the same path, or run with --engine local",
            )
        self._media: MediaReader = build_media_reader(kit.workspace, steps, Path(self._scratch.name), kit.files)
        allowances: dict[str, ProviderLimiter] = {}
        lanes = build_routes(Equipped(kit.job, kit.workspace, steps), self._far, kit.run_id, allowances)
        allowances[JOB] = of_job = lanes[0].route.limiters[1]
        # Requests in flight are the job's, not one worker's.
        of_job.concurrency = kit.job.limits.concurrency
        self._steps = lanes
        return lanes, allowances

    async def room(self) -> None:
        """Return when another chunk is wanted."""
        while self._fanout.stopped is None and (
            sum(travel.rendering for travel in self._travels) >= MAX_RENDERING_CHUNKS
            or sum(travel.open_rows for travel in self._travels) >= MAX_OPEN_ROWS
            or sum(travel.open_bytes for travel in self._travels) >= MAX_OPEN_BYTES
        ):
            self._moved.clear()
            await self._moved.wait()
        await self._fanout.wait_for_capacity()

    async def carry(self, chunk: Chunk) -> AsyncIterator[Chunk]:
        """The finished rows of a chunk, in pieces as they finish; rows never sent are in none."""
        finished: asyncio.Queue[Chunk | None] = asyncio.Queue()
        travel = StepRunner(
            self._steps,
            self._fanout,
            self._kit.run_id,
            finished.put_nowait,
            self._kit.retrying,
            self._media,
            lambda lane, request, answer: self._far.store_answer(
                request.fingerprint, lane.route_id, request.body, answer
            ),
            self._kit.files[1],
        )
        travel.progressed = self._moved
        self._travels.add(travel)
        travel.submit(chunk)
        arriving = asyncio.create_task(travel.join())
        arriving.add_done_callback(lambda _: finished.put_nowait(None))
        while (piece := await finished.get()) is not None:
            yield self._light(piece)
        self._travels.discard(travel)
        self._moved.set()
        if isinstance(travel.failure, Exception):
            self._fanout.failure = self._fanout.failure or travel.failure

    async def report(self, seconds: float, heard: int) -> Report:
        """How far it is: after so many seconds, or as soon as it stops. `heard`: see Recorder.since."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._fanout.over.wait()
        failure = self._fanout.failure
        if failure is not None and not _travels_well(failure):
            failure = RuntimeError(f"{type(failure).__name__}: {failure}")
        held = self._watch.hold_reason() if self._fanout.stopped is None else None
        told = (self._tally, self._purse.spent, self._purse.reserved, self._fanout.stopped, failure, held)
        cpu = time.process_time() - self._began
        waited = Spent(waits_of(self._allowances), self._far.waited, self._purse.waited_seconds, cpu)
        return Report(*told, self._recorder.since(heard), waited)

    async def stop(self, reason: str) -> None:
        """See FanOut."""
        self._fanout.stop(reason)
        self._moved.set()

    async def cancel(self) -> None:
        """See FanOut."""
        self._fanout.cancel()

    async def close(self, grace: float, heard: int) -> Report:
        """Wait for what is in flight, at most so many seconds; the last report."""
        await self._fanout.close(grace)
        await self._transport.close()
        await self._media.close()
        self._keeping.cancel()
        self._scratch.cleanup()
        return await self.report(0, heard)

    async def _keep_leasing(self, leasing: Leasing) -> None:
        try:
            await leasing.keep()
        except OSError as exc:
            self._fanout.failure = self._fanout.failure or exc
            await self.stop(str(exc))

    def _light(self, piece: Chunk) -> Chunk:
        """Without what only the steps needed."""
        wanted = {*HANDED_ON, *self._kit.results}
        tables = [
            table.select([n for n in table.column_names if n in wanted]) for table in (piece.table, *piece.failed)
        ]
        return replace(piece, table=tables[0], failed=tables[1:])


def _makes_files(step: PreparedStep) -> bool:
    return step.model.endpoint == "speech" or step.model.endpoint.startswith("image_")


def _travels_well(failure: Exception) -> bool:
    """Whether it can be told to another process as it is."""
    import pickle

    try:
        pickle.loads(pickle.dumps(failure))
    except (pickle.PicklingError, TypeError, AttributeError):
        return False
    return True
