"""The sink's tables as projections of the ledger: the usage table, and the results and errors built again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import orjson
import pyarrow as pa

from connectors.contracts import Commit, Endpoint, Sink, TableShape, UsageMark
from connectors.records import RowError, Values
from connectors.tables.schemas import usage_schema
from pipelines.ledger.entries import StoredAnswer
from pipelines.ledger.ledger import Ledger
from pipelines.pricing.prices import usd

USAGE_ROWS = 50_000
"""Exchanges in one part of the usage table, at most."""

READ_ROWS = 1_000
"""Exchanges that are read from the ledger together."""

ANSWERS = "_answers"
"""The column of a packed commit that names the answers of each row, one a step."""


def encode_table(table: pa.Table) -> bytes | None:
    """An Arrow IPC stream, zstd-compressed; None for an empty table."""
    if not table.num_rows:
        return None
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return bytes(out.getvalue())


def encode_rows(results: pa.Table, answers: Sequence[Sequence[bytes | None]], shape: TableShape) -> bytes | None:
    """What is needed to write rows again: all but their outputs, and the answers that these are read from."""
    rows = results.select([name for name in results.column_names if name not in shape.outputs])
    rows = rows.append_column(ANSWERS, pa.array(answers, pa.list_(pa.binary(16))))
    return encode_table(rows.replace_schema_metadata({b"outputs": _outputs(shape)}))


def decode_table(blob: bytes) -> pa.Table:
    """The table of a packed commit."""
    with pa.ipc.open_stream(blob) as reader:
        return reader.read_all()


def _outputs(shape: TableShape) -> bytes:
    return orjson.dumps([[name, str(shape.results.field(name).type)] for name in shape.outputs])


def append_usage(ledger: Ledger, sink: Sink, job: str) -> None:
    """Append to the usage table the exchanges of the job that are not in it yet."""
    upto: dict[int, int] = {}
    for mark in sink.usage_marks():
        if mark.ledger == ledger.identity:
            upto[mark.writer] = max(upto.get(mark.writer, 0), mark.last)
    writers = (
        ledger.query("select distinct e.writer from exchanges e join legs l on l.id = e.leg where l.job = ?", (job,))
        if not upto
        # Others may have written for this process: on Ray an actor does.
        else [(writer,) for writer in range(1, ledger.writers() + 1)]
    )
    legs = {
        leg: told
        for leg, *told in ledger.query(
            "select id, run_id, job, step, provider, endpoint, model from legs where job = ?", (job,)
        )
    }
    for (writer,) in writers:
        found = ledger.stream(
            f"select e.seq, e.leg, {', '.join(f'e.{_COLUMN_OF.get(name, name)}' for name in _OF_EXCHANGE)} "
            "from exchanges e where e.writer = ? and e.seq > ? and e.leg in (select id from legs where job = ?) "
            "order by e.seq",
            (writer, upto.get(writer, 0), job),
        )
        # As Python's objects rows take ten times the memory: a few at a time become columns.
        pieces = _pieces(found, READ_ROWS)
        while tables := [_usage_table(legs, rows) for rows in islice(pieces, USAGE_ROWS // READ_ROWS)]:
            first, last = tables[0][0], tables[-1][1]
            whole = pa.concat_tables([table for _, _, table in tables])
            sink.add_usage(whole, UsageMark(ledger.identity, writer, first, last))


_OF_LEG = ("run_id", "job", "step", "provider", "endpoint", "model")
_OF_EXCHANGE = tuple(name for name in usage_schema().names if name not in _OF_LEG)
_COLUMN_OF = {"cost_usd": "cost"}
_READ: Mapping[str, Callable[[Any], Any]] = {
    "keys": orjson.loads,
    "fingerprints": lambda blob: [blob[start : start + 16].hex() for start in range(0, len(blob), 16)],
    "cost_usd": usd,
}
"""Columns of the usage table that the ledger keeps in another form."""


def _pieces(rows: Iterator[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    while piece := list(islice(rows, size)):
        yield piece


def _usage_table(legs: Mapping[int, Sequence[str]], rows: Sequence[tuple[Any, ...]]) -> tuple[int, int, pa.Table]:
    """(first and last sequence number, the usage table of these exchanges)."""
    seqs, of_leg, *columns = zip(*rows, strict=True)
    values = dict(zip(_OF_EXCHANGE, columns, strict=True))
    numbers = {leg: place for place, leg in enumerate(legs)}
    places = pa.array([numbers[leg] for leg in of_leg], pa.int32())
    arrays = []
    for field in usage_schema():
        if field.name in _OF_LEG:
            told = pa.array([leg[_OF_LEG.index(field.name)] for leg in legs.values()], field.type)
            arrays.append(told.take(places))
            continue
        column, read = values[field.name], _READ.get(field.name)
        if read is not None:
            column = [None if value is None else read(value) for value in column]
        arrays.append(pa.array(column, field.type))
    return seqs[0], seqs[-1], pa.table(arrays, schema=usage_schema())


def rebuild(ledger: Ledger, sink: Sink, job: str, sink_name: str, shape: TableShape, steps: Sequence[Endpoint]) -> int:
    """Commit results and errors again as the ledger has them, newest word a key; how many rows results then hold.

    To be called between `sink.prepare(fresh=True)` and `sink.finish()`. Rows whose answers are no longer kept, or that
    came from steps with other outputs, are left out: the next run asks for those. Takes memory for one key a row.
    """
    kept = _newest(ledger, job, sink_name, shape)
    count = 0
    for part, (commit, result_rows, error_rows) in enumerate(kept):
        ((rows_blob, errors_blob),) = ledger.query("select rows, errors from commits where id = ?", (commit,))
        results = shape.results.empty_table()
        if result_rows:
            results = _decoded(ledger, decode_table(rows_blob).take(pa.array(result_rows, pa.int64())), shape, steps)
        errors = shape.errors.empty_table()
        if error_rows:
            errors = decode_table(errors_blob).take(pa.array(error_rows, pa.int64())).cast(shape.errors)
        name = f"{ledger.identity}-{ledger.writer:06d}-again-{part:06d}"
        sink.commit(Commit(results, {}, errors, shape.results.empty_table().select(shape.key)), name)
        count += results.num_rows
    return count


def _newest(
    ledger: Ledger, job: str, sink_name: str, shape: TableShape
) -> list[tuple[int, Sequence[int], Sequence[int]]]:
    """(commit, rows of its results, rows of its errors) that no later commit has replaced, oldest commit first."""
    told_results: set[tuple[Any, ...]] = set()
    told_errors: set[tuple[Any, ...]] = set()
    kept: list[tuple[int, Sequence[int], Sequence[int]]] = []
    for commit, rows, errors, cleared, removed in ledger.stream(
        "select id, rows, errors, cleared, removed from commits where job = ? and sink = ? order by id desc",
        (job, sink_name),
    ):
        gone = _keys(removed, shape)
        told_results.update(gone)
        told_errors.update(gone)
        result_rows = _untold(_keys(rows, shape), told_results) if _same_outputs(rows, shape) else []
        # A key cleared from errors in the very commit that it came in again cannot be: it stands in one of the two.
        cleared_keys = _keys(cleared, shape)
        error_rows = _untold(_keys(errors, shape), told_errors)
        told_errors.update(cleared_keys)
        kept.append((commit, result_rows, error_rows))
    return kept[::-1]


def _keys(blob: bytes | None, shape: TableShape) -> list[tuple[Any, ...]]:
    if blob is None:
        return []
    table = decode_table(blob)
    return list(zip(*(_hashable(table.column(name)) for name in shape.key), strict=True))


def _hashable(column: pa.ChunkedArray) -> list[Any]:
    """Values of a key, equal where the keys are the same: NaN is itself, -0.0 is not 0.0."""
    values: list[Any] = column.to_pylist()
    return [repr(value) for value in values] if pa.types.is_floating(column.type) else values


def _untold(keys: Sequence[tuple[Any, ...]], told: set[tuple[Any, ...]]) -> list[int]:
    """The places of the keys that no later commit told of; from now on they are told."""
    rows = [row for row, key in enumerate(keys) if key not in told]
    told.update(keys)
    return rows


def _same_outputs(blob: bytes | None, shape: TableShape) -> bool:
    if blob is None:
        return False
    table = decode_table(blob)
    carried = [name for name in shape.results.names if name not in shape.outputs]
    return (table.schema.metadata or {}).get(b"outputs") == _outputs(shape) and table.column_names[:-1] == carried


def _decoded(ledger: Ledger, rows: pa.Table, shape: TableShape, steps: Sequence[Endpoint]) -> pa.Table:
    """The rows with their outputs read from the kept answers; rows that cannot be read so are left out."""
    marks: list[list[bytes | None]] = rows.column(ANSWERS).to_pylist()
    found = ledger.lookup(sorted({mark for row in marks for mark in row if mark is not None}))
    outputs: list[list[Values | None]] = []
    whole: list[int] = []
    for row, of_row in enumerate(marks):
        values = [
            None if mark is None else _values(found.get(mark), step) for mark, step in zip(of_row, steps, strict=True)
        ]
        if not any(isinstance(value, RowError) for value in values):
            outputs.append([value for value in values if not isinstance(value, RowError)])
            whole.append(row)
    table = rows.drop_columns([ANSWERS]).take(pa.array(whole, pa.int64()))
    for place, step in enumerate(steps):
        for column, array in zip(step.fields, step.arrays([row[place] for row in outputs]), strict=True):
            table = table.append_column(column, array)
    return table.select(shape.results.names).cast(shape.results)


def _values(answer: StoredAnswer | None, step: Endpoint) -> Values | RowError:
    if answer is None or answer.reply is None:
        return RowError("unknown", "its answer is no longer kept")
    return step.values(answer.reply)
