"""The events of `--log json` during a run: start, progress, retries, holds and commits, one line each."""

import asyncio
import time

from pipelines.monitoring.json_log import log_event
from pipelines.monitoring.progress import ThroughputMeter, progress_figures
from pipelines.monitoring.run_view import RunView

POLL_SECONDS = 1.0
"""Changes within this time make one event."""
SECONDS_BETWEEN_PROGRESS = 10.0


class ProgressLog:
    """Logs the events of one run."""

    def __init__(self, job: str, run_id: str, is_continued: bool) -> None:
        """`is_continued`: an earlier invocation began the run."""
        self._job = job
        self._run_id = run_id
        self._is_continued = is_continued
        self._view: RunView | None = None
        self._retries = 0
        self._committed = 0
        self._hold_reason: str | None = None

    async def follow(self, view: RunView) -> None:
        """Log until cancelled."""
        self._view = view
        rows, done = view.counters.rows, view.counters.rows_ok
        log_event("start", self._job, self._run_id, rows=rows, rows_done=done, continued=self._is_continued)
        meter, last = ThroughputMeter(), time.monotonic()
        while True:
            await asyncio.sleep(POLL_SECONDS)
            self.log_changes()
            throughput = meter.measure(view)
            if time.monotonic() - last >= SECONDS_BETWEEN_PROGRESS:
                last = time.monotonic()
                log_event("progress", self._job, self._run_id, "info", **progress_figures(view, throughput))

    def log_changes(self) -> None:
        """Log the retries, commits and holds since the last call."""
        if self._view is None:
            return
        retries, committed = self._view.counters.retries, self._view.counters.committed
        if retries > self._retries:
            added = retries - self._retries
            log_event("retry", self._job, self._run_id, "warning", retries=added, retries_in_all=retries)
        if committed > self._committed:
            log_event("commit", self._job, self._run_id, rows=committed - self._committed, rows_in_all=committed)
        self._retries, self._committed = retries, committed
        reason = self._view.hold_reason()
        # The remaining seconds change every time; that alone is no event.
        if (reason is None) != (self._hold_reason is None):
            if reason is not None:
                log_event("hold", self._job, self._run_id, "warning", message=reason)
            else:
                log_event("resume", self._job, self._run_id)
        self._hold_reason = reason
