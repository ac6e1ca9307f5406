"""Limit leases: processes share a key's limits, never exceed them together, and hold nothing when dead."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.limits.limit_leases import LimitLeases, fair_shares, share_limits
from pipelines.limits.provider_limiter import HEADROOM, ProviderLimiter

KEY = "openai https://api.openai.com/v1"


def limiter_with(requests: int | None = 6000, concurrency: int | None = None) -> ProviderLimiter:
    return ProviderLimiter(requests, None, concurrency, longest_hold=900, longest_wait=60)


def rate_share(limiter: ProviderLimiter) -> float:
    """Return the share of 6000 a minute that it may use."""
    return round((limiter.requests.per_second or 0.0) / (100 * HEADROOM), 2)


class Holder:
    """A process's leases and its limiter."""

    def __init__(self, folder: Path, key: str = KEY, concurrency: int | None = None) -> None:
        self.limiter = limiter_with(concurrency=concurrency)
        self.leases = LimitLeases(folder, {key: self.limiter})

    def renew(self, is_waiting: bool = True) -> None:
        if is_waiting:
            self.limiter.contended.update(("requests", "tokens", "slots"))
        self.leases.renew()


@pytest.fixture
def holders(tmp_path: Path) -> Iterator[list[Holder]]:
    """Leases that are returned at the end."""
    opened: list[Holder] = []
    yield opened
    for holder in opened:
        holder.leases.close()


def test_a_single_process_has_the_whole_limit_at_once(tmp_path: Path, holders: list[Holder]) -> None:
    holders.append(Holder(tmp_path))
    assert rate_share(holders[0].limiter) == 1.0


def test_a_later_process_waits_until_its_half_is_free(tmp_path: Path, holders: list[Holder]) -> None:
    holders.append(Holder(tmp_path))
    holders.append(Holder(tmp_path))
    first, second = holders
    assert (rate_share(first.limiter), rate_share(second.limiter)) == (1.0, 0.0)
    assert second.leases.is_short
    first.renew()
    second.renew()
    assert (rate_share(first.limiter), rate_share(second.limiter)) == (0.5, 0.5)
    assert not second.leases.is_short


def test_unused_shares_go_to_the_other_process(tmp_path: Path, holders: list[Holder]) -> None:
    holders.append(Holder(tmp_path))
    holders.append(Holder(tmp_path))
    for _ in range(20):
        holders[0].renew(is_waiting=False)
        holders[1].renew()
    idle, busy = (rate_share(holder.limiter) for holder in holders)
    assert busy >= 0.95
    assert 0 < idle <= 0.05
    for _ in range(2):
        holders[0].renew()
        holders[1].renew()
    holders[0].renew()
    assert [rate_share(holder.limiter) for holder in holders] == [0.5, 0.5]


def test_a_process_that_ends_returns_its_shares(tmp_path: Path, holders: list[Holder]) -> None:
    holders.append(Holder(tmp_path))
    ending = Holder(tmp_path)
    holders[0].renew()
    ending.renew()
    ending.leases.close()
    holders[0].renew()
    assert rate_share(holders[0].limiter) == 1.0
    assert len(list((tmp_path / "leases").iterdir())) == 1


def test_keys_of_different_providers_are_independent(tmp_path: Path, holders: list[Holder]) -> None:
    holders.extend(Holder(tmp_path, key) for key in (KEY, "box http://127.0.0.1/v1"))
    assert [rate_share(holder.limiter) for holder in holders] == [1.0, 1.0]


HOLDER_PROCESS = """
import sys, time
from pathlib import Path
from pipelines.limits.limit_leases import LimitLeases
from pipelines.limits.provider_limiter import ProviderLimiter
leases = LimitLeases(Path(sys.argv[1]), {sys.argv[2]: ProviderLimiter(6000, None, 8, 900, 60)})
print("held", flush=True)
time.sleep(600)
"""


def test_the_leases_of_a_killed_process_are_free_at_once(tmp_path: Path, holders: list[Holder]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER_PROCESS, str(tmp_path), KEY], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    holders.append(Holder(tmp_path, concurrency=8))
    assert rate_share(holders[0].limiter) == 0.0
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    holders[0].renew()
    assert rate_share(holders[0].limiter) == 1.0
    assert not holders[0].leases.is_short


async def test_requests_in_flight_stay_in_use_until_they_end(tmp_path: Path, holders: list[Holder]) -> None:
    holders.append(Holder(tmp_path, concurrency=6))
    first = holders[0]
    permits = [await first.limiter.acquire(1) for _ in range(6)]
    holders.append(Holder(tmp_path, concurrency=6))
    second = holders[1]
    first.renew()
    second.renew()
    assert second.limiter.delay == float("inf")
    for permit in permits[:4]:
        first.limiter.release(permit, 1, None)
    first.renew()
    second.renew()
    acquired = [await second.limiter.acquire(1) for _ in range(3)]
    assert first.limiter.in_flight + len(acquired) <= 6


def test_a_pause_requested_from_one_process_applies_to_all(tmp_path: Path, holders: list[Holder]) -> None:
    holders.append(Holder(tmp_path))
    holders.append(Holder(tmp_path))
    first, second = holders
    first.limiter.record_refusal(1, 3000.0)
    first.renew()
    second.renew()
    assert 2900 < second.limiter.pause_seconds <= 3000
    assert second.limiter.learned_requests_per_minute is None
    holders.append(Holder(tmp_path))
    assert 2900 < holders[2].limiter.pause_seconds <= 3000


def test_a_pause_does_not_grow_as_it_passes_between_processes(tmp_path: Path, holders: list[Holder]) -> None:
    holders.append(Holder(tmp_path))
    holders.append(Holder(tmp_path))
    holders[0].limiter.record_refusal(1, 1000.0)
    end = time.monotonic() + 1000.0
    for _ in range(50):
        for holder in holders:
            holder.renew()
    assert all(time.monotonic() + holder.limiter.pause_seconds <= end + 0.25 for holder in holders)


def test_a_clock_that_is_set_back_pauses_no_process(
    tmp_path: Path, holders: list[Holder], monkeypatch: pytest.MonkeyPatch
) -> None:
    holders.append(Holder(tmp_path))
    holders.append(Holder(tmp_path))
    set_back = time.time() - 3600
    monkeypatch.setattr(time, "time", lambda: set_back)
    holders[1].renew()
    assert holders[1].limiter.pause_seconds == 0


def test_another_processs_pause_is_not_counted_as_a_refusal_or_silence(tmp_path: Path, holders: list[Holder]) -> None:
    holders.append(Holder(tmp_path))
    holders.append(Holder(tmp_path))
    first, second = holders
    first.limiter.record_refusal(1, 3000.0)
    first.renew()
    second.renew()
    limiter = second.limiter
    assert (limiter.pause_seconds > 2900, limiter.seconds_without_reply()) == (True, 0)


async def test_a_process_without_limits_does_not_wait(tmp_path: Path) -> None:
    free = ProviderLimiter(None, None, None, 900, 60)
    with share_limits(tmp_path, {KEY: free}):
        assert free.delay == 0
        free.release(await free.acquire(1), 1, 1)


def test_a_damaged_file_is_recreated(tmp_path: Path, holders: list[Holder]) -> None:
    (tmp_path / "leases.sqlite").write_bytes(b"no database" * 1000)
    holders.append(Holder(tmp_path))
    assert rate_share(holders[0].limiter) == 1.0


demands = st.dictionaries(st.text(min_size=1, max_size=3), st.floats(0, 1), min_size=1, max_size=6)


@given(demands, st.integers(1, 50), st.booleans(), st.integers(0, 100))
def test_shares_add_up_and_each_is_at_least_an_equal_part_or_the_demand(
    demand: dict[str, float], whole: int, in_whole_numbers: bool, turn: int
) -> None:
    shares = fair_shares(float(whole), demand, in_whole_numbers, float(turn))
    assert sum(shares.values()) == pytest.approx(whole)
    for holder, part in shares.items():
        assert part >= min(demand[holder] * whole, whole / len(demand)) - (1 if in_whole_numbers else 1e-6)
        assert not in_whole_numbers or part == int(part)


def test_the_odd_slot_rotates() -> None:
    assert [fair_shares(1.0, {"a": 1.0, "b": 1.0}, True, turn) for turn in (0.0, 1.0, 2.0)] == [
        {"a": 1.0, "b": 0.0},
        {"a": 0.0, "b": 1.0},
        {"a": 1.0, "b": 0.0},
    ]
