"""Sliding window: counts since a time, in proportion for the second that contains it."""

import pytest

from pipelines.limits.sliding_window import WINDOW_SECONDS, SlidingWindow


def test_passed_and_refused_requests_are_counted_since_a_time() -> None:
    window = SlidingWindow()
    for second in range(10):
        window.add(second + 0.5, 4.0, 0.0)
    window.add(9.6, -1.0, 1.0)
    assert (window.passed(0.0), window.refused(0.0)) == (39.0, 1.0)
    assert (window.passed(8.0), window.refused(9.0)) == (7.0, 1.0)
    assert window.passed(7.5) == pytest.approx(9.0)
    assert window.passed(10.0) == 0.0


def test_old_requests_are_forgotten() -> None:
    window = SlidingWindow()
    window.add(0.0, 5.0, 0.0)
    window.add(WINDOW_SECONDS + 2, 1.0, 0.0)
    assert window.passed(-1.0) == 1.0
