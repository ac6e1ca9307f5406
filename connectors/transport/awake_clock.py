"""Clock of the time in which this process runs: it does not count suspensions, of the process or of the machine."""

import time
from collections.abc import Callable
from math import inf

TICK_SECONDS = 0.25
"""Longest time between two readings of a clock that is watched."""
MAX_GAP_SECONDS = 1.0
"""A longer time between two readings is a suspension: Ctrl-Z, a closed laptop, a paused machine, a blocked loop."""
RESUME_SECONDS = 5.0
"""Time after a suspension in which what has arrived meanwhile is read, and nothing expires."""


class AwakeClock:
    """Monotonic clock, in seconds, that leaves out suspensions while somebody watches it.

    A watcher reads it at least every TICK_SECONDS. Without a watcher every second counts.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._watchers = 0
        self._read_at = 0.0
        self._suspended = 0.0
        self._resumed_at = -inf

    def start_watch(self) -> None:
        """Detect suspensions from now on."""
        self._watchers += 1
        if self._watchers == 1:
            self._read_at = self._monotonic()

    def end_watch(self) -> None:
        """End a watch."""
        self._watchers -= 1

    def now(self) -> float:
        """Return the time without suspensions."""
        now = self._monotonic()
        if self._watchers:
            if (gap := now - self._read_at) > MAX_GAP_SECONDS:
                self._suspended += gap
                self._resumed_at = now
            self._read_at = now
        return now - self._suspended

    @property
    def is_resuming(self) -> bool:
        """Whether a suspension has just ended."""
        return self._monotonic() - self._resumed_at < RESUME_SECONDS


AWAKE_CLOCK = AwakeClock()
"""The clock of this process: watched while a transport is open."""
