"""Committer: collects finished rows, records them in the ledger, and writes them to the sink in a thread."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import orjson
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct, field
from msgspec.structs import replace

from connectors.contracts import Commit, Sink, TableShape
from connectors.records import RowError
from connectors.tables.mapped_table import release_pages
from connectors.tables.parquet_parts import matching_rows
from connectors.tables.schemas import failure_names
from pipelines.dispatch.chunks import Chunk
from pipelines.dispatch.counters import RunCounters
from pipelines.dispatch.faults.setup_faults import SetupFaults
from pipelines.ledger.ledger import Ledger, now_us
from pipelines.ledger.projection import ANSWERS, ANSWERS_TYPE, SourceRows, append_usage, commit_statements, encode_rows
from pipelines.preparation.prepared_job import PreparedJob

COMMIT_ROWS = 10_000
"""Finished rows in one commit."""
COMMIT_CHANGED_ROWS = 25_000
"""Rows in one commit if some replace older rows: each such commit rewrites the parts of the older rows."""
COMMIT_BYTES = 32 << 20
"""Bytes of results in one commit."""
COMMIT_SECONDS = 10.0
"""Longest time from a finished row to its commit."""
MAX_SUSPECTS = 64
"""Committed errors of one row that are remembered: they may turn out to be the set-up's."""
RELEASE_SECONDS = 0.05
"""Interval at which the pages of rows in files that a commit has read are released."""
POLL_SECONDS = 0.2
"""Interval at which the waiting time is checked."""


class PendingCommit(Struct):
    """Finished rows that are not in the sink yet."""

    results: list[pa.Table] = field(default_factory=list)
    parts: list[str | None] = field(default_factory=list)
    """For each row of results, the part with the older row of its key; None for a new key."""
    in_errors: list[bool] = field(default_factory=list)
    answers: list[list[bytes | None]] = field(default_factory=list)
    errors: list[pa.Table] = field(default_factory=list)
    childless: list[pa.Table] = field(default_factory=list)
    """Source rows without results: their keys, `_key`, `_row_fingerprint`, `_part` and `_in_errors`."""
    filled: set[str] = field(default_factory=set)
    """Keys (as text) of the source rows with children."""
    rows: int = 0
    nbytes: int = 0
    since: float = 0.0


class Committer:
    """Commits finished chunks in the order in which they finish."""

    def __init__(
        self,
        job: str,
        sink: Sink,
        sink_name: str,
        shape: TableShape,
        ledger: Ledger,
        counters: RunCounters,
        run_id: str,
        failed_before: frozenset[tuple[str, str]] = frozenset(),
    ) -> None:
        """`failed_before`: (key, row fingerprint) of failures that are not new."""
        self._job = job
        self._sink = sink
        self._sink_name = sink_name
        self._shape = shape
        self._ledger = ledger
        self._counters = counters
        self._run_id = run_id
        self._failed_before = failed_before
        self.setup_faults = SetupFaults()
        """Those of the run's dispatchers; the engine sets it."""
        self._suspects: deque[pa.Table] = deque(maxlen=MAX_SUSPECTS)
        self._pending = PendingCommit()
        self._turn = asyncio.Lock()
        self._more = asyncio.Event()
        self._parts = 0
        self.seconds = 0.0
        """Time spent in commits so far."""

    def add(self, chunk: Chunk) -> None:
        """Collect a finished chunk's rows and failures for the next commit."""
        pending = self._pending
        if not pending.rows:
            pending.since = time.monotonic()
        done = len(chunk.keys)
        if done:
            table = _result_rows(chunk.table, self._shape, self._run_id)
            pending.results.append(table)
            pending.parts.extend(chunk.table.column("_part").to_pylist())
            pending.in_errors.extend(chunk.table.column("_in_errors").to_pylist())
            pending.answers.extend(chunk.answers)
            pending.nbytes += table.nbytes
            if self._shape.child_index is not None:
                pending.filled.update(chunk.table.column("_key").to_pylist())
        childless = sum(table.num_rows for table in chunk.childless)
        state = [*self._shape.source_key, "_key", "_row_fingerprint", "_part", "_in_errors"]
        pending.childless.extend(table.select(state) for table in chunk.childless)
        if chunk.failures:
            pending.errors.append(_error_rows(chunk, self._shape))
        pending.rows += done + len(chunk.failures) + childless
        if pending.rows >= COMMIT_ROWS or pending.nbytes >= COMMIT_BYTES:
            self._more.set()
        self._count(chunk, done + childless)

    def _count(self, chunk: Chunk, done: int) -> None:
        """Count source rows; `done`: results and childless rows."""
        counters, probed = self._counters, self._counters.probed_fingerprints
        asked = [
            asked or not probed.isdisjoint(answers) for asked, answers in zip(chunk.asked, chunk.answers, strict=True)
        ]
        reused = len(asked) - sum(asked)
        if self._shape.child_index is not None:
            keys = set(chunk.keys)
            done -= len(chunk.keys) - len(keys)
            reused = len(keys.difference(key for key, is_asked in zip(chunk.keys, asked, strict=True) if is_asked))
        counters.rows_ok += done
        counters.rows_reused += reused + chunk.childless_reused
        if not chunk.failures:
            return
        rows = pa.concat_tables([table.select(["_key", "_row_fingerprint"]) for table in chunk.failed])
        failed = {failure.row: failure for failure in reversed(chunk.failures)}
        if self._shape.child_index is not None:
            # A source row counts once, with its first failing child.
            first = {key: row for row, key in reversed(list(enumerate(rows.column("_key").to_pylist())))}
            is_new = {rows.column("_key")[row].as_py() for row, failure in failed.items() if failure.is_new}
            failed = {row: replace(failed[row], is_new=key in is_new) for key, row in first.items()}
        counters.rows_failed += len(failed)
        counters.failed_by_class.update(failure.error.error_class for failure in failed.values())
        new = rows.take(pa.array([row for row, failure in failed.items() if failure.is_new], pa.int64())).to_pylist()
        counters.failed_now += sum((row["_key"], row["_row_fingerprint"]) not in self._failed_before for row in new)

    @property
    def is_due(self) -> bool:
        """Whether the next commit is large enough, or its first row has waited long enough."""
        pending = self._pending
        max_rows = COMMIT_CHANGED_ROWS if any(pending.parts) else COMMIT_ROWS
        return pending.rows > 0 and (
            pending.rows >= max_rows
            or pending.nbytes >= COMMIT_BYTES
            or time.monotonic() - pending.since >= COMMIT_SECONDS
        )

    async def wait_until_due(self) -> None:
        """Wait until a commit is due."""
        while not self.is_due:
            self._more.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._more.wait(), POLL_SECONDS)

    @property
    def is_full(self) -> bool:
        """Whether no more rows should be read: one commit is running, and a full one waits behind it."""
        return self._turn.locked() and self._pending.nbytes >= COMMIT_BYTES

    async def commit(self) -> None:
        """Write the collected rows to the sink and bring the usage table up to date."""
        async with self._turn:
            pending, self._pending = self._pending, PendingCommit()
            work = asyncio.ensure_future(asyncio.to_thread(self._commit, pending))
            try:
                await _ended(work)
            except asyncio.CancelledError:
                # The thread cannot be cancelled: hold the lock until it ends.
                await _ended(work)
                work.result()
                raise
            work.result()
            # Arrow keeps freed memory; it can be returned to the system only by the thread that allocated it.
            del pending, work
            pa.default_memory_pool().release_unused()

    def _commit(self, pending: PendingCommit) -> None:
        began = time.perf_counter()
        if pending.rows:
            results = pa.concat_tables(pending.results) if pending.results else self._shape.results.empty_table()
            errors = pa.concat_tables(pending.errors) if pending.errors else self._shape.errors.empty_table()
            errors = self._with_setup_class(errors)
            replaced: dict[str, list[int]] = {}
            for row, part in enumerate(pending.parts):
                if part is not None:
                    replaced.setdefault(part, []).append(row)
            resolved = [row for row, in_errors in enumerate(pending.in_errors) if in_errors]
            cleared = results.select(self._shape.source_key).take(pa.array(resolved, pa.int64()))
            children, emptied_by_part = None, dict[str, pa.Table]()
            if self._shape.child_index is not None:
                cleared = cleared.group_by(self._shape.source_key, use_threads=False).aggregate([])
                childless = pa.concat_tables(pending.childless) if pending.childless else None
                if childless is not None:
                    again = childless.filter(childless.column("_in_errors")).select(self._shape.source_key)
                    cleared = pa.concat_tables([cleared, again.cast(cleared.schema)])
                    emptied_by_part = _keys_by_part(childless, self._shape)
                children = _source_rows(childless, pending.filled, self._shape)
            # The ledger comes first: a recorded commit can be projected again, whatever happens to the sink.
            encoded = encode_rows(results, pending.answers, self._shape)
            self._ledger.write_all(
                commit_statements(self._job, self._sink_name, now_us(), encoded, errors, cleared, children)
            )
            self._parts += 1
            name = f"{self._ledger.identity}-{self._ledger.writer:06d}-{self._parts:06d}"
            errors = errors.select(self._shape.errors.names)
            self._sink.commit(Commit(results, replaced, errors, cleared, emptied_by_part), name)
            self._counters.committed += pending.rows
        append_usage(self._ledger, self._sink, self._job)
        self.seconds += time.perf_counter() - began

    def reclassify(self) -> None:
        """Commit the errors again that turned out to be the set-up's after their commit."""
        later = [table for table in self._suspects if setup_rows(table, self._shape, self.setup_faults)]
        if later:
            self._suspects.clear()
            if self._shape.child_index is not None:
                # Siblings are in each other's tables.
                later = [_distinct_rows(pa.concat_tables(later), self._shape.errors.names)]
            self._pending.errors.extend(later)
            self._pending.rows += sum(table.num_rows for table in later)
            self._counters.committed -= sum(table.num_rows for table in later)

    def _errors_of_source_row(self, errors: pa.Table, row: int) -> pa.Table:
        """Return the error with those of its siblings, which it must not replace when it is committed again."""
        # Copied: a slice would keep the whole table.
        one = errors.take(pa.array([row], pa.int64()))
        if self._shape.child_index is None:
            return one
        key = self._shape.source_key
        return errors.filter(matching_rows(errors.select(key), one.select(key)))

    def _with_setup_class(self, errors: pa.Table) -> pa.Table:
        """Return the errors, those of the set-up with its class; remember others that may turn out to be its."""
        found = setup_rows(errors, self._shape, self.setup_faults)
        name = failure_names(self._shape.key)["error_class"]
        index, classes = errors.schema.get_field_index(name), errors.column(name).to_pylist()
        suspects = [row for row, name in enumerate(classes) if name == "bad_request" and row not in found]
        # Finding the siblings takes a pass over all errors: only for those that are remembered.
        self._suspects.extend(self._errors_of_source_row(errors, row) for row in suspects[-MAX_SUSPECTS:])
        if not found:
            return errors
        changed = ["setup" if row in found else error_class for row, error_class in enumerate(classes)]
        return errors.set_column(index, errors.schema.field(index), pa.array(changed, errors.schema.field(index).type))


async def _ended(work: "asyncio.Future[None]") -> None:
    """Wait until a commit has ended; meanwhile let the process forget the rows of files that it has written."""
    while not work.done():
        await asyncio.wait([work], timeout=RELEASE_SECONDS)
        release_pages()


def setup_rows(errors: pa.Table, shape: TableShape, setup_faults: SetupFaults) -> set[int]:
    """Return the rows whose errors are known to be the set-up's."""
    if not setup_faults.signatures or not errors.num_rows:
        return set()
    columns = failure_names(shape.key)
    names = ("step", "error_class", "http_status", "code", "param", "message")
    values = zip(*(errors.column(columns[name]).to_pylist() for name in names), strict=True)
    return {
        row
        for row, (step, error_class, status, code, param, message) in enumerate(values)
        if error_class == "bad_request"
        and setup_faults.is_setup(step, RowError(error_class, message, status, param=param, code=code))
    }


def _keys_by_part(childless: pa.Table, shape: TableShape) -> dict[str, pa.Table]:
    """Return the keys of source rows without children by the part that has their old results."""
    keys, parts = childless.select(shape.source_key), childless.column("_part")
    return {part: keys.filter(pc.equal(parts, part)) for part in parts.unique().drop_null().to_pylist()}


def _source_rows(childless: pa.Table | None, filled: Iterable[str], shape: TableShape) -> SourceRows:
    schema = pa.schema([shape.results.field(name) for name in shape.source_key])
    if childless is None:
        return SourceRows(list(filled), {}, schema.empty_table())
    fingerprints = dict(
        zip(*(childless.column(name).to_pylist() for name in ("_key", "_row_fingerprint")), strict=True)
    )
    return SourceRows(list(filled), fingerprints, childless.select(shape.source_key).cast(schema))


def _result_rows(table: pa.Table, shape: TableShape, run_id: str) -> pa.Table:
    given = [name for name in shape.results.names if name != "_run_id" and name not in shape.outputs]
    copied = table.select(given)
    if shape.child_index is None:
        # Copy the carried columns: a slice would keep the source's whole batch in memory.
        copied = copied.take(pa.array(range(table.num_rows), pa.int64()))
    columns = [
        pa.repeat(pa.scalar(run_id), table.num_rows)
        if column.name == "_run_id"
        else (table if column.name in shape.outputs else copied).column(column.name).cast(column.type)
        for column in shape.results
    ]
    return pa.table(columns, schema=shape.results)


def _error_rows(chunk: Chunk, shape: TableShape) -> pa.Table:
    """Return the errors of a chunk, with the answers that their rows had before (ANSWERS)."""
    wanted = [*shape.key, "_row_fingerprint"]
    rows = pa.concat_tables([_with_child_index(table, shape).select(wanted) for table in chunk.failed])
    rows = rows.take(pa.array([failure.row for failure in chunk.failures], pa.int64()))
    failures = [
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
    facts = {name: pa.array([fact[name] for fact in failures]) for name in failures[0]}
    actual_to_name = {actual: name for name, actual in failure_names(shape.key).items()}
    columns = [
        rows.column(column.name).cast(column.type)
        if column.name in shape.key
        else rows.column("_row_fingerprint")
        if actual_to_name[column.name] == "fingerprint"
        else facts[actual_to_name[column.name]].cast(column.type)
        for column in schema
    ]
    answers = pa.array([failure.answers for failure in chunk.failures], ANSWERS_TYPE)
    return pa.table(columns, schema=schema).append_column(ANSWERS, answers)


def _distinct_rows(rows: pa.Table, names: Sequence[str]) -> pa.Table:
    """Return the first row of those that are equal in these columns."""
    numbered = rows.append_column("_place", pa.array(range(rows.num_rows), pa.int64()))
    first = numbered.group_by(list(names), use_threads=False).aggregate([("_place", "min")])
    return rows.take(first.column("_place_min"))


def _with_child_index(failed: pa.Table, shape: TableShape) -> pa.Table:
    """Return failed rows with the place of the failing child, null if the source row itself has failed."""
    name = shape.child_index
    if name is None or name in failed.column_names:
        return failed
    return failed.append_column(name, pa.nulls(failed.num_rows, pa.int64()))


def rejected_lines(ready: PreparedJob, run_id: str) -> Commit:
    """Return the commit of the source's rejected lines: errors without a key that replace those of earlier runs."""
    shape, rejects = ready.shape, ready.reader.rejects
    facts = {
        "error_class": ["input"] * len(rejects),
        "message": [f"line {line}: {message}" for line, message, _ in rejects],
        "details": [orjson.dumps({"line": line, "text": raw}).decode() for line, _, raw in rejects],
        "attempts": [0] * len(rejects),
        "run_id": [run_id] * len(rejects),
        "failed_at": [datetime.now(UTC)] * len(rejects),
    }
    actual_to_name = {actual: name for name, actual in failure_names(shape.key).items()}
    columns = [
        pa.array(facts[actual_to_name[field.name]], field.type)
        if actual_to_name.get(field.name) in facts
        else pa.nulls(len(rejects), field.type)
        for field in shape.errors
    ]
    key = pa.schema([shape.errors.field(name) for name in shape.source_key])
    no_key = pa.table([pa.nulls(1, field.type) for field in key], schema=key)
    return Commit(shape.results.empty_table(), {}, pa.table(columns, schema=shape.errors), no_key)
