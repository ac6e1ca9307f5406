"""SQL of a job file as DuckDB parses it, before anything of it is run."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import orjson

from connectors.errors import JobError, KeyPath


def quoted(name: str) -> str:
    """An identifier, whatever characters are in it."""
    return '"' + name.replace('"', '""') + '"'


def quoted_list(names: Iterable[str]) -> str:
    """Identifiers with commas between them."""
    return ", ".join(quoted(name) for name in names)


def literal(value: str | Path) -> str:
    """A string constant."""
    return "'" + str(value).replace("'", "''") + "'"


def literal_list(values: Iterable[str | Path]) -> str:
    """A list of string constants."""
    return "[" + ", ".join(literal(value) for value in values) + "]"


def first_line(error: Exception) -> str:
    """What DuckDB says is wrong, without the SQL around it."""
    line = str(error).strip().split("\n", 1)[0]
    head, colon, rest = line.partition(" Error: ")
    return (rest if colon and " " not in head.removeprefix("Invalid ").removeprefix("Out of ") else line).rstrip(". ")


def parsed_sql(connection: duckdb.DuckDBPyConnection, sql: str, where: str | KeyPath, remedy: str) -> Any:
    """DuckDB's tree of the statements; JobError `where: WHAT; remedy` for what is no SELECT."""
    try:
        found = connection.execute("select json_serialize_sql(?)", [sql]).fetchone()
    except duckdb.Error as exc:
        raise JobError(where, f"{first_line(exc)}", f"{remedy}") from exc
    parsed: Any = orjson.loads(found[0]) if found else {"error": True}
    if parsed["error"]:
        said = str(parsed.get("error_message", "cannot be read")).split("\n", 1)[0]
        raise JobError(where, f"{said}", f"{remedy}")
    return parsed


def rooted(connection: duckdb.DuckDBPyConnection, query: str, folder: Path, where: KeyPath) -> str:
    """The query with the relative paths of table functions and of `from 'file'` starting at the folder.

    JobError, placed by `where`, for what is no single SELECT.
    """
    parsed = parsed_sql(connection, query, where, "write one SELECT")
    if len(parsed["statements"]) != 1:
        raise JobError(where, f"holds {len(parsed['statements'])} statements", "write one SELECT")
    _root(parsed, folder)
    text = connection.execute("select json_deserialize_sql(?)", [orjson.dumps(parsed).decode()]).fetchone()
    assert text is not None
    return str(text[0])


def _root(node: Any, folder: Path) -> None:
    if isinstance(node, list):
        for inner in node:
            _root(inner, folder)
    elif isinstance(node, dict):
        if node.get("type") == "TABLE_FUNCTION":
            _root_arguments(node["function"]["arguments"], folder)
        elif node.get("type") == "BASE_TABLE" and _is_path(str(node["table_name"])):
            node["table_name"] = _absolute(str(node["table_name"]), folder)
            node["qualified_name"] = {"path": [node["table_name"]]}
        for inner in node.values():
            _root(inner, folder)


def _root_arguments(arguments: list[Any], folder: Path) -> None:
    """The first argument, a path or a list of them; named ones are options."""
    for argument in arguments[:1]:
        expression = argument["expression"]
        for constant in [expression, *(inner["expression"] for inner in expression.get("arguments", ()))]:
            literal = constant.get("literal")
            if isinstance(literal, dict) and literal.get("kind") == "STRING":
                literal["text"] = _absolute(literal["text"], folder)


def _is_path(name: str) -> bool:
    return "/" in name or name.endswith((".parquet", ".csv", ".json", ".jsonl", ".tsv", ".gz"))


def _absolute(path: str, folder: Path) -> str:
    return path if "://" in path else str(folder / path)


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
