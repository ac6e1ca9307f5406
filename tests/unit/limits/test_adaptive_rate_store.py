"""Learned rates: stored for the next run, shared by processes, trusted for a week, validated."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

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

    def learn(self, rate: LearnedRate) -> None:
        """Let refusals lower the rate to this one, and not for the first time."""
        before = (rate.per_second or 0.0) / 0.97
        self.limiter.load_learned_rate(replace(rate, per_second=before))
        self.limiter._rate.slow_down(time.monotonic() + 2, before, 0.0)
        self.limiter.set_share(0.0, 0.0, None)
        self.leases.renew()

    def renew(self) -> None:
        self.limiter.contended.update(("requests", "tokens", "slots"))
        self.leases.renew()

    @property
    def rate(self) -> float | None:
        return self.limiter.requests.per_second


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Process]]:
    """Starts processes, and ends those that still run."""
    running: list[Process] = []

    def start_process() -> Process:
        running.append(Process(tmp_path))
        return running[-1]

    yield start_process
    for process in running:
        process.leases.close()


def store_rate(folder: Path, rate: LearnedRate, ago: float = 0.0) -> None:
    """Let a run learn this rate and end."""
    earlier = Process(folder)
    earlier.learn(rate)
    earlier.leases.close()
    with sqlite3.connect(folder / "leases.sqlite") as db:
        db.execute("update found_paces set at = at - ?", (ago,))
    db.close()


def test_the_next_run_starts_at_the_learned_rate(tmp_path: Path, start: Callable[[], Process]) -> None:
    store_rate(tmp_path, LearnedRate(48.5, 50.0, 120.0, True), ago=24 * 3600)
    # It is probed soon, because the limit may have been raised.
    assert start().limiter.learned_rate == LearnedRate(48.5, 50.0, FIRST_HOLD_SECONDS, True)


@pytest.mark.parametrize("ago", [MAX_RATE_AGE_SECONDS + 60, -3600.0], ids=["too old", "of the future"])
def test_a_rate_that_is_too_old_or_of_the_future_is_ignored(
    tmp_path: Path, start: Callable[[], Process], ago: float
) -> None:
    store_rate(tmp_path, LearnedRate(48.5, 50.0, 16.0, False), ago)
    process = start()
    process.renew()
    assert process.limiter.learned_rate == NO_LEARNED_RATE
    assert process.rate is None


@pytest.mark.parametrize("damage", ["per_second = -1", "per_second = 'much'", "ceiling = 9e999", "at = x'00'"])
def test_invalid_values_in_the_table_are_ignored(tmp_path: Path, start: Callable[[], Process], damage: str) -> None:
    store_rate(tmp_path, LearnedRate(48.5, 50.0, 16.0, False))
    with sqlite3.connect(tmp_path / "leases.sqlite") as db:
        db.execute(f"update found_paces set {damage}")
    db.close()
    process = start()
    process.renew()
    assert process.rate is None


def test_a_damaged_file_is_recreated(tmp_path: Path, start: Callable[[], Process]) -> None:
    store_rate(tmp_path, LearnedRate(48.5, 50.0, 16.0, False))
    with sqlite3.connect(tmp_path / "leases.sqlite") as db:
        db.execute("pragma wal_checkpoint(truncate)")
    db.close()
    path = tmp_path / "leases.sqlite"
    path.write_bytes(path.read_bytes()[:4096] + b"\xff" * (path.stat().st_size - 4096))
    process = start()
    process.renew()
    assert process.rate is None


def test_a_learned_rate_is_shared_by_all_processes_as_a_stated_limit_is(start: Callable[[], Process]) -> None:
    first, second = start(), start()
    for _ in range(3):
        first.renew()
        second.renew()
    first.learn(LearnedRate(50.0, 51.0, 16.0, False))
    for _ in range(3):
        first.renew()
        second.renew()
    assert (first.rate, second.rate) == (25.0, 25.0)
    assert first.limiter.effective_requests_per_minute == second.limiter.effective_requests_per_minute == 3000
    for _ in range(40):
        second.leases.renew()
    first.renew()
    assert first.rate is not None
    assert 49 <= first.rate <= 50


def test_among_processes_without_refusals_the_higher_rate_wins(start: Callable[[], Process]) -> None:
    first, second = start(), start()
    first.learn(LearnedRate(40.0, 41.0, 16.0, False))
    for _ in range(2):
        first.renew()
        second.renew()
    second.limiter.load_learned_rate(LearnedRate(44.0, 41.0, 16.0, False))
    for _ in range(2):
        second.renew()
        first.renew()
    assert first.limiter.learned_rate.per_second == second.limiter.learned_rate.per_second == 44.0


def test_a_rate_that_proved_unnecessary_is_forgotten_by_all(tmp_path: Path, start: Callable[[], Process]) -> None:
    store_rate(tmp_path, LearnedRate(40.0, 41.0, 16.0, False))
    first, second = start(), start()
    assert (first.limiter.learned_rate.per_second, second.limiter.learned_rate.per_second) == (40.0, 40.0)
    first.limiter.load_learned_rate(NO_LEARNED_RATE)
    first.renew()
    second.renew()
    assert (first.rate, second.rate, start().rate) == (None, None, None)


def test_a_single_refusal_is_not_shared(start: Callable[[], Process]) -> None:
    first = start()
    first.limiter.record_refusal(0, 0.0)
    first.renew()
    assert start().limiter.learned_rate == NO_LEARNED_RATE


def test_a_file_of_an_older_version_gets_the_table(tmp_path: Path, start: Callable[[], Process]) -> None:
    start()
    with sqlite3.connect(tmp_path / "leases.sqlite") as db:
        db.execute("drop table found_paces")
    db.close()
    assert start().rate is None
