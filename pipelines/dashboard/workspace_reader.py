"""What the page knows of a workspace: its job files, their last runs, what is running, the sums of its ledger."""

import os
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from connectors.errors import RowmillError
from pipelines.config.job_suggestions import JOBS_FOLDER, list_job_files
from pipelines.config.loaded_job import LoadedJob, load_job, read_job_name
from pipelines.config.workspace import Workspace
from pipelines.config.workspace_file import FILE_NAME
from pipelines.dashboard.exchange_totals import ExchangeTotals
from pipelines.ledger.ledger_file import file_id
from pipelines.ledger.ledger_reader import LedgerReader
from pipelines.monitoring.run_heartbeat import read_last_heartbeat
from pipelines.reporting.status_queries import RecordedRun, job_status, last_runs, ledger_reader
from pipelines.runtime.locks import is_running, lock_path
from pipelines.schedule.scheduler import next_due

MIN_SECONDS = 0.9
"""A snapshot that is not older is used again."""
READ_SECONDS = 1.0
"""Longest time in which one snapshot reads exchanges; a large ledger takes several snapshots at first."""

FileVersion = tuple[int, int]
"""Time of the last change in nanoseconds, and size."""


class WatchedJob(Struct, frozen=True):
    """A job of the workspace: by its file, by its runs in the ledger, or by both."""

    name: str
    path: Path | None = None
    """None if no file describes it."""
    loaded: LoadedJob | None = None
    problem: str | None = None
    """Why its file cannot be read."""
    status: Mapping[str, Any] | None = None
    """As `rowmill status --json`; None if the job never ran."""
    live: Mapping[str, Any] | None = None
    """The heartbeat of the run in progress."""
    run: RecordedRun | None = None
    """Its newest run."""
    cron: str | None = None
    next_due: datetime | None = None
    skipped: str | None = None
    """When and why a scheduled run was not started."""

    def with_figures(self, live: Mapping[str, Any]) -> "WatchedJob":
        """Return the job with newer figures of its run in progress."""
        if self.run is None or self.status is None:
            return self
        newer = job_status(self.run, True, live, 0, None)
        spent = {name: self.status[name] for name in ("requests", "cost_usd")}
        return replace(self, live=live, status={**newer, **spent})

    @property
    def is_running(self) -> bool:
        return self.status is not None and self.status["state"] == "running"


class Snapshot(Struct, frozen=True):
    """A workspace at one moment."""

    at: datetime
    jobs: Sequence[WatchedJob]
    totals: ExchangeTotals
    problem: str | None
    """Why the ledger cannot be read."""

    @property
    def running_jobs(self) -> Sequence[LoadedJob]:
        """The jobs that are running and whose files can be read."""
        return [job.loaded for job in self.jobs if job.is_running and job.loaded is not None]

    def job(self, name: str) -> WatchedJob | None:
        """Return the job with this name."""
        return next((job for job in self.jobs if job.name == name), None)


class WorkspaceReader:
    """Reads a workspace again and again; it changes nothing, and the work grows with what is new."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._lock = threading.Lock()
        self._files = JobFiles(workspace.folder)
        self._running = RunningJobs(workspace.state)
        self._totals = ExchangeTotals()
        self._ledger_id: tuple[int, int] | None = None
        self._snapshot: Snapshot | None = None
        self._taken_at = 0.0

    @property
    def zone(self) -> tzinfo:
        return self.workspace.zone

    def snapshot(self) -> Snapshot:
        """Return the workspace as it is now, or was a second ago; blocks, from any thread."""
        with self._lock:
            if self._snapshot is None or time.monotonic() - self._taken_at > MIN_SECONDS:
                self._snapshot = self._read()
                self._taken_at = time.monotonic()
            return self._snapshot

    def open_ledger(self) -> LedgerReader | None:
        """Open the ledger for reading; None if there is none."""
        return ledger_reader(self.workspace)

    def _read(self) -> Snapshot:
        now = datetime.now(UTC)
        files = self._files.read()
        runs: Mapping[str, RecordedRun] = {}
        skipped: Mapping[str, str] = {}
        problem = None
        found = file_id(self.workspace.state / "ledger.sqlite")
        if found != self._ledger_id:
            # Another file, or none: the sums are of one ledger.
            self._totals, self._ledger_id = ExchangeTotals(), found
        try:
            ledger = self.open_ledger()
            if ledger is not None:
                with ledger:
                    self._totals.read(ledger, READ_SECONDS)
                    runs = {run.job: run for run in last_runs(ledger)}
                    skipped = _skipped_runs(ledger, self.zone)
        except RowmillError as exc:
            problem = str(exc)
        jobs = [self._job(file, runs.get(file.name), skipped.get(file.name), now) for file in files]
        named = {file.name for file in files}
        jobs += [self._job(JobFileState(run.job), run, None, now) for name, run in runs.items() if name not in named]
        return Snapshot(now, sorted(jobs, key=lambda job: job.name), self._totals, problem)

    def _job(self, file: "JobFileState", run: RecordedRun | None, skipped: str | None, now: datetime) -> WatchedJob:
        status = live = None
        if run is not None:
            under_way = self._running.is_running(file.name)
            live = read_last_heartbeat(self.workspace.state, file.name) if under_way else None
            totals = self._totals.of_run(run.run_id)
            status = job_status(run, under_way, live, totals.requests, totals.cost)
        cron = None if file.loaded is None else file.loaded.job.schedule
        due = None if cron is None else next_due(cron, now, self.zone)
        return WatchedJob(file.name, file.path, file.loaded, file.problem, status, live, run, cron, due, skipped)


class JobFileState(Struct, frozen=True):
    """A job file as it was last read."""

    name: str
    """The file's own name without suffix if the job has none that can be read."""
    path: Path | None = None
    loaded: LoadedJob | None = None
    problem: str | None = None


class JobFiles:
    """The job files of a workspace: in its folder and in its folder `jobs`; a changed one is read again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, tuple[FileVersion | None, FileVersion | None, JobFileState]] = {}

    def read(self) -> Sequence[JobFileState]:
        """Return the files of different jobs, sorted by path."""
        shared = _version(self._folder / FILE_NAME)
        paths = [*list_job_files(self._folder), *list_job_files(self._folder / JOBS_FOLDER)]
        before, self._read = self._read, {}
        for path in paths:
            version = _version(path)
            known = before.get(path)
            if known is None or known[:2] != (version, shared):
                known = (version, shared, _read_job_file(path))
            self._read[path] = known
        states: dict[str, JobFileState] = {}
        for *_, state in self._read.values():
            # Two files with one name: the first is shown, as `run` refuses both together.
            states.setdefault(state.name, state)
        return list(states.values())


def _read_job_file(path: Path) -> JobFileState:
    shown = Path(os.path.relpath(path))
    try:
        loaded = load_job(shown)
    except RowmillError as exc:
        return JobFileState(read_job_name(path) or path.stem, shown, problem=str(exc))
    return JobFileState(loaded.job.name, shown, loaded)


class RunningJobs:
    """Which jobs are running; a job's lock is touched only if it may have changed hands since the last look."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._idle: dict[str, FileVersion] = {}
        """Version of the lock files of jobs that were found not to run: a run that begins writes its process id."""

    def is_running(self, job: str) -> bool:
        """Return whether a process holds the job's lock."""
        version = _version(lock_path(self._state, job))
        if version is None or self._idle.get(job) == version:
            return False
        if is_running(self._state, job):
            self._idle.pop(job, None)
            return True
        self._idle[job] = version
        return False


def _skipped_runs(ledger: LedgerReader, zone: tzinfo) -> Mapping[str, str]:
    """Return job -> when and why its last scheduled run was not started."""
    if not ledger.query("select 1 from sqlite_master where name = 'schedule'"):
        return {}
    rows = ledger.query("select job, skipped, why from schedule where skipped is not null")
    return {job: f"{datetime.fromtimestamp(at / 1e6, zone):%Y-%m-%d %H:%M}: {why}" for job, at, why in rows}


def _version(path: Path) -> FileVersion | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size)
