"""LimitLeases: processes of a workspace share a key's limits, never hold more than there is, and nothing when dead."""

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


def limiter(requests: int | None = 6000, concurrency: int | None = None) -> ProviderLimiter:
    return ProviderLimiter(requests, None, concurrency, longest_hold=900, longest_wait=60)


def rate(of: ProviderLimiter) -> float:
    """The share of 6000 a minute that it may use."""
    return round((of.requests.per_second or 0.0) / (100 * HEADROOM), 2)


class Holder:
    """A process's leases and its limiter."""

    def __init__(self, folder: Path, key: str = KEY, concurrency: int | None = None) -> None:
        self.limiter = limiter(concurrency=concurrency)
        self.leases = LimitLeases(folder, {key: self.limiter})

    def renew(self, waits: bool = True) -> None:
        if waits:
            self.limiter.contended.update(("requests", "tokens", "slots"))
        self.leases.renew()


@pytest.fixture
def holders(tmp_path: Path) -> Iterator[list[Holder]]:
    """LimitLeases that are given back at the end."""
    some: list[Holder] = []
    yield some
    for holder in some:
        holder.leases.close()


def test_alone_a_process_has_all_of_it_at_once(tmp_path: Path, holders: list[Holder]) -> None:
    holders.append(Holder(tmp_path))
    assert rate(holders[0].limiter) == 1.0


def test_one_that_comes_later_waits_until_its_half_is_free(tmp_path: Path, holders: list[Holder]) -> None:
    holders.append(Holder(tmp_path))
    holders.append(Holder(tmp_path))
    first, second = holders
    assert (rate(first.limiter), rate(second.limiter)) == (1.0, 0.0)
    assert second.leases.is_short
    first.renew()
    second.renew()
    assert (rate(first.limiter), rate(second.limiter)) == (0.5, 0.5)
    assert not second.leases.is_short


def test_what_one_does_not_use_goes_to_the_other(tmp_path: Path, holders: list[Holder]) -> None:
    holders.append(Holder(tmp_path))
    holders.append(Holder(tmp_path))
    for _ in range(20):
        holders[0].renew(waits=False)
        holders[1].renew()
    idle, busy = (rate(holder.limiter) for holder in holders)
    assert busy >= 0.95
    assert 0 < idle <= 0.05
    for _ in range(2):
        holders[0].renew()
        holders[1].renew()
    holders[0].renew()
    assert [rate(holder.limiter) for holder in holders] == [0.5, 0.5]


def test_one_that_ends_gives_everything_back(tmp_path: Path, holders: list[Holder]) -> None:
    holders.append(Holder(tmp_path))
    ends = Holder(tmp_path)
    holders[0].renew()
    ends.renew()
    ends.leases.close()
    holders[0].renew()
    assert rate(holders[0].limiter) == 1.0
    assert len(list((tmp_path / "leases").iterdir())) == 1


def test_keys_of_different_providers_have_nothing_to_do_with_one_another(tmp_path: Path, holders: list[Holder]) -> None:
    holders.extend(Holder(tmp_path, key) for key in (KEY, "box http://127.0.0.1/v1"))
    assert [rate(holder.limiter) for holder in holders] == [1.0, 1.0]


HOLDING = """
import sys, time
from pathlib import Path
from pipelines.limits.limit_leases import LimitLeases
from pipelines.limits.provider_limiter import ProviderLimiter
leases = LimitLeases(Path(sys.argv[1]), {sys.argv[2]: ProviderLimiter(6000, None, 8, 900, 60)})
print("held", flush=True)
time.sleep(600)
"""


def test_the_leases_of_a_process_that_was_killed_are_free_at_once(tmp_path: Path, holders: list[Holder]) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDING, str(tmp_path), KEY], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    holders.append(Holder(tmp_path, concurrency=8))
    assert rate(holders[0].limiter) == 0.0
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    holders[0].renew()
    assert rate(holders[0].limiter) == 1.0
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
    taken = [await second.limiter.acquire(1) for _ in range(3)]
    assert first.limiter.in_flight + len(taken) <= 6


def test_a_wait_that_one_process_was_asked_for_holds_the_others_too(tmp_path: Path, holders: list[Holder]) -> None:
    holders.append(Holder(tmp_path))
    holders.append(Holder(tmp_path))
    first, second = holders
    first.limiter.record_refusal(1, 30.0)
    first.renew()
    second.renew()
    assert 29 < second.limiter.pause_seconds <= 30
    assert second.limiter.learned_requests_per_minute is None
    holders.append(Holder(tmp_path))
    assert 29 < holders[2].limiter.pause_seconds <= 30


def test_a_hold_that_goes_from_one_to_the_other_becomes_no_longer(tmp_path: Path, holders: list[Holder]) -> None:
    holders.append(Holder(tmp_path))
    holders.append(Holder(tmp_path))
    holders[0].limiter.record_refusal(1, 1.0)
    end = time.monotonic() + 1.0
    for _ in range(50):
        for holder in holders:
            holder.renew()
    assert all(time.monotonic() + holder.limiter.pause_seconds <= end + 0.25 for holder in holders)


def test_a_clock_that_is_set_back_holds_nobody(
    tmp_path: Path, holders: list[Holder], monkeypatch: pytest.MonkeyPatch
) -> None:
    holders.append(Holder(tmp_path))
    holders.append(Holder(tmp_path))
    set_back = time.time() - 3600
    monkeypatch.setattr(time, "time", lambda: set_back)
    holders[1].renew()
    assert holders[1].limiter.pause_seconds == 0


def test_what_another_process_was_asked_says_nothing_of_the_own_pace_or_the_providers_silence(
    tmp_path: Path, holders: list[Holder]
) -> None:
    holders.append(Holder(tmp_path))
    holders.append(Holder(tmp_path))
    first, second = holders
    first.limiter.record_refusal(1, 30.0)
    first.renew()
    second.renew()
    held = second.limiter
    assert (held.pause_seconds > 29, held.seconds_without_reply()) == (True, 0)


async def test_a_process_with_no_limits_waits_for_nothing(tmp_path: Path) -> None:
    free = ProviderLimiter(None, None, None, 900, 60)
    with share_limits(tmp_path, {KEY: free}):
        assert free.delay == 0
        free.release(await free.acquire(1), 1, 1)


def test_a_damaged_table_is_made_anew_since_nothing_lasts_in_it(tmp_path: Path, holders: list[Holder]) -> None:
    (tmp_path / "leases.sqlite").write_bytes(b"no database" * 1000)
    holders.append(Holder(tmp_path))
    assert rate(holders[0].limiter) == 1.0


needs = st.dictionaries(st.text(min_size=1, max_size=3), st.floats(0, 1), min_size=1, max_size=6)


@given(needs, st.integers(1, 50), st.booleans(), st.integers(0, 100))
def test_the_parts_are_the_whole_and_nobody_gets_less_than_an_equal_part_of_what_it_needs(
    asked: dict[str, float], whole: int, seats: bool, turn: int
) -> None:
    got = fair_shares(float(whole), asked, seats, float(turn))
    assert sum(got.values()) == pytest.approx(whole)
    for holder, part in got.items():
        assert part >= min(asked[holder] * whole, whole / len(asked)) - (1 if seats else 1e-6)
        assert not seats or part == int(part)


def test_the_odd_slot_goes_from_one_to_the_next() -> None:
    assert [fair_shares(1.0, {"a": 1.0, "b": 1.0}, True, turn) for turn in (0.0, 1.0, 2.0)] == [
        {"a": 1.0, "b": 0.0},
        {"a": 0.0, "b": 1.0},
        {"a": 1.0, "b": 0.0},
    ]
