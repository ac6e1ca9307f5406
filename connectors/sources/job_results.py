"""`job:` the results of another job at the start of the run."""

from collections.abc import Mapping
from pathlib import Path

import duckdb
from pydantic import Field

from connectors.contracts import OpenedSource, SourceContext, SourceModel
from connectors.errors import DataError, KeyPath
from connectors.sources.columns.column_types import materialize
from connectors.sources.results_snapshot import ResultsSnapshot, open_results, read_snapshot
from connectors.sql import first_line, scratch_connection


class JobSource(SourceModel):
    """The columns of the other job's results table."""

    job: str = Field(description="Name of another job of the workspace.")

    @property
    def needed_jobs(self) -> Mapping[str, KeyPath]:
        return {self.job: ("job",)}

    def paths(self, facts: SourceContext) -> tuple[Path, ...]:
        """No files: `connect` copies the rows to the scratch folder."""
        return ()

    def connect(self, connection: duckdb.DuckDBPyConnection, facts: SourceContext) -> OpenedSource:
        where = ("source", "job")
        sink = open_results(facts, self.job, where)
        limit = self.limit if self.where is None else None

        def read(snapshot: ResultsSnapshot) -> OpenedSource:
            with scratch_connection(facts.scratch) as db:
                query = snapshot.attach(db)[self.job]
                try:
                    return OpenedSource(materialize(db, query, limit, facts.scratch))
                except duckdb.Error as exc:
                    raise DataError(where, f"{self.job}: {first_line(exc)}", "run that job again") from exc
                finally:
                    sink.detach(db)

        return read_snapshot({self.job: sink}, where, read)
