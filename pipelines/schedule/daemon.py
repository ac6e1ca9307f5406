"""`rowmill schedule run`: a foreground process that starts each due job as a process of its own."""

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

from pipelines.monitoring.json_log import LogLevel, log_event
from pipelines.runtime.child_process import lifeline, rowmill_command, rowmill_environment
from pipelines.schedule.scheduler import DueRun, DueTimeStore, ScheduledJobs, Scheduler, seconds_until_next

LONGEST_SLEEP = 30.0
"""Seconds after which files and clock are looked at again, though nothing is due."""
INTERRUPTED = frozenset({130, -signal.SIGINT, -signal.SIGTERM})
"""Exit codes of a job that a stop has cut short; the negative ones before it could say so itself."""


@dataclass(slots=True)
class SchedulerDaemon:
    """One stay in the foreground."""

    scheduled_jobs: ScheduledJobs
    log: Literal["plain", "json"] = "plain"
    parallel: int = 4
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    command: Sequence[str] = field(default_factory=rowmill_command)
    exit_codes: list[int] = field(default_factory=list)
    """How the started jobs ended, in that order."""
    _scheduler: Scheduler = field(init=False)
    _processes: dict[int, Process] = field(default_factory=dict)
    _ends: set[asyncio.Task[None]] = field(default_factory=set)
    _moved: asyncio.Event = field(default_factory=asyncio.Event)
    _stopping: bool = False
    _cut_short: bool = False
    _stdin: int = -1
    """Of the started jobs."""

    def __post_init__(self) -> None:
        self._scheduler = Scheduler(self.parallel, self._skipped)
        self.scheduled_jobs.on_problem = lambda problem: self.log_event("problem", problem, None, "warning")

    async def run(self, once: bool = False) -> int:
        """Run due jobs until a signal says stop, or `once`: those that are due now. 130 where the stop cut a job short,
        else 0."""
        with lifeline() as self._stdin:
            return await self._keep(once)

    async def _keep(self, once: bool) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, number)
        try:
            self._scheduler.collect_due(self.scheduled_jobs.jobs(), self.now())
            await self._start_free()
            while not self._stopping and not (once and not self._ends):
                await self._sleep(once)
                if not self._stopping:
                    if not once:
                        self._try(lambda: self._scheduler.collect_due(self.scheduled_jobs.jobs(), self.now()))
                    await self._start_free()
            while self._ends:
                await asyncio.wait(set(self._ends))
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
        for start in self._scheduler.waiting.values():
            # Due, but the stop came first.
            self._restore(start)
        return 130 if self._cut_short else 0

    def log_event(self, event: str, words: str, job: str | None = None, level: LogLevel = "info", **facts: object) -> None:
        """One line on stderr: the words, or the JSON event."""
        if self.log == "json":
            log_event(f"schedule_{event}", job, None, level, message=words, **facts)
        else:
            line = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S}  {words}"
            print(line, file=sys.stderr, flush=True)  # noqa: T201

    async def _sleep(self, once: bool) -> None:
        self._moved.clear()
        if self._stopping:
            return
        longest = LONGEST_SLEEP if once else seconds_until_next(self.scheduled_jobs.jobs(), self.now(), LONGEST_SLEEP)
        try:
            # A moment later than due: a clock that runs slow must not find itself early.
            await asyncio.wait_for(self._moved.wait(), longest + 0.05)
        except TimeoutError:
            return

    async def _start_free(self) -> None:
        while free := self._scheduler.start_ready():
            for start in free:
                await self._start(start)

    async def _start(self, start: DueRun) -> None:
        arguments = ["run", str(start.job.path), "--json"] + (["--log", "json"] if self.log == "json" else ["--quiet"])
        # A session of its own: a Ctrl-C of the terminal must reach it once, from us.
        process = await asyncio.create_subprocess_exec(
            *self.command,
            *arguments,
            stdin=self._stdin,
            stdout=PIPE,
            env=rowmill_environment(),
            start_new_session=True,
        )
        self._processes[process.pid] = process
        due = start.due.isoformat(timespec="minutes")
        self.log_event("start", f"{start.job.name}: started, due at {due}", start.job.name, due=due, process=process.pid)
        end = asyncio.create_task(self._end(start, process))
        self._ends.add(end)
        end.add_done_callback(self._ends.discard)
        if self._stopping:
            process.send_signal(signal.SIGTERM)

    async def _end(self, start: DueRun, process: Process) -> None:
        out, _ = await process.communicate()
        del self._processes[process.pid]
        code = process.returncode if process.returncode is not None else 3
        if self._stopping and code in INTERRUPTED:
            self._cut_short = True
            self._restore(start)
        self._try(lambda: self._scheduler.finish(start, code))
        self.exit_codes.append(130 if code in INTERRUPTED else 3 if code < 0 else code)
        words = f"{start.job.name}: ended with exit code {code}{_report_words(out)}"
        self.log_event("end", words, start.job.name, "info" if code == 0 else "warning", exit_code=code)
        self._moved.set()

    def _restore(self, start: DueRun) -> None:
        self._try(lambda: DueTimeStore(start.job.workspace).restore(start.job, start.due))

    def _try(self, note: Callable[[], None]) -> None:
        """A ledger that cannot be written for a while (a full disk, a long prune) does not end the shift."""
        try:
            note()
        except (sqlite3.Error, OSError) as exc:
            self.log_event("problem", f"the ledger cannot be written: {exc}", None, "error")

    def _stop(self, number: int) -> None:
        self._stopping = True
        for process in self._processes.values():
            if process.returncode is None:
                process.send_signal(number)
        names = ", ".join(start.job.name for start in self._scheduler.running.values())
        self.log_event("stop", f"stopping{f': waiting for {names} to put away what is in flight' if names else ''}")
        self._moved.set()

    def _skipped(self, start: DueRun, why: str) -> None:
        due = start.due.isoformat(timespec="minutes")
        self.log_event("skip", f"{start.job.name}: not started, due at {due}: {why}", start.job.name, "warning", due=due)


def _report_words(out: bytes) -> str:
    """What came of the rows and what it cost, from the object of `run --json`."""
    try:
        told: dict[str, Any] = orjson.loads(out)
    except orjson.JSONDecodeError:
        return ""
    if told.get("rows") is None:
        return f": {told['stopped']}" if told.get("stopped") else ""
    cost = "cost not known" if told["cost_usd"] is None else f"${told['cost_usd']:.4f}"
    words = f": {told['rows_ok']:,} of {told['rows']:,} rows done, {told['requests']:,} requests, {cost}"
    return words + (f"; stopped: {told['stopped']}" if told["stopped"] else "")
