"""Dry run: rows go through the steps as in a run, answered only from the ledger; nothing is sent."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import pyarrow as pa
from msgspec import Struct, field
from msgspec.structs import replace

from connectors.contracts import MediaColumn
from connectors.documents.document import Document
from connectors.documents.document_reader import DocumentReader
from connectors.documents.document_store import DocumentStore
from connectors.media.media_reader import MediaReader, is_fetched, is_web_url
from connectors.records import (
    FAILED_CLASS,
    FAILED_STEP,
    KEPT_PREFIX,
    KEPT_ROW,
    TEXT_PREFIX,
    Media,
    Request,
    RowError,
    Values,
)
from pipelines.dispatch.local_steps.document_run import DocumentAccess, read_document
from pipelines.dispatch.packing.packing import Packing, packing_of
from pipelines.dispatch.request_rendering import render_requests
from pipelines.dispatch.rescue.ladder import Ladder
from pipelines.dispatch.step_runner import CHUNK_ROWS
from pipelines.ledger.ledger_reader import AnswerReads
from pipelines.planning.answer_estimates import AnswerEstimate, estimate_answer, placeholder_values
from pipelines.planning.cost_estimates import CostEstimate, Rates, WhenResult
from pipelines.planning.prompt_order import MAX_PROMPTS
from pipelines.preparation.child_outputs import outputs_of_children
from pipelines.preparation.local_steps import PreparedLocalStep
from pipelines.preparation.prepared_job import PreparedJob, PreparedStep, media_reader
from pipelines.quality.checks import CheckFailure
from pipelines.transforms.child_keys import child_key_starts
from pipelines.transforms.each import Each
from pipelines.transforms.fold import SOURCE, Fold
from pipelines.transforms.read import Read
from pipelines.transforms.select import Select

MAX_SCANNED_ROWS = 20_000
"""Up to this many rows are all processed; of a larger source about as many, spread over all of it."""
MAX_SCANNED_PARENTS = 2_000
"""The same for a job whose rows become several, or name documents to be read."""
PARENT_CHUNK_ROWS = 16
"""Rows that are processed together in such a job."""
MAX_SECONDS = 12.0
"""Longest time for processing rows; the estimates are scaled up from the rows so far."""
MAX_EXAMPLES = 2

_UNSEEN_DIGEST = "0" * 64
_UNSEEN = {
    "image": Media(_UNSEEN_DIGEST, 400_000, "image/png", "png", data=b"", pixels=(1024, 1024)),
    "audio": Media(_UNSEEN_DIGEST, 1_000_000, "audio/mpeg", "mp3", data=b"", seconds=60.0),
    "document": Media(_UNSEEN_DIGEST, 1_000_000, "application/pdf", "pdf", data=b""),
}
"""Placeholders for files behind URLs, since a plan fetches nothing."""
_UNSEEN_DOCUMENT = Document("application/pdf", ("word " * 500,) * 4)
_PAGE_URL = "https://page.invalid/"
"""In place of the pictures of pages, since a plan draws nothing."""


class StepEstimate(Struct):
    """Requests, tokens and cost of one step over the processed rows."""

    step: PreparedStep
    answer: AnswerEstimate
    cost: CostEstimate
    requests: int = 0
    """HTTP exchanges; a request that several rows share counts once."""
    asked: int = 0
    """Rows that need an answer."""
    estimated_inputs: int = 0
    """Those of `asked` whose requests contain outputs of earlier steps: their length is estimated."""
    perhaps: int = 0
    """Rows for which `when` depends on answers that do not exist yet."""
    in_ledger: int = 0
    skipped: int = 0
    """Rows excluded by `when`."""
    unaskable: int = 0
    """Rows whose values cannot make a request."""
    fetched: int = 0
    """Rows that name a URL, which is not fetched here."""
    body_bytes: int = 0
    prompts: list[bytes] = field(default_factory=list)
    """The first requests, to see in which order constant and row text come."""
    fingerprints: set[bytes] = field(default_factory=set)
    packing: Packing | None = None
    rescued: int = 0
    """Rows that failed before and that a rung requests now."""
    rescued_costs: Sequence[CostEstimate] = ()
    """The cost of their requests, for each rung."""
    rung_costs: Sequence[CostEstimate] = ()
    """For each rung the cost if every row that is requested as declared fails and takes it: only `high` counts."""
    alone: CostEstimate | None = None
    """For a step with `pack`: what its rows would take if each had a request of its own."""

    ungrouped: list[Request] = field(default_factory=list)
    """Requests of children, which share exchanges with those of other source rows: not in `requests` yet."""

    def count_groups(self) -> None:
        """Count the exchanges of the requests that are not counted yet."""
        self.requests += sum(1 for _ in self.step.endpoint.group_requests(self.ungrouped))
        self.ungrouped = []

    @property
    def cost_alone(self) -> CostEstimate:
        """The cost to which the request of a row alone belongs."""
        return self.alone or self.cost


class DryRun(Struct):
    """The estimates of all steps, and the number of processed rows."""

    steps: list[StepEstimate]
    rows: int = 0
    children: dict[str, int] = field(default_factory=dict)
    """`each` step -> the rows that it makes of the processed ones."""
    carried_bytes: int = 0
    examples: list[tuple[str, Request]] = field(default_factory=list)


async def dry_run(ready: PreparedJob, ledger: AnswerReads, asked: int) -> DryRun:
    """Process the rows that a run would request: all of them, or a sample spread over the source."""
    run = DryRun([_step_estimate(ready, ledger, step) for step in ready.steps])
    media = media_reader(ready)
    store = DocumentStore(ready.workspace.documents, ready.workspace.folder, is_read_only=True)
    documents = DocumentAccess(media, DocumentReader(), store, _PAGE_URL, None, ready.scratch)
    try:
        async with aclosing(_chunks(ready, asked)) as chunks:
            async for batch in chunks:
                await _ChunkDryRun(ready, ledger, documents, run, pa.Table.from_batches([batch])).process()
    finally:
        await documents.close()
        await media.close()
    for estimate in run.steps:
        estimate.count_groups()
    return run


def _step_estimate(ready: PreparedJob, ledger: AnswerReads, step: PreparedStep) -> StepEstimate:
    rates = Rates.of(ready, step)
    estimate = StepEstimate(step, estimate_answer(ledger, ready.job.name, step), CostEstimate(rates))
    estimate.rescued_costs, estimate.rung_costs = (
        [CostEstimate(Rates.of(ready, rung)) for rung in step.rungs] for _ in range(2)
    )
    if (packing := packing_of(step.endpoint)) is not None:
        estimate.packing, estimate.alone = packing, CostEstimate(rates)
    return estimate


async def _chunks(ready: PreparedJob, asked: int) -> Any:
    are_large = any(step.kind in ("each", "read") for step in ready.local_steps)
    scanned, rows = (MAX_SCANNED_PARENTS, PARENT_CHUNK_ROWS) if are_large else (MAX_SCANNED_ROWS, CHUNK_ROWS)
    every = max(1, -(-asked // scanned))
    until = time.monotonic() + MAX_SECONDS
    batches: Iterator[pa.RecordBatch] = ready.selection.batches(rows, frozenset())
    for place, batch in enumerate(batches):
        if place % every == 0:
            yield batch
        if time.monotonic() > until:
            return
        await asyncio.sleep(0)


class _ChunkDryRun:
    """The dry run of one chunk of rows."""

    def __init__(
        self, ready: PreparedJob, ledger: AnswerReads, documents: DocumentAccess, run: DryRun, table: pa.Table
    ) -> None:
        self._ready = ready
        self._ledger = ledger
        self._media = documents.media
        self._documents = documents
        self._run = run
        self._table = table
        self._keys: list[str] = table.column("_key").to_pylist()
        self._is_alive = [True] * table.num_rows
        self._pending_columns: list[frozenset[str]] = [frozenset()] * table.num_rows
        """For each row, the columns whose values only a run will produce."""
        self._source: _SourceRows | None = None
        """The rows of which those at hand are the children."""

    async def process(self) -> None:
        run = self._run
        carried = [name for name in self._ready.shape.results.names if name in self._table.column_names]
        run.carried_bytes += self._table.select(carried).nbytes
        rows = len(self._keys)
        estimates = iter(run.steps)
        for place, step in enumerate(self._ready.every_step):
            if isinstance(step, PreparedStep):
                await self._process_step(next(estimates), run.rows)
            else:
                match step.transform:
                    case Select():
                        self._select(step, step.transform)
                    case Read():
                        await self._read(step, step.transform)
                    case Each():
                        self._expand(step, step.transform)
                    case Fold():
                        self._fold(step, step.transform)
            later = self._ready.every_step[place + 1 :]
            # The keys of children begin with those of their source rows.
            wanted = {*self._ready.shape.source_key, *(name for step in later for name in step.input_columns)}
            self._table = self._table.drop_columns(
                [name for name in self._table.column_names if name not in wanted and not name.startswith("_")]
            )
        run.rows += rows

    def _expand(self, step: PreparedLocalStep, each: Each) -> None:
        """Go on with the children of the rows; a row without children goes on at the fold."""
        expansion = each.expand(self._table)
        alive = [place for place, is_alive in enumerate(self._is_alive) if is_alive and place not in expansion.errors]
        for place in expansion.errors:
            if not self._pending_columns[place] & step.input_columns:
                self._is_alive[place] = False
        places, made = each.children(expansion, 0, expansion.total)
        chosen = [child for child, place in enumerate(places) if place in set(alive)]
        places, made = [places[child] for child in chosen], made.take(pa.array(chosen, pa.int64()))
        self._source = _SourceRows(self._table, self._keys, self._is_alive, self._pending_columns, places)
        inherited = [name for name in self._table.column_names if not name.startswith("_") or _is_text(name)]
        table = self._table.select(inherited).take(pa.array(places, pa.int64()))
        for column, values in zip(made.schema, made.columns, strict=True):
            table = table.append_column(column, values)
        indexes = made.column(each.index).to_pylist()
        for name, values in outputs_of_children(self._table, expansion.counts, places, indexes).items():
            table = table.append_column(name, values)
        names = frozenset(made.column_names)
        pending = [self._pending_columns[place] for place in places]
        self._pending_columns = [before | names if before & step.input_columns else before for before in pending]
        self._is_alive = [True] * len(places)
        keys = child_key_starts(self._source.table.select(self._ready.shape.source_key))
        self._keys = [f"{keys[place]}{index}]" for place, index in zip(places, indexes, strict=True)]
        self._table = table
        self._run.children[step.model.name] = self._run.children.get(step.model.name, 0) + len(places)
        self._run.carried_bytes += made.nbytes

    def _fold(self, step: PreparedLocalStep, fold: Fold) -> None:
        """Go on with the rows that the children were made of."""
        source = self._source
        assert source is not None
        self._source = None
        children = self._table
        for name in fold.columns.difference(children.column_names):
            values = source.table.column(name).take(pa.array(source.places, pa.int64()))
            children = children.append_column(source.table.schema.field(name), values)
        children = children.append_column(SOURCE, pa.array(source.places, pa.int64()))
        made, errors = fold.apply(children, range(source.table.num_rows))
        names = frozenset(made.column_names)
        unknown = {
            place for child, place in enumerate(source.places) if self._pending_columns[child] & step.input_columns
        }
        dead = {place for child, place in enumerate(source.places) if not self._is_alive[child]}
        dead.update(set(errors).difference(unknown))
        self._table, self._keys = source.table, source.keys
        for column, values in zip(made.schema, made.columns, strict=True):
            self._table = self._table.append_column(column, values)
        self._is_alive = [is_alive and place not in dead for place, is_alive in enumerate(source.is_alive)]
        self._pending_columns = [
            before | names if place in unknown else before for place, before in enumerate(source.pending_columns)
        ]

    def _select(self, step: PreparedLocalStep, select: Select) -> None:
        """Add the columns of a select; those that it makes of answers that do not exist yet are guesses."""
        self._add_local_columns(step, *select.apply(self._table))

    async def _read(self, step: PreparedLocalStep, read: Read) -> None:
        """Add the columns of documents on this machine; those of others, and pictures of pages, are guesses."""
        wanted, broken = read.wanted(self._table)
        errors = dict(broken)
        documents: list[Document | None] = [None] * self._table.num_rows
        unseen: set[int] = set()
        for place, value in enumerate(self._table.column(read.column).to_pylist()):
            if not wanted[place] or value is None or not self._is_alive[place]:
                continue
            if self._pending_columns[place] & step.input_columns or is_web_url(value):
                documents[place] = _UNSEEN_DOCUMENT
                unseen.add(place)
                continue
            found = await read_document(value, read, self._documents)
            if isinstance(found, RowError):
                errors[place] = found
            else:
                documents[place] = found
        if read.draws_pages:
            documents = [
                None if each is None else replace(each, pictures=tuple(map(str, range(len(each.pages)))))
                for each in documents
            ]
        made = read.table(documents, self._documents.files_prefix)
        names = frozenset(made.column_names)
        for place in range(len(documents)) if read.draws_pages else unseen:
            self._pending_columns[place] |= names
        self._add_local_columns(step, made, errors)

    def _add_local_columns(self, step: PreparedLocalStep, made: pa.Table, errors: Mapping[int, RowError]) -> None:
        for column, values in zip(made.schema, made.columns, strict=True):
            self._table = self._table.append_column(column, values)
        names = frozenset(made.column_names)
        for place, pending in enumerate(self._pending_columns):
            if pending & step.input_columns:
                self._pending_columns[place] = pending | names
            elif place in errors:
                self._is_alive[place] = False

    async def _process_step(self, estimate: StepEstimate, before: int) -> None:
        step = estimate.step
        wanted = self._when_results(step, estimate)
        failed = self._failed_before(step)
        for place in failed:
            wanted.pop(place, None)
        rendered = await render_requests(step.endpoint, self._table, self._keys, wanted, _LocalMedia(self._media))
        requests: dict[int, Request] = {}
        for place, made in rendered.items():
            if not isinstance(made, RowError):
                requests[place] = made
                estimate.fetched += any(media.digest == _UNSEEN_DIGEST for media in made.media)
            elif wanted[place] is WhenResult.YES:
                estimate.unaskable += 1
                self._is_alive[place] = False
        guessed = {place for place in requests if self._pending_columns[place] & step.endpoint.input_columns}
        answers = self._ledger_answers(requests, guessed, step)
        estimate.in_ledger += len(answers)
        unknown = set(requests).difference(answers)
        failed |= {place: result.error_class for place, result in answers.items() if isinstance(result, RowError)}
        rescued = [
            place for place, error_class in failed.items() if await self._rescue(estimate, place, error_class, answers)
        ]
        fresh: list[Request] = []
        packed: dict[WhenResult, list[Request]] = {}
        for place in sorted(unknown):
            made = requests[place]
            if place not in guessed:
                if made.fingerprint in estimate.fingerprints:
                    continue
                estimate.fingerprints.add(made.fingerprint)
                if len(estimate.prompts) < MAX_PROMPTS:
                    estimate.prompts.append(made.body)
                if estimate.packing is None:
                    self._add_example(step, made)
            packed.setdefault(wanted[place], []).append(made)
            for part in made.parts or (made,):
                estimate.cost_alone.add_request(part, estimate.answer, wanted[place])
                for rung, cost in zip(step.rungs, estimate.rung_costs, strict=True):
                    cost.add_request(
                        replace(part, output_bound=rung.endpoint.output_bound), estimate.answer, WhenResult.NO
                    )
            if wanted[place] is not WhenResult.NO:
                fresh.append(made)
                estimate.body_bytes += len(made.body)
        estimate.asked += len(fresh)
        estimate.estimated_inputs += len(guessed & unknown)
        if estimate.packing is None:
            estimate.ungrouped += (made for made in fresh if not made.parts)
            if self._source is None or len(estimate.ungrouped) >= CHUNK_ROWS:
                estimate.count_groups()
            estimate.requests += sum(len(made.parts) for made in fresh)
        else:
            for passes, rows in packed.items():
                self._add_packs(estimate, estimate.packing, passes, rows)
        unanswered = {place: wanted[place] for place in unknown} | dict.fromkeys(rescued, WhenResult.YES)
        self._add_columns(estimate, before, answers, unanswered)

    def _failed_before(self, step: PreparedStep) -> dict[int, str]:
        """Return the error classes of the rows that failed in this step and that a rung may request again."""
        if FAILED_STEP not in self._table.column_names:
            return {}
        steps, classes = (self._table.column(name).to_pylist() for name in (FAILED_STEP, FAILED_CLASS))
        return {
            place: classes[place]
            for place, name in enumerate(steps)
            if name == step.model.name and self._is_alive[place]
        }

    async def _rescue(
        self, estimate: StepEstimate, place: int, error_class: str, answers: dict[int, Values | RowError]
    ) -> bool:
        """Take a failed row through the rungs; return whether one sends a request. `answers` gets the result."""
        ladder, tried = Ladder.of(estimate.step.model), frozenset[int]()
        answers[place] = RowError("unknown", "no rung is left")
        while (number := ladder.next_place(error_class, tried)) is not None:
            tried = ladder.with_tried(tried, number)
            rung = estimate.step.rungs[number - 1]
            media = _LocalMedia(self._media)
            request = (await render_requests(rung.endpoint, self._table, self._keys, [place], media))[place]
            if isinstance(request, RowError):
                return False
            requests = {place: request}
            settled = self._ledger_answers(requests, set(), rung).get(place)
            if settled is None:
                del answers[place]
                estimate.rescued += 1
                estimate.requests += 1
                estimate.rescued_costs[number - 1].add_request(requests[place], estimate.answer, WhenResult.YES)
                return True
            answers[place] = settled
            if not isinstance(settled, RowError):
                return False
            error_class = settled.error_class
        return False

    def _add_example(self, step: PreparedStep, request: Request) -> None:
        if len(self._run.examples) < MAX_EXAMPLES:
            self._run.examples.append((step.model.name, request))

    def _add_packs(self, estimate: StepEstimate, packing: Packing, passes: WhenResult, rows: Sequence[Request]) -> None:
        """Add the requests that these rows share, and those of the rows that are verified alone."""
        packing.restore(self._ledger.packed_answers([request.fingerprint for request in rows]))
        for group in packing.groups(rows):
            verified = [] if len(group) == 1 else [request for request in group if packing.is_verified(request)]
            shared = group[0] if len(group) == 1 else packing.request(group)
            answer = estimate.answer if len(group) == 1 else estimate.answer.of_pack(len(group))
            for possible in packing.possible_groups(group):
                sent = possible[0] if len(possible) == 1 else shared if possible is group else packing.request(possible)
                estimate.cost.add_highest(sent, has_repairs=len(possible) == 1)
            estimate.cost.add_expected(shared, answer, passes)
            for request in verified:
                estimate.cost.add_expected(request, estimate.answer, passes)
            if passes is not WhenResult.NO:
                estimate.requests += 1 + len(verified)
                self._add_example(estimate.step, shared)

    def _when_results(self, step: PreparedStep, estimate: StepEstimate) -> dict[int, WhenResult]:
        """Evaluate the step's `when` for each row; rows that certainly fail it are left out."""
        alive = [place for place, is_alive in enumerate(self._is_alive) if is_alive]
        if step.when is None:
            return dict.fromkeys(alive, WhenResult.YES)
        mask, broken = step.when.evaluate(self._table)
        wanted: dict[int, WhenResult] = {}
        for place in alive:
            if self._pending_columns[place] & step.when.columns:
                wanted[place] = WhenResult.PERHAPS if mask[place] else WhenResult.NO
                estimate.perhaps += 1
            elif place in broken:
                estimate.unaskable += 1
                self._is_alive[place] = False
            elif mask[place]:
                wanted[place] = WhenResult.YES
            else:
                estimate.skipped += 1
        return wanted

    def _ledger_answers(
        self, requests: dict[int, Request], guessed: set[int], step: PreparedStep
    ) -> dict[int, Values | RowError]:
        """Return the values or the error of rows with an answer in the ledger.

        A request whose stored answer does not fit, or fails a check, is replaced by its repair turn.
        """
        endpoint = step.endpoint
        settled: dict[int, Values | RowError] = {}
        turns = Counter[int]()
        unresolved = [place for place in requests if place not in guessed]
        settled |= self._rescued_before(step, unresolved)
        unresolved = [place for place in unresolved if place not in settled]
        settled |= self._last_answers(step, {place: requests[place] for place in unresolved})
        unresolved = [place for place in unresolved if place not in settled]
        while unresolved:
            formers = {place: former for place in unresolved if (former := requests[place].former) is not None}
            asked = {requests[place].fingerprint for place in unresolved}
            stored = self._ledger.lookup(list(asked.union(former.fingerprint for former in formers.values())))
            requests |= {place: former for place, former in formers.items() if former.fingerprint in stored}
            repairs: list[int] = []
            results = dict(
                self._kept_rows(step, [place for place in unresolved if requests[place].fingerprint not in stored])
            )
            kept = frozenset(results)
            replies: dict[int, bytes] = {}
            for place in unresolved:
                answer = stored.get(requests[place].fingerprint)
                if answer is None:
                    continue
                if answer.reply is not None:
                    replies[place] = answer.reply
                    results[place] = endpoint.values(answer.reply)
                elif answer.error is not None:
                    results[place] = answer.error
            failures = self._failed_checks(step, results)
            for place, result in results.items():
                if place in kept and place in failures:
                    continue
                problem = failures[place].problem if place in failures else result
                repair = None
                if isinstance(problem, RowError) and place in replies and turns[place] < step.repairs:
                    repair = endpoint.repair(requests[place], replies[place], problem)
                if repair is not None:
                    turns[place] += 1
                    requests[place] = repair
                    repairs.append(place)
                    continue
                settled[place] = failures[place].error if place in failures else result
            unresolved = repairs
        return settled

    def _last_answers(self, step: PreparedStep, requests: Mapping[int, Request]) -> dict[int, Values | RowError]:
        """Return the values of rows that took repair turns before, and whose last answers pass the checks of today."""
        if not step.has_repairs or not requests:
            return {}
        fingerprints = list({request.fingerprint for request in requests.values()})
        last = self._ledger.last_answers(self._ready.job.name, step.model.name, fingerprints)
        stored = self._ledger.lookup(list(set(last.values()))) if last else {}
        results: dict[int, Values | RowError] = {}
        for place, request in requests.items():
            answer = stored.get(last.get((request.fingerprint, self._keys[place]), b""))
            if answer is not None and answer.reply is not None:
                values = step.endpoint.values(answer.reply)
                if not isinstance(values, RowError):
                    results[place] = values
        failures = self._failed_checks(step, results)
        return {place: values for place, values in results.items() if place not in failures}

    def _kept_rows(self, step: PreparedStep, places: Sequence[int]) -> Mapping[int, Values | RowError]:
        """Return the outputs of rows that the sink has and that only other checks have accepted."""
        names = [KEPT_PREFIX + column.name for column in step.endpoint.fields]
        if not step.has_repairs or not {KEPT_ROW, *names}.issubset(self._table.column_names):
            return {}
        kept, rows = self._table.column(KEPT_ROW).to_pylist(), self._table.select(names).to_pylist()
        return {place: tuple(rows[place].values()) for place in places if kept[place]}

    def _rescued_before(self, step: PreparedStep, places: Sequence[int]) -> Mapping[int, Values | RowError]:
        """Return the outputs in the sink that a rung has answered and that pass the checks of today."""
        name = KEPT_PREFIX + ("" if step.rung_field is None else step.rung_field.name)
        if not step.rungs or name not in self._table.column_names:
            return {}
        rungs = self._table.column(name).to_pylist()
        kept = self._kept_rows(step, [place for place in places if 0 < (rungs[place] or 0) <= len(step.rungs)])
        failures = self._failed_checks(step, kept)
        return {place: values for place, values in kept.items() if place not in failures}

    def _failed_checks(
        self, step: PreparedStep, results: Mapping[int, Values | RowError]
    ) -> Mapping[int, CheckFailure]:
        """Return the rows whose answers fail a check, as far as the columns that it reads are known."""
        quality = step.quality
        if quality is None:
            return {}
        values = {
            place: result
            for place, result in results.items()
            if not isinstance(result, RowError) and not self._pending_columns[place] & quality.columns
        }
        if not values:
            return {}
        places = list(values)
        rows = self._table.take(pa.array(places, pa.int64()))
        _, failures = quality.evaluate(rows, step.endpoint.arrays(list(values.values())))
        return {places[row]: failure for row, failure in failures.items()}

    def _add_columns(
        self,
        estimate: StepEstimate,
        before: int,
        answers: Mapping[int, Values | RowError],
        unknown: Mapping[int, WhenResult],
    ) -> None:
        """Add the step's columns: values from the ledger, placeholders for answers that do not exist yet."""
        step, count = estimate.step, len(self._keys)
        values: list[Values | None] = [None] * count
        for place, result in answers.items():
            if isinstance(result, RowError):
                self._is_alive[place] = False
            else:
                values[place] = result
        names = frozenset(made.name for made in step.made_fields)
        for place in unknown:
            self._pending_columns[place] |= names
        guesses = {
            place: placeholder_values(step, estimate.answer, before + place)
            for place, passes in unknown.items()
            if passes is not WhenResult.NO
        }
        before_step, arrays = self._table, []
        for column, (made, array) in enumerate(zip(step.endpoint.fields, step.endpoint.arrays(values), strict=True)):
            if guesses:
                there = array.to_pylist() if array.null_count < count else [None] * count
                for place, guess in guesses.items():
                    there[place] = guess[column]
                array = pa.array(there, made.type)
            self._table = self._table.append_column(made, array)
            arrays.append(array)
        if step.quality is not None:
            evidence, _ = step.quality.evaluate(before_step, arrays)
            for made, array in zip(step.quality.fields, step.quality.arrays(evidence), strict=True):
                self._table = self._table.append_column(made, array)


class _SourceRows(Struct, frozen=True):
    """The rows of a chunk while their children are processed; see `_ChunkDryRun`."""

    table: pa.Table
    keys: list[str]
    is_alive: list[bool]
    pending_columns: list[frozenset[str]]
    places: list[int]
    """For each child the place of its source row."""


def _is_text(name: str) -> bool:
    return name.startswith(TEXT_PREFIX)


class _LocalMedia:
    """Media read from this machine only: a placeholder stands for the content behind a URL."""

    def __init__(self, reader: MediaReader) -> None:
        self._reader = reader

    async def read(self, value: Any, use: MediaColumn, name: str | None = None) -> Any:
        """See MediaSource. Temporary files are removed at once, since a plan needs only sizes."""
        if is_fetched(value, use):
            return [_UNSEEN[use.kind]] * len(value) if isinstance(value, list) else _UNSEEN[use.kind]
        media = await self._reader.read(value, use, name)
        for item in media if isinstance(media, list) else [media]:
            if isinstance(item, Media):
                self._reader.release(item)
        return media
