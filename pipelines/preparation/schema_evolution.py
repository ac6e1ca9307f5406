"""Schema evolution: what happens if a job declares other columns than its sink's tables have."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from msgspec.structs import replace

from connectors.contracts import Commit, TableShape
from connectors.errors import DataError
from connectors.sql import identifier, key_text, literal, scratch_connection
from connectors.tables.parquet_parts import PartWriter, matching_rows, read_batches
from connectors.tables.schema_checks import SchemaMismatch, column_types, is_foreign
from pipelines.formatting import cut, format_count
from pipelines.ledger.ledger import Ledger
from pipelines.preparation.prepared_job import PreparedJob, sink_columns

BATCH_ROWS = 1024
"""Rows that are cast together."""
CAST_COMMIT_ROWS = 25_000
"""Rows that are committed at once."""
CAST_COMMIT_BYTES = 64 << 20
MAX_SHOWN_CHARACTERS = 60
"""Characters of a value in a message."""
BACKFILL_HINT = "ask all rows again (run --schema-change backfill)"
OTHER_SINK_HINT = "write to another sink (run --sink PATH)"


def schema_refusal(ready: PreparedJob) -> DataError | None:
    """Return why a run would refuse the sink if `--schema-change` would help, else None; only reads.

    Raises DataError if `--schema-change` would not help.
    """
    if ready.job.sink.write == "replace":
        ready.sink.check(fresh=True)
        return None
    stored = [step.endpoint for step in ready.stored_steps]
    unsized = {field.name for endpoint in stored if endpoint.dimensions_unknown for field in endpoint.fields}
    if unsized and unsized.issubset(sink_columns(ready)):
        # The dimensions of the vectors are unknown until the run probes them.
        return None
    try:
        ready.sink.check(fresh=False)
    except SchemaMismatch as exc:
        can_adapt = is_empty(ready) or gains_types_only(ready, exc) or gains_rungs_only(ready)
        return None if can_adapt else refusal_with_remedies(ready, exc)
    return None


def can_cast(ready: PreparedJob) -> bool:
    """Whether the rows in the sink have the job's keys, each row another one."""
    if not has_keys(ready):
        return False
    with scratch_connection(ready.scratch) as db:
        ready.sink.attach(db)
        without, equal = _count_unusable_keys(db, ready.shape.key, ready.sink.results_sql())
        ready.sink.detach(db)
    return not without and not equal


def refusal_with_remedies(ready: PreparedJob, mismatch: SchemaMismatch) -> DataError:
    """Return the mismatch with those remedies that work."""
    if can_cast(ready):
        return mismatch
    return DataError(mismatch.where, mismatch.found, f"{BACKFILL_HINT}, or {OTHER_SINK_HINT}")


def gains_rungs_only(ready: PreparedJob) -> bool:
    """Whether the sink lacks columns of rungs, and has all other columns as the job makes them."""
    shape = ready.shape
    added = set(shape.rungs).difference(sink_columns(ready))
    if not added:
        return False
    columns = [field for field in shape.results if field.name not in added]
    without = replace(shape, results=pa.schema(columns), rungs=tuple(set(shape.rungs) - added))
    sink = ready.job.sink.open(without, ready.workspace.folder, ready.job.retry.longest_hold)
    try:
        sink.check(fresh=False)
    except SchemaMismatch:
        return False
    return True


def gains_types_only(ready: PreparedJob, mismatch: SchemaMismatch) -> bool:
    """Whether all that differs is the type of columns that have no value in the sink yet."""
    if not mismatch.retyped:
        return False
    with scratch_connection(ready.scratch) as db:
        ready.sink.attach(db)
        has_any = any(
            _has_value(batch.column(0))
            for relation in (ready.sink.results_sql(), ready.sink.errors_sql())
            for name in db.sql(f"select * from {relation} limit 0").columns
            if name in mismatch.retyped
            for batch in db.sql(f"select {identifier(name)} from {relation}").to_arrow_reader(BATCH_ROWS)
        )
        ready.sink.detach(db)
    return not has_any


def _has_value(values: pa.Array) -> bool:
    """Whether an array holds more than nulls, empty lists, and structs and lists of these."""
    kind = values.type
    if pa.types.is_struct(kind):
        return any(_has_value(pc.struct_field(values, [index])) for index in range(kind.num_fields))
    if pa.types.is_map(kind):
        return any(values.to_pylist())
    if isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
        return _has_value(pc.list_flatten(values))
    return bool(values.null_count < len(values))


def sink_types(ready: PreparedJob) -> Mapping[str, str]:
    """Return column -> SQL type for columns whose type differs between source and sink and that hold values there."""
    if ready.job.sink.write == "replace" or not ready.sink.exists():
        return {}
    made = column_types(ready.shape.results)
    with scratch_connection(ready.scratch) as db:
        ready.sink.attach(db)
        results, errors = ready.sink.results_sql(), ready.sink.errors_sql()
        try:
            there = column_types(db.sql(f"select * from {results} limit 0").to_arrow_table().schema)
        except duckdb.Error:
            # The sink's own check names what is wrong with its files.
            ready.sink.check(fresh=True)
            raise
        if is_foreign("results", there):
            # The check of the sink refuses it.
            ready.sink.detach(db)
            return {}
        names = [*ready.shape.key, *ready.selection.carried]
        other = {name for name in names if there.get(name, made[name]) != made[name]}
        if other:
            # The errors table has only the key of a row.
            tables = {name: (results, errors) if name in ready.shape.key else (results,) for name in other}
            held = {
                name
                for name in other
                if any(
                    db.execute(f"select 1 from {table} where {identifier(name)} is not null limit 1").fetchall()
                    for table in tables[name]
                )
            }
            described = db.execute(f"select * from {results} limit 0").description or ()
            known = {str(column[0]): str(column[1]) for column in described if column[0] in held}
        else:
            known = {}
        ready.sink.detach(db)
    return known


def has_keys(ready: PreparedJob) -> bool:
    """Whether the sink has the job's key columns, so that finished rows can be found."""
    return set(sink_columns(ready)).issuperset(ready.shape.key)


def is_empty(ready: PreparedJob) -> bool:
    """Whether the sink has neither results nor errors."""
    with scratch_connection(ready.scratch) as db:
        ready.sink.attach(db)
        tables = (ready.sink.results_sql(), ready.sink.errors_sql())
        held = any(db.execute(f"select 1 from {table} limit 1").fetchall() for table in tables)
        ready.sink.detach(db)
    return not held


def check_backfill(ready: PreparedJob) -> None:
    """Raise DataError if rows of the old table would be lost because they cannot be requested again.

    Loads the outputs of the old table, which other checks may accept although the ledger has dropped the answers.
    """
    again = "to rewrite the table without them, run with --set sink.write=replace"
    if ready.is_limited:
        raise DataError(
            "--schema-change backfill",
            f"would leave only the first rows in {ready.sink_name}",
            f"run without a limit, or {OTHER_SINK_HINT}",
        )
    # A table without the index of children has one row for each source row.
    is_keyed = set(sink_columns(ready)).issuperset(ready.shape.source_key)
    if is_keyed:
        ready.selection.load_sink_state(ready.sink)
    if ready.is_removing:
        return
    if not is_keyed:
        raise DataError(
            "--schema-change backfill",
            f"rows in {ready.sink_name} have no key {', '.join(ready.shape.source_key)}, so it is not known which of "
            "them have left the source",
            f"{again}, or {OTHER_SINK_HINT}",
        )
    left = ready.selection.count_deleted()
    if left:
        raise DataError(
            "--schema-change backfill",
            f"{format_count(left, 'row')} in {ready.sink_name} left the source and cannot be requested again",
            f"keep them by --schema-change cast, or {again}",
        )


def cast_tables(ready: PreparedJob, ledger: Ledger) -> None:
    """Rewrite results and errors with the job's columns; the old tables stay until the new ones are complete.

    Raises DataError and changes nothing if a value does not fit.
    """
    results = _cast_file(ready, "results", ready.sink.results_sql(), ready.shape.results)
    errors = _cast_file(ready, "errors", ready.sink.errors_sql(), ready.shape.errors)
    _check_keys(ready, results)
    ready.sink.prepare(fresh=True)
    no_results, no_errors = ready.shape.results.empty_table(), ready.shape.errors.empty_table()
    pieces = chain(
        ((rows, no_errors) for rows in _concatenated(read_batches(results), ready.shape)),
        ((no_results, rows) for rows in _concatenated(read_batches(errors), ready.shape)),
    )
    for number, (rows, failed) in enumerate(pieces):
        name = f"{ledger.identity}-{ledger.writer:06d}-cast-{number:06d}"
        ready.sink.commit(Commit(rows, {}, failed, no_results.select(ready.shape.source_key)), name)
    ready.sink.finish()


def _cast_file(ready: PreparedJob, table: str, relation: str, schema: pa.Schema) -> Path:
    """Cast the table's rows into a file of the scratch folder."""
    target = ready.scratch / f"cast-{table}.parquet"
    with scratch_connection(ready.scratch) as db, PartWriter(target, schema) as out:
        ready.sink.attach(db)
        for batch in db.sql(f"select * from {relation}").to_arrow_reader(BATCH_ROWS):
            out.write(_cast_rows(ready, table, pa.Table.from_batches([batch]), schema))
        ready.sink.detach(db)
    return target


def _cast_rows(ready: PreparedJob, table: str, rows: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = []
    for field in schema:
        if field.name not in rows.column_names:
            is_rung = table == "results" and field.name in ready.shape.rungs
            zero = pa.repeat(pa.scalar(0, pa.int64()), rows.num_rows)
            columns.append(zero if is_rung else pa.nulls(rows.num_rows, field.type))
            continue
        values = rows.column(field.name)
        made = _cast_exactly(values, field.type)
        if made is None:
            row = _first_failing_index(values, field.type)
            key = [name for name in ready.shape.key if name in rows.column_names]
            which = ", ".join(f"{name} {_format_value(rows.column(name)[row])}" for name in key)
            raise DataError(
                ready.sink_name,
                f"--schema-change cast: the column {field.name} of its {table} holds "
                f"{_format_value(values[row])} ({which}), which as {values.type} does not fit {field.type}",
                f"nothing was changed: request all rows again (run --schema-change backfill), or {OTHER_SINK_HINT}",
            )
        columns.append(made)
    return pa.table(columns, schema=schema)


def _cast_exactly(values: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray | None:
    """Cast the values without changing any of them; None if one does not fit."""
    if values.null_count == len(values):
        return pa.chunked_array([pa.nulls(len(values), kind)])
    try:
        made = values.cast(kind)
        # Arrow rounds numbers, drops times of day and struct fields, and casts any number to true: compare back.
        text = pa.types.is_string(values.type) or pa.types.is_string(kind)
        exact = text or _comparable(made.cast(values.type)) == _comparable(values)
    except pa.ArrowException:
        return None
    return made if exact else None


def _comparable(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Replace NaN by null, since NaN is not equal to itself."""
    if not pa.types.is_floating(values.type):
        return values
    return pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)


def _first_failing_index(values: pa.ChunkedArray, kind: pa.DataType) -> int:
    """Return the index of the first value that does not fit; there must be one."""
    first, last = 0, len(values)
    while last - first > 1:
        middle = (first + last) // 2
        if _cast_exactly(values.slice(first, middle - first), kind) is None:
            last = middle
        else:
            first = middle
    return first


def _format_value(value: pa.Scalar) -> str:
    return cut(repr(value.as_py()), MAX_SHOWN_CHARACTERS)


def _check_keys(ready: PreparedJob, results: Path) -> None:
    """Raise DataError if a cast row has no key, or two have the same key."""
    key = ready.shape.key
    with scratch_connection(ready.scratch) as db:
        without, equal = _count_unusable_keys(db, key, f"read_parquet({literal(results)})")
    if without or equal:
        same = f"the same in {format_count(equal, 'row')} and others"
        what = f"null in {format_count(without, 'row')}" if without else same
        raise DataError(
            ready.sink_name,
            f"--schema-change cast: the key {', '.join(key)} would be {what} of its results",
            f"nothing was changed: run with --set sink.write=replace, or {OTHER_SINK_HINT}",
        )


def _count_unusable_keys(db: duckdb.DuckDBPyConnection, key: Sequence[str], rows: str) -> tuple[int, int]:
    """Return how many rows have no key, and how many have that of another row. `rows`: SQL."""
    nulls = " or ".join(f"{identifier(name)} is null" for name in key)
    query = f"select count(*) filter ({nulls}), count(*), count(distinct {key_text(key)}) from {rows}"
    ((without, count, different),) = db.execute(query).fetchall()
    return without, count - different


def _concatenated(tables: Iterable[pa.Table], shape: TableShape) -> Iterator[pa.Table]:
    """Concatenate tables to the size of one commit; the rows of one source row, which follow each other, stay
    together."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        rows, nbytes = sum(one.num_rows for one in waiting), sum(one.nbytes for one in waiting)
        if rows >= CAST_COMMIT_ROWS or nbytes >= CAST_COMMIT_BYTES:
            whole, waiting = pa.concat_tables(waiting), []
            end = whole.num_rows
            if shape.child_index is not None:
                keys = whole.select(shape.source_key)
                siblings = matching_rows(keys, keys.slice(end - 1)).to_pylist()
                while end and siblings[end - 1]:
                    end -= 1
                waiting = [whole.slice(end)]
            if end:
                yield whole.slice(0, end)
    if waiting:
        yield pa.concat_tables(waiting)
