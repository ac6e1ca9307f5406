"""`job:` the results of another job, as they stand when the run begins."""

from pathlib import Path

import duckdb
from pydantic import Field

from connectors.contracts import OpenedSource, SourceContext, SourceModel
from connectors.errors import DataError, JobError, did_you_mean
from connectors.sql import first_line, kept, query_connection, quoted_list


class JobSource(SourceModel):
    """The columns of the other job's results table."""

    job: str = Field(description="Name of another job of the workspace.")

    def paths(self, facts: SourceContext) -> tuple[Path, ...]:
        """None of its own: the rows are in the scratch folder once it is connected."""
        return ()

    def connect(self, connection: duckdb.DuckDBPyConnection, facts: SourceContext) -> OpenedSource:
        sink = facts.jobs.get(self.job)
        if sink is None:
            raise JobError(("source", "job"), f"{self.job}: no such job", f"{did_you_mean(self.job, facts.jobs)}")
        if not sink.exists():
            raise DataError(("source", "job"), f"{self.job} has no results yet", "run that job first")
        limit = self.limit if self.where is None else None
        with query_connection(facts.scratch) as own:
            sink.attach(own)
            columns = own.execute(f"select * from {sink.results_sql()} limit 0").description or ()
            # What Rowmill notes about a row is the other job's own.
            theirs = ("_run_id", "_row_", "_part")
            names = quoted_list(str(column[0]) for column in columns if not str(column[0]).startswith(theirs))
            try:
                return OpenedSource(kept(own, f"select {names} from {sink.results_sql()}", limit, facts.scratch))
            except duckdb.Error as exc:
                raise DataError(("source", "job"), f"{self.job}: {first_line(exc)}", "run that job again") from exc
            finally:
                sink.detach(own)
