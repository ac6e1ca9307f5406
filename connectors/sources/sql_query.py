"""`sql:` a SELECT over files below the workspace and results of other jobs, run once before the first row is read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

import duckdb
from pydantic import Field, model_validator

from connectors.contracts import OpenedSource, SourceContext, SourceModel
from connectors.errors import FieldError, JobError, KeyPath
from connectors.sources.columns.column_types import materialize
from connectors.sources.results_snapshot import ResultsSnapshot, open_results, read_snapshot
from connectors.sql import (
    USER_QUERY_MEMORY_LIMIT,
    first_line,
    identifier,
    literal_path,
    lock_down,
    query_connection,
    resolve_paths,
)

ViewName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class SqlSource(SourceModel):
    """Any SELECT of DuckDB. Its relative paths start at the workspace; other folders cannot be read."""

    sql: str = Field(min_length=1, description="SELECT ... over files by DuckDB's functions, e.g. read_parquet('x').")
    jobs: dict[ViewName, str] = Field(
        default_factory=dict,
        description="Name in the query -> job of the workspace, whose committed results it reads.",
        examples=[{"tickets": "ticket-enrichment"}],
    )

    @model_validator(mode="after")
    def _check_view_names(self) -> Self:
        seen: set[str] = set()
        for name in self.jobs:
            if name.lower() in seen:
                raise FieldError(
                    "differs from another name in case only", "SQL ignores case: rename it", ("jobs", name)
                )
            seen.add(name.lower())
        return self

    @property
    def needed_jobs(self) -> Mapping[str, KeyPath]:
        return {job: ("jobs", view) for view, job in self.jobs.items()}

    def paths(self, facts: SourceContext) -> tuple[Path, ...]:
        """No files: `connect` copies the rows to the scratch folder."""
        return ()

    def connect(self, connection: duckdb.DuckDBPyConnection, facts: SourceContext) -> OpenedSource:
        sinks = {view: open_results(facts, job, ("source", "jobs", view)) for view, job in self.jobs.items()}
        return read_snapshot(sinks, ("source", "jobs"), lambda snapshot: self._read(snapshot, facts))

    def _read(self, snapshot: ResultsSnapshot, facts: SourceContext) -> OpenedSource:
        query = self.sql.strip().rstrip(";")
        with query_connection(facts.scratch, USER_QUERY_MEMORY_LIMIT) as db:
            query = resolve_paths(db, query, facts.workspace, ("source", "sql"))
            for view, results in snapshot.attach(db).items():
                db.execute(f"create view {identifier(view)} as {results}")
            files = (*snapshot.files, *map(literal_path, snapshot.files))
            lock_down(db, [facts.workspace, *facts.roots, facts.scratch], files)
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
