"""Scheduler: due times of jobs, missed due times, and which due runs may start.

A job at a fixed time runs once on each day of a clock change: at the first valid time if its time is skipped, at the
first of both if its time occurs twice (as Debian's cron does).
"""

import functools
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

from cronsim import CronSim
from msgspec import Struct, field

from connectors.errors import JobError
from pipelines.config.loaded_job import LoadedJob, load_job
from pipelines.config.workspace import Workspace
from pipelines.ledger.ledger_file import open_ledger_file
from pipelines.ledger.ledger_reader import LedgerReader

MAX_CLOCK_CORRECTION = timedelta(hours=1)
"""A last due time that is further in the future comes from a wrong clock; a nearer one only delays the next run."""

FINISHED = frozenset({0, 1})
"""Exit codes after which the jobs that read this one's results may start."""


class ScheduledJob(Struct, frozen=True):
    """A job with a schedule."""

    path: Path
    """As the user gave it."""
    name: str
    cron: str
    workspace: Workspace
    upstream: tuple[str, ...]
    """The jobs whose results it reads."""

    @property
    def key(self) -> tuple[Path, str]:
        """Unique among the jobs of several workspaces."""
        return (self.workspace.folder, self.name)

    @property
    def zone(self) -> tzinfo:
        return self.workspace.zone


def next_due(cron: str, after: datetime, zone: tzinfo) -> datetime | None:
    """Return the first due time later than `after`, in the zone; None if there is none within 50 years."""
    return next(CronSim(cron, after.astimezone(zone)), None)


def latest_due(cron: str, since: datetime, now: datetime, zone: tzinfo) -> datetime | None:
    """Return the last due time later than `since` and not later than `now`, or None."""
    # Backwards from a second later, so that `now` itself counts; when the clock goes forward, that may return a time in
    # the future.
    for due in CronSim(cron, (now + timedelta(seconds=1)).astimezone(zone), reverse=True):
        # In UTC: times of one zone are compared by their digits, which occur twice when the clock goes back.
        if due.astimezone(UTC) <= now.astimezone(UTC):
            return due if due.astimezone(UTC) > since.astimezone(UTC) else None
    return None


def load_scheduled_jobs(paths: Iterable[Path], named: frozenset[Path]) -> list[ScheduledJob]:
    """Return the jobs with a schedule; JobError if a file is invalid, or a file in `named` has no schedule."""
    jobs: dict[tuple[Path, str], ScheduledJob] = {}
    for path in paths:
        loaded = load_job(path)
        if loaded.job.schedule is None:
            if path in named:
                raise JobError(
                    path, "has no schedule", f'add e.g. schedule: "0 2 * * *", or run it: rowmill run {path}'
                )
            continue
        job = scheduled_job(loaded)
        if job.key in jobs:
            raise JobError(path, f"{job.name} is the name of {jobs[job.key].path} as well", "give each its own name")
        jobs[job.key] = job
    return list(jobs.values())


def scheduled_job(loaded: LoadedJob) -> ScheduledJob:
    """Return the schedule of a job that has one."""
    assert loaded.job.schedule is not None
    upstream = tuple(loaded.job.needed_jobs)
    return ScheduledJob(loaded.path, loaded.job.name, loaded.job.schedule, loaded.workspace, upstream)


class ScheduledJobs:
    """Scheduled jobs of files that may be edited meanwhile: changed files are read again."""

    def __init__(self, files: Callable[[], Sequence[Path]], named: frozenset[Path]) -> None:
        """`files`: lists the job files; called each time."""
        self._files = files
        self._named = named
        self.on_problem: Callable[[str], None] = lambda problem: None
        """Called with the error in an edited file."""
        self._versions: dict[Path, tuple[int, int]] | None = None
        self._jobs: list[ScheduledJob] = []
        self._problem = ""

    def jobs(self) -> Sequence[ScheduledJob]:
        """Return the present jobs; the previous ones if an edited file is invalid. JobError at the first call."""
        is_first = self._versions is None
        try:
            files = self._files()
            versions = {path: (stat.st_mtime_ns, stat.st_size) for path in files if (stat := _stat(path)) is not None}
            if versions != self._versions:
                self._versions = versions
                self._jobs = load_scheduled_jobs(files, self._named)
        except JobError as exc:
            if is_first:
                raise
            self._report_once(f"{exc} (the schedules stay as they were)")
        return self._jobs

    def _report_once(self, problem: str) -> None:
        """Report a problem unless it is the last reported one."""
        if problem != self._problem:
            self._problem = problem
            self.on_problem(problem)


class DueTimeStore:
    """Claimed due times in the ledger of a workspace: shared by all processes, preserved over restarts."""

    def __init__(self, workspace: Workspace) -> None:
        self._path = workspace.state / "ledger.sqlite"
        self._durability = workspace.durability

    def claim(
        self, job: ScheduledJob, now: datetime, on_clock_change: Callable[[datetime], None] = lambda last_due: None
    ) -> datetime | None:
        """Claim and return the last missed due time; None if nothing is due.

        A job that is new, or has another schedule than before, has missed nothing. Nor has a job whose last due time is
        in the future, because the clock was ahead then or is behind now: `on_clock_change` is called with that time.
        """
        with self._open() as db:
            row = db.execute("select cron, last_due from schedule where job = ?", (job.name,)).fetchone()
            is_ahead = row is not None and row[1] > _microseconds(now + MAX_CLOCK_CORRECTION)
            if is_ahead:
                on_clock_change(_from_microseconds(row[1]))
            if row is None or row[0] != job.cron or is_ahead:
                db.execute(
                    "insert into schedule (job, cron, last_due) values (?, ?, ?) "
                    "on conflict (job) do update set cron = excluded.cron, last_due = excluded.last_due",
                    (job.name, job.cron, _microseconds(now)),
                )
                return None
            due = latest_due(job.cron, _from_microseconds(row[1]), now, job.zone)
            if due is None:
                return None
            updated = db.execute(
                "update schedule set last_due = ? where job = ? and last_due = ?",
                (_microseconds(due), job.name, row[1]),
            )
            # Another process may have claimed it first.
            return due if updated.rowcount else None

    def restore(self, job: ScheduledJob, due: datetime) -> None:
        """Make this due time count as missed: its run was interrupted."""
        with self._open() as db:
            db.execute(
                "update schedule set last_due = ? where job = ? and last_due = ?",
                (_microseconds(due) - 1, job.name, _microseconds(due)),
            )

    def record_skipped(self, job: ScheduledJob, due: datetime, why: str) -> None:
        """Record that nothing was started for this due time."""
        with self._open() as db:
            db.execute("update schedule set skipped = ?, why = ? where job = ?", (_microseconds(due), why, job.name))

    def last_due_times(self, name: str) -> tuple[datetime, datetime | None, str | None] | None:
        """Return (last claimed due time, last skipped one, reason) of a job; None if it is unknown."""
        if not self._path.exists():
            return None
        with LedgerReader(self._path) as ledger:
            # A ledger of the first version may lack the table.
            if not ledger.query("select 1 from sqlite_master where name = 'schedule'"):
                return None
            rows = ledger.query("select last_due, skipped, why from schedule where job = ?", (name,))
        for last_due, skipped, why in rows:
            return _from_microseconds(last_due), None if skipped is None else _from_microseconds(skipped), why
        return None

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with closing(open_ledger_file(self._path, self._durability)) as db:
            yield db


class DueRun(Struct, frozen=True):
    """A job to be started for a due time."""

    job: ScheduledJob
    due: datetime


class Scheduler(Struct):
    """Decides which due runs start, without processes and clock."""

    parallel: int
    """Maximum number of jobs at a time."""
    skipped: Callable[[DueRun, str], None]
    """Called with each due run that is not started, and the reason."""
    on_clock_change: Callable[[ScheduledJob, datetime], None] = lambda job, last_due: None
    """Called with a job whose last due time was in the future and is no longer trusted."""
    waiting: dict[tuple[Path, str], DueRun] = field(default_factory=dict)
    """Due and not started yet."""
    running: dict[tuple[Path, str], DueRun] = field(default_factory=dict)

    def collect_due(self, jobs: Iterable[ScheduledJob], now: datetime) -> None:
        """Claim what has become due."""
        for job in jobs:
            due = DueTimeStore(job.workspace).claim(job, now, functools.partial(self.on_clock_change, job))
            if due is None:
                continue
            due_run = DueRun(job, due)
            if job.key in self.running or job.key in self.waiting:
                began = (self.running.get(job.key) or self.waiting[job.key]).due
                self._skip(due_run, f"the run that was due at {_format_time(began)} is still running")
            else:
                self.waiting[job.key] = due_run

    def start_ready(self) -> list[DueRun]:
        """Mark as running and return what may start now; a job waits for the job whose results it reads."""
        # In a circle, every job waits: start the first, so that `run` reports the error.
        ready = [due_run for due_run in self.waiting.values() if not self._is_waiting_for_upstream(due_run)]
        if not ready and not self.running:
            ready = list(self.waiting.values())[:1]
        chosen = ready[: self.parallel - len(self.running)]
        for due_run in chosen:
            self.running[due_run.job.key] = self.waiting.pop(due_run.job.key)
        return chosen

    def finish(self, due_run: DueRun, exit_code: int) -> None:
        """Record the end of a job; jobs that wait for its results are skipped if it has none."""
        del self.running[due_run.job.key]
        if exit_code in FINISHED:
            return
        for waiting in list(self.waiting.values()):
            if waiting.job.key in self.waiting and due_run.job.key in _upstream_keys(waiting.job):
                del self.waiting[waiting.job.key]
                self._skip(waiting, f"{due_run.job.name}, whose results it reads, ended with exit code {exit_code}")
                self._skip_dependents(waiting)

    def _skip_dependents(self, dropped: DueRun) -> None:
        for waiting in list(self.waiting.values()):
            if waiting.job.key in self.waiting and dropped.job.key in _upstream_keys(waiting.job):
                del self.waiting[waiting.job.key]
                self._skip(waiting, f"{dropped.job.name}, whose results it reads, was not started")
                self._skip_dependents(waiting)

    def _is_waiting_for_upstream(self, due_run: DueRun) -> bool:
        return any(above in self.running or above in self.waiting for above in _upstream_keys(due_run.job))

    def _skip(self, due_run: DueRun, why: str) -> None:
        DueTimeStore(due_run.job.workspace).record_skipped(due_run.job, due_run.due, why)
        self.skipped(due_run, why)


def seconds_until_next(jobs: Iterable[ScheduledJob], now: datetime, longest: float) -> float:
    """Return the time until the next job is due, at most `longest`: clocks are adjusted and files edited meanwhile."""
    dues = [due for job in jobs if (due := next_due(job.cron, now, job.zone)) is not None]
    return min([longest, *((due - now).total_seconds() for due in dues)])


def _upstream_keys(job: ScheduledJob) -> tuple[tuple[Path, str], ...]:
    return tuple((job.workspace.folder, name) for name in job.upstream)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _microseconds(moment: datetime) -> int:
    """Microseconds since 1970, UTC; exact for whole seconds."""
    return round(moment.timestamp() * 1e6)


def _from_microseconds(microseconds: int) -> datetime:
    return datetime.fromtimestamp(microseconds / 1e6, UTC)


def _format_time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M")
