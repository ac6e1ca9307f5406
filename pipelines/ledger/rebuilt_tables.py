"""Rebuilt tables: results and errors of a job, written again from the commits and answers in the ledger."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from connectors.contracts import Commit, Endpoint, Sink, TableShape
from connectors.records import RowError, Values
from connectors.sql import key_text, scratch_connection
from connectors.templating.row_values import column_values
from pipelines.ledger.entries import StoredAnswer
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.ledger_reader import ReadableLedger
from pipelines.ledger.projection import ANSWERS, decode_table, outputs_metadata

COMPARED_ENTRIES = 250_000
"""About so many are compared at a time: DuckDB needs the memory of all of them."""


class RowCounts(Struct, frozen=True):
    """Rows of results, and rows of errors that have a key."""

    results: int = 0
    errors: int = 0


class NewestRows:
    """The rows of a job's commits that no later commit has replaced. They are on disk, however many they are."""

    def __init__(self, db: duckdb.DuckDBPyConnection) -> None:
        """`db`: has them as the table `newest`, in the order of the commits."""
        self._db = db

    def commits(self) -> Sequence[int]:
        """Return the commits that have any, oldest first."""
        return [commit for (commit,) in self._db.execute("select distinct commit from newest order by 1").fetchall()]

    def counts(self) -> RowCounts:
        """Return how many of them are results, and how many are errors."""
        query = "select count(*) filter (not is_error), count(*) filter (is_error) from newest"
        ((results, errors),) = self._db.execute(query).fetchall()
        return RowCounts(int(results), int(errors))

    def places(self, commit: int) -> tuple[pa.Array, pa.Array]:
        """Return the places of those of a commit in its results and in its errors, int64."""
        found = self._db.sql(f"select is_error, row from newest where commit = {commit} order by row").to_arrow_table()
        is_error, places = found.column(0).combine_chunks(), found.column(1).combine_chunks()
        return places.filter(pc.invert(is_error)), places.filter(is_error)


@contextmanager
def newest_rows(
    ledger: ReadableLedger, job: str, sink_name: str, shape: TableShape, scratch: Path, only_errors: bool = False
) -> Iterator[NewestRows]:
    """Find the newest rows of a job's commits. `scratch`: folder to which DuckDB spills."""
    with scratch_connection(scratch) as db:
        db.execute("create temp table entries (is_error boolean, key uhugeint, rank bigint, row bigint)")
        of_results = "null, null" if only_errors else "rows, emptied"
        for commit, *blobs in ledger.stream(
            f"select id, {of_results}, errors, cleared, removed from commits where job = ? and sink = ?",
            (job, sink_name),
        ):
            rows, emptied, errors, cleared, removed = (None if blob is None else decode_table(blob) for blob in blobs)
            # What a commit removes is not among its own rows either.
            here, removal = 2 * commit, 2 * commit + 1
            if rows is not None and _same_columns(rows, shape):
                _add_entries(db, rows, shape, False, here, are_rows=True)
            _add_entries(db, emptied, shape, False, removal)
            for is_error in (False, True):
                _add_entries(db, removed, shape, is_error, removal)
            _add_entries(db, errors, shape, True, here, are_rows=True)
            # No commit both clears a key from the errors and adds it to them.
            _add_entries(db, cleared, shape, True, here)
        _compare_entries(db)
        yield NewestRows(db)


def _compare_entries(db: duckdb.DuckDBPyConnection) -> None:
    """Replace the table of entries by one of the newest rows."""
    ((count,),) = db.execute("select count(*) from entries").fetchall()
    parts = 1 + count // COMPARED_ENTRIES
    # DuckDB sorts on disk, and then reads little more than the part that it compares.
    db.execute(f"create temp table sorted as select *, hash(key) % {parts} as part from entries order by part")
    db.execute("drop table entries")
    db.execute("create temp table unordered (is_error boolean, commit bigint, row bigint)")
    for part in range(parts):
        db.execute(
            f"insert into unordered select is_error, rank // 2, row from sorted where part = {part} "
            "qualify rank = max(rank) over (partition by is_error, key) and row is not null"
        )
    db.execute("drop table sorted")
    db.execute("create temp table newest as select * from unordered order by commit, row")
    db.execute("drop table unordered")


def _add_entries(
    db: duckdb.DuckDBPyConnection,
    table: pa.Table | None,
    shape: TableShape,
    is_error: bool,
    rank: int,
    are_rows: bool = False,
) -> None:
    """Add the keys of a decoded table; of two entries with a key the higher rank is newer."""
    if table is None:
        return
    keys = table.select(shape.source_key)
    places = pa.array(range(keys.num_rows), pa.int64()) if are_rows else pa.nulls(keys.num_rows, pa.int64())
    names = [f"key{place}" for place in range(keys.num_columns)]
    db.register("keys", keys.rename_columns(names).append_column("place", places))
    # Of 128 bits: two keys never share one.
    db.execute(f"insert into entries select {is_error}, md5_number({key_text(names)}), {rank}, place from keys")
    db.unregister("keys")


def rebuild(
    ledger: Ledger,
    sink: Sink,
    job: str,
    sink_name: str,
    shape: TableShape,
    steps: Sequence[Endpoint],
    scratch: Path,
) -> RowCounts:
    """Commit results and errors again from the ledger, the newest state of each key; return what was committed.

    Call it between `sink.prepare(fresh=True)` and `sink.finish()`. Rows whose answers were pruned, whose steps had
    other outputs, or whose values do not fit the present types, are left out: the next run sends requests for them.
    `scratch`: see newest_rows.
    """
    result_count = error_count = 0
    with newest_rows(ledger, job, sink_name, shape, scratch) as newest:
        for part, commit in enumerate(newest.commits()):
            ((rows_blob, errors_blob),) = ledger.query("select rows, errors from commits where id = ?", (commit,))
            result_rows, error_rows = newest.places(commit)
            results, errors = shape.results.empty_table(), shape.errors.empty_table()
            if len(result_rows):
                results = _decoded(ledger, decode_table(rows_blob).take(result_rows), shape, steps)
            if len(error_rows):
                failed = decode_table(errors_blob).take(error_rows)
                errors = failed.select([name for name in failed.column_names if name != ANSWERS])
                errors = errors.take(pa.array(_fitting_rows(errors, shape.errors), pa.int64())).cast(shape.errors)
            name = f"{ledger.identity}-{ledger.writer:06d}-again-{part:06d}"
            sink.commit(Commit(results, {}, errors, shape.results.empty_table().select(shape.source_key)), name)
            result_count += results.num_rows
            error_count += errors.num_rows
    return RowCounts(result_count, error_count)


def count_committed(ledger: Ledger, job: str, sink_name: str, shape: TableShape, scratch: Path) -> RowCounts:
    """Count the rows that `rebuild` writes if the ledger has all their answers."""
    with newest_rows(ledger, job, sink_name, shape, scratch) as newest:
        return newest.counts()


def answers_of_failed_rows(
    ledger: ReadableLedger, job: str, sink_name: str, shape: TableShape, scratch: Path
) -> set[bytes]:
    """Return the fingerprints of the answers that rows in errors had before they failed, or that their children had."""
    needed: set[bytes] = set()
    with newest_rows(ledger, job, sink_name, shape, scratch, only_errors=True) as newest:
        for commit in newest.commits():
            ((blob,),) = ledger.query("select errors from commits where id = ?", (commit,))
            errors = decode_table(blob)
            if ANSWERS in errors.column_names:
                _, places = newest.places(commit)
                for answers in errors.column(ANSWERS).take(places).to_pylist():
                    needed.update(answers)
    return needed


def _same_columns(table: pa.Table, shape: TableShape) -> bool:
    """Whether the decoded rows have the columns of the results, whatever rungs their job had."""
    metadata = table.schema.metadata or {}
    rungs = {*shape.rungs, *orjson.loads(metadata.get(b"rungs", b"[]"))}
    there = [name for name in table.column_names[:-1] if name not in rungs]
    others = [name for name in shape.results.names if name not in shape.outputs and name not in rungs]
    return metadata.get(b"outputs") == outputs_metadata(shape) and there == others


def _decoded(ledger: Ledger, rows: pa.Table, shape: TableShape, steps: Sequence[Endpoint]) -> pa.Table:
    """Return the rows with their outputs read from the stored answers; rows without such answers are left out."""
    fingerprints: list[list[bytes | None]] = rows.column(ANSWERS).to_pylist()
    stored = ledger.lookup(sorted({one for row in fingerprints for one in row if one is not None}))
    outputs: list[list[Values | None]] = []
    complete: list[int] = []
    kept = rows.select([name for name in rows.column_names if name in shape.results.names])
    fitting = frozenset(_fitting_rows(kept, pa.schema([shape.results.field(name) for name in kept.column_names])))
    for row, of_row in enumerate(fingerprints):
        values = [
            None if one is None else _values(stored.get(one), step) for one, step in zip(of_row, steps, strict=True)
        ]
        outputs.append([None if isinstance(value, RowError) else value for value in values])
        if row in fitting and not any(isinstance(value, RowError) for value in values):
            complete.append(row)
    if shape.child_index is not None:
        complete = _of_whole_source_rows(rows.select(shape.source_key), complete)
    outputs = [outputs[row] for row in complete]
    table = rows.drop_columns([ANSWERS]).take(pa.array(complete, pa.int64()))
    for name in set(shape.rungs).difference(table.column_names):
        # The job had no rungs at that time.
        table = table.append_column(name, pa.repeat(pa.scalar(0, pa.int64()), table.num_rows))
    for place, step in enumerate(steps):
        for column, array in zip(step.fields, step.arrays([row[place] for row in outputs]), strict=True):
            table = table.append_column(column, array)
    return table.select(shape.results.names).cast(shape.results)


def _fitting_rows(rows: pa.Table, schema: pa.Schema, first: int = 0) -> Sequence[int]:
    """Return the places of the rows whose values the present types can have, found by bisection."""
    try:
        rows.cast(schema)
    except pa.ArrowException:
        if rows.num_rows <= 1:
            return ()
        middle = rows.num_rows // 2
        before = _fitting_rows(rows.slice(0, middle), schema, first)
        return (*before, *_fitting_rows(rows.slice(middle), schema, first + middle))
    return range(first, first + rows.num_rows)


def _of_whole_source_rows(source_keys: pa.Table, rows: Sequence[int]) -> list[int]:
    """Return those of the rows whose source row has all its children among them."""
    keys = list(zip(*(_hashable(column) for column in source_keys.columns), strict=True))
    partial = {keys[row] for row in set(range(len(keys))).difference(rows)}
    return [row for row in rows if keys[row] not in partial]


def _values(answer: StoredAnswer | None, step: Endpoint) -> Values | RowError:
    if answer is None or answer.reply is None:
        return RowError("unknown", "its answer was pruned")
    return step.committed_values(answer.reply)


def _hashable(column: pa.ChunkedArray) -> list[Any]:
    """Return key values that are equal if the keys are the same: NaN equals itself, -0.0 differs from 0.0."""
    values = column_values(column)
    return [repr(value) for value in values] if pa.types.is_floating(column.type) else values
