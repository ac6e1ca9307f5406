"""Sliding window of the requests of the last two minutes, passed and refused, in buckets of a second."""

from collections import deque

WINDOW_SECONDS = 120.0


class SlidingWindow:
    """Counts for the whole key."""

    def __init__(self) -> None:
        self._buckets: deque[list[float]] = deque()
        """[second, passed, refused]"""

    def add(self, now: float, passed: float, refused: float) -> None:
        """Count in the present second; a refused request no longer counts as passed."""
        second = now // 1.0
        if not self._buckets or self._buckets[-1][0] < second:
            while self._buckets and self._buckets[0][0] < second - WINDOW_SECONDS:
                self._buckets.popleft()
            self._buckets.append([second, 0.0, 0.0])
        self._buckets[-1][1] += passed
        self._buckets[-1][2] += refused

    def passed(self, since: float) -> float:
        """Return how many passed since then."""
        return self._count(since, 1)

    def refused(self, since: float) -> float:
        """Return how many were refused since then."""
        return self._count(since, 2)

    def _count(self, since: float, place: int) -> float:
        total = 0.0
        for bucket in reversed(self._buckets):
            if (covered := bucket[0] + 1 - since) <= 0:
                break
            total += bucket[place] * min(1.0, covered)
        return total
