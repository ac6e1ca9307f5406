"""SQL of a job file as DuckDB parses it, before anything of it is run."""

from typing import Any

import duckdb
import orjson

from connectors.errors import JobError
from connectors.sql_text import first_line


def parsed_sql(connection: duckdb.DuckDBPyConnection, sql: str, where: str, remedy: str) -> Any:
    """DuckDB's tree of the statements; JobError `where: WHAT; remedy` for what is no SELECT."""
    try:
        found = connection.execute("select json_serialize_sql(?)", [sql]).fetchone()
    except duckdb.Error as exc:
        raise JobError(f"{where}: {first_line(exc)}; {remedy}") from exc
    parsed: Any = orjson.loads(found[0]) if found else {"error": True}
    if parsed["error"]:
        said = str(parsed.get("error_message", "cannot be read")).split("\n", 1)[0]
        raise JobError(f"{where}: {said}; {remedy}")
    return parsed
