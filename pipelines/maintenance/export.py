"""Ledger export: exchanges, runs and the index of answers as Parquet files."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from connectors.errors import JobError
from connectors.tables.schemas import usage_schema
from pipelines.ledger.answer_files import SHARED_FILE_BYTES_SQL
from pipelines.ledger.ledger_reader import AnswerReads
from pipelines.pricing.prices import usd

CHUNK_ROWS = 20_000
"""Rows in memory at a time."""

_TIME = pa.timestamp("us", "UTC")
_ROUTE_COLUMNS = frozenset({"run_id", "job", "step", "provider", "endpoint", "model"})
_EXCHANGES = pa.schema([*usage_schema(), pa.field("message", pa.string())])
_RUNS = pa.schema(
    [
        pa.field("run_id", pa.string()),
        pa.field("job", pa.string()),
        pa.field("state", pa.string()),
        pa.field("started_at", _TIME),
        pa.field("ended_at", _TIME),
        pa.field("exit_code", pa.int32()),
        pa.field("stopped", pa.string()),
        pa.field("report", pa.string()),
    ]
)
_ANSWERS = pa.schema(
    [
        pa.field("fingerprint", pa.string()),
        pa.field("run_id", pa.string()),
        pa.field("job", pa.string()),
        pa.field("step", pa.string()),
        pa.field("provider", pa.string()),
        pa.field("endpoint", pa.string()),
        pa.field("model", pa.string()),
        pa.field("at", _TIME),
        pa.field("request_bytes", pa.int64()),
        pa.field("reply_bytes", pa.int64()),
        pa.field("in_file", pa.bool_()),
        pa.field("error", pa.string()),
    ]
)

_DECODERS: Mapping[str, Callable[[Any], Any]] = {
    "keys": orjson.loads,
    "fingerprints": lambda marks: [marks[start : start + 16].hex() for start in range(0, len(marks), 16)],
    "fingerprint": bytes.hex,
    "cost_usd": usd,
    "in_file": bool,
}
"""Conversions of the ledger's values; others stay as they are."""


def export(ledger: AnswerReads, target: Path) -> dict[Path, int]:
    """Return file -> rows. A target that ends in `.parquet` gets the exchanges; any other is a folder for all three."""
    if target.suffix == ".parquet":
        return {target: _write_table(ledger, target, _EXCHANGES, _exchanges_sql())}
    tables = {
        "exchanges": (_EXCHANGES, _exchanges_sql()),
        "runs": (
            _RUNS,
            "select run_id, job, state, started_at, ended_at, exit_code, stopped, report from runs order by started_at",
        ),
        "answers": (
            _ANSWERS,
            "select a.fingerprint, l.run_id, l.job, l.step, l.provider, l.endpoint, l.model, a.at, length(a.request), "
            f"coalesce(length(a.reply), {SHARED_FILE_BYTES_SQL}), a.file is not null, a.error from answers a "
            "join legs l on l.id = a.leg order by a.id",
        ),
    }
    return {
        (path := target / f"{name}.parquet"): _write_table(ledger, path, schema, sql)
        for name, (schema, sql) in tables.items()
    }


def _exchanges_sql() -> str:
    columns = [
        f"l.{name}" if name in _ROUTE_COLUMNS else "e.cost" if name == "cost_usd" else f"e.{name}"
        for name in _EXCHANGES.names
    ]
    return f"select {', '.join(columns)} from exchanges e join legs l on l.id = e.leg order by e.writer, e.seq"


def _write_table(ledger: AnswerReads, path: Path, schema: pa.Schema, sql: str) -> int:
    """Write the query's rows to a file that exists completely or not at all."""
    unfinished = path.with_name(f"{path.name}.part")
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(unfinished, schema, compression="zstd") as writer:
            for rows in _chunks(ledger.stream(sql)):
                columns = zip(*rows, strict=True)
                arrays = [_array(field, values) for field, values in zip(schema, columns, strict=True)]
                writer.write_table(pa.table(arrays, schema=schema))
                count += len(rows)
        unfinished.replace(path)
    except OSError as exc:
        raise JobError(path, f"cannot be written ({exc.strerror})", "choose another place with -o") from exc
    return count


def _array(field: pa.Field, values: Sequence[Any]) -> pa.Array:
    decode = _DECODERS.get(field.name)
    return pa.array(values if decode is None else [None if v is None else decode(v) for v in values], field.type)


def _chunks(rows: Iterator[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    while chunk := list(islice(rows, CHUNK_ROWS)):
        yield chunk
