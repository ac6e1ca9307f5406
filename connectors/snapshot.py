"""A query's rows kept in a Parquet file of the scratch folder: read once, in one order, while nothing else is open."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb

from connectors.sql_text import literal, literal_list, quoted

MEMORY_LIMIT = "64MB"
"""Of Rowmill's own queries, whose working set is small and spills."""
AUTHORS_LIMIT = "512MB"
"""Of the queries that a job's author writes, which may join and sort what they like."""
ROW_GROUP_ROWS = 8192


@contextlib.contextmanager
def query_connection(scratch: Path, memory_limit: str = MEMORY_LIMIT) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection of its own for one query."""
    scratch.mkdir(parents=True, exist_ok=True)
    settings: dict[str, str | bool | int | float | list[str]] = {
        # A second one holds a row group of its own, and a run has other work for the other core.
        "threads": 1,
        "memory_limit": memory_limit,
        "temp_directory": str(scratch / "spill"),
        "autoinstall_known_extensions": False,
        "TimeZone": "UTC",
        "python_enable_replacements": False,
        # It would find the rows of a `limit` first, sort them all, and read the columns afterwards: for 900,000 of a
        # million rows 85 MB more, and twice the CPU time.
        "disabled_optimizers": "late_materialization",
        # It reads a column of a whole row group at once, which may be more than the limit.
        "disable_parquet_prefetching": True,
    }
    with duckdb.connect(config=settings) as connection:
        yield connection


def lock_down(connection: duckdb.DuckDBPyConnection, folders: Sequence[Path], files: Sequence[Path | str] = ()) -> None:
    """From now on the connection opens only these files or URLs and what lies in these folders; it is not undone."""
    connection.execute(f"set allowed_directories = {literal_list([f'{folder}/' for folder in folders])}")
    connection.execute(f"set allowed_paths = {literal_list(files)}")
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")


def kept(connection: duckdb.DuckDBPyConnection, query: str, limit: int | None, scratch: Path) -> str:
    """The query's rows, the first `limit` of them, in a file: a SQL table expression for any connection."""
    cursor = connection.execute(f"select * from ({query}\n) limit 0")
    # Parquet would keep these as floating-point numbers.
    wide = [column[0] for column in cursor.description or () if str(column[1]) in ("HUGEINT", "UHUGEINT")]
    exact = ", ".join(f"cast({quoted(name)} as DECIMAL(38, 0)) as {quoted(name)}" for name in wide)
    chosen = f"* replace ({exact})" if exact else "*"
    target = scratch / "rows.parquet"
    connection.execute(
        f"copy (select {chosen} from ({query}\n) {'' if limit is None else f'limit {limit}'}) to {literal(target)} "
        f"(format parquet, compression zstd, compression_level 1, row_group_size {ROW_GROUP_ROWS})"
    )
    return f"read_parquet({literal(target)})"
