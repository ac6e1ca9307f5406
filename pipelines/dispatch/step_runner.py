"""How a chunk of rows travels through a job's steps: rendered, looked up, asked, read, and handed to the committer."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pyarrow as pa

from connectors.media.media_reader import MediaReader
from connectors.media.url_fetcher import FetchError
from connectors.records import Request, Row, RowError, Values
from pipelines.config.sql_predicate import Predicate
from pipelines.dispatch.dispatcher import OnlineDispatcher
from pipelines.dispatch.media_files import read_media, write_files
from pipelines.dispatch.read_buffer import LARGE_ANSWER_BYTES
from pipelines.dispatch.request_types import Route, Submission
from pipelines.ledger.entries import StoredAnswer
from pipelines.ledger.ledger import now_us

RequestsByFingerprint = dict[bytes, tuple[Request, list[int]]]
"""By fingerprint the requests of a chunk, each with the rows that it answers for."""


@dataclass(slots=True)
class RowFailure:
    """A row that failed, for the errors table."""

    row: int
    step: str
    error: RowError
    attempts: int
    run_id: str
    at: int


@dataclass(slots=True)
class StepResults:
    """What became of a chunk's rows in one step."""

    values: list[Values | None]
    answers: list[bytes | None]
    done: list[bool]
    failures: list[RowFailure] = field(default_factory=list)

    def arrived(self) -> list[int]:
        """The rows that have done the step."""
        failed = {failure.row for failure in self.failures}
        return [row for row, done in enumerate(self.done) if done and row not in failed]


@dataclass(slots=True)
class FollowUps:
    """What is still to be asked after a wave was read, a part of it at a time."""

    further: RequestsByFingerprint = field(default_factory=dict)
    easier: dict[str, list[int]] = field(default_factory=dict)
    """Rows to be asked in a simpler way."""


CHUNK_ROWS = 512
"""Rows that travel together."""
FILE_CHUNK_ROWS = 16
"""The same where answers are files: all of a chunk's are in memory until the last one has come."""
FILE_ENDPOINTS = frozenset({"speech", "image_generation", "image_edit", "image_variation"})
"""The endpoints whose answers are files."""
MAX_OPEN_ROWS = 32_768
"""Rows under way at most, however few requests they make."""
MAX_OPEN_BYTES = 64 << 20
"""Bytes of rows under way at most, however few they are: each is held once more as its request."""
MAX_RENDERING_CHUNKS = 3
"""Chunks that are being rendered and looked up at the same time, at most."""

LARGEST_FETCHED = 64 << 20
"""Bytes of one file that an answer names."""

SPLIT_AFTER = 1.0
"""Seconds that a chunk waits for its stragglers before they travel on alone."""


@dataclass(slots=True)
class RunStep:
    """One step of the job, ready to be travelled."""

    route: Route
    when: Predicate | None
    ask_easier: Callable[[Route, str], Awaitable[Route]]
    """Makes (and remembers) the lane that asks for typed output in a simpler way."""
    way_known: bool = True
    """False: one row goes ahead and finds out how the provider takes typed output, before all others are refused."""
    finding: asyncio.Lock = field(default_factory=asyncio.Lock)
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(slots=True)
class Chunk:
    """Rows on their way: `table` holds the source's columns and the outputs of the steps behind them."""

    table: pa.Table
    keys: list[str]
    answers: list[list[bytes | None]]
    """For each row the fingerprints of the answers that its outputs came from, one a step."""
    asked: list[bool]
    """Whether the row needed an exchange of this invocation."""
    step: int = 0
    row_bytes: int = 0
    """What a row took when it set out."""
    setting_out: bool = False
    """Whether its first requests are yet to be queued."""
    failures: list[RowFailure] = field(default_factory=list)
    """Their `row` counts in `failed`."""
    failed: list[pa.Table] = field(default_factory=list)

    def take(self, rows: Sequence[int]) -> "Chunk":
        """Only these rows, at the same step, without the failures."""
        if len(rows) == len(self.keys):
            return replace(self, failures=[], failed=[])
        return Chunk(
            self.table.take(pa.array(rows, pa.int64())),
            [self.keys[row] for row in rows],
            [self.answers[row] for row in rows],
            [self.asked[row] for row in rows],
            self.step,
            self.row_bytes,
        )


class StepRunner:
    """Takes chunks through the steps; finished ones go to `finished`."""

    def __init__(
        self,
        steps: Sequence[RunStep],
        fanout: OnlineDispatcher,
        run_id: str,
        finished: Callable[[Chunk], None],
        retrying: bool,
        media: MediaReader,
        keep: Callable[[Route, Request, bytes], Awaitable[None]],
        files: Path,
    ) -> None:
        """`retrying`: kept answers that made their row fail are asked again. `keep`: puts an answer in the ledger in
        place of the one that is there. `files`: the folder of the files that answers hold."""
        self._steps = steps
        self._fanout = fanout
        for step in steps:
            fanout.held_requests.register_provider(step.route)
        self._run_id = run_id
        self._finished = finished
        self._retrying = retrying
        self._media = media
        self._keep = keep
        self._files = files
        self._under_way: set[asyncio.Task[None]] = set()
        self.open_rows = 0
        self.open_bytes = 0
        self.rendering = 0
        """Chunks that have set out and whose first requests are not queued yet."""
        self.failure: BaseException | None = None
        self.progressed = asyncio.Event()
        """Set whenever rows have left."""

    def submit(self, chunk: Chunk) -> None:
        """Send a chunk on its way."""
        chunk.row_bytes = chunk.table.nbytes // max(1, len(chunk.keys))
        self._count(chunk, len(chunk.keys))
        self.rendering += 1
        chunk.setting_out = True
        self._spawn(chunk)

    async def join(self) -> None:
        """Wait until every chunk has arrived."""
        while self._under_way:
            await asyncio.wait(set(self._under_way))

    def _count(self, chunk: Chunk, rows: int) -> None:
        self.open_rows += rows
        self.open_bytes += rows * chunk.row_bytes

    def _has_set_out(self, chunk: Chunk) -> None:
        if chunk.setting_out:
            chunk.setting_out = False
            self.rendering -= 1
            self.progressed.set()

    def _spawn(self, chunk: Chunk) -> None:
        task = asyncio.create_task(self._go(chunk))
        self._under_way.add(task)
        task.add_done_callback(self._arrived)

    def _arrived(self, task: "asyncio.Task[None]") -> None:
        self._under_way.discard(task)
        self.progressed.set()
        if not task.cancelled() and (failure := task.exception()) is not None:
            self.failure = self.failure or failure
            self._fanout.stop(f"{type(failure).__name__}: {failure}")

    async def _go(self, chunk: Chunk) -> None:
        while chunk.step < len(self._steps) and chunk.keys:
            chunk = await self._one_step(chunk, self._steps[chunk.step])
        self._count(chunk, -len(chunk.keys))
        self._finished(chunk)

    async def _one_step(self, chunk: Chunk, step: RunStep) -> Chunk:
        if step.way_known:
            return await self._taken(chunk, step)
        async with step.finding:
            scout = None if step.way_known else _first_asked(chunk, step)
            if scout is not None:
                others = [row for row in range(len(chunk.keys)) if row != scout]
                if others:
                    rest, ahead = chunk.take(others), chunk.take([scout])
                    rest.setting_out, ahead.failures, ahead.failed = chunk.setting_out, chunk.failures, chunk.failed
                    self._spawn(rest)
                    chunk = ahead
                landed = await self._taken(chunk, step)
                step.way_known = True
                return landed
        return await self._taken(chunk, step)

    async def _taken(self, chunk: Chunk, step: RunStep) -> Chunk:
        """The rows that have done the step."""
        landing = await self._land(chunk, step)
        self._has_set_out(chunk)
        done = landing.arrived()
        onward = self._onward(chunk, step, landing, done)
        onward.failed, onward.failures = list(chunk.failed), list(chunk.failures)
        if landing.failures:
            before = sum(table.num_rows for table in onward.failed)
            onward.failed.append(chunk.table.take(pa.array([failure.row for failure in landing.failures], pa.int64())))
            for place, failure in enumerate(landing.failures):
                onward.failures.append(replace(failure, row=before + place))
        self._count(chunk, len(done) - len(chunk.keys))
        return onward

    def _onward(self, chunk: Chunk, step: RunStep, landing: StepResults, done: list[int]) -> Chunk:
        onward = chunk.take(done)
        kept = [landing.values[row] for row in done]
        for column, array in zip(step.route.endpoint.fields, step.route.endpoint.arrays(kept), strict=True):
            onward.table = onward.table.append_column(column, array)
        for row, answers in zip(done, onward.answers, strict=True):
            answers.append(landing.answers[row])
        onward.step += 1
        return onward

    def _send_ahead(self, chunk: Chunk, step: RunStep, landing: StepResults) -> None:
        """Let rows that have done the step go on without the others of their chunk."""
        if done := landing.arrived():
            # With the chunk they are counted out.
            self._count(chunk, len(done))
            self._spawn(self._onward(chunk, step, landing, done))
        for row in done:
            landing.values[row], landing.done[row] = None, False

    async def _land(self, chunk: Chunk, step: RunStep) -> StepResults:
        """Ask for all rows of the chunk; rows that dawdle go on as a chunk of their own, rows never sent are left."""
        count = len(chunk.keys)
        landing = StepResults([None] * count, [None] * count, [False] * count)
        # As it is now: another chunk may make the step go over to a simpler way while these requests are under way.
        asked = replace(step)
        wanted = await self._rendered(chunk, asked, landing)
        while wanted:
            wave = await self._fanout.submit(
                asked.route, [request for request, _ in wanted.values()], self._usable(asked)
            )
            self._has_set_out(chunk)
            # As it is now: the lane changes with what is asked further.
            lane, reading = asked.route, FollowUps()
            while await self._dawdle(wave, any(landing.done)):
                await self._read(chunk, lane, wanted, wave, landing, reading)
                self._send_ahead(chunk, step, landing)
            wave.is_abandoned = True
            if wave.pending and self._fanout.stopped is None:
                late = sorted(row for mark in wave.pending for row in wanted[mark][1])
                for row in late:
                    chunk.asked[row] = True
                self._count(chunk, len(late))
                self._spawn(chunk.take(late))
            await self._read(chunk, lane, wanted, wave, landing, reading)
            wanted = await self._further(chunk, step, asked, reading)
        return landing

    async def _rendered(self, chunk: Chunk, step: RunStep, landing: StepResults) -> RequestsByFingerprint:
        endpoint = step.route.endpoint
        places = range(len(chunk.keys))
        passes, broken = ([True] * len(places), {}) if step.when is None else step.when.tried(chunk.table)
        given: Sequence[Row] = chunk.table.select(sorted(endpoint.input_columns)).to_pylist()
        rows: dict[int, Row | RowError] = dict(enumerate(given))
        passing = [place for place in places if passes[place]]
        for left_out in set(places).difference(passing, broken):
            landing.done[left_out] = True
            self._fanout.passed(step.route.step, 1)
        if endpoint.media:
            rows |= await read_media(self._media, given, endpoint.media, passing)
        rows |= broken
        wanted: RequestsByFingerprint = {}
        for place in sorted([*passing, *broken]):
            key, row = chunk.keys[place], rows[place]
            request = row if isinstance(row, RowError) else endpoint.request(row, key)
            if isinstance(request, RowError):
                landing.failures.append(RowFailure(place, step.route.step, request, 0, self._run_id, now_us()))
                self._fanout.passed(step.route.step, 1, failed=True)
                continue
            same = wanted.get(request.fingerprint)
            if same is None:
                wanted[request.fingerprint] = (request, [place])
            else:
                self._release(request)
                same[1].append(place)
                wanted[request.fingerprint] = (replace(same[0], keys=(*same[0].keys, key)), same[1])
        return wanted

    def _usable(self, step: RunStep) -> Callable[[StoredAnswer], bool]:
        endpoint = step.route.endpoint

        def made_a_result(answer: StoredAnswer) -> bool:
            if answer.reply is None:
                return False
            # One whose links were not fetched has failed: they may be dead by now.
            return not endpoint.expiring_urls(answer.reply) and not isinstance(endpoint.values(answer.reply), RowError)

        return made_a_result if self._retrying else lambda answer: True

    async def _dawdle(self, wave: Submission, others: bool) -> bool:
        """Wait for the wave; no longer for its last few, or for all of it where other rows could go on (`others`), when
        the senders would run dry. True: what has landed is to be read, then the rest is waited for."""
        size = len(wave.pending)
        while not wave.done.is_set():
            if wave.ready.is_set():
                return True
            try:
                await asyncio.wait_for(wave.ready.wait(), SPLIT_AFTER)
            except TimeoutError:
                if self._fanout.has_capacity and wave.pending and (others or len(wave.pending) < size):
                    return False
        return False

    async def _read(
        self,
        chunk: Chunk,
        lane: Route,
        wanted: RequestsByFingerprint,
        wave: Submission,
        landing: StepResults,
        reading: FollowUps,
    ) -> None:
        """Typed values from what has landed. `lane`: as it was when the requests were made."""
        endpoint = lane.endpoint
        outcomes, nbytes = wave.drain()
        for mark in list(outcomes):
            outcome = outcomes.pop(mark)
            request, rows = wanted[mark]
            # Another row's answer of this invocation, found in the ledger, is no more reused than one still in flight.
            if outcome.was_sent or (outcome.run_id == self._run_id and outcome.at >= self._fanout.began):
                for row in rows:
                    chunk.asked[row] = True
            problem = outcome.error
            if outcome.answer is not None:
                answer = await self._fetched(lane, request, outcome.answer)
                values = answer if isinstance(answer, RowError) else endpoint.values(answer)
                if not isinstance(values, RowError) and isinstance(answer, bytes):
                    write = partial(write_files, self._files, partial(endpoint.files, answer))
                    await asyncio.to_thread(write) if len(answer) > LARGE_ANSWER_BYTES else write()
                    for row in rows:
                        landing.values[row], landing.answers[row], landing.done[row] = values, mark, True
                    self._release(request)
                    continue
                assert isinstance(values, RowError)
                problem = values
                if (mended := endpoint.repair(request, outcome.answer, problem)) is not None:
                    reading.further[mended.fingerprint] = (replace(mended, keys=request.keys), rows)
                    continue
            assert problem is not None
            self._release(request)
            if (way := endpoint.fallback_mode(problem)) is not None:
                reading.easier.setdefault(way, []).extend(rows)
                continue
            if outcome.answer is not None and outcome.was_sent:
                self._fanout.settled(0 if lane.is_last_step else len(rows), failed=len(rows))
            landing.failures.extend(
                RowFailure(row, lane.step, problem, outcome.attempts, outcome.run_id, outcome.at) for row in rows
            )
        self._fanout.read_buffer.release(nbytes)

    async def _further(self, chunk: Chunk, step: RunStep, asked: RunStep, reading: FollowUps) -> RequestsByFingerprint:
        """What is to be asked next. `asked`: the step as it was; its lane becomes that of what comes back."""
        lane, further = asked.route, reading.further
        for way, unsorted in reading.easier.items():
            rows = sorted(unsorted)
            async with step.changing:
                if step.route is lane:
                    step.route = await step.ask_easier(lane, way)
            asked.route = step.route
            again = await self._rendered(chunk.take(rows), replace(asked, when=None), StepResults([], [], []))
            for mark, (request, places) in again.items():
                further[mark] = (request, [rows[place] for place in places])
        return further

    def _release(self, request: Request) -> None:
        for media in request.media:
            self._media.release(media)

    async def _fetched(self, lane: Route, request: Request, answer: bytes) -> bytes | RowError:
        """The answer with the contents of its links, which expire, kept from now on; it is paid for already."""
        links = lane.endpoint.expiring_urls(answer)
        if not links:
            return answer
        try:
            contents = [await self._media.fetch(link, LARGEST_FETCHED) for link in links]
        except FetchError as exc:
            return RowError("connection", f"the answer names a file that cannot be fetched: {exc}")
        whole = lane.endpoint.with_contents(answer, contents)
        await self._keep(lane, request, whole)
        return whole


def _first_asked(chunk: Chunk, step: RunStep) -> int | None:
    """The first row that the step's `when` lets through."""
    if step.when is None:
        return 0
    return next((row for row, passes in enumerate(step.when.mask(chunk.table)) if passes), None)
