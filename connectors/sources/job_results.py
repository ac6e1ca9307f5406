"""`job:` the results of another job at the start of the run."""

from pathlib import Path

import duckdb
from pydantic import Field

from connectors.contracts import OpenedSource, SourceContext, SourceModel
from connectors.errors import DataError, JobError, did_you_mean
from connectors.sources.column_types import materialize
from connectors.sql import first_line, identifier_list, query_connection


class JobSource(SourceModel):
    """The columns of the other job's results table."""

    job: str = Field(description="Name of another job of the workspace.")

    def paths(self, facts: SourceContext) -> tuple[Path, ...]:
        """No files: `connect` copies the rows to the scratch folder."""
        return ()

    def connect(self, connection: duckdb.DuckDBPyConnection, facts: SourceContext) -> OpenedSource:
        sink = facts.jobs.get(self.job)
        if sink is None:
            raise JobError(("source", "job"), f"{self.job}: no such job", did_you_mean(self.job, facts.jobs))
        if not sink.exists():
            raise DataError(("source", "job"), f"{self.job} has no results yet", "run that job first")
        limit = self.limit if self.where is None else None
        with query_connection(facts.scratch) as db:
            sink.attach(db)
            columns = db.execute(f"select * from {sink.results_sql()} limit 0").description or ()
            # The other job's bookkeeping columns.
            internal = ("_run_id", "_row_", "_part")
            names = identifier_list(str(column[0]) for column in columns if not str(column[0]).startswith(internal))
            try:
                return OpenedSource(materialize(db, f"select {names} from {sink.results_sql()}", limit, facts.scratch))
            except duckdb.Error as exc:
                raise DataError(("source", "job"), f"{self.job}: {first_line(exc)}", "run that job again") from exc
            finally:
                sink.detach(db)
