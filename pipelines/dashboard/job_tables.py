"""Pages of a job's tables: the newest rows first, read from few parts, with one thread."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import duckdb
import pyarrow.parquet as pq
from msgspec import Struct

from connectors.contracts import Sink
from connectors.errors import DataError
from connectors.sql import literal_list, literal_path
from connectors.tables.schemas import FAILURE_COLUMNS, failure_names
from connectors.templating.row_values import row_values
from pipelines.analysis.output_columns import HIDDEN_COLUMNS
from pipelines.analysis.results_key import ResultsKey
from pipelines.config.job_graph import empty_sink
from pipelines.config.loaded_job import LoadedJob

TableName = Literal["results", "errors"]
PAGE_ROWS = 20
_PARTS = "/*.parquet"
_INTERNAL = (*HIDDEN_COLUMNS, "_part")


class TablePage(Struct, frozen=True):
    """Some rows of a table, the newest first."""

    rows: Sequence[Mapping[str, Any]]
    keys: Sequence[str]
    """The key of each row as text, as `rowmill show` takes it."""
    total: int
    """Rows of the whole table."""
    start: int
    """How many newer rows there are."""


def readable_sink(loaded: LoadedJob, running: Iterable[LoadedJob]) -> Sink | None:
    """Return the job's sink; None if it has no tables yet. DataError if a run needs its file.

    `running`: the jobs that are running. A reader of a DuckDB file would make their commits wait.
    """
    sink = empty_sink(loaded, longest_hold=0)
    if not _files(sink).isdisjoint(path for other in running for path in _files(empty_sink(other, longest_hold=0))):
        raise DataError(
            loaded.job.sink.identity, "a run is writing to this file", "its tables are shown when the run has ended"
        )
    return sink if sink.exists() else None


def _files(sink: Sink) -> set[Path]:
    """Return the files that only one process can have open for writing."""
    return {path for path in sink.paths() if isinstance(path, Path) and path.is_file()}


def table_page(sink: Sink, key: ResultsKey, table: TableName, start: int, count: int) -> TablePage:
    """Return `count` rows after the `start` newest ones."""
    with duckdb.connect() as db:
        db.execute("set TimeZone = 'UTC'")
        db.execute("set threads = 1")
        sink.attach(db)
        relation, total, offset, limit = _window(db, sink, table, start, count)
        text = key.text
        # Rows keep the order of their parts without an `order by`, which would read the whole table.
        read = db.sql(f"select *, {text} as _key_text from {relation} limit {limit} offset {offset}").to_arrow_table()
        sink.detach(db)
    rows = row_values(read)[::-1]
    keys = [str(row.pop("_key_text")) for row in rows]
    shown = [{name: value for name, value in row.items() if name not in _INTERNAL} for row in rows]
    return TablePage(shown, keys, total, start)


def table_row(sink: Sink, key: ResultsKey, key_value: str) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Return (the row's result, its errors) by the text of its key."""
    with duckdb.connect() as db:
        db.execute("set TimeZone = 'UTC'")
        sink.attach(db)
        results, errors = (
            row_values(db.sql(f"select * from {table} where {key.text} = ?", params=[key_value]).to_arrow_table())
            for table in (sink.results_sql(), sink.errors_sql())
        )
        sink.detach(db)
    shown = [{name: value for name, value in row.items() if name not in _INTERNAL} for row in results]
    return (shown[0] if shown else None), errors


def failure_values(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the columns of an errors row besides its key, by their usual names."""
    key = list(row)[: len(row) - FAILURE_COLUMNS]
    return {name: row[actual] for name, actual in failure_names(key).items()}


def _window(
    db: duckdb.DuckDBPyConnection, sink: Sink, table: TableName, start: int, count: int
) -> tuple[str, int, int, int]:
    """Return (relation, rows of the table, rows to skip, rows to read) with the wanted rows."""
    place = sink.tables()[table]
    if place.endswith(_PARTS) and "://" not in place:
        return _window_of_parts(Path(place.removesuffix(_PARTS)), start, count)
    relation = sink.results_sql() if table == "results" else sink.errors_sql()
    ((total,),) = db.execute(f"select count(*) from {relation}").fetchall()
    end = max(0, total - start)
    return relation, total, max(0, end - count), min(count, end)


def _window_of_parts(folder: Path, start: int, count: int) -> tuple[str, int, int, int]:
    """The same of a folder of Parquet parts: only those parts that hold the rows."""
    parts = sorted(folder.glob("*.parquet"))
    sizes = [pq.read_metadata(part).num_rows for part in parts]
    total = sum(sizes)
    end = max(0, total - start)
    begin = max(0, end - count)
    chosen, before, skipped = [], 0, 0
    for part, size in zip(parts, sizes, strict=True):
        if before + size > begin and before < end:
            chosen.append(part)
        elif before + size <= begin:
            skipped += size
        before += size
    if not chosen:
        chosen, begin, end, skipped = parts[:1], 0, 0, 0
    relation = f"(select * from read_parquet({literal_list(map(literal_path, chosen))}))"
    return relation, total, begin - skipped, end - begin
