"""Paces that refusals have shown: kept for the next run, shared by processes, believed for a week, checked."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.limits.adaptive_rate import FIRST_HOLD_SECONDS, NO_LEARNED_RATE, LearnedRate
from pipelines.limits.adaptive_rate_store import MAX_RATE_AGE_SECONDS
from pipelines.limits.limit_leases import LimitLeases
from pipelines.limits.provider_limiter import ProviderLimiter

KEY = "box http://10.0.0.1/v1"


class Process:
    """A process's leases and its limiter, which states no limit."""

    def __init__(self, folder: Path) -> None:
        self.limiter = ProviderLimiter(None, None, None, longest_hold=900, longest_wait=60)
        self.leases = LimitLeases(folder, {KEY: self.limiter})

    def finds(self, found: LearnedRate) -> None:
        """Refusals lower the pace to it, and not for the first time."""
        before = (found.per_second or 0.0) / 0.97
        self.limiter.load_learned_rate(replace(found, per_second=before))
        self.limiter._rate.slow_down(time.monotonic() + 2, before, 0.0)
        self.limiter.set_share(0.0, 0.0, None)
        self.leases.renew()

    def renew(self) -> None:
        self.limiter.contended.update(("requests", "tokens", "slots"))
        self.leases.renew()

    @property
    def pace(self) -> float | None:
        return self.limiter.requests.per_second


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[[], Process]]:
    """Begins processes, and ends those that still run."""
    running: list[Process] = []

    def begun() -> Process:
        running.append(Process(tmp_path))
        return running[-1]

    yield begun
    for process in running:
        process.leases.close()


def ran_before(folder: Path, found: LearnedRate, ago: float = 0.0) -> None:
    """A run has found this pace and has ended."""
    before = Process(folder)
    before.finds(found)
    before.leases.close()
    with sqlite3.connect(folder / "leases.sqlite") as db:
        db.execute("update found_paces set at = at - ?", (ago,))
    db.close()


def test_the_next_run_begins_at_the_pace_that_refusals_have_shown(tmp_path: Path, begin: Callable[[], Process]) -> None:
    ran_before(tmp_path, LearnedRate(48.5, 50.0, 120.0, True), ago=24 * 3600)
    # What is tried again soon is whether the limit has been raised.
    assert begin().limiter.learned_rate == LearnedRate(48.5, 50.0, FIRST_HOLD_SECONDS, True)


@pytest.mark.parametrize("ago", [MAX_RATE_AGE_SECONDS + 60, -3600.0], ids=["too old", "of the future"])
def test_what_is_too_old_or_of_a_clock_that_was_wrong_is_not_believed(
    tmp_path: Path, begin: Callable[[], Process], ago: float
) -> None:
    ran_before(tmp_path, LearnedRate(48.5, 50.0, 16.0, False), ago)
    process = begin()
    process.renew()
    assert process.limiter.learned_rate == NO_LEARNED_RATE
    assert process.pace is None


@pytest.mark.parametrize("damage", ["per_second = -1", "per_second = 'much'", "ceiling = 9e999", "at = x'00'"])
def test_what_makes_no_sense_in_the_table_is_nothing(tmp_path: Path, begin: Callable[[], Process], damage: str) -> None:
    ran_before(tmp_path, LearnedRate(48.5, 50.0, 16.0, False))
    with sqlite3.connect(tmp_path / "leases.sqlite") as db:
        db.execute(f"update found_paces set {damage}")
    db.close()
    process = begin()
    process.renew()
    assert process.pace is None


def test_a_file_that_is_damaged_within_is_made_anew(tmp_path: Path, begin: Callable[[], Process]) -> None:
    ran_before(tmp_path, LearnedRate(48.5, 50.0, 16.0, False))
    with sqlite3.connect(tmp_path / "leases.sqlite") as db:
        db.execute("pragma wal_checkpoint(truncate)")
    db.close()
    path = tmp_path / "leases.sqlite"
    path.write_bytes(path.read_bytes()[:4096] + b"\xff" * (path.stat().st_size - 4096))
    process = begin()
    process.renew()
    assert process.pace is None


def test_a_pace_that_one_has_found_is_divided_among_all_as_a_stated_limit_is(begin: Callable[[], Process]) -> None:
    first, second = begin(), begin()
    for _ in range(3):
        first.renew()
        second.renew()
    first.finds(LearnedRate(50.0, 51.0, 16.0, False))
    for _ in range(3):
        first.renew()
        second.renew()
    assert (first.pace, second.pace) == (25.0, 25.0)
    assert first.limiter.effective_requests_per_minute == second.limiter.effective_requests_per_minute == 3000
    for _ in range(40):
        second.leases.renew()
    first.renew()
    assert first.pace is not None
    assert 49 <= first.pace <= 50


def test_of_processes_that_were_not_refused_who_has_tried_more_is_right(begin: Callable[[], Process]) -> None:
    first, second = begin(), begin()
    first.finds(LearnedRate(40.0, 41.0, 16.0, False))
    for _ in range(2):
        first.renew()
        second.renew()
    second.limiter.load_learned_rate(LearnedRate(44.0, 41.0, 16.0, False))
    for _ in range(2):
        second.renew()
        first.renew()
    assert first.limiter.learned_rate.per_second == second.limiter.learned_rate.per_second == 44.0


def test_a_pace_that_proved_to_be_no_limit_is_forgotten_by_all(tmp_path: Path, begin: Callable[[], Process]) -> None:
    ran_before(tmp_path, LearnedRate(40.0, 41.0, 16.0, False))
    first, second = begin(), begin()
    assert (first.limiter.learned_rate.per_second, second.limiter.learned_rate.per_second) == (40.0, 40.0)
    first.limiter.load_learned_rate(NO_LEARNED_RATE)
    first.renew()
    second.renew()
    assert (first.pace, second.pace, begin().pace) == (None, None, None)


def test_one_refusal_is_kept_for_nobody_since_it_may_have_been_for_anything(begin: Callable[[], Process]) -> None:
    first = begin()
    first.limiter.record_refusal(0, 0.0)
    first.renew()
    assert begin().limiter.learned_rate == NO_LEARNED_RATE


def test_a_file_without_the_table_is_that_of_an_older_version(tmp_path: Path, begin: Callable[[], Process]) -> None:
    begin()
    with sqlite3.connect(tmp_path / "leases.sqlite") as db:
        db.execute("drop table found_paces")
    db.close()
    assert begin().pace is None
