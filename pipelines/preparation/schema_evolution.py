"""A job whose declared columns are no longer those of its sink's tables: foretold, cast, or all rows asked again."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from connectors.contracts import Commit
from connectors.errors import DataError
from connectors.sql import literal, query_connection, quoted
from connectors.tables.parquet_parts import PartWriter, read_batches
from connectors.tables.schema_checks import SchemaMismatch, column_types
from pipelines.ledger.ledger import Ledger
from pipelines.preparation.prepared_job import PreparedJob
from pipelines.preparation.row_selection import key_text

BATCH_ROWS = 1024
"""Rows that are cast together."""
CAST_COMMIT_ROWS = 25_000
"""Rows that are committed at once."""
CAST_COMMIT_BYTES = 64 << 20
MAX_SHOWN_CHARACTERS = 60
"""Characters of a value in a message."""
OTHER_SINK_HINT = "write to another sink (run --sink PATH)"


def schema_refusal(ready: PreparedJob) -> DataError | None:
    """Why a run would refuse the sink as it stands, where `--schema-change` helps; None where it would not. DataError
    where nothing else helps. Only reads."""
    if ready.job.sink.write == "replace":
        ready.sink.check(fresh=True)
        return None
    unsized = {field.name for step in ready.steps if step.endpoint.dimensions_unknown for field in step.endpoint.fields}
    if unsized and unsized.issubset(sink_columns(ready)):
        # Vectors of a length that only the run will learn.
        return None
    try:
        ready.sink.check(fresh=False)
    except SchemaMismatch as exc:
        return None if is_empty(ready) else exc
    return None


def sink_columns(ready: PreparedJob) -> frozenset[str]:
    """The columns of the sink's results; none where there is no such table."""
    if not ready.sink.exists():
        return frozenset()
    with query_connection(ready.scratch) as db:
        ready.sink.attach(db)
        described = db.execute(f"select * from {ready.sink.results_sql()} limit 0").description or ()
        ready.sink.detach(db)
    return frozenset(str(column[0]) for column in described)


def sink_types(ready: PreparedJob) -> Mapping[str, str]:
    """Column -> SQL type in the sink's results, of those that the source has otherwise and that hold a value there."""
    if ready.job.sink.write == "replace" or not ready.sink.exists():
        return {}
    made = column_types(ready.shape.results)
    with query_connection(ready.scratch) as db:
        ready.sink.attach(db)
        results, errors = ready.sink.results_sql(), ready.sink.errors_sql()
        there = column_types(db.sql(f"select * from {results} limit 0").to_arrow_table().schema)
        names = [*ready.shape.key, *ready.selection.carried]
        other = {name for name in names if there.get(name, made[name]) != made[name]}
        if other:
            # Rows that failed are known by their key alone.
            tables = {name: (results, errors) if name in ready.shape.key else (results,) for name in other}
            held = {
                name
                for name in other
                if any(
                    db.execute(f"select 1 from {table} where {quoted(name)} is not null limit 1").fetchall()
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
    """Whether the rows of the sink can be told apart by the job's key: whether it can be seen what is done."""
    return sink_columns(ready).issuperset(ready.shape.key)


def is_empty(ready: PreparedJob) -> bool:
    """Whether the sink's tables hold neither a result nor an error."""
    with query_connection(ready.scratch) as db:
        ready.sink.attach(db)
        tables = (ready.sink.results_sql(), ready.sink.errors_sql())
        held = any(db.execute(f"select 1 from {table} limit 1").fetchall() for table in tables)
        ready.sink.detach(db)
    return not held


def check_backfill(ready: PreparedJob) -> None:
    """DataError where rows of the old table would be lost with it, since they cannot be asked again."""
    again = "to write the table anew without them, run with --set sink.write=replace"
    if ready.is_limited:
        raise DataError(
            "--schema-change backfill",
            f"would leave only the first rows in {ready.sink_name}",
            f"run without a limit, or {OTHER_SINK_HINT}",
        )
    if ready.is_removing:
        return
    if not has_keys(ready):
        raise DataError(
            "--schema-change backfill",
            f"rows in {ready.sink_name} have no key {', '.join(ready.shape.key)}, so it is not known which of "
            "them have left the source",
            f"{again}, or {OTHER_SINK_HINT}",
        )
    ready.selection.load_sink_state(ready.sink)
    left = ready.selection.count_deleted()
    if left:
        raise DataError(
            "--schema-change backfill",
            f"{left:,} rows in {ready.sink_name} have left the source and cannot be asked again",
            f"keep them by --schema-change cast, or {again}",
        )


def cast_tables(ready: PreparedJob, ledger: Ledger) -> None:
    """Write results and errors anew as they stand, under the job's columns; the old tables stay until the new ones are
    whole. DataError, and nothing is changed, where a value does not fit."""
    results = _cast_file(ready, "results", ready.sink.results_sql(), ready.shape.results)
    errors = _cast_file(ready, "errors", ready.sink.errors_sql(), ready.shape.errors)
    _check_keys(ready, results)
    ready.sink.prepare(fresh=True)
    no_results, no_errors = ready.shape.results.empty_table(), ready.shape.errors.empty_table()
    pieces = chain(
        ((rows, no_errors) for rows in _gathered(read_batches(results))),
        ((no_results, rows) for rows in _gathered(read_batches(errors))),
    )
    for number, (rows, failed) in enumerate(pieces):
        name = f"{ledger.identity}-{ledger.writer:06d}-cast-{number:06d}"
        ready.sink.commit(Commit(rows, {}, failed, no_results.select(ready.shape.key)), name)
    ready.sink.finish()


def _cast_file(ready: PreparedJob, table: str, relation: str, schema: pa.Schema) -> Path:
    """The table's rows, cast, in a file of the scratch folder."""
    target = ready.scratch / f"cast-{table}.parquet"
    with query_connection(ready.scratch) as db, PartWriter(target, schema) as out:
        ready.sink.attach(db)
        for batch in db.sql(f"select * from {relation}").to_arrow_reader(BATCH_ROWS):
            out.write(_cast(ready, table, pa.Table.from_batches([batch]), schema))
        ready.sink.detach(db)
    return target


def _cast(ready: PreparedJob, table: str, rows: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = []
    for field in schema:
        if field.name not in rows.column_names:
            columns.append(pa.nulls(rows.num_rows, field.type))
            continue
        values = rows.column(field.name)
        made = _fitted(values, field.type)
        if made is None:
            row = _first_misfit(values, field.type)
            key = [name for name in ready.shape.key if name in rows.column_names]
            which = ", ".join(f"{name} {_shown(rows.column(name)[row])}" for name in key)
            raise DataError(
                ready.sink_name,
                f"--schema-change cast: the column {field.name} of its {table} holds {_shown(values[row])} ({which}), "
                f"which as {values.type} does not fit {field.type}",
                f"nothing was changed: ask all rows again (run --schema-change backfill), or {OTHER_SINK_HINT}",
            )
        columns.append(made)
    return pa.table(columns, schema=schema)


def _fitted(values: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray | None:
    """The values as this type, none of them changed on the way; None where one does not fit."""
    if values.null_count == len(values):
        return pa.chunked_array([pa.nulls(len(values), kind)])
    try:
        made = values.cast(kind)
        # Between others than text, Arrow rounds, drops a time of day or fields, and takes any number for true.
        text = pa.types.is_string(values.type) or pa.types.is_string(kind)
        exact = text or _plain(made.cast(values.type)) == _plain(values)
    except pa.ArrowException:
        return None
    return made if exact else None


def _plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Values that can be compared: NaN is not equal to itself."""
    if not pa.types.is_floating(values.type):
        return values
    return pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)


def _first_misfit(values: pa.ChunkedArray, kind: pa.DataType) -> int:
    """The place of the first value that does not fit; there is one."""
    first, last = 0, len(values)
    while last - first > 1:
        middle = (first + last) // 2
        if _fitted(values.slice(first, middle - first), kind) is None:
            last = middle
        else:
            first = middle
    return first


def _shown(value: pa.Scalar) -> str:
    text: Any = repr(value.as_py())
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[: MAX_SHOWN_CHARACTERS - 1]}…"


def _check_keys(ready: PreparedJob, results: Path) -> None:
    """DataError where the rows, cast, have no key, or two of them the same."""
    key = ready.shape.key
    nulls = " or ".join(f"{quoted(name)} is null" for name in key)
    with query_connection(ready.scratch) as db:
        ((without, rows, different),) = db.execute(
            f"select count(*) filter ({nulls}), count(*), count(distinct {key_text(key)}) "
            f"from read_parquet({literal(results)})"
        ).fetchall()
    if without or rows != different:
        what = f"null in {without:,} rows" if without else f"the same in {rows - different:,} rows and others"
        raise DataError(
            ready.sink_name,
            f"--schema-change cast: the key {', '.join(key)} would be {what} of its results",
            f"nothing was changed: run with --set sink.write=replace, or {OTHER_SINK_HINT}",
        )


def _gathered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows, as many together as are committed at once."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        rows, nbytes = sum(one.num_rows for one in waiting), sum(one.nbytes for one in waiting)
        if rows >= CAST_COMMIT_ROWS or nbytes >= CAST_COMMIT_BYTES:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)
