"""Committed results of other jobs as one snapshot, also while those jobs commit."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import duckdb

from connectors.contracts import Sink, SourceContext
from connectors.errors import DataError, JobError, KeyPath, NoResultsYet, RowmillError, did_you_mean
from connectors.sql import identifier_list

MAX_READS = 5
"""Attempts to read tables that another run rewrites meanwhile."""
_INTERNAL_COLUMNS = ("_run_id", "_row_", "_part")
"""Beginnings of the names of bookkeeping columns."""

T = TypeVar("T")


class ResultsSnapshot:
    """The results of several jobs, as they were when `attach` was called."""

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        self._sinks = sinks
        self._files: dict[str, Mapping[str, str]] = {}

    def attach(self, connection: duckdb.DuckDBPyConnection) -> Mapping[str, str]:
        """Make the results readable; return the SELECT of each, without the columns that Rowmill itself uses."""
        queries: dict[str, str] = {}
        for name, sink in self._sinks.items():
            sink.attach(connection)
            relation = sink.results_sql()
            # After the relation: a file that is rewritten in between is read as it is then.
            self._files[name] = sink.results_files()
            columns = connection.execute(f"select * from {relation} limit 0").description or ()
            names = [str(column[0]) for column in columns if not str(column[0]).startswith(_INTERNAL_COLUMNS)]
            queries[name] = f"select {identifier_list(names)} from {relation}"
        return queries

    @property
    def files(self) -> tuple[str, ...]:
        """Paths and URLs that a locked connection must be allowed to read."""
        return tuple(file for files in self._files.values() for file in files)

    def is_current(self) -> bool:
        """Whether every file that can be rewritten is still as it was; further ones do not matter."""
        for name, files in self._files.items():
            present = self._sinks[name].results_files() if any(files.values()) else {}
            if any(version and present.get(file) != version for file, version in files.items()):
                return False
        return True


def open_results(facts: SourceContext, job: str, where: KeyPath) -> Sink:
    """Return the sink of a job with results; JobError for an unknown job, DataError for one without results."""
    sink = facts.jobs.get(job)
    if sink is None:
        raise JobError(where, f"{job}: no such job", did_you_mean(job, facts.jobs))
    if not sink.exists():
        raise NoResultsYet(where, f"{job} has no results yet", "run that job first")
    return sink


def read_snapshot(sinks: Mapping[str, Sink], where: KeyPath, read: Callable[[ResultsSnapshot], T]) -> T:
    """Return what `read` returns, on a connection of its own, of files that did not change meanwhile.

    It is called again after a change. DataError if the files change every time.
    """
    for _ in range(MAX_READS):
        snapshot = ResultsSnapshot(sinks)
        try:
            value = read(snapshot)
        except (RowmillError, duckdb.Error, OSError):
            if snapshot.is_current():
                raise
        else:
            if snapshot.is_current():
                return value
    jobs = ", ".join(sinks)
    raise DataError(where, f"the results of {jobs} change while they are read", "run again when that job has ended")
