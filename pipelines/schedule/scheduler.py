"""Schedules: when each job is due, which due times were missed, and what has been started for them.

A job at a fixed time runs once on both nights of the clock change: at the first valid moment where its time is left
out, at the first of the two where it comes twice (as Debian's cron does).
"""

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

from cronsim import CronSim

from connectors.errors import JobError
from pipelines.config.loaded_job import LoadedJob, load_job
from pipelines.config.workspace import Workspace
from pipelines.ledger.ledger_file import open_ledger_file

FINISHED = frozenset({0, 1})
"""Exit codes after which the jobs that read this one's results may start."""


@dataclass(frozen=True, slots=True)
class ScheduledJob:
    """A job that is run by the clock."""

    path: Path
    """As the user gave it."""
    name: str
    cron: str
    workspace: Workspace
    upstream: str | None
    """The job whose results it reads."""

    @property
    def key(self) -> tuple[Path, str]:
        """What tells jobs of several workspaces apart."""
        return (self.workspace.folder, self.name)

    @property
    def zone(self) -> tzinfo:
        return self.workspace.zone


def next_due(cron: str, after: datetime, zone: tzinfo) -> datetime | None:
    """The first due time later than `after`, in the zone; None where there is none (within 50 years)."""
    return next(CronSim(cron, after.astimezone(zone)), None)


def latest_due(cron: str, since: datetime, now: datetime, zone: tzinfo) -> datetime | None:
    """The last due time that is later than `since` and not later than `now`; None where there is none."""
    # Backwards from a second later, so that `now` itself counts; where the clock is put forward, that may tell a moment
    # that is still to come.
    for due in CronSim(cron, (now + timedelta(seconds=1)).astimezone(zone), reverse=True):
        # In UTC: two times of one zone are compared by their digits, which the night in autumn has twice.
        if due.astimezone(UTC) <= now.astimezone(UTC):
            return due if due.astimezone(UTC) > since.astimezone(UTC) else None
    return None


def load_scheduled_jobs(paths: Iterable[Path], named: frozenset[Path]) -> list[ScheduledJob]:
    """The jobs among these files that have a schedule; JobError where a file is wrong, or one that was `named` by
    itself has none."""
    found: dict[tuple[Path, str], ScheduledJob] = {}
    for path in paths:
        loaded = load_job(path)
        if loaded.job.schedule is None:
            if path in named:
                raise JobError(
                    path, "has no schedule", f'add e.g. schedule: "0 2 * * *", or run it: rowmill run {path}'
                )
            continue
        job = scheduled_job(loaded)
        if job.key in found:
            raise JobError(path, f"{job.name} is the name of {found[job.key].path} as well", "give each its own name")
        found[job.key] = job
    return list(found.values())


def scheduled_job(loaded: LoadedJob) -> ScheduledJob:
    """The schedule of a job that has one."""
    assert loaded.job.schedule is not None
    upstream = getattr(loaded.job.source, "job", None)
    return ScheduledJob(loaded.path, loaded.job.name, loaded.job.schedule, loaded.workspace, upstream)


class ScheduledJobs:
    """The scheduled jobs of files that may be edited meanwhile: a file is read again when it has changed."""

    def __init__(self, files: Callable[[], Sequence[Path]], named: frozenset[Path]) -> None:
        """`files`: lists the job files; called at each look."""
        self._files = files
        self._named = named
        self.on_problem: Callable[[str], None] = lambda problem: None
        """Gets what is wrong with an edited file."""
        self._marks: dict[Path, tuple[int, int]] | None = None
        self._jobs: list[ScheduledJob] = []
        self._problem = ""

    def jobs(self) -> Sequence[ScheduledJob]:
        """The jobs as the files say now; as they were where an edited file is wrong. JobError at the first look."""
        first = self._marks is None
        try:
            files = self._files()
            marks = {path: (stat.st_mtime_ns, stat.st_size) for path in files if (stat := _stat(path)) is not None}
            if marks != self._marks:
                self._marks = marks
                self._jobs = load_scheduled_jobs(files, self._named)
        except JobError as exc:
            if first:
                raise
            self._once(f"{exc} (the schedules go on as they were)")
        return self._jobs

    def _once(self, problem: str) -> None:
        """Tell a problem, but not the one that was told last."""
        if problem != self._problem:
            self._problem = problem
            self.on_problem(problem)


class DueTimeStore:
    """The due times that were taken, in the ledger of a workspace: shared by all processes, kept over restarts."""

    def __init__(self, workspace: Workspace) -> None:
        self._path = workspace.state / "ledger.sqlite"

    def claim(self, job: ScheduledJob, now: datetime) -> datetime | None:
        """The due time that is to be run now, the last of those that were missed, and taken from now on; None where
        nothing is due. A job seen for the first time, or with another schedule than before, has missed nothing."""
        with self._opened() as db:
            found = db.execute("select cron, last_due from schedule where job = ?", (job.name,)).fetchone()
            if found is None or found[0] != job.cron:
                db.execute(
                    "insert into schedule (job, cron, last_due) values (?, ?, ?) "
                    "on conflict (job) do update set cron = excluded.cron, last_due = excluded.last_due",
                    (job.name, job.cron, _us(now)),
                )
                return None
            due = latest_due(job.cron, _moment(found[1]), now, job.zone)
            if due is None:
                return None
            taken = db.execute(
                "update schedule set last_due = ? where job = ? and last_due = ?", (_us(due), job.name, found[1])
            )
            # Another process may have been quicker.
            return due if taken.rowcount else None

    def restore(self, job: ScheduledJob, due: datetime) -> None:
        """What was started for this due time was cut short: it counts as missed."""
        with self._opened() as db:
            db.execute(
                "update schedule set last_due = ? where job = ? and last_due = ?", (_us(due) - 1, job.name, _us(due))
            )

    def record_skipped(self, job: ScheduledJob, due: datetime, why: str) -> None:
        """Note that nothing was started for this due time."""
        with self._opened() as db:
            db.execute("update schedule set skipped = ?, why = ? where job = ?", (_us(due), why, job.name))

    def last_due_times(self, name: str) -> tuple[datetime, datetime | None, str | None] | None:
        """(last due time taken, last one skipped, why) of a job; None where it was never looked at."""
        if not self._path.exists():
            return None
        with self._opened() as db:
            found = db.execute("select last_due, skipped, why from schedule where job = ?", (name,)).fetchone()
        return found and (_moment(found[0]), None if found[1] is None else _moment(found[1]), found[2])

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with closing(open_ledger_file(self._path)) as db:
            yield db


@dataclass(frozen=True, slots=True)
class DueRun:
    """A job to be started for a due time."""

    job: ScheduledJob
    due: datetime


@dataclass(slots=True)
class Scheduler:
    """Decides what is started; knows no processes and no clock."""

    parallel: int
    """Jobs that may run at the same time."""
    skipped: Callable[[DueRun, str], None]
    """Is told what was due and is not started, and why."""
    waiting: dict[tuple[Path, str], DueRun] = field(default_factory=dict)
    """Due and not started yet."""
    running: dict[tuple[Path, str], DueRun] = field(default_factory=dict)

    def collect_due(self, jobs: Iterable[ScheduledJob], now: datetime) -> None:
        """Take what has become due."""
        for job in jobs:
            due = DueTimeStore(job.workspace).claim(job, now)
            if due is None:
                continue
            start = DueRun(job, due)
            if job.key in self.running or job.key in self.waiting:
                began = (self.running.get(job.key) or self.waiting[job.key]).due
                self._skip(start, f"the run that was due at {_clock(began)} is still under way")
            else:
                self.waiting[job.key] = start

    def start_ready(self) -> list[DueRun]:
        """What may be started now, counted as running from here on; a job waits for the job whose results it reads."""
        # A circle of jobs waits for itself: its first is let through, and `run` tells what is wrong with it.
        free = [start for start in self.waiting.values() if not self._held(start)]
        if not free and not self.running:
            free = list(self.waiting.values())[:1]
        chosen = free[: self.parallel - len(self.running)]
        for start in chosen:
            self.running[start.job.key] = self.waiting.pop(start.job.key)
        return chosen

    def finish(self, start: DueRun, exit_code: int) -> None:
        """A started job has ended; what waits for its results is not started where there are none."""
        del self.running[start.job.key]
        if exit_code in FINISHED:
            return
        for waiting in list(self.waiting.values()):
            if _upstream_key(waiting.job) == start.job.key:
                del self.waiting[waiting.job.key]
                self._skip(waiting, f"{start.job.name}, whose results it reads, ended with exit code {exit_code}")
                self._drop_below(waiting)

    def _drop_below(self, dropped: DueRun) -> None:
        for waiting in list(self.waiting.values()):
            if _upstream_key(waiting.job) == dropped.job.key:
                del self.waiting[waiting.job.key]
                self._skip(waiting, f"{dropped.job.name}, whose results it reads, was not started")
                self._drop_below(waiting)

    def _held(self, start: DueRun) -> bool:
        above = _upstream_key(start.job)
        return above is not None and (above in self.running or above in self.waiting)

    def _skip(self, start: DueRun, why: str) -> None:
        DueTimeStore(start.job.workspace).record_skipped(start.job, start.due, why)
        self.skipped(start, why)


def seconds_until_next(jobs: Iterable[ScheduledJob], now: datetime, longest: float) -> float:
    """How long there is nothing to look at, at most `longest`: clocks are put right and files edited meanwhile."""
    dues = [due for job in jobs if (due := next_due(job.cron, now, job.zone)) is not None]
    return min([longest, *((due - now).total_seconds() for due in dues)])


def _upstream_key(job: ScheduledJob) -> tuple[Path, str] | None:
    return None if job.upstream is None else (job.workspace.folder, job.upstream)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _us(moment: datetime) -> int:
    """Microseconds since 1970, UTC; exact for whole seconds."""
    return round(moment.timestamp() * 1e6)


def _moment(microseconds: int) -> datetime:
    return datetime.fromtimestamp(microseconds / 1e6, UTC)


def _clock(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M")
