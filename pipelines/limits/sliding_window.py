"""What was sent and what of it was refused in the last minutes, second by second."""

from collections import deque

REMEMBERED = 120.0
"""Seconds."""


class SlidingWindow:
    """Counts, reckoned for the whole key."""

    def __init__(self) -> None:
        self._seconds: deque[list[float]] = deque()
        """[second, those that passed, those refused]"""

    def add(self, now: float, passed: float, refused: float) -> None:
        """In this second; what is refused does not count as passed any more."""
        second = now // 1.0
        if not self._seconds or self._seconds[-1][0] < second:
            while self._seconds and self._seconds[0][0] < second - REMEMBERED:
                self._seconds.popleft()
            self._seconds.append([second, 0.0, 0.0])
        counts = self._seconds[-1]
        counts[1] += passed
        counts[2] += refused

    def passed(self, since: float) -> float:
        """Those that were not refused."""
        return self._count(since, 1)

    def refused(self, since: float) -> float:
        """Those that were."""
        return self._count(since, 2)

    def _count(self, since: float, of: int) -> float:
        total = 0.0
        for counts in reversed(self._seconds):
            if (covered := counts[0] + 1 - since) <= 0:
                break
            total += counts[of] * min(1.0, covered)
        return total
