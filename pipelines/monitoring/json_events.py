"""What `--log json` tells while a run is under way: start, progress, retries, holds and commits, a line each."""

import asyncio
import time

from pipelines.monitoring.json_log import log_event
from pipelines.monitoring.progress import ThroughputMeter, progress_figures
from pipelines.monitoring.run_view import RunView

POLL_SECONDS = 1.0
"""Seconds between two looks: what happened in between is told together."""

SECONDS_BETWEEN_PROGRESS = 10.0


class ProgressLog:
    """Follows one run."""

    def __init__(self, job: str, run_id: str, continued: bool) -> None:
        """`continued`: an earlier invocation has begun the run."""
        self._job = job
        self._run_id = run_id
        self._continued = continued
        self._watch: RunView | None = None
        self._told = {"retries": 0, "committed": 0}
        self._held: str | None = None

    async def follow(self, watch: RunView) -> None:
        """Until it is cancelled."""
        self._watch = watch
        tally = watch.tally
        log_event("start", self._job, self._run_id, rows=tally.rows, rows_done=tally.rows_ok, continued=self._continued)
        pace, last = ThroughputMeter(), time.monotonic()
        while True:
            await asyncio.sleep(POLL_SECONDS)
            self.log_changes()
            speed = pace.measure(watch)
            if time.monotonic() - last >= SECONDS_BETWEEN_PROGRESS:
                last = time.monotonic()
                log_event("progress", self._job, self._run_id, "info", **progress_figures(watch, speed))

    def log_changes(self) -> None:
        """Tell what has happened since the last look."""
        if self._watch is None:
            return
        tally = self._watch.tally
        now = {"retries": tally.retries, "committed": tally.committed}
        if now["retries"] > self._told["retries"]:
            more = now["retries"] - self._told["retries"]
            log_event("retry", self._job, self._run_id, "warning", retries=more, retries_in_all=now["retries"])
        if now["committed"] > self._told["committed"]:
            more = now["committed"] - self._told["committed"]
            log_event("commit", self._job, self._run_id, rows=more, rows_in_all=now["committed"])
        self._told = now
        held = self._watch.hold_reason()
        # The seconds left change with every look; that alone is no news.
        if (held is None) != (self._held is None):
            if held is not None:
                log_event("hold", self._job, self._run_id, "warning", message=held)
            else:
                log_event("resume", self._job, self._run_id)
        self._held = held
