"""`job:` the results of another job, as they stand when the run begins."""

from pathlib import Path

import duckdb
from pydantic import Field

from connectors.contracts import Opened, SourceFacts, SourceModel
from connectors.errors import DataError, JobError, did_you_mean
from connectors.snapshot import kept, query_connection
from connectors.sql_text import first_line


class JobSource(SourceModel):
    """The columns of the other job's results table."""

    job: str = Field(description="Name of another job of the workspace.")

    def paths(self, facts: SourceFacts) -> tuple[Path, ...]:
        """None of its own: the rows are in the scratch folder once it is connected."""
        return ()

    def connect(self, connection: duckdb.DuckDBPyConnection, facts: SourceFacts) -> Opened:
        if self.job not in facts.jobs:
            raise JobError(f"source.job: {self.job}: no results of such a job; {did_you_mean(self.job, facts.jobs)}")
        limit = self.limit if self.where is None else None
        with query_connection(facts.scratch) as own:
            try:
                return Opened(kept(own, f"select * from {facts.jobs[self.job]}", limit, facts.scratch))
            except duckdb.Error as exc:
                raise DataError(f"job {self.job}: {first_line(exc)}; run that job first") from exc
