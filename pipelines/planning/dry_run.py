"""A plan's reckoning: rows go through the steps as in a run, answered by the ledger alone; nothing is sent."""

import asyncio
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from connectors.contracts import MediaColumn
from connectors.media.media_reader import MediaReader
from connectors.records import Media, Request, RowError, Values
from pipelines.dispatch.request_rendering import read_answer, render_requests
from pipelines.dispatch.step_runner import CHUNK_ROWS
from pipelines.ledger.ledger import Ledger
from pipelines.planning.answer_estimates import AnswerEstimate, estimate_answer, placeholder_values
from pipelines.planning.cost_estimates import CostEstimate, WhenResult, Rates
from pipelines.preparation.prepared_job import PreparedJob, PreparedStep, media_reader

MAX_SCANNED_ROWS = 20_000
"""So many rows are all looked at; of more, about as many, spread over the whole."""
MAX_SECONDS = 12.0
"""Seconds of looking at rows; what was seen until then stands for all."""
MAX_EXAMPLES = 2

_URL = re.compile(r"https?://", re.IGNORECASE)
_UNSEEN_DIGEST = "0" * 64
_UNSEEN = {
    "image": Media(_UNSEEN_DIGEST, 400_000, "image/png", "png", data=b"", pixels=(1024, 1024)),
    "audio": Media(_UNSEEN_DIGEST, 1_000_000, "audio/mpeg", "mp3", data=b"", seconds=60.0),
}
"""What stands for a file behind a URL: a plan fetches nothing."""


@dataclass(slots=True)
class StepEstimate:
    """What one step came to, over the rows that were looked at."""

    step: PreparedStep
    answer: AnswerEstimate
    cost: CostEstimate
    requests: int = 0
    """Exchanges, packs counted once."""
    asked: int = 0
    """Rows that an answer is to be asked for."""
    estimated_inputs: int = 0
    """The part of `asked` whose requests hold answers that are yet to come: their length is estimated."""
    perhaps: int = 0
    """Rows of which only the run will tell whether `when` lets them pass."""
    in_ledger: int = 0
    skipped: int = 0
    """Rows that `when` leaves out."""
    unaskable: int = 0
    """Rows whose values make no request."""
    fetched: int = 0
    """Rows that name a URL whose content is not looked at here."""
    body_bytes: int = 0
    fingerprints: set[bytes] = field(default_factory=set)


@dataclass(slots=True)
class DryRun:
    """All steps, and how many rows they were reckoned on."""

    steps: list[StepEstimate]
    rows: int = 0
    carried_bytes: int = 0
    examples: list[tuple[str, Request]] = field(default_factory=list)


async def dry_run(ready: PreparedJob, ledger: Ledger, asked: int) -> DryRun:
    """Reckon on the rows that a run would ask: on all, or on a part of them spread over the whole."""
    steps = [StepEstimate(step, estimate_answer(ledger, ready.job.name, step), CostEstimate(Rates.of(ready, step))) for step in ready.steps]
    looked = DryRun(steps)
    media = media_reader(ready)
    try:
        async with aclosing(_chunks(ready, asked)) as chunks:
            async for batch in chunks:
                await _ChunkDryRun(ready, ledger, media, looked, pa.Table.from_batches([batch])).go()
    finally:
        await media.close()
    return looked


async def _chunks(ready: PreparedJob, asked: int) -> Any:
    every = max(1, -(-asked // MAX_SCANNED_ROWS))
    until = time.monotonic() + MAX_SECONDS
    batches: Iterator[pa.RecordBatch] = ready.selection.batches(CHUNK_ROWS, frozenset())
    for place, batch in enumerate(batches):
        if place % every == 0:
            yield batch
        if time.monotonic() > until:
            return
        await asyncio.sleep(0)


class _ChunkDryRun:
    """Some rows on their way through the steps."""

    def __init__(self, ready: PreparedJob, ledger: Ledger, media: MediaReader, looked: DryRun, table: pa.Table) -> None:
        self._ready = ready
        self._ledger = ledger
        self._media = media
        self._looked = looked
        self._table = table
        self._keys: list[str] = table.column("_key").to_pylist()
        self._alive = [True] * table.num_rows
        self._open: list[frozenset[str]] = [frozenset()] * table.num_rows
        """For each row the columns whose values only the run will tell."""

    async def go(self) -> None:
        looked = self._looked
        carried = [name for name in self._ready.shape.results.names if name in self._table.column_names]
        looked.carried_bytes += self._table.select(carried).nbytes
        for place, reckoned in enumerate(looked.steps):
            await self._step(reckoned, looked.rows)
            later = self._ready.steps[place + 1 :]
            wanted = {
                name
                for step in later
                for name in step.endpoint.input_columns | (step.when.columns if step.when else set())
            }
            self._table = self._table.drop_columns(
                [name for name in self._table.column_names if name not in wanted and not name.startswith("_")]
            )
        looked.rows += len(self._keys)

    async def _step(self, reckoned: StepEstimate, before: int) -> None:
        step = reckoned.step
        wanted = self._wanted(step, reckoned)
        rendered = await render_requests(step.endpoint, self._table, self._keys, wanted, _LocalMedia(self._media))
        requests: dict[int, Request] = {}
        for place, made in rendered.items():
            if not isinstance(made, RowError):
                requests[place] = made
                reckoned.fetched += any(media.digest == _UNSEEN_DIGEST for media in made.media)
            elif wanted[place] is WhenResult.YES:
                reckoned.unaskable += 1
                self._alive[place] = False
        guessed = {place for place in requests if self._open[place] & step.endpoint.input_columns}
        answers = self._answered(requests, guessed, reckoned)
        unknown = set(requests).difference(answers)
        fresh: list[Request] = []
        for place in sorted(unknown):
            made = requests[place]
            if place not in guessed:
                if made.fingerprint in reckoned.fingerprints:
                    continue
                reckoned.fingerprints.add(made.fingerprint)
                if len(self._looked.examples) < MAX_EXAMPLES:
                    self._looked.examples.append((step.model.name, made))
            for part in made.parts or (made,):
                reckoned.cost.add_request(part, reckoned.answer, wanted[place])
            if wanted[place] is not WhenResult.NO:
                fresh.append(made)
                reckoned.body_bytes += len(made.body)
        reckoned.asked += len(fresh)
        reckoned.estimated_inputs += len(guessed & unknown)
        reckoned.requests += sum(1 for _ in step.endpoint.group_requests([made for made in fresh if not made.parts]))
        reckoned.requests += sum(len(made.parts) for made in fresh)
        self._fill(reckoned, before, answers, {place: wanted[place] for place in unknown})

    def _wanted(self, step: PreparedStep, reckoned: StepEstimate) -> dict[int, WhenResult]:
        """Whether each row passes the step's `when`, without those that are known not to."""
        alive = [place for place, is_alive in enumerate(self._alive) if is_alive]
        if step.when is None:
            return dict.fromkeys(alive, WhenResult.YES)
        mask, broken = step.when.tried(self._table)
        wanted: dict[int, WhenResult] = {}
        for place in alive:
            if self._open[place] & step.when.columns:
                wanted[place] = WhenResult.PERHAPS if mask[place] else WhenResult.NO
                reckoned.perhaps += 1
            elif place in broken:
                reckoned.unaskable += 1
                self._alive[place] = False
            elif mask[place]:
                wanted[place] = WhenResult.YES
            else:
                reckoned.skipped += 1
        return wanted

    def _answered(
        self, requests: dict[int, Request], guessed: set[int], reckoned: StepEstimate
    ) -> dict[int, Values | RowError]:
        """Rows whose answer the ledger has: its values, or why it makes none. A request whose kept answer does not fit
        gives way to the turn that asks to mend it."""
        endpoint = reckoned.step.endpoint
        settled: dict[int, Values | RowError] = {}
        looking = [place for place in requests if place not in guessed]
        while looking:
            kept = self._ledger.lookup(list({requests[place].fingerprint for place in looking}))
            further: list[int] = []
            for place in looking:
                answer = kept.get(requests[place].fingerprint)
                if answer is None:
                    continue
                told = answer.error if answer.reply is None else read_answer(endpoint, requests[place], answer.reply)
                assert told is not None
                if isinstance(told, Request):
                    requests[place] = told
                    further.append(place)
                    continue
                settled[place] = told
                reckoned.in_ledger += 1
            looking = further
        return settled

    def _fill(
        self,
        reckoned: StepEstimate,
        before: int,
        answers: Mapping[int, Values | RowError],
        unknown: Mapping[int, WhenResult],
    ) -> None:
        """Add the step's columns: values where the ledger has them, likely ones where only the run will tell."""
        step, count = reckoned.step, len(self._keys)
        values: list[Values | None] = [None] * count
        for place, told in answers.items():
            if isinstance(told, RowError):
                self._alive[place] = False
            else:
                values[place] = told
        names = frozenset(made.name for made in step.endpoint.fields)
        for place in unknown:
            self._open[place] |= names
        guesses = {
            place: placeholder_values(step, reckoned.answer, before + place)
            for place, passes in unknown.items()
            if passes is not WhenResult.NO
        }
        for column, (made, array) in enumerate(zip(step.endpoint.fields, step.endpoint.arrays(values), strict=True)):
            if guesses:
                there = array.to_pylist() if array.null_count < count else [None] * count
                for place, guess in guesses.items():
                    there[place] = guess[column]
                array = pa.array(there, made.type)
            self._table = self._table.append_column(made, array)


class _LocalMedia:
    """Media read from this machine only: a placeholder stands for the content behind a URL."""

    def __init__(self, reader: MediaReader) -> None:
        self._reader = reader

    async def read(self, value: Any, use: MediaColumn, name: str | None = None) -> Any:
        """See MediaSource. Temporary files are removed at once: a plan needs the sizes only."""
        items = value if isinstance(value, list) else [value]
        if not use.passes_urls and any(isinstance(item, str) and _URL.match(item) for item in items):
            return [_UNSEEN[use.kind]] * len(items) if isinstance(value, list) else _UNSEEN[use.kind]
        media = await self._reader.read(value, use, name)
        for item in media if isinstance(media, list) else [media]:
            if isinstance(item, Media):
                self._reader.release(item)
        return media
