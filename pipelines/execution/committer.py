"""Finished rows on their way into the sink: gathered, noted in the ledger, committed, a thread's work at a time."""

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

import orjson
import pyarrow as pa

from connectors.contracts import Commit, Sink, TableShape
from connectors.tables.schemas import failure_names
from pipelines.dispatch.counters import RunCounters
from pipelines.dispatch.step_runner import Chunk
from pipelines.ledger.ledger import Ledger, now_us
from pipelines.ledger.projection import append_usage, encode_table, encode_rows
from pipelines.preparation.prepared_job import PreparedJob

ROWS = 10_000
"""Finished rows that are committed at once."""
CHANGED_ROWS = 25_000
"""The same where rows stand in place of old ones: each commit writes those parts again."""
BYTES = 32 << 20
"""The same in bytes of results."""
SECONDS = 10.0
"""Finished rows wait no longer than this for their commit."""
LOOK = 0.2
"""Seconds between two looks at how long they have waited."""


@dataclass(slots=True)
class Gathered:
    """Finished rows that are not in the sink yet."""

    results: list[pa.Table] = field(default_factory=list)
    parts: list[str | None] = field(default_factory=list)
    """For each row of results the part in which its old row stands."""
    in_errors: list[bool] = field(default_factory=list)
    answers: list[list[bytes | None]] = field(default_factory=list)
    errors: list[pa.Table] = field(default_factory=list)
    rows: int = 0
    nbytes: int = 0
    since: float = 0.0


class Committer:
    """Takes finished chunks, commits them in the order in which they came."""

    def __init__(
        self, job: str, sink: Sink, sink_name: str, shape: TableShape, ledger: Ledger, tally: RunCounters, run_id: str
    ) -> None:
        self._job = job
        self._sink = sink
        self._sink_name = sink_name
        self._shape = shape
        self._ledger = ledger
        self._tally = tally
        self._run_id = run_id
        self._gathered = Gathered()
        self._turn = asyncio.Lock()
        self._more = asyncio.Event()
        self._parts = 0
        self.seconds = 0.0
        """Of committing so far."""

    def add(self, chunk: Chunk) -> None:
        """Gather a finished chunk's rows and failures."""
        gathered = self._gathered
        if not gathered.rows:
            gathered.since = time.monotonic()
        done = len(chunk.keys)
        if done:
            table = _results(chunk.table, self._shape, self._run_id)
            gathered.results.append(table)
            gathered.parts.extend(chunk.table.column("_part").to_pylist())
            gathered.in_errors.extend(chunk.table.column("_in_errors").to_pylist())
            gathered.answers.extend(chunk.answers)
            gathered.nbytes += table.nbytes
        if chunk.failures:
            gathered.errors.append(_errors(chunk, self._shape))
        gathered.rows += done + len(chunk.failures)
        if gathered.rows >= ROWS or gathered.nbytes >= BYTES:
            self._more.set()
        self._tally.rows_ok += done
        sized = self._tally.sized
        self._tally.rows_reused += sum(
            not asked and sized.isdisjoint(answers) for asked, answers in zip(chunk.asked, chunk.answers, strict=True)
        )
        self._tally.rows_failed += len(chunk.failures)

    @property
    def due(self) -> bool:
        """Whether enough has been gathered, or has waited long enough, to be committed."""
        gathered = self._gathered
        most = CHANGED_ROWS if any(gathered.parts) else ROWS
        return gathered.rows > 0 and (
            gathered.rows >= most or gathered.nbytes >= BYTES or time.monotonic() - gathered.since >= SECONDS
        )

    async def until_due(self) -> None:
        """Wait for that."""
        while not self.due:
            self._more.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._more.wait(), LOOK)

    @property
    def full(self) -> bool:
        """Whether no more rows should set out: one commit is under way, and as much waits for the next."""
        return self._turn.locked() and self._gathered.nbytes >= BYTES

    async def commit(self) -> None:
        """Put what was gathered into the sink, and the usage table up to date."""
        async with self._turn:
            gathered, self._gathered = self._gathered, Gathered()
            work = asyncio.ensure_future(asyncio.to_thread(self._commit, gathered))
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:
                # The thread goes on all the same: it keeps its turn until it has ended.
                await asyncio.wait([work])
                work.result()
                raise
            # Arrow holds on to what is let go; it goes back to the system from the thread that took it.
            del gathered, work
            pa.default_memory_pool().release_unused()

    def _commit(self, gathered: Gathered) -> None:
        began = time.perf_counter()
        if gathered.rows:
            results = pa.concat_tables(gathered.results) if gathered.results else self._shape.results.empty_table()
            errors = pa.concat_tables(gathered.errors) if gathered.errors else self._shape.errors.empty_table()
            replaced: dict[str, list[int]] = {}
            for row, part in enumerate(gathered.parts):
                if part is not None:
                    replaced.setdefault(part, []).append(row)
            mended = [row for row, was in enumerate(gathered.in_errors) if was]
            cleared = results.select(self._shape.key).take(pa.array(mended, pa.int64()))
            # The ledger first: what is noted there can be projected again, whatever happens to the sink.
            self._ledger.write(
                "insert into commits (job, sink, at, rows, errors, cleared) values (?, ?, ?, ?, ?, ?)",
                (
                    self._job,
                    self._sink_name,
                    now_us(),
                    encode_rows(results, gathered.answers, self._shape),
                    encode_table(errors),
                    encode_table(cleared),
                ),
            )
            self._parts += 1
            name = f"{self._ledger.identity}-{self._ledger.writer:06d}-{self._parts:06d}"
            self._sink.commit(Commit(results, replaced, errors, cleared), name)
            self._tally.committed += gathered.rows
        append_usage(self._ledger, self._sink, self._job)
        self.seconds += time.perf_counter() - began


def _results(table: pa.Table, shape: TableShape, run_id: str) -> pa.Table:
    given = [name for name in shape.results.names if name != "_run_id" and name not in shape.outputs]
    # Copied: the source's batch, with all the columns that nobody needs any more, is one piece of memory.
    copied = table.select(given).take(pa.array(range(table.num_rows), pa.int64()))
    columns = [
        pa.repeat(pa.scalar(run_id), table.num_rows)
        if column.name == "_run_id"
        else (table if column.name in shape.outputs else copied).column(column.name).cast(column.type)
        for column in shape.results
    ]
    return pa.table(columns, schema=shape.results)


def _errors(chunk: Chunk, shape: TableShape) -> pa.Table:
    wanted = [*shape.key, "_row_fingerprint"]
    rows = pa.concat_tables([table.select(wanted) for table in chunk.failed])
    rows = rows.take(pa.array([failure.row for failure in chunk.failures], pa.int64()))
    told = [
        {
            "step": failure.step,
            "error_class": failure.error.error_class,
            "http_status": failure.error.http_status,
            "type": failure.error.type,
            "param": failure.error.param,
            "code": failure.error.code,
            "message": failure.error.message,
            "details": failure.error.details,
            "request_id": failure.error.request_id,
            "attempts": failure.attempts,
            "run_id": failure.run_id,
            "failed_at": datetime.fromtimestamp(failure.at / 1e6, UTC),
        }
        for failure in chunk.failures
    ]
    schema = shape.errors
    facts = {name: pa.array([fact[name] for fact in told]) for name in told[0]}
    of = {actual: name for name, actual in failure_names(shape.key).items()}
    columns = [
        rows.column(column.name).cast(column.type)
        if column.name in shape.key
        else rows.column("_row_fingerprint")
        if of[column.name] == "fingerprint"
        else facts[of[column.name]].cast(column.type)
        for column in schema
    ]
    return pa.table(columns, schema=schema)


def rejected(ready: PreparedJob, run_id: str) -> Commit:
    """The source's lines that are no rows, as errors without a key, in place of those of earlier runs."""
    shape, rejects = ready.shape, ready.reader.rejects
    facts = {
        "error_class": ["input"] * len(rejects),
        "message": [f"line {line}: {message}" for line, message, _ in rejects],
        "details": [orjson.dumps({"line": line, "text": raw}).decode() for line, _, raw in rejects],
        "attempts": [0] * len(rejects),
        "run_id": [run_id] * len(rejects),
        "failed_at": [datetime.now(UTC)] * len(rejects),
    }
    of = {actual: name for name, actual in failure_names(shape.key).items()}
    columns = [
        pa.array(facts[of[field.name]], field.type)
        if of.get(field.name) in facts
        else pa.nulls(len(rejects), field.type)
        for field in shape.errors
    ]
    no_key = pa.table([pa.nulls(1, shape.errors.field(name).type) for name in shape.key], names=list(shape.key))
    return Commit(shape.results.empty_table(), {}, pa.table(columns, schema=shape.errors), no_key)
