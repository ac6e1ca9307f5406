"""Facts of one job for its page: the state of its run, latencies, and its tables, each read no more than needed."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import duckdb
from msgspec import Struct, field

from connectors.errors import RowmillError
from pipelines.analysis.results import Results
from pipelines.analysis.results_key import results_key
from pipelines.control.client import send_request
from pipelines.control.protocol import ControlRequest
from pipelines.dashboard.cell_values import sample_table
from pipelines.dashboard.exchange_totals import Route, latency_percentiles
from pipelines.dashboard.job_tables import readable_sink, table_page
from pipelines.dashboard.workspace_reader import Snapshot, WatchedJob, WorkspaceReader
from pipelines.formatting import format_count
from pipelines.reporting.page.page_values import Table
from pipelines.reporting.status_queries import FailedRows, read_errors

T = TypeVar("T")

STATE_SECONDS = 0.9
"""A state of a run that is not older is used again."""
TABLES_SECONDS = 5.0
"""The same of a job's tables, and of its latencies."""
MAX_SHARE = 0.01
"""Most of the time that reading the same facts again may take, of one core."""
NEWEST_ROWS = 5
FAILED_ROWS = 10


class TableFacts(Struct, frozen=True):
    """What the page shows of a job's tables."""

    newest: Table | None = None
    results: int = 0
    failed: FailedRows = field(default=FailedRows([], 0, 0, []))
    problem: str | None = None
    """Why they cannot be read."""


class JobFacts(Struct, frozen=True):
    """What the page shows of a job besides the snapshot."""

    control: Mapping[str, Any] | None
    """The state of the run, as `rowmill control JOB --json`; None if there is no run, or it does not answer."""
    latencies: Mapping[Route, Sequence[float]]
    tables: TableFacts


class JobFactsReader:
    """Reads the facts of jobs that somebody looks at; they are kept for a while."""

    def __init__(self, reader: WorkspaceReader) -> None:
        self._reader = reader
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, str], Kept[Any]] = {}

    def read(self, job: WatchedJob, snapshot: Snapshot) -> JobFacts:
        """Return the facts of a job; blocks, from any thread."""
        requests = None if job.run is None else snapshot.totals.of_run(job.run.run_id).requests
        version = (job.run and job.run.run_id, requests, job.is_running)
        with self._lock:
            return JobFacts(
                self._get(job, "control", STATE_SECONDS, object(), self._control) if job.is_running else None,
                self._get(job, "latencies", TABLES_SECONDS, version, self._latencies),
                self._get(job, "tables", TABLES_SECONDS, version, lambda job: read_tables(job, snapshot)),
            )

    def forget_state(self, job: str) -> None:
        """Read the state of the job's run again at the next look: it was steered."""
        with self._lock:
            self._kept.pop((job, "control"), None)

    def _get(self, job: WatchedJob, name: str, seconds: float, version: object, read: Callable[[WatchedJob], T]) -> T:
        """Return what was read before if it has the same version or is not too old."""
        kept: Kept[T] | None = self._kept.get((job.name, name))
        now = time.monotonic()
        if kept is not None and (kept.version == version or now < kept.expires_at):
            return kept.value
        value = read(job)
        took = time.monotonic() - now
        self._kept[job.name, name] = Kept(value, version, time.monotonic() + max(seconds, took / MAX_SHARE))
        return value

    def _control(self, job: WatchedJob) -> Mapping[str, Any] | None:
        try:
            reply = send_request(self._reader.workspace.state, job.name, ControlRequest("state"), start_seconds=0)
        except RowmillError:
            # It is starting or ending; its heartbeat is shown.
            return None
        return reply.state

    def _latencies(self, job: WatchedJob) -> Mapping[Route, Sequence[float]]:
        if job.run is None:
            return {}
        try:
            ledger = self._reader.open_ledger()
            if ledger is None:
                return {}
            with ledger:
                return latency_percentiles(ledger, job.run.run_id)
        except RowmillError:
            # The page shows why the ledger cannot be read.
            return {}


class Kept(Struct, Generic[T], frozen=True):
    """A value that was read."""

    value: T
    version: object
    expires_at: float
    """Of time.monotonic()."""


def read_tables(job: WatchedJob, snapshot: Snapshot) -> TableFacts:
    """Read the newest results and the failed rows of a job."""
    if job.loaded is None:
        return TableFacts()
    try:
        sink = readable_sink(job.loaded, snapshot.running_jobs)
        if sink is None:
            return TableFacts()
        key = results_key(job.loaded.job)
        page = table_page(sink, key, "results", 0, NEWEST_ROWS)
        results = Results(job.loaded, job.loaded.workspace, sink)
        newest = sample_table(results, page, f"The newest {len(page.rows)} of {format_count(page.total, 'result')}")
        return TableFacts(newest if page.rows else None, page.total, read_errors(sink, key, FAILED_ROWS))
    except (RowmillError, duckdb.Error, OSError) as exc:
        # A run may be replacing a part, or hold the DuckDB file, at this moment.
        return TableFacts(problem=f"The tables cannot be read at the moment: {exc}")
