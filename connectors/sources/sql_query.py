"""`sql:` a SELECT over files below the workspace and its roots, run once before the first row."""

from pathlib import Path

import duckdb
from pydantic import Field

from connectors.contracts import OpenedSource, SourceContext, SourceModel
from connectors.errors import JobError
from connectors.sql import AUTHORS_LIMIT, first_line, kept, lock_down, query_connection, rooted


class SqlSource(SourceModel):
    """Any SELECT of DuckDB; relative paths in it start at the workspace, no other folder can be read."""

    sql: str = Field(min_length=1, description="SELECT ... over files by DuckDB's functions, e.g. read_parquet('x').")

    def paths(self, facts: SourceContext) -> tuple[Path, ...]:
        """None of its own: the rows are in the scratch folder once it is connected."""
        return ()

    def connect(self, connection: duckdb.DuckDBPyConnection, facts: SourceContext) -> OpenedSource:
        query = self.sql.strip().rstrip(";")
        with query_connection(facts.scratch, AUTHORS_LIMIT) as own:
            query = rooted(own, query, facts.workspace, ("source", "sql"))
            lock_down(own, [facts.workspace, *facts.roots, facts.scratch])
            try:
                limit = self.limit if self.where is None else None
                return OpenedSource(kept(own, query, limit, facts.scratch))
            except duckdb.PermissionException as exc:
                raise JobError(
                    ("source", "sql"),
                    f"{first_line(exc)}",
                    f"read files below {facts.workspace}, or add the folder to `roots` in rowmill.yaml",
                ) from exc
            except duckdb.Error as exc:
                raise JobError(("source", "sql"), f"{first_line(exc)}", "mend the query") from exc
