"""Projection of the ledger: the usage table of a sink, and commits as the ledger stores them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from connectors.contracts import Sink, TableShape, UsageMark
from connectors.tables.schemas import usage_schema
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
    metadata = {b"outputs": outputs_metadata(shape)}
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


class SourceRows(Struct, frozen=True):
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


def outputs_metadata(shape: TableShape) -> bytes:
    """Return the metadata `outputs` of encoded rows: names and types of the outputs."""
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


def _hexadecimal(fingerprints: bytes) -> list[str]:
    """Return each fingerprint as text."""
    text = fingerprints.hex()
    return [text[start : start + 32] for start in range(0, len(text), 32)]


_DECODERS: Mapping[str, Callable[[Any], Any]] = {
    "keys": orjson.loads,
    "fingerprints": _hexadecimal,
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
