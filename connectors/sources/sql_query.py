"""`sql:` a SELECT over files below the workspace and its roots, run once before the first row is read."""

from pathlib import Path

import duckdb
from pydantic import Field

from connectors.contracts import OpenedSource, SourceContext, SourceModel
from connectors.errors import JobError
from connectors.sources.column_types import materialize
from connectors.sql import USER_QUERY_MEMORY_LIMIT, first_line, lock_down, query_connection, resolve_paths


class SqlSource(SourceModel):
    """Any SELECT of DuckDB. Its relative paths start at the workspace; other folders cannot be read."""

    sql: str = Field(min_length=1, description="SELECT ... over files by DuckDB's functions, e.g. read_parquet('x').")

    def paths(self, facts: SourceContext) -> tuple[Path, ...]:
        """No files: `connect` copies the rows to the scratch folder."""
        return ()

    def connect(self, connection: duckdb.DuckDBPyConnection, facts: SourceContext) -> OpenedSource:
        query = self.sql.strip().rstrip(";")
        with query_connection(facts.scratch, USER_QUERY_MEMORY_LIMIT) as db:
            query = resolve_paths(db, query, facts.workspace, ("source", "sql"))
            lock_down(db, [facts.workspace, *facts.roots, facts.scratch])
            try:
                limit = self.limit if self.where is None else None
                return OpenedSource(materialize(db, query, limit, facts.scratch))
            except duckdb.PermissionException as exc:
                raise JobError(
                    ("source", "sql"),
                    first_line(exc),
                    f"read files below {facts.workspace}, or add the folder to `roots` in rowmill.yaml",
                ) from exc
            except duckdb.Error as exc:
                raise JobError(("source", "sql"), first_line(exc), "fix the query") from exc
