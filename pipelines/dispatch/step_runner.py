"""The step runner: chunks of rows go through a job's steps, and finished rows go to the committer.

In each step a row is rendered into a request, the request is looked up or sent, and its answer is read.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from msgspec import Struct, field
from msgspec.structs import replace

from connectors.media.media_reader import MediaReader
from connectors.media.url_fetcher import FetchError
from connectors.records import (
    FAILED_CLASS,
    FAILED_STEP,
    KEPT_PREFIX,
    KEPT_ROW,
    ROW_PROBLEM,
    Request,
    RowError,
    Values,
)
from pipelines.config.sql_predicate import Predicate
from pipelines.dispatch.chunks import Chunk, RowFailure
from pipelines.dispatch.dispatcher import Dispatcher
from pipelines.dispatch.local_steps.child_rows import ChildRows, EachRun
from pipelines.dispatch.local_steps.local_run import LocalRun
from pipelines.dispatch.media_files import write_files
from pipelines.dispatch.pending_requests import IsUsable, Submission
from pipelines.dispatch.read_buffer import LARGE_ANSWER_BYTES
from pipelines.dispatch.request_rendering import render_requests
from pipelines.dispatch.request_types import Outcome, Route
from pipelines.dispatch.rescue.ladder import NO_RUNGS, Ladder
from pipelines.ledger.entries import StoredAnswer
from pipelines.ledger.ledger import now_us
from pipelines.quality.answer_quality import AnswerQuality
from pipelines.quality.checks import CheckFailure

CHUNK_ROWS = 512
"""Rows of a chunk."""
FILE_CHUNK_ROWS = 16
"""Rows of a chunk if answers are files: all files of a chunk are in memory until the last one has arrived."""
FILE_ENDPOINTS = frozenset({"speech", "image_generation", "image_edit", "image_variation"})
"""The endpoints whose answers are files."""
MAX_OPEN_ROWS = 32_768
"""Rows in all unfinished chunks, however few requests they make."""
OPEN_BATCH_ROWS = 250_000 // CHUNK_ROWS * CHUNK_ROWS
"""The same in a batch run: five full batch files, about 1.6 kB of memory a row besides its values."""
MAX_OPEN_BYTES = 64 << 20
"""Size of the rows in all unfinished chunks, however few they are: each is also held as its request."""
MAX_RENDERING_CHUNKS = 3
"""Chunks whose first requests are being rendered and looked up at the same time."""
MAX_FETCHED_BYTES = 64 << 20
"""Size of one file that an answer links to."""
STRAGGLER_SECONDS = 1.0
"""Time that a chunk waits for its last outcomes before its other rows go on without them."""

RequestsByFingerprint = dict[bytes, tuple[Request, list[int]]]
"""The requests of a chunk by fingerprint, each with the indexes of the rows that it answers."""

StoreAnswer = Callable[[Route, Request, bytes], Awaitable[None]]
"""Replaces the stored answer of a request."""


class StepResults(Struct):
    """The results of a chunk's rows in one step."""

    values: list[Values | None]
    evidence: list[Values | None]
    """The columns of each row's evidence."""
    answers: list[bytes | None]
    """The fingerprint of each row's answer."""
    done: list[bool]
    repairs: list[int]
    """The repair turns that each row has taken."""
    first: list[bytes]
    """The fingerprint of each row's request before any repair turn."""
    recorded: dict[int, bytes] = field(default_factory=dict)
    """The fingerprints of last answers that the ledger has recorded."""
    dropped: set[int] = field(default_factory=set)
    """The rows whose recorded last answers are in the ledger no more."""
    rungs: dict[int, int] = field(default_factory=dict)
    """The rungs by which rows of the sink were answered, whose outputs are accepted; of others it is the chunk's."""
    failures: list[RowFailure] = field(default_factory=list)
    ladder: Ladder = NO_RUNGS
    tried_rungs: frozenset[int] = frozenset()
    rescued: dict[int, list[int]] = field(default_factory=dict)
    """The rows that failed and that a rung requests again, by its place."""

    def rescue(self, rows: Sequence[int], error: RowError) -> bool:
        """Leave rows that failed to the next rung; False if none follows the error."""
        place = self.ladder.next_place(error.error_class, self.tried_rungs)
        if place is None:
            return False
        self.rescued.setdefault(place, []).extend(rows)
        return True

    @classmethod
    def empty(cls, rows: int) -> "StepResults":
        """Return results for so many rows, none of which is done."""
        return cls([None] * rows, [None] * rows, [None] * rows, [False] * rows, [0] * rows, [b""] * rows)

    def finished_rows(self) -> list[int]:
        """Return the indexes of the rows that have finished the step without a failure."""
        failed = {failure.row for failure in self.failures}
        return [row for row, done in enumerate(self.done) if done and row not in failed]


class ReadAnswer(Struct, frozen=True):
    """An answer whose values were read, before its checks."""

    request: Request
    rows: list[int]
    """Those that it answers."""
    answer: bytes
    values: Values
    outcome: Outcome


class FollowUps(Struct):
    """The requests that follow from answers which were read."""

    repairs: RequestsByFingerprint = field(default_factory=dict)
    fallbacks: dict[str, list[int]] = field(default_factory=dict)
    """Rows to be requested again in a simpler structured mode, by mode."""
    has_answers: bool = False
    has_new_answers: bool = False
    """Whether an exchange of this invocation was answered."""


class RunStep(Struct):
    """One step of the job, ready to run."""

    route: Route
    when: Predicate | None
    fall_back: Callable[[Route, str], Route]
    """Returns the route that requests typed output in a simpler mode."""
    learn_mode: Callable[[str], Awaitable[None]]
    """Remembers the mode that works."""
    model: str
    mode: str | None = None
    """The structured mode that was learned, in this run or an earlier one."""
    accepted: Route | None = None
    """The route that has had an answer: what is refused there is not its structured mode."""
    quality: AnswerQuality | None = None
    """Its checks and evidence."""
    repairs: int = 1
    """Repair turns of a row at most."""
    job: str | None = None
    """The job under which the last answers of repaired rows are recorded; None: its endpoint has no repair turns."""
    is_mode_known: bool = True
    """False: one row goes first to learn which structured mode the provider supports, before it refuses all others."""
    mode_probe: asyncio.Lock = field(default_factory=asyncio.Lock)
    route_change: asyncio.Lock = field(default_factory=asyncio.Lock)
    ladder: Ladder = NO_RUNGS
    rungs: "Sequence[RunStep]" = ()
    """The step as each rung of its ladder requests it."""
    rung_column: str | None = None
    """The column of the rung that answered; None without one."""
    is_stored: bool = True
    """Whether its outputs are in the results."""

    @property
    def name(self) -> str:
        """As the job file has it."""
        return self.route.step


class ModeTrial(Struct):
    """A simpler structured mode that one chunk tries: it becomes the step's once it is answered."""

    mode: str
    refused: Route
    """The step's route at that time."""


class FoldRun(Struct, frozen=True):
    """The place of a fold: `EachRun` before it has what it does."""

    name: str


AnyRunStep = RunStep | LocalRun | EachRun | FoldRun


class StepRunner:
    """Runs chunks through the steps, each in a separate task."""

    def __init__(
        self,
        steps: Sequence[AnyRunStep],
        dispatcher: Dispatcher,
        run_id: str,
        on_finished: Callable[[Chunk], None],
        is_retrying: bool,
        media: MediaReader,
        store_answer: StoreAnswer,
        files_folder: Path,
    ) -> None:
        """`on_finished` takes finished chunks. `is_retrying`: stored answers that made their row fail are requested
        again. `files_folder`: where the files of answers are written."""
        self._steps = steps
        self._dispatcher = dispatcher
        self._pending = dispatcher.pending
        requesting = [step for step in steps if isinstance(step, RunStep)]
        for step in requesting:
            for one in (step, *step.rungs):
                dispatcher.register_route(one.route)
        self._last_request = max((place for place, step in enumerate(steps) if isinstance(step, RunStep)), default=-1)
        self._run_id = run_id
        self._on_finished = on_finished
        self._is_retrying = is_retrying
        self._media = media
        self._store_answer = store_answer
        self._files_folder = files_folder
        self._open_each = self._children_by_place(run_id)
        """For each place among the steps, and behind the last, the children that the rows there are; None: none."""
        self._tasks: set[asyncio.Task[None]] = set()
        self.open_rows = 0
        self.open_bytes = 0
        self.rendering = 0
        """Submitted chunks whose first requests are not queued yet."""
        self.failure: BaseException | None = None
        self.progressed = asyncio.Event()
        """Set whenever rows have finished."""

    def _children_by_place(self, run_id: str) -> Sequence[ChildRows | None]:
        opened: list[ChildRows | None] = [None]
        for place, step in enumerate(self._steps):
            match step:
                case EachRun():
                    opened.append(ChildRows(step, place, self, run_id))
                case FoldRun():
                    opened.append(None)
                case _:
                    opened.append(opened[-1])
        return opened

    def submit(self, chunk: Chunk) -> None:
        """Start a chunk of source rows."""
        chunk.row_bytes = chunk.table.nbytes // max(1, len(chunk.keys))
        chunk = self._without_problems(chunk)
        self._add_open_rows(chunk, len(chunk.keys))
        self.rendering += 1
        chunk.is_rendering = True
        self._start(chunk)

    def start(self, chunk: Chunk) -> None:
        """Start a chunk that another one has led to, from its step on."""
        self._add_open_rows(chunk, len(chunk.keys))
        self._start(chunk)

    def finish(self, chunk: Chunk) -> None:
        """Hand finished rows, failures and childless rows over."""
        self._on_finished(chunk)

    def release(self, chunk: Chunk, rows: int) -> None:
        """Count rows of a chunk that have become other rows."""
        self._add_open_rows(chunk, -rows)
        self.progressed.set()

    def record_settled(self, rows: int, failed: int) -> None:
        """See PendingRequests."""
        self._pending.record_settled(rows, failed)

    async def wait_for_capacity(self) -> None:
        """See DispatchControl."""
        await self._dispatcher.wait_for_capacity()

    def run_later(self, seconds: float, action: Callable[[], None]) -> None:
        """Call an action after some time; `join` waits for it."""

        async def wait() -> None:
            await asyncio.sleep(seconds)
            action()

        self._run(wait())

    @property
    def is_stopped(self) -> bool:
        """Whether nothing more is sent."""
        return self._dispatcher.state.stop_reason is not None

    def _without_problems(self, chunk: Chunk) -> Chunk:
        """Return the chunk without the rows whose source values cannot be used, which fail in the first step."""
        if ROW_PROBLEM not in chunk.table.column_names:
            return chunk
        problems = chunk.table.column(ROW_PROBLEM).to_pylist()
        failed = [row for row, problem in enumerate(problems) if problem is not None]
        if not failed:
            return chunk
        name = self._steps[0].name
        selected = chunk.select([row for row, problem in enumerate(problems) if problem is None])
        selected.failed = [chunk.table.take(pa.array(failed, pa.int64()))]
        selected.failures = [
            RowFailure(index, name, RowError("input", problems[row]), 0, self._run_id, now_us())
            for index, row in enumerate(failed)
        ]
        self._record_failed(chunk, len(failed))
        return selected

    def _record_failed(self, chunk: Chunk, rows: int) -> None:
        """Count rows that fail in the chunk's step without a request."""
        step = self._steps[chunk.step]
        if isinstance(step, RunStep):
            self._pending.record_skipped(step.name, rows, failed=True)
        elif chunk.step < self._last_request:
            # After the last request they have been counted.
            self._pending.counters.failed_locally += rows

    async def join(self) -> None:
        """Wait until every chunk has finished."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _add_open_rows(self, chunk: Chunk, rows: int) -> None:
        self.open_rows += rows
        self.open_bytes += rows * chunk.row_bytes

    def _end_rendering(self, chunk: Chunk) -> None:
        if chunk.is_rendering:
            chunk.is_rendering = False
            if (children := self._open_each[chunk.step]) is not None:
                children.end_rendering()
                return
            self.rendering -= 1
            self.progressed.set()

    def _start(self, chunk: Chunk) -> None:
        self._run(self._run_steps(chunk))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self.progressed.set()
        if not task.cancelled() and (failure := task.exception()) is not None:
            self.failure = self.failure or failure
            self._dispatcher.stop(f"{type(failure).__name__}: {failure}")

    async def _run_steps(self, chunk: Chunk) -> None:
        while chunk.step < len(self._steps) and chunk.keys:
            step = self._steps[chunk.step]
            match step:
                case RunStep():
                    chunk = await self._run_step(chunk, step)
                case LocalRun():
                    chunk = await self._run_local(chunk, step)
                case EachRun():
                    await self._expand(chunk)
                    return
                case FoldRun():
                    break
        self._end_rendering(chunk)
        self._add_open_rows(chunk, -len(chunk.keys))
        children = self._open_each[chunk.step]
        if children is None:
            self._on_finished(chunk)
        else:
            children.settle(chunk)

    async def _expand(self, chunk: Chunk) -> None:
        """Let the children of source rows take their place."""
        children = self._open_each[chunk.step + 1]
        assert children is not None
        if chunk.failures:
            failed = chunk.select([])
            failed.failures, failed.failed = chunk.failures, chunk.failed
            self._on_finished(failed)
        await children.expand(chunk)
        self._end_rendering(chunk)

    async def _run_local(self, chunk: Chunk, step: LocalRun) -> Chunk:
        """Add the columns of a local step; return the rows that its SQL has not failed."""
        made, errors = await step.run(chunk.table)
        rows = [row for row in range(len(chunk.keys)) if row not in errors]
        failures = [RowFailure(row, step.name, error, 0, self._run_id, now_us()) for row, error in errors.items()]
        finished = chunk.select(rows)
        for column, values in zip(made.schema, made.take(pa.array(rows, pa.int64())).columns, strict=True):
            finished.table = finished.table.append_column(column, values)
        finished.step += 1
        finished.is_rendering, chunk.is_rendering = chunk.is_rendering, False
        self._record_failed(chunk, len(failures))
        return self._with_failures(chunk, finished, failures)

    async def _run_step(self, chunk: Chunk, step: RunStep) -> Chunk:
        """Run one step; return the rows that have finished it."""
        if chunk.rung:
            step = step.rungs[chunk.rung - 1]
        elif step.rungs:
            chunk = self._without_rescued_before(self._without_failed_before(chunk, step), step)
            if not chunk.keys:
                self._end_rendering(chunk)
                return chunk
        if step.is_mode_known:
            return await self._finish_step(chunk, step)
        async with step.mode_probe:
            first = None if step.is_mode_known else _first_requested_row(chunk, step)
            if first is not None:
                others = [row for row in range(len(chunk.keys)) if row != first]
                if others:
                    rest, probe = chunk.select(others), chunk.select([first])
                    rest.straggling_step = probe.straggling_step = chunk.straggling_step
                    rest.is_rendering, probe.failures, probe.failed = chunk.is_rendering, chunk.failures, chunk.failed
                    self._start(rest)
                    chunk = probe
                finished = await self._finish_step(chunk, step)
                step.is_mode_known = True
                return finished
        return await self._finish_step(chunk, step)

    def _without_failed_before(self, chunk: Chunk, step: RunStep) -> Chunk:
        """Let a rung request the rows that failed in this step in an earlier run; return the chunk without them."""
        if FAILED_STEP not in chunk.table.column_names:
            return chunk
        failed_steps = chunk.table.column(FAILED_STEP).to_pylist()
        failed = [row for row, name in enumerate(failed_steps) if name == step.route.step]
        if not failed:
            return chunk
        classes = chunk.table.column(FAILED_CLASS).to_pylist()
        rescued: dict[int, list[int]] = {}
        for row in failed:
            place = step.ladder.next_place(classes[row])
            assert place is not None, "only rows that a rung follows are selected"
            rescued.setdefault(place, []).append(row)
        # An answer that stayed invalid has taken all repair turns.
        repairs = [step.repairs if error_class == "invalid_answer" else 0 for error_class in classes]
        return self._left_to_rungs(chunk, step, rescued, repairs)

    def _without_rescued_before(self, chunk: Chunk, step: RunStep) -> Chunk:
        """Leave rows of the sink to the rungs that have answered them, if these outputs pass the checks of today.

        Theirs are the last answers, although that of the step as declared may pass other checks, too.
        """
        names = [KEPT_PREFIX + column.name for column in step.route.endpoint.fields]
        if self._is_retrying or step.job is None or not {KEPT_ROW, *names}.issubset(chunk.table.column_names):
            return chunk
        is_kept, rungs = _kept_rows(chunk, step)
        rows = [row for row, rung in enumerate(rungs) if is_kept[row] and 0 < rung <= len(step.rungs)]
        if rows and step.quality is not None:
            taken = chunk.table.take(pa.array(rows, pa.int64()))
            values = [tuple(row.values()) for row in taken.select(names).to_pylist()]
            _, failures = step.quality.evaluate(step.quality.inputs(taken), step.route.endpoint.arrays(values))
            rows = [row for place, row in enumerate(rows) if place not in failures]
        if not rows:
            return chunk
        answered: dict[int, list[int]] = {}
        for row in rows:
            answered.setdefault(rungs[row], []).append(row)
        if chunk.straggling_step != chunk.step:
            self._pending.record_skipped(step.route.step, len(rows))
        return self._left_to_rungs(chunk, step, answered, [0] * len(rungs))

    def _left_to_rungs(
        self, chunk: Chunk, step: RunStep, rescued: dict[int, list[int]], repairs: Sequence[int]
    ) -> Chunk:
        """Start a chunk for each rung with its rows, by its place; return the chunk without them."""
        taken = {row for rows in rescued.values() for row in rows}
        self._start_rungs(chunk, step.ladder, rescued, repairs)
        rest = chunk.select([row for row in range(len(chunk.keys)) if row not in taken])
        rest.failures, rest.failed = chunk.failures, chunk.failed
        rest.is_rendering, rest.straggling_step = chunk.is_rendering, chunk.straggling_step
        self._add_open_rows(chunk, -len(taken))
        return rest

    def _start_rungs(self, chunk: Chunk, ladder: Ladder, rescued: dict[int, list[int]], repairs: Sequence[int]) -> None:
        """Start a chunk for each rung, with the rows that it requests again; `rescued` is empty afterwards."""
        while rescued:
            place, rows = rescued.popitem()
            if self._dispatcher.state.stop_reason is not None:
                # The next run requests them.
                continue
            again = chunk.select(sorted(rows))
            again.repairs = [repairs[row] for row in sorted(rows)]
            again.rung, again.tried_rungs = place, ladder.with_tried(chunk.tried_rungs, place)
            again.is_rendering, again.straggling_step = False, chunk.step
            self._add_open_rows(chunk, len(rows))
            self._start(again)

    async def _finish_step(self, chunk: Chunk, step: RunStep) -> Chunk:
        results = await self._step_results(chunk, step)
        self._end_rendering(chunk)
        rows = results.finished_rows()
        return self._with_failures(chunk, self._next_chunk(chunk, step, results, rows), results.failures)

    def _with_failures(self, chunk: Chunk, finished: Chunk, failures: Sequence[RowFailure]) -> Chunk:
        """Return the finished rows of a chunk with all its failures; `failures`: those of the step it was in."""
        finished.failed, finished.failures = list(chunk.failed), list(chunk.failures)
        if failures:
            before = sum(table.num_rows for table in finished.failed)
            failed_rows = pa.array([failure.row for failure in failures], pa.int64())
            finished.failed.append(chunk.table.take(failed_rows))
            for index, failure in enumerate(failures):
                finished.failures.append(replace(failure, row=before + index, answers=chunk.answers[failure.row]))
        self._add_open_rows(chunk, len(finished.keys) - len(chunk.keys))
        return finished

    def _next_chunk(self, chunk: Chunk, step: RunStep, results: StepResults, rows: list[int]) -> Chunk:
        """Return the finished rows with the step's columns, ready for the next step."""
        finished = chunk.select(rows)
        endpoint = step.route.endpoint
        values = [results.values[row] for row in rows]
        for column, array in zip(endpoint.fields, endpoint.arrays(values), strict=True):
            finished.table = finished.table.append_column(column, array)
        if step.quality is not None:
            evidence = step.quality.arrays([results.evidence[row] for row in rows])
            for column, array in zip(step.quality.fields, evidence, strict=True):
                finished.table = finished.table.append_column(column, array)
        if step.rung_column is not None:
            rungs = pa.array([results.rungs.get(row, chunk.rung) for row in rows], pa.int64())
            finished.table = finished.table.append_column(pa.field(step.rung_column, pa.int64()), rungs)
        if step.is_stored:
            for row, answers in zip(rows, finished.answers, strict=True):
                answers.append(results.answers[row])
        finished.step += 1
        finished.rung, finished.tried_rungs, finished.repairs = 0, frozenset(), ()
        return finished

    def _forward_finished(self, chunk: Chunk, step: RunStep, results: StepResults) -> None:
        """Let rows that have finished the step go on without the others of their chunk."""
        rows = results.finished_rows()
        if rows:
            # They are subtracted together with their chunk.
            self._add_open_rows(chunk, len(rows))
            self._start(self._next_chunk(chunk, step, results, rows))
        for row in rows:
            results.values[row], results.done[row] = None, False

    async def _step_results(self, chunk: Chunk, step: RunStep) -> StepResults:
        """Request all rows of the chunk; stragglers become a separate chunk, rows never sent are left out."""
        results = StepResults.empty(len(chunk.keys))
        results.repairs = list(chunk.repairs) or results.repairs
        results.ladder, results.tried_rungs = step.ladder, chunk.tried_rungs
        rescued_classes = step.ladder.rescued_classes(chunk.tried_rungs)
        # A copy: another chunk may change the step's route while these requests are under way.
        current = replace(step)
        trial: ModeTrial | None = None
        requests = await self._rendered_requests(chunk, current, results)
        self._note_first(requests, results)
        await self._accept_last_answers(chunk, current, requests, results)
        await self._accept_kept_rows(chunk, current, requests, results)
        while requests:
            # The route changes with follow-ups in a simpler mode.
            route, follow_ups = current.route, FollowUps()
            submission = await self._pending.submit(
                route,
                [
                    replace(request, rung=chunk.rung, rescued_classes=rescued_classes) if step.rungs else request
                    for request, _ in requests.values()
                ],
                self._is_usable(chunk, current, requests),
                is_first=chunk.straggling_step != chunk.step,
            )
            self._end_rendering(chunk)
            while await self._wait_for_outcomes(submission, any(results.done)):
                await self._read_outcomes(chunk, current, route, requests, submission, results, follow_ups)
                self._start_rungs(chunk, step.ladder, results.rescued, results.repairs)
                self._forward_finished(chunk, step, results)
            submission.is_abandoned = True
            if submission.pending and self._dispatcher.state.stop_reason is None:
                self._pending.expect_again(submission.pending)
                stragglers = sorted(row for fingerprint in submission.pending for row in requests[fingerprint][1])
                for row in stragglers:
                    chunk.asked[row] = True
                self._add_open_rows(chunk, len(stragglers))
                waiting = chunk.select(stragglers)
                waiting.straggling_step = chunk.step
                self._start(waiting)
            await self._read_outcomes(chunk, current, route, requests, submission, results, follow_ups)
            self._start_rungs(chunk, step.ladder, results.rescued, results.repairs)
            if follow_ups.has_answers:
                await self._learn_mode(step, route, trial, follow_ups.has_new_answers)
            if follow_ups.fallbacks:
                trial = self._try_simpler_mode(step, current, trial, next(iter(follow_ups.fallbacks)))
            requests = await self._follow_up_requests(chunk, current, follow_ups)
            self._note_first(requests, results)
            await self._accept_kept_rows(chunk, current, requests, results)
        return results

    def _note_first(self, requests: RequestsByFingerprint, results: StepResults) -> None:
        for fingerprint, (request, rows) in requests.items():
            if request.repair_of is None:
                for row in rows:
                    results.first[row] = fingerprint

    async def _accept_last_answers(
        self, chunk: Chunk, step: RunStep, requests: RequestsByFingerprint, results: StepResults
    ) -> None:
        """Accept the last answers of rows that took repair turns before, if they pass the checks of today.

        The rows of the others begin with their first request, whose answers the ledger has. So do all rows of a trial,
        which counts what their answers have cost.
        """
        if self._is_retrying or self._pending.on_request is not None or step.job is None or not requests:
            return
        last = await self._pending.last_answers(step.job, step.route.step, list(requests))
        if not last:
            return
        stored = await self._pending.lookup(list(set(last.values())))
        read: list[tuple[bytes, ReadAnswer]] = []
        for first, (request, rows) in requests.items():
            for row in rows:
                answer = last.get((first, chunk.keys[row]))
                if answer is None:
                    continue
                results.recorded[row] = answer
                if answer not in stored or (reply := stored[answer].reply) is None:
                    results.dropped.add(row)
                    continue
                values = step.route.endpoint.values(reply)
                if not isinstance(values, RowError):
                    outcome = Outcome(reply, None, 1, stored[answer].run_id, stored[answer].at, was_sent=False)
                    read.append(
                        (first, ReadAnswer(replace(request, fingerprint=answer), [row], reply, values, outcome))
                    )
        self._accept_without_request(chunk, step, read, requests, results)

    async def _accept_kept_rows(
        self, chunk: Chunk, step: RunStep, requests: RequestsByFingerprint, results: StepResults
    ) -> None:
        """Accept outputs in the sink that pass the checks of today, if the ledger has no answer to these requests.

        A rung accepts its own ones; the step as declared also those of a rung, which stays the one that has answered.
        """
        names = [KEPT_PREFIX + column.name for column in step.route.endpoint.fields]
        wanted = {KEPT_ROW, *names}
        if self._is_retrying or step.job is None or not wanted.issubset(chunk.table.column_names):
            return
        kept, rungs = _kept_rows(chunk, step)
        if chunk.rung:
            kept = [is_kept and rung == chunk.rung for is_kept, rung in zip(kept, rungs, strict=True)]
        asked = [fingerprint for fingerprint, (_, rows) in requests.items() if any(kept[row] for row in rows)]
        stored = await self._pending.lookup(asked) if asked else {}
        is_needed = len(stored) < len(asked) or results.dropped
        values = chunk.table.select(names).to_pylist() if is_needed else []
        read: list[tuple[bytes, ReadAnswer]] = []
        for fingerprint in asked:
            request, rows = requests[fingerprint]
            for row in rows:
                if kept[row] and (fingerprint not in stored or row in results.dropped):
                    outcome = Outcome(b"", None, 0, "", 0, was_sent=False)
                    last = replace(request, fingerprint=results.recorded.get(row, fingerprint))
                    read.append((fingerprint, ReadAnswer(last, [row], b"", tuple(values[row].values()), outcome)))
        self._accept_without_request(chunk, step, read, requests, results)
        results.rungs |= {row: rungs[row] for _, one in read for row in one.rows if results.done[row]}

    def _accept_without_request(
        self,
        chunk: Chunk,
        step: RunStep,
        read: Sequence[tuple[bytes, ReadAnswer]],
        requests: RequestsByFingerprint,
        results: StepResults,
    ) -> None:
        """Accept answers of single rows that pass the checks in place of the requests with these fingerprints."""
        failures = self._check_answers(chunk, step, step.route, [one for _, one in read], results)
        for fingerprint, one in read:
            (row,) = one.rows
            if row in failures:
                continue
            results.values[row], results.answers[row], results.done[row] = one.values, one.request.fingerprint, True
            chunk.asked[row] = chunk.asked[row] or self._pending.is_from_this_run(one.outcome)
            if chunk.straggling_step != chunk.step:
                self._pending.record_skipped(step.route.step, 1)
            request, rows = requests.pop(fingerprint)
            if others := [other for other in rows if other != row]:
                keys = tuple(chunk.keys[other] for other in others)
                requests[fingerprint] = (replace(request, keys=keys), others)
            else:
                self._release_media(request)

    def _try_simpler_mode(
        self, step: RunStep, current: RunStep, trial: ModeTrial | None, mode: str
    ) -> ModeTrial | None:
        """Set the route of `current` to the next mode, or to the one that another chunk has learned meanwhile."""
        refused = current.route if trial is None else trial.refused
        if step.route is not refused:
            current.route = step.route
            return None
        current.route = step.fall_back(current.route, mode)
        return ModeTrial(mode, refused)

    async def _learn_mode(self, step: RunStep, route: Route, trial: ModeTrial | None, is_new: bool) -> None:
        """Make the mode that was tried and answered the step's, and name it in the summary.

        If others were answered in the refused mode, its refusal was the row's own fault. `is_new`: the answer is.
        """
        async with step.route_change:
            if trial is None or route is trial.refused:
                step.accepted = route
            elif step.route is trial.refused and step.accepted is not trial.refused:
                step.route, step.mode, step.accepted = route, trial.mode, route
                await step.learn_mode(trial.mode)
        if is_new and step.mode is not None and step.route is route:
            self._pending.counters.add_note(_mode_note(step, step.mode))

    async def _rendered_requests(self, chunk: Chunk, step: RunStep, results: StepResults) -> RequestsByFingerprint:
        """Render the rows that `when` selects; record rows that it excludes and rows that make no request."""
        name, rows = step.route.step, range(len(chunk.keys))
        selected, errors = ([True] * len(rows), {}) if step.when is None else step.when.evaluate(chunk.table)
        asked = [row for row in rows if selected[row]]
        for excluded in set(rows).difference(asked, errors) if len(asked) < len(rows) else ():
            results.done[excluded] = True
            self._pending.record_skipped(name, 1)
        rendered = await render_requests(step.route.endpoint, chunk.table, chunk.keys, asked, self._media)
        requests: RequestsByFingerprint = {}
        for row, request in sorted({**rendered, **errors}.items()) if errors else rendered.items():
            if isinstance(request, RowError):
                results.failures.append(RowFailure(row, name, request, 0, self._run_id, now_us()))
                self._pending.record_skipped(name, 1, failed=True)
                continue
            same = requests.get(request.fingerprint)
            if same is None:
                requests[request.fingerprint] = (request, [row])
            else:
                self._release_media(request)
                same[1].append(row)
                merged = replace(same[0], keys=(*same[0].keys, chunk.keys[row]))
                requests[request.fingerprint] = (merged, same[1])
        return requests

    def _is_usable(self, chunk: Chunk, step: RunStep, requests: RequestsByFingerprint) -> IsUsable:
        endpoint, quality = step.route.endpoint, step.quality

        def makes_no_error(fingerprint: bytes, answer: StoredAnswer) -> bool:
            if self._pending.is_new(answer):
                # Another chunk has requested it again already.
                return True
            # If its links were not fetched, the row has failed, and they may have expired by now.
            if answer.reply is None or endpoint.expiring_urls(answer.reply):
                return False
            values = endpoint.values(answer.reply)
            if isinstance(values, RowError):
                return False
            _, rows = requests.get(fingerprint, (None, []))
            if quality is None or not rows:
                return True
            _, failures = quality.evaluate(
                chunk.table.take(pa.array(rows, pa.int64())), endpoint.arrays([values for _ in rows])
            )
            return not failures

        return makes_no_error if self._is_retrying else lambda fingerprint, answer: True

    async def _wait_for_outcomes(self, submission: Submission, has_finished_rows: bool) -> bool:
        """Wait for outcomes; return whether more will be waited for after those that are there have been read.

        When the senders would run out of requests, it does not wait for the last few outcomes, nor for any if the
        chunk has finished rows that could go on.
        """
        size = len(submission.pending)
        while not submission.done.is_set():
            if submission.ready.is_set():
                return True
            try:
                await asyncio.wait_for(submission.ready.wait(), STRAGGLER_SECONDS)
            except TimeoutError:
                pending = len(submission.pending)
                if self._dispatcher.has_capacity and pending and (has_finished_rows or pending < size):
                    return False
        return False

    async def _read_outcomes(
        self,
        chunk: Chunk,
        step: RunStep,
        route: Route,
        requests: RequestsByFingerprint,
        submission: Submission,
        results: StepResults,
        follow_ups: FollowUps,
    ) -> None:
        """Read typed values from the outcomes that are there. `route`: as it was when the requests were rendered."""
        endpoint = route.endpoint
        outcomes, nbytes = submission.drain()
        read: list[ReadAnswer] = []
        asked = chunk.asked
        for fingerprint in list(outcomes):
            outcome = outcomes.pop(fingerprint)
            request, rows = requests[fingerprint]
            if outcome.was_sent or self._pending.is_from_this_run(outcome):
                for row in rows:
                    asked[row] = True
            error, answered = outcome.error, outcome.answer
            if answered is not None:
                follow_ups.has_answers = True
                follow_ups.has_new_answers = follow_ups.has_new_answers or outcome.was_sent
                if outcome.values is not None and outcome.read_by is endpoint:
                    read.append(ReadAnswer(request, rows, answered, outcome.values, outcome))
                    continue
                answer = await self._with_linked_files(route, request, answered)
                values = answer if isinstance(answer, RowError) else endpoint.values(answer)
                if isinstance(answer, bytes) and not isinstance(values, RowError):
                    read.append(ReadAnswer(request, rows, answer, values, outcome))
                    continue
                assert isinstance(values, RowError)
                error = values
                if isinstance(answer, bytes):
                    rows = self._repair_rows(chunk, route, step, request, rows, answer, error, results, follow_ups)
            assert error is not None
            if rows:
                if rows == requests[fingerprint][1]:
                    self._release_media(request)
                self._end_rows(chunk, route, request, rows, error, outcome, results, follow_ups)
        await self._accept_answers(chunk, step, route, read, results, follow_ups)
        self._pending.read_buffer.release(nbytes)

    async def _accept_answers(
        self,
        chunk: Chunk,
        step: RunStep,
        route: Route,
        read: Sequence[ReadAnswer],
        results: StepResults,
        follow_ups: FollowUps,
    ) -> None:
        """Accept the answers that pass the step's checks; repair or fail the rows of the others."""
        failures = self._check_answers(chunk, step, route, read, results)
        ended: list[tuple[bytes, list[int]]] = []
        values, answers, done, files_of = results.values, results.answers, results.done, route.endpoint.files
        for one in read:
            failed = {row: failures[row] for row in one.rows if row in failures} if failures else {}
            is_repaired = False
            accepted = [row for row in one.rows if row not in failed] if failed else one.rows
            if accepted:
                if len(one.answer) > LARGE_ANSWER_BYTES:
                    await asyncio.to_thread(write_files, self._files_folder, partial(files_of, one.answer))
                elif files := files_of(one.answer):
                    write_files(self._files_folder, partial(iter, files))
            fingerprint = one.request.fingerprint
            for row in accepted:
                values[row], answers[row], done[row] = one.values, fingerprint, True
            ended.append((fingerprint, accepted))
            if not failed:
                if one.request.media:
                    self._release_media(one.request)
                continue
            for failure in dict.fromkeys(failed.values()):
                rows = [row for row, why in failed.items() if why == failure]
                left = self._repair_rows(
                    chunk, route, step, one.request, rows, one.answer, failure.problem, results, follow_ups
                )
                is_repaired = is_repaired or len(left) < len(rows)
                if left:
                    self._end_rows(chunk, route, one.request, left, failure.error, one.outcome, results, follow_ups)
                    ended.append((fingerprint, left))
            if not is_repaired:
                self._release_media(one.request)
        await self._record_last_answers(chunk, step, ended, results)

    async def _record_last_answers(
        self, chunk: Chunk, step: RunStep, ended: Sequence[tuple[bytes, list[int]]], results: StepResults
    ) -> None:
        """Record the answers with which rows end, if they are not those of their first requests, or were not before."""
        if step.job is None:
            return
        rows = [
            (results.first[row], chunk.keys[row], answer)
            for answer, ended_rows in ended
            for row in ended_rows
            if results.recorded.get(row, results.first[row]) != answer
        ]
        if rows:
            await self._pending.record_last_answers(step.job, step.route.step, rows)

    def _check_answers(
        self, chunk: Chunk, step: RunStep, route: Route, read: Sequence[ReadAnswer], results: StepResults
    ) -> dict[int, CheckFailure]:
        """Find the evidence of the answers for their rows; return the rows whose answers fail a check."""
        if step.quality is None or not read:
            return {}
        rows = [row for one in read for row in one.rows]
        arrays = route.endpoint.arrays([one.values for one in read for _ in one.rows])
        inputs = step.quality.inputs(chunk.table).take(pa.array(rows, pa.int64()))
        evidence, failures = step.quality.evaluate(inputs, arrays)
        if step.quality.fields:
            for row, found in zip(rows, evidence, strict=True):
                results.evidence[row] = found
        return {rows[place]: failure for place, failure in failures.items()}

    def _repair_rows(
        self,
        chunk: Chunk,
        route: Route,
        step: RunStep,
        request: Request,
        rows: list[int],
        answer: bytes,
        problem: RowError,
        results: StepResults,
        follow_ups: FollowUps,
    ) -> list[int]:
        """Add a repair turn for the rows that may take one; return the others."""
        repaired = [row for row in rows if results.repairs[row] < step.repairs]
        repair = route.endpoint.repair(request, answer, problem) if repaired else None
        if repair is None:
            return rows
        for row in repaired:
            results.repairs[row] += 1
        keys = tuple(chunk.keys[row] for row in repaired)
        same = follow_ups.repairs.get(repair.fingerprint)
        others = [row for row in rows if row not in repaired]
        if same is not None:
            keys, repaired = (*same[0].keys, *keys), [*same[1], *repaired]
        follow_ups.repairs[repair.fingerprint] = (replace(repair, keys=keys), repaired)
        return others

    def _end_rows(
        self,
        chunk: Chunk,
        route: Route,
        request: Request,
        rows: list[int],
        error: RowError,
        outcome: Outcome,
        results: StepResults,
        follow_ups: FollowUps,
    ) -> None:
        """Record rows that end with an error, unless a simpler structured mode or a rung follows."""
        if (mode := route.endpoint.fallback_mode(error)) is not None:
            follow_ups.fallbacks.setdefault(mode, []).extend(rows)
            return
        if results.rescue(rows, error):
            return
        if outcome.answer is not None and outcome.was_sent and route.settles_rows:
            self._pending.record_settled(0 if route.is_last_step else len(rows), failed=len(rows))
        results.failures.extend(
            RowFailure(
                row, route.step, error, outcome.attempts, outcome.run_id, outcome.at, _is_new_failure(chunk, row)
            )
            for row in rows
        )

    async def _follow_up_requests(self, chunk: Chunk, current: RunStep, follow_ups: FollowUps) -> RequestsByFingerprint:
        """Return the requests to submit next: repairs, and refused rows in the mode of `current`."""
        requests = await self._paid_repairs(follow_ups.repairs)
        if rows := sorted(row for refused in follow_ups.fallbacks.values() for row in refused):
            rendered = await self._rendered_requests(
                chunk.select(rows), replace(current, when=None), StepResults.empty(0)
            )
            for fingerprint, (request, indexes) in rendered.items():
                requests[fingerprint] = (request, [rows[index] for index in indexes])
        return requests

    async def _paid_repairs(self, repairs: RequestsByFingerprint) -> RequestsByFingerprint:
        """Return the repairs, each as an earlier release asked for it if the ledger has the answer to that."""
        formers = [request.former.fingerprint for request, _ in repairs.values() if request.former is not None]
        paid = await self._pending.lookup(formers) if formers else {}
        requests: RequestsByFingerprint = {}
        for fingerprint, (request, rows) in repairs.items():
            former = request.former
            if former is not None and former.fingerprint in paid:
                fingerprint, request = former.fingerprint, replace(former, keys=request.keys)
            requests[fingerprint] = (request, rows)
        return requests

    def _release_media(self, request: Request) -> None:
        for media in request.media:
            self._media.release(media)

    async def _with_linked_files(self, route: Route, request: Request, answer: bytes) -> bytes | RowError:
        """Return the answer with the contents of its links, which expire, and store it; it is paid for already."""
        urls = route.endpoint.expiring_urls(answer)
        if not urls:
            return answer
        try:
            contents = [await self._media.fetch(url, MAX_FETCHED_BYTES) for url in urls]
        except FetchError as exc:
            return RowError("connection", f"the answer names a file that cannot be fetched: {exc}")
        complete = route.endpoint.with_contents(answer, contents)
        await self._store_answer(route, request, complete)
        return complete


def _mode_note(step: RunStep, mode: str) -> str:
    how = {"json_object": "json_object is used", "prompt": "the prompt shows it"}.get(mode, f"{mode} is used")
    return f"{step.route.step}: {step.route.provider.name} refuses the schema for {step.model}; {how}"


def _is_new_failure(chunk: Chunk, row: int) -> bool:
    failed_before = FAILED_STEP in chunk.table.column_names and chunk.table.column(FAILED_STEP)[row].is_valid
    return chunk.asked[row] or not failed_before


def _kept_rows(chunk: Chunk, step: RunStep) -> tuple[Sequence[bool], Sequence[int]]:
    """Return for each row whether the sink has outputs that only other checks have accepted, and by which rung."""
    kept = chunk.table.column(KEPT_ROW).to_pylist()
    name = KEPT_PREFIX + (step.rung_column or "")
    if name not in chunk.table.column_names:
        return kept, [0] * len(kept)
    return kept, [rung or 0 for rung in chunk.table.column(name).to_pylist()]


def _first_requested_row(chunk: Chunk, step: RunStep) -> int | None:
    if step.when is None:
        return 0
    return next((row for row, selected in enumerate(step.when.mask(chunk.table)) if selected), None)
