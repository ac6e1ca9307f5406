"""Projection of the ledger into the sink's tables: usage, and rebuilt results and errors."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from connectors.contracts import Commit, Endpoint, Sink, TableShape, UsageMark
from connectors.records import RowError, Values
from connectors.tables.schemas import usage_schema
from connectors.templating.row_values import column_values
from pipelines.ledger.entries import StoredAnswer
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.ledger_reader import ReadableLedger
from pipelines.pricing.prices import usd

USAGE_ROWS = 50_000
"""Maximum number of exchanges in one part of the usage table."""

READ_ROWS = 1_000
"""Number of exchanges read at a time."""

ANSWERS = "_answers"
"""The column of an encoded commit with the answers of each row, one for each step; of errors, with those before."""
ANSWERS_TYPE = pa.list_(pa.binary(16))


def encode_table(table: pa.Table) -> bytes | None:
    """Return the table as a zstd-compressed Arrow IPC stream; None if it is empty."""
    if not table.num_rows:
        return None
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return bytes(out.getvalue())


def encode_rows(results: pa.Table, answers: Sequence[Sequence[bytes | None]], shape: TableShape) -> bytes | None:
    """Encode what a rebuild needs: the rows without their outputs, and the fingerprints of the answers of these."""
    rows = results.select([name for name in results.column_names if name not in shape.outputs])
    rows = rows.append_column(ANSWERS, pa.array(answers, ANSWERS_TYPE))
    metadata = {b"outputs": _outputs(shape)}
    if shape.rungs:
        metadata[b"rungs"] = orjson.dumps(shape.rungs)
    return encode_table(rows.replace_schema_metadata(metadata))


def commit_statements(
    job: str,
    sink: str,
    at: int,
    results: bytes | None,
    errors: pa.Table,
    cleared: pa.Table,
    children: "SourceRows | None" = None,
) -> list[tuple[str, Sequence[Sequence[Any]]]]:
    """Return what records a commit: statements and their rows of values.

    `results`: from `encode_rows`. `errors`: they may have the column ANSWERS. `cleared`: source keys to remove from the
    errors. `children`: the source rows, if they can have any number of results.
    """
    emptied = None if children is None else encode_table(children.emptied)
    columns = "job, sink, at, rows, errors, cleared, emptied"
    if ANSWERS in errors.column_names and not pc.sum(pc.list_value_length(errors.column(ANSWERS))).as_py():
        errors = errors.drop_columns([ANSWERS])
    commit = (job, sink, at, results, encode_table(errors), encode_table(cleared), emptied)
    statements: list[tuple[str, Sequence[Sequence[Any]]]] = [
        (f"insert into commits ({columns}) values (?, ?, ?, ?, ?, ?, ?)", [commit])
    ]
    if children is not None:
        changed = [(job, sink, key) for key in (*children.filled, *children.childless)]
        childless = [(job, sink, key, fingerprint) for key, fingerprint in children.childless.items()]
        statements += [
            ("delete from childless_rows where job = ? and sink = ? and key = ?", changed),
            ("insert into childless_rows values (?, ?, ?, ?)", childless),
        ]
    return statements


@dataclass(frozen=True, slots=True)
class SourceRows:
    """The source rows of one commit to a table of children. Keys are texts."""

    filled: Sequence[str]
    """Those with children."""
    childless: Mapping[str, str]
    """Key -> row fingerprint of those without children."""
    emptied: pa.Table
    """Source keys of the latter."""


def childless_rows(ledger: ReadableLedger, job: str, sink: str) -> Iterator[tuple[str, str]]:
    """Yield (key as text, row fingerprint) of the source rows that are done without any result."""
    yield from ledger.stream("select key, fingerprint from childless_rows where job = ? and sink = ?", (job, sink))


def decode_table(blob: bytes) -> pa.Table:
    """Return the table of an encoded commit."""
    with pa.ipc.open_stream(blob) as reader:
        return reader.read_all()


def _outputs(shape: TableShape) -> bytes:
    return orjson.dumps([[name, str(shape.results.field(name).type)] for name in shape.outputs])


def append_usage(ledger: Ledger, sink: Sink, job: str) -> None:
    """Append to the usage table the exchanges of the job that are not in it yet."""
    last_seq: dict[int, int] = {}
    for mark in sink.usage_marks():
        if mark.ledger == ledger.identity:
            last_seq[mark.writer] = max(last_seq.get(mark.writer, 0), mark.last)
    writers = [writer for writer, last in ledger.query(_WRITERS_OF_JOB, (job,)) if last > last_seq.get(writer, 0)]
    routes = {
        route_id: names
        for route_id, *names in ledger.query(
            "select id, run_id, job, step, provider, endpoint, model from legs where job = ?", (job,)
        )
    }
    for writer in writers:
        rows = ledger.stream(
            f"select e.seq, e.leg, {', '.join(f'e.{_LEDGER_COLUMNS.get(name, name)}' for name in _EXCHANGE_COLUMNS)} "
            "from exchanges e where e.writer = ? and e.seq > ? and e.leg in (select id from legs where job = ?) "
            "order by e.seq",
            (writer, last_seq.get(writer, 0), job),
        )
        # Rows of Python objects take ten times the memory of columns: convert a few at a time.
        chunks = _chunks(rows, READ_ROWS)
        while tables := [_usage_table(routes, chunk) for chunk in islice(chunks, USAGE_ROWS // READ_ROWS)]:
            first, last = tables[0][0], tables[-1][1]
            whole = pa.concat_tables([table for _, _, table in tables])
            sink.add_usage(whole, UsageMark(ledger.identity, writer, first, last))


_WRITERS_OF_JOB = """
with recursive found(leg, writer) as (
    select id, (select min(writer) from exchanges where leg = legs.id) from legs where job = ?
    union all
    select leg, (select min(writer) from exchanges where leg = found.leg and writer > found.writer)
        from found where writer is not null
)
select writer, max((select max(seq) from exchanges e where e.leg = found.leg and e.writer = found.writer))
    from found where writer is not null group by writer order by writer
"""
"""The processes that settled exchanges of a job, each with the last of them; two steps in an index for each run and
step, not one for each exchange. On Ray an actor has written for this process."""
_ROUTE_COLUMNS = ("run_id", "job", "step", "provider", "endpoint", "model")
_EXCHANGE_COLUMNS = tuple(name for name in usage_schema().names if name not in _ROUTE_COLUMNS)
_LEDGER_COLUMNS = {"cost_usd": "cost"}
_DECODERS: Mapping[str, Callable[[Any], Any]] = {
    "keys": orjson.loads,
    "fingerprints": lambda blob: [blob[start : start + 16].hex() for start in range(0, len(blob), 16)],
    "cost_usd": usd,
}
"""Columns of the usage table that the ledger stores in another form."""


def _chunks(rows: Iterator[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    while chunk := list(islice(rows, size)):
        yield chunk


def _usage_table(routes: Mapping[int, Sequence[str]], rows: Sequence[tuple[Any, ...]]) -> tuple[int, int, pa.Table]:
    """Return (first and last sequence number, usage table) of these exchanges."""
    seqs, route_ids, *columns = zip(*rows, strict=True)
    values = dict(zip(_EXCHANGE_COLUMNS, columns, strict=True))
    positions = {route_id: position for position, route_id in enumerate(routes)}
    indices = pa.array([positions[route_id] for route_id in route_ids], pa.int32())
    arrays = []
    for field in usage_schema():
        if field.name in _ROUTE_COLUMNS:
            names = pa.array([route[_ROUTE_COLUMNS.index(field.name)] for route in routes.values()], field.type)
            arrays.append(names.take(indices))
            continue
        column, decode = values[field.name], _DECODERS.get(field.name)
        if decode is not None:
            column = [None if value is None else decode(value) for value in column]
        arrays.append(pa.array(column, field.type))
    return seqs[0], seqs[-1], pa.table(arrays, schema=usage_schema())


def rebuild(ledger: Ledger, sink: Sink, job: str, sink_name: str, shape: TableShape, steps: Sequence[Endpoint]) -> int:
    """Commit results and errors again from the ledger, the newest state of each key; return the number of result rows.

    Call it between `sink.prepare(fresh=True)` and `sink.finish()`. Rows whose answers were pruned, or whose steps had
    other outputs, are left out: the next run sends requests for them. Needs memory for one key a row.
    """
    commits = _newest(ledger, job, sink_name, shape)
    count = 0
    for part, (commit, result_rows, error_rows) in enumerate(commits):
        ((rows_blob, errors_blob),) = ledger.query("select rows, errors from commits where id = ?", (commit,))
        results = shape.results.empty_table()
        if result_rows:
            results = _decoded(ledger, decode_table(rows_blob).take(pa.array(result_rows, pa.int64())), shape, steps)
        errors = shape.errors.empty_table()
        if error_rows:
            failed = decode_table(errors_blob).take(pa.array(error_rows, pa.int64()))
            errors = failed.select([name for name in failed.column_names if name != ANSWERS]).cast(shape.errors)
        name = f"{ledger.identity}-{ledger.writer:06d}-again-{part:06d}"
        sink.commit(Commit(results, {}, errors, shape.results.empty_table().select(shape.source_key)), name)
        count += results.num_rows
    return count


def count_committed(ledger: Ledger, job: str, sink_name: str, shape: TableShape) -> int:
    """Count the result rows that `rebuild` writes if the ledger has all their answers."""
    return sum(len(result_rows) for _, result_rows, _ in _newest(ledger, job, sink_name, shape))


def answers_of_failed_rows(ledger: ReadableLedger, job: str, sink_name: str, shape: TableShape) -> set[bytes]:
    """Return the fingerprints of the answers that rows in errors had before they failed, or that their children had."""
    seen: set[tuple[Any, ...]] = set()
    needed: set[bytes] = set()
    for errors, cleared, removed in ledger.stream(
        "select errors, cleared, removed from commits where job = ? and sink = ? "
        "and coalesce(errors, cleared, removed) is not null order by id desc",
        (job, sink_name),
    ):
        seen.update(_keys(removed, shape))
        newest = _unseen(_keys(errors, shape), seen)
        if newest and ANSWERS in (failed := decode_table(errors)).column_names:
            for answers in failed.column(ANSWERS).take(pa.array(newest, pa.int64())).to_pylist():
                needed.update(answers)
        seen.update(_keys(cleared, shape))
    return needed


def _newest(
    ledger: Ledger, job: str, sink_name: str, shape: TableShape
) -> list[tuple[int, Sequence[int], Sequence[int]]]:
    """Return (commit, rows of its results, rows of its errors) that no later commit replaced, oldest commit first."""
    seen_results: set[tuple[Any, ...]] = set()
    seen_errors: set[tuple[Any, ...]] = set()
    commits: list[tuple[int, Sequence[int], Sequence[int]]] = []
    for commit, rows, errors, cleared, removed, emptied in ledger.stream(
        "select id, rows, errors, cleared, removed, emptied from commits where job = ? and sink = ? order by id desc",
        (job, sink_name),
    ):
        removed_keys = _keys(removed, shape)
        seen_results.update(removed_keys)
        seen_errors.update(removed_keys)
        seen_results.update(_keys(emptied, shape))
        result_rows = _unseen(_keys(rows, shape), seen_results) if _same_columns(rows, shape) else []
        # No commit both clears a key from the errors and adds it to them.
        cleared_keys = _keys(cleared, shape)
        error_rows = _unseen(_keys(errors, shape), seen_errors)
        seen_errors.update(cleared_keys)
        commits.append((commit, result_rows, error_rows))
    return commits[::-1]


def _keys(blob: bytes | None, shape: TableShape) -> list[tuple[Any, ...]]:
    if blob is None:
        return []
    table = decode_table(blob)
    return list(zip(*(_hashable(table.column(name)) for name in shape.source_key), strict=True))


def _hashable(column: pa.ChunkedArray) -> list[Any]:
    """Return key values that are equal if the keys are the same: NaN equals itself, -0.0 differs from 0.0."""
    values = column_values(column)
    return [repr(value) for value in values] if pa.types.is_floating(column.type) else values


def _unseen(keys: Sequence[tuple[Any, ...]], seen: set[tuple[Any, ...]]) -> list[int]:
    """Return the positions of the keys that no later commit has, and mark them as seen."""
    rows = [row for row, key in enumerate(keys) if key not in seen]
    seen.update(keys)
    return rows


def _same_columns(blob: bytes | None, shape: TableShape) -> bool:
    """Whether the encoded rows have the columns of the results, whatever rungs their job had."""
    if blob is None:
        return False
    table = decode_table(blob)
    metadata = table.schema.metadata or {}
    rungs = {*shape.rungs, *orjson.loads(metadata.get(b"rungs", b"[]"))}
    there = [name for name in table.column_names[:-1] if name not in rungs]
    others = [name for name in shape.results.names if name not in shape.outputs and name not in rungs]
    return metadata.get(b"outputs") == _outputs(shape) and there == others


def _decoded(ledger: Ledger, rows: pa.Table, shape: TableShape, steps: Sequence[Endpoint]) -> pa.Table:
    """Return the rows with their outputs read from the stored answers; rows without such answers are left out."""
    fingerprints: list[list[bytes | None]] = rows.column(ANSWERS).to_pylist()
    stored = ledger.lookup(sorted({one for row in fingerprints for one in row if one is not None}))
    outputs: list[list[Values | None]] = []
    complete: list[int] = []
    for row, of_row in enumerate(fingerprints):
        values = [
            None if one is None else _values(stored.get(one), step) for one, step in zip(of_row, steps, strict=True)
        ]
        outputs.append([None if isinstance(value, RowError) else value for value in values])
        if not any(isinstance(value, RowError) for value in values):
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


def _of_whole_source_rows(source_keys: pa.Table, rows: Sequence[int]) -> list[int]:
    """Return those of the rows whose source row has all its children among them."""
    keys = list(zip(*(_hashable(column) for column in source_keys.columns), strict=True))
    partial = {keys[row] for row in set(range(len(keys))).difference(rows)}
    return [row for row in rows if keys[row] not in partial]


def _values(answer: StoredAnswer | None, step: Endpoint) -> Values | RowError:
    if answer is None or answer.reply is None:
        return RowError("unknown", "its answer was pruned")
    return step.committed_values(answer.reply)
