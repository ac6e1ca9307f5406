"""Scheduler daemon of `rowmill schedule run`: starts each due job as a child process."""

import asyncio
import signal
import sqlite3
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

from pipelines.ledger.ledger_file import FOLDER_REMEDY
from pipelines.monitoring.json_log import LogLevel, log_event
from pipelines.runtime.child_process import parent_pipe, rowmill_command, rowmill_environment
from pipelines.schedule.scheduler import (
    DueRun,
    DueTimeStore,
    ScheduledJob,
    ScheduledJobs,
    Scheduler,
    seconds_until_next,
)

MAX_SLEEP_SECONDS = 30.0
"""Files and clock are read again after this time, even if nothing is due."""

INTERRUPTED = frozenset({130, -signal.SIGINT, -signal.SIGTERM})
"""Exit codes of a job that a stop interrupted; the negative ones if it had not installed its handlers yet."""


@dataclass(slots=True)
class SchedulerDaemon:
    """Foreground process that starts due jobs until it is stopped."""

    scheduled_jobs: ScheduledJobs
    log: Literal["plain", "json"] = "plain"
    parallel: int = 4
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    command: Sequence[str] = field(default_factory=rowmill_command)
    exit_codes: list[int] = field(default_factory=list)
    """Exit codes of the jobs, in the order in which they ended."""
    _scheduler: Scheduler = field(init=False)
    _processes: dict[int, Process] = field(default_factory=dict)
    _waits: set[asyncio.Task[None]] = field(default_factory=set)
    """One for each running job."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _is_stopping: bool = False
    _has_interrupted: bool = False
    """Whether the stop interrupted a job."""
    _stdin: int = -1
    """Standard input of the jobs."""

    def __post_init__(self) -> None:
        self._scheduler = Scheduler(self.parallel, self._skipped, self._distrust)
        self.scheduled_jobs.on_problem = lambda problem: self.log_event("problem", problem, None, "warning")

    async def run(self, once: bool = False) -> int:
        """Run due jobs until a signal, or `once` those due now; return 130 if a job was interrupted, else 0."""
        with parent_pipe() as self._stdin:
            return await self._run_until_stopped(once)

    async def _run_until_stopped(self, once: bool) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, number)
        try:
            self._scheduler.collect_due(self.scheduled_jobs.jobs(), self.now())
            await self._start_ready()
            while not self._is_stopping and not (once and not self._waits):
                await self._sleep(once)
                if not self._is_stopping:
                    if not once:
                        self._try(lambda: self._scheduler.collect_due(self.scheduled_jobs.jobs(), self.now()))
                    await self._start_ready()
            while self._waits:
                await asyncio.wait(set(self._waits))
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
        for due_run in self._scheduler.waiting.values():
            # Due, but stopped before it was started.
            self._restore(due_run)
        return 130 if self._has_interrupted else 0

    def log_event(
        self, event: str, words: str, job: str | None = None, level: LogLevel = "info", **facts: object
    ) -> None:
        """Write one line to stderr: the message, or the JSON event."""
        if self.log == "json":
            log_event(f"schedule_{event}", job, None, level, message=words, **facts)
        else:
            line = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S}  {words}"
            print(line, file=sys.stderr, flush=True)  # noqa: T201

    async def _sleep(self, once: bool) -> None:
        self._changed.clear()
        if self._is_stopping:
            return
        longest = (
            MAX_SLEEP_SECONDS if once else seconds_until_next(self.scheduled_jobs.jobs(), self.now(), MAX_SLEEP_SECONDS)
        )
        try:
            # A little later than due: a slow clock must not wake up early.
            await asyncio.wait_for(self._changed.wait(), longest + 0.05)
        except TimeoutError:
            return

    async def _start_ready(self) -> None:
        while ready := self._scheduler.start_ready():
            for due_run in ready:
                await self._start(due_run)

    async def _start(self, due_run: DueRun) -> None:
        arguments = ["run", str(due_run.job.path), "--fail-on", "new", "--json"] + (
            ["--log", "json"] if self.log == "json" else ["--quiet"]
        )
        # In a separate session, so that Ctrl-C reaches it once, from this process.
        process = await asyncio.create_subprocess_exec(
            *self.command,
            *arguments,
            stdin=self._stdin,
            stdout=PIPE,
            env=rowmill_environment(),
            start_new_session=True,
        )
        self._processes[process.pid] = process
        due = due_run.due.isoformat(timespec="minutes")
        self.log_event(
            "start", f"{due_run.job.name}: started, due at {due}", due_run.job.name, due=due, process=process.pid
        )
        wait = asyncio.create_task(self._wait_for_end(due_run, process))
        self._waits.add(wait)
        wait.add_done_callback(self._waits.discard)
        if self._is_stopping:
            process.send_signal(signal.SIGTERM)

    async def _wait_for_end(self, due_run: DueRun, process: Process) -> None:
        out, _ = await process.communicate()
        del self._processes[process.pid]
        code = process.returncode if process.returncode is not None else 3
        if self._is_stopping and code in INTERRUPTED:
            self._has_interrupted = True
            self._restore(due_run)
        self._try(lambda: self._scheduler.finish(due_run, code))
        self.exit_codes.append(130 if code in INTERRUPTED else 3 if code < 0 else code)
        words = f"{due_run.job.name}: ended with exit code {code}{_format_report(out)}"
        self.log_event("end", words, due_run.job.name, "info" if code == 0 else "warning", exit_code=code)
        self._changed.set()

    def _restore(self, due_run: DueRun) -> None:
        self._try(lambda: DueTimeStore(due_run.job.workspace).restore(due_run.job, due_run.due))

    def _try(self, write: Callable[[], None]) -> None:
        """Log a ledger that cannot be written for a while (a full disk, a long prune) instead of ending the daemon."""
        try:
            write()
        except (sqlite3.Error, OSError) as exc:
            self.log_event("problem", f"the ledger cannot be written ({exc}); {FOLDER_REMEDY}", None, "error")

    def _stop(self, number: int) -> None:
        self._is_stopping = True
        for process in self._processes.values():
            if process.returncode is None:
                process.send_signal(number)
        names = ", ".join(due_run.job.name for due_run in self._scheduler.running.values())
        self.log_event("stop", f"stopping{f': waiting for {names} to finish requests in flight' if names else ''}")
        self._changed.set()

    def _skipped(self, due_run: DueRun, why: str) -> None:
        due = due_run.due.isoformat(timespec="minutes")
        self.log_event(
            "skip", f"{due_run.job.name}: not started, due at {due}: {why}", due_run.job.name, "warning", due=due
        )

    def _distrust(self, job: ScheduledJob, last_due: datetime) -> None:
        last = last_due.astimezone(job.zone).isoformat(timespec="minutes")
        words = f"{job.name}: last due at {last}, which is in the future: the clock was or is wrong; counting from now"
        self.log_event("problem", words, job.name, "warning", due=last)


def _format_report(out: bytes) -> str:
    """Return rows, requests and cost from the JSON report of `run --json`."""
    try:
        report: dict[str, Any] = orjson.loads(out)
    except orjson.JSONDecodeError:
        return ""
    if report.get("rows") is None:
        return f": {report['stopped']}" if report.get("stopped") else ""
    cost = "cost not known" if report["cost_usd"] is None else f"${report['cost_usd']:.4f}"
    words = f": {report['rows_ok']:,} of {report['rows']:,} rows done, {report['requests']:,} requests, {cost}"
    return words + (f"; stopped: {report['stopped']}" if report["stopped"] else "")
