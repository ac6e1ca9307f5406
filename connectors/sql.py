"""SQL for DuckDB: quoting, parsing of users' queries, paths in them, and connections for one query."""

import contextlib
import functools
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pyarrow as pa

from connectors.errors import JobError, KeyPath

QUERY_MEMORY_LIMIT = "64MB"
"""For Rowmill's own queries, whose working set is small and spills to disk."""
USER_QUERY_MEMORY_LIMIT = "512MB"
"""For the queries of job files, which may join and sort anything."""
SCRATCH_ROW_GROUP_ROWS = 8192
"""In Parquet files of the scratch folder."""
_SPILL_FOLDER = "spill"
"""In the scratch folder: what does not fit into a memory limit."""
_FILE_FUNCTION = re.compile(r"(read|parquet|iceberg)_\w+|st_read\w*|\w+_scan|glob|sniff_csv", re.IGNORECASE)
"""Table functions whose first argument is a path. That of others, such as `unnest`, is a value."""

# Text of a query.


def identifier(name: str) -> str:
    """Quote a name, whatever characters it contains."""
    return '"' + name.replace('"', '""') + '"'


def identifier_list(names: Iterable[str]) -> str:
    """Quote names, with commas between them."""
    return ", ".join(identifier(name) for name in names)


def key_text(names: Sequence[str], column: Callable[[str], str] = identifier) -> str:
    """SQL of a key as text: the value of one column, or the JSON array of several; `column`: SQL of a column."""
    values = [column(name) for name in names]
    value = values[0] if len(values) == 1 else f"json_array({', '.join(values)})"
    return f"cast({value} as VARCHAR)"


def literal(value: str | Path) -> str:
    """Quote a string constant."""
    return "'" + str(value).replace("'", "''") + "'"


def literal_path(path: Path | str) -> str:
    """Return a path that DuckDB reads as it is: without this it expands `*`, `?` and `[` in names. URLs stay."""
    return str(path) if "://" in str(path) else re.sub(r"[*?\[]", r"[\g<0>]", str(path))


def literal_list(values: Iterable[str | Path]) -> str:
    """Return a list of string constants."""
    return "[" + ", ".join(literal(value) for value in values) + "]"


def no_rows(schema: pa.Schema) -> str:
    """Return a table expression of these columns without rows."""
    with parser_connection() as db:
        db.register("empty", schema.empty_table())
        described = db.execute("describe empty").fetchall()
        db.unregister("empty")
    nulls = ", ".join(f"cast(null as {kind}) as {identifier(name)}" for name, kind, *_ in described)
    return f"(select {nulls} where false)"


def first_line(error: Exception) -> str:
    """Return DuckDB's description of an error, without the SQL around it."""
    line = str(error).strip().split("\n", 1)[0]
    kind, separator, description = line.partition(" Error: ")
    is_prefix = separator and " " not in kind.removeprefix("Invalid ").removeprefix("Out of ")
    return (description if is_prefix else line).rstrip(". ")


# Users' queries as trees, before they run.


def parse_sql(connection: duckdb.DuckDBPyConnection, sql: str, where: str | KeyPath, remedy: str) -> Any:
    """Return DuckDB's tree of the statements; JobError `where: WHAT; remedy` for anything but SELECT."""
    try:
        serialized = connection.execute("select json_serialize_sql(?)", [sql]).fetchone()
    except duckdb.Error as exc:
        raise JobError(where, first_line(exc), remedy) from exc
    parsed: Any = orjson.loads(serialized[0]) if serialized else {"error": True}
    if parsed["error"]:
        found = str(parsed.get("error_message", "cannot be read")).split("\n", 1)[0]
        raise JobError(where, "is not a SELECT" if found.startswith("Only SELECT") else found, remedy)
    return parsed


def resolve_paths(connection: duckdb.DuckDBPyConnection, query: str, folder: Path, where: KeyPath) -> str:
    """Return the query with the relative paths of table functions and of `from 'file'` made absolute.

    They start at `folder`. JobError at `where` for anything but a single SELECT.
    """
    parsed = parse_sql(connection, query, where, "write one SELECT")
    if len(parsed["statements"]) != 1:
        raise JobError(where, f"has {len(parsed['statements'])} statements", "write one SELECT")
    _resolve_paths_in(parsed, folder)
    text = connection.execute("select json_deserialize_sql(?)", [orjson.dumps(parsed).decode()]).fetchone()
    assert text is not None
    return str(text[0])


def _resolve_paths_in(node: Any, folder: Path) -> None:
    if isinstance(node, list):
        for child in node:
            _resolve_paths_in(child, folder)
    elif isinstance(node, dict):
        if node.get("type") == "TABLE_FUNCTION" and _FILE_FUNCTION.fullmatch(node["function"]["function_name"]):
            _resolve_first_argument(node["function"]["arguments"], folder)
        elif node.get("type") == "BASE_TABLE" and _is_path(str(node["table_name"])):
            node["table_name"] = _absolute_path(str(node["table_name"]), folder)
            node["qualified_name"] = {"path": [node["table_name"]]}
        for child in node.values():
            _resolve_paths_in(child, folder)


def _resolve_first_argument(arguments: list[Any], folder: Path) -> None:
    """Resolve the first argument, a path or a list of paths; the named ones are options."""
    for argument in arguments[:1]:
        expression = argument["expression"]
        for constant in [expression, *(inner["expression"] for inner in expression.get("arguments", ()))]:
            value = constant.get("literal")
            if isinstance(value, dict) and value.get("kind") == "STRING":
                value["text"] = _absolute_path(value["text"], folder)


def _is_path(name: str) -> bool:
    return "/" in name or "." in name


def _absolute_path(path: str, folder: Path) -> str:
    return path if "://" in path else str(folder / path)


# Connections.


def parser_connection() -> duckdb.DuckDBPyConnection:
    """Open a connection that parses, describes and makes texts: all share a database, which takes long to open.

    Nothing may be attached to it, and no setting of it may be changed.
    """
    with _PARSER_LOCK:
        # A forked process must not use that of its parent.
        return _parser_database(os.getpid()).cursor()


@functools.cache
def _parser_database(process: int) -> duckdb.DuckDBPyConnection:
    return duckdb.connect(config={"threads": 1, "memory_limit": QUERY_MEMORY_LIMIT})


_PARSER_LOCK = threading.Lock()


@contextlib.contextmanager
def query_connection(scratch: Path, memory_limit: str = QUERY_MEMORY_LIMIT) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a separate database for the SQL of a job file. `scratch`: folder to which it spills."""
    scratch.mkdir(parents=True, exist_ok=True)
    with _open_database(scratch / _SPILL_FOLDER, memory_limit) as connection:
        yield connection


def _open_database(spill: Path, memory_limit: str) -> duckdb.DuckDBPyConnection:
    settings: dict[str, str | bool | int | float | list[str]] = {
        # A second thread holds another row group, and a run uses the other core itself.
        "threads": 1,
        "memory_limit": memory_limit,
        "temp_directory": str(spill),
        "autoinstall_known_extensions": False,
        "TimeZone": "UTC",
        "python_enable_replacements": False,
        # It finds the rows of a `limit` first, sorts them all, and reads the columns afterwards: for 900,000 of a
        # million rows 85 MB more, and twice the CPU time.
        "disabled_optimizers": "late_materialization",
        # It reads a column of a whole row group at once, which may be more than the limit.
        "disable_parquet_prefetching": True,
    }
    return duckdb.connect(config=settings)


def scratch_connection(scratch: Path) -> contextlib.AbstractContextManager[duckdb.DuckDBPyConnection]:
    """Return a `reused_connection` that spills to the scratch folder."""
    return reused_connection(scratch / _SPILL_FOLDER)


@contextlib.contextmanager
def reused_connection(spill: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a connection for Rowmill's own SQL, to an empty database with no other user meanwhile.

    It is used again afterwards, since a new one takes 25 ms: settings may not be changed. `spill`: folder to which it
    spills.
    """
    # A forked process must not use those of its parent.
    idle = _IDLE_DATABASES.setdefault(os.getpid(), [])
    try:
        database = idle.pop()
    except IndexError:
        database = _open_database(spill, QUERY_MEMORY_LIMIT)
    try:
        with database.cursor() as connection:
            connection.execute(f"set temp_directory = {literal(spill)}")
            yield connection
            attached = connection.execute("select 1 from duckdb_databases() where not internal").fetchall()
    except BaseException:
        # Some errors make DuckDB refuse everything. Closing also closes the files that are attached.
        database.close()
        raise
    # The folder of one that has spilled can never be changed.
    if idle or len(attached) > 1 or spill.exists():
        database.close()
    else:
        idle.append(database)


_IDLE_DATABASES: dict[int, list[duckdb.DuckDBPyConnection]] = {}
"""Process -> at most one database that is not in use."""


def lock_down(connection: duckdb.DuckDBPyConnection, folders: Sequence[Path], files: Sequence[Path | str] = ()) -> None:
    """Restrict the connection to these files or URLs and to files in these folders, permanently."""
    names = [name for folder in folders for name in (f"{folder}/", f"{literal_path(folder)}/")]
    connection.execute(f"set allowed_directories = {literal_list(names)}")
    connection.execute(f"set allowed_paths = {literal_list(files)}")
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")
