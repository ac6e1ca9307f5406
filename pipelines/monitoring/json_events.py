"""What `--log json` tells while a run is under way: start, progress, retries, holds and commits, a line each."""

import asyncio
import time

from pipelines.monitoring.json_log import log_line
from pipelines.monitoring.progress import Pace, facts
from pipelines.monitoring.run_view import Watch

EVERY = 1.0
"""Seconds between two looks: what happened in between is told together."""

SECONDS_BETWEEN_PROGRESS = 10.0


class ProgressLog:
    """Follows one run."""

    def __init__(self, job: str, run_id: str, continued: bool) -> None:
        """`continued`: an earlier invocation has begun the run."""
        self._job = job
        self._run_id = run_id
        self._continued = continued
        self._watch: Watch | None = None
        self._told = {"retries": 0, "committed": 0}
        self._held: str | None = None

    async def follow(self, watch: Watch) -> None:
        """Until it is cancelled."""
        self._watch = watch
        tally = watch.tally
        log_line("start", self._job, self._run_id, rows=tally.rows, rows_done=tally.rows_ok, continued=self._continued)
        pace, last = Pace(), time.monotonic()
        while True:
            await asyncio.sleep(EVERY)
            self.look()
            speed = pace.speed(watch)
            if time.monotonic() - last >= SECONDS_BETWEEN_PROGRESS:
                last = time.monotonic()
                log_line("progress", self._job, self._run_id, "info", **facts(watch, speed))

    def look(self) -> None:
        """Tell what has happened since the last look."""
        if self._watch is None:
            return
        tally = self._watch.tally
        now = {"retries": tally.retries, "committed": tally.committed}
        if now["retries"] > self._told["retries"]:
            more = now["retries"] - self._told["retries"]
            log_line("retry", self._job, self._run_id, "warning", retries=more, retries_in_all=now["retries"])
        if now["committed"] > self._told["committed"]:
            more = now["committed"] - self._told["committed"]
            log_line("commit", self._job, self._run_id, rows=more, rows_in_all=now["committed"])
        self._told = now
        held = self._watch.held()
        # The seconds left change with every look; that alone is no news.
        if (held is None) != (self._held is None):
            if held is not None:
                log_line("hold", self._job, self._run_id, "warning", message=held)
            else:
                log_line("resume", self._job, self._run_id)
        self._held = held
