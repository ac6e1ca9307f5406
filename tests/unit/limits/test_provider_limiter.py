"""Allowances: limits are used almost whole and hardly ever overstepped, found where nobody states them, followed."""

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest

from pipelines.limits.adaptive_rate import EASED
from pipelines.limits.provider_limiter import FIRST_REFUSAL_SECONDS, HEADROOM, ProviderLimiter
from pipelines.limits.token_bucket import BURST_SECONDS, TokenBucket
from tests.support.simulated_key import Key, Moody, drive, leaping


@pytest.mark.parametrize("window", [True, False], ids=["sliding minute", "bucket"])
@pytest.mark.parametrize(("limit", "senders"), [(3000, 100), (30000, 400)])
def test_a_limit_of_requests_that_is_known_is_used_almost_whole_and_never_overstepped(
    limit: int, senders: int, window: bool
) -> None:
    seen = drive(Key(requests=limit, window=window), 70, told=(limit, None), senders=senders)
    assert seen.share(limit, 5, 70) >= 0.98
    assert seen.refused == []


@pytest.mark.parametrize("guess", [60, 125, 200], ids=["too low", "right", "too high"])
@pytest.mark.parametrize("window", [True, False], ids=["sliding minute", "bucket"])
def test_a_limit_of_tokens_is_kept_whatever_was_guessed_since_guesses_are_settled(window: bool, guess: int) -> None:
    seen = drive(Key(tokens=300_000, window=window), 80, told=(None, 300_000), guess=guess)
    assert seen.share(300_000, 5, 80, tokens=True) >= 0.98
    assert seen.refused_share <= 0.005


def test_a_limit_that_the_headers_state_is_kept_from_the_first_reply_on() -> None:
    seen = drive(Key(requests=3000), 60, headers=True, senders=64)
    assert seen.share(3000, 5, 60) >= 0.98
    assert all(at < 1 for at in seen.refused)


def lower(to: int) -> Callable[[Key], None]:
    def change(key: Key) -> None:
        key.requests = to

    return change


def test_a_limit_that_the_headers_lower_and_raise_again_is_followed() -> None:
    changes = ((30, lower(1500)), (60, lower(3000)))
    seen = drive(Key(requests=3000), 90, told=(3000, None), headers=True, changes=changes)
    assert seen.share(1500, 35, 60) >= 0.98
    assert seen.share(3000, 65, 90) >= 0.98
    assert seen.refused_share <= 0.005


@pytest.mark.parametrize("states_wait", [True, False], ids=["retry-after", "no word"])
def test_a_limit_that_only_refusals_lower_is_followed_and_so_is_its_return(states_wait: bool) -> None:
    changes = ((30, lower(1500)), (90, lower(3000)))
    seen = drive(Key(requests=3000), 170, told=(3000, None), states_wait=states_wait, changes=changes)
    assert seen.share(1500, 40, 90) >= 0.95
    assert seen.share(3000, 150, 170) >= 0.95
    assert seen.refused_share <= 0.005


@pytest.mark.parametrize("states_wait", [True, False], ids=["retry-after", "no word"])
@pytest.mark.parametrize(("limit", "senders"), [(3000, 64), (30000, 300)])
def test_an_unknown_limit_is_found_by_refusals_without_a_storm(limit: int, senders: int, states_wait: bool) -> None:
    seen = drive(Key(requests=limit), 60, senders=senders, states_wait=states_wait)
    assert seen.share(limit, 20, 60) >= 0.95
    assert sum(1 for at in seen.refused if at >= 20) <= 0.005 * len(seen.passed)


@pytest.mark.parametrize("states_wait", [True, False], ids=["retry-after", "no word"])
def test_an_unknown_limit_of_a_sliding_minute_is_found_after_the_first_burst(states_wait: bool) -> None:
    seen = drive(Key(requests=3000, window=True), 240, senders=200, states_wait=states_wait)
    # Nothing passes for most of the first minute: its allowance left at once.
    assert seen.share(3000, 90, 240) >= 0.85
    assert seen.refused_share <= 0.03


def test_where_another_program_uses_the_key_as_well_what_is_left_slows_this_one_down() -> None:
    seen = drive(Key(requests=3000, window=True), 240, told=(3000, None), headers=True, others=20)
    assert seen.refused_share <= 0.005
    # 20 of 50 a second are the other's.
    assert seen.share(1800, 70, 240) >= 0.7


def test_an_amount_larger_than_a_bucket_leaves_at_once_and_is_paid_off_by_waiting() -> None:
    async def run(now: Callable[[], float]) -> float:
        pace = TokenBucket(100)
        began = now()
        await pace.wait()
        pace.consume(1000)
        assert now() == began
        await pace.wait()
        return now() - began

    assert leaping(run) == pytest.approx(10 - BURST_SECONDS, abs=0.01)


def test_a_debt_that_is_rounding_only_is_none() -> None:
    async def run(now: Callable[[], float]) -> bool:
        pace = TokenBucket(49.65)
        for units in (0.1, 0.2, 1e-17, 5e-324):
            pace.consume(units)
            await pace.wait()
        return pace.is_ready

    assert leaping(run)


def test_what_was_reserved_too_much_comes_back() -> None:
    async def run(now: Callable[[], float]) -> tuple[float, float]:
        pace = TokenBucket(100)
        pace.consume(500)
        pace.settle(500, 100)
        began = now()
        await pace.wait()
        return now() - began, pace.used

    waited, used = leaping(run)
    assert waited == pytest.approx(1 - BURST_SECONDS, abs=0.01)
    assert used == 100


async def test_without_limits_nothing_waits() -> None:
    free = allowance()
    began = time.monotonic()
    for _ in range(1000):
        free.release(await free.acquire(1000), 1000, 1000)
    assert time.monotonic() - began < 5


def allowance(
    requests: float | None = None,
    tokens: float | None = None,
    concurrency: int | None = None,
    now: Callable[[], float] = time.monotonic,
    longest_wait: float = 60,
) -> ProviderLimiter:
    return ProviderLimiter(requests, tokens, concurrency, longest_hold=900, longest_wait=longest_wait, now=now)


@pytest.fixture
def clock() -> Iterator[list[float]]:
    """A clock that a test moves."""
    yield [100.0]


async def test_a_refusal_holds_every_sender_of_the_key() -> None:
    held = allowance()
    permit = await held.acquire(1)
    held.record_refusal(permit, 0.2)
    began = time.monotonic()
    await asyncio.gather(asyncio.wait_for(held.acquire(1), 5))
    assert time.monotonic() - began >= 0.19


def test_a_burst_of_refusals_lowers_the_pace_once_and_waits_for_the_longest_time_that_was_stated() -> None:
    async def run(now: Callable[[], float]) -> tuple[float, float, float | None]:
        told = allowance(3000, now=now)
        permits = [await told.acquire(1) for _ in range(200)]
        for seconds in (1.0, 3.0, 2.0):
            told.record_refusal(permits.pop(), seconds)
        held, began = told.pause_seconds, now()
        await told.acquire(1)
        return held, now() - began, told.learned_requests_per_minute

    held, waited, found = leaping(run)
    assert held == pytest.approx(3.0)
    assert waited >= 3.0
    assert found == pytest.approx(EASED * 199 / 200 * 3000 * HEADROOM, rel=0.02)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("states_wait", [True, False], ids=["retry-after: 0", "no word"])
def test_refusals_that_have_nothing_to_do_with_the_pace_do_not_lower_it_for_long(
    share: float, states_wait: bool
) -> None:
    seen = drive(Moody(share=share), 60, senders=100, states_wait=states_wait)
    # 100 senders that need 0.21 s each.
    assert seen.share(60, 20, 60) >= 0.9 * 100 / 0.21
    assert seen.refused_share <= share + 0.02


def test_a_wait_that_such_refusals_ask_for_is_kept_and_is_all_that_is_lost() -> None:
    seen = drive(Moody(asks=0.5), 60, senders=100)
    # After each wait 100 leave at once, and some of them are refused.
    assert seen.share(60, 20, 60) >= 0.7 * 100 / 0.71


def test_a_provider_that_refused_all_at_first_is_used_at_full_speed_as_soon_as_it_answers() -> None:
    began: list[float] = []

    class Late(Key):
        def wait(self, now: float, tokens: float) -> float:
            began.append(now)
            return 2.0 if now < began[0] + 10 else 0.0

    seen = drive(Late(), 30, senders=20)
    assert seen.share(60, 15, 30) >= 0.9 * 20 / 0.21


@pytest.mark.parametrize("share", [0.01, 0.02, 0.05])
@pytest.mark.parametrize("states_wait", [True, False], ids=["retry-after: 0", "no word"])
def test_such_refusals_beside_a_limit_do_not_hide_it(share: float, states_wait: bool) -> None:
    seen = drive(Moody(requests=3000, share=share), 150, senders=64, states_wait=states_wait)
    assert seen.share(3000, 20, 150) >= 0.7
    assert seen.refused_share <= share + 0.025


def test_a_demand_little_above_the_limit_is_no_mood() -> None:
    # 140 senders that need 0.21 s each ask for a third more than there is.
    seen = drive(Key(requests=30000), 60, senders=140)
    assert seen.share(30000, 20, 60) >= 0.95
    assert seen.refused_share <= 0.005


def test_who_has_a_half_of_the_key_finds_the_limit_of_the_whole() -> None:
    seen = drive(Key(requests=1500), 60, senders=64, part=0.5)
    assert seen.kept_per_minute == pytest.approx(3000, rel=0.1)
    assert seen.share(1500, 20, 60) >= 0.95


def test_a_limit_that_falls_to_a_tenth_is_no_mood() -> None:
    seen = drive(Key(requests=30000), 90, senders=200, changes=((30, lower(3000)),))
    assert seen.share(3000, 60, 90) >= 0.95
    assert sum(at >= 30 for at in seen.refused) <= 500


def test_the_longer_a_found_limit_holds_the_more_seldom_more_is_tried() -> None:
    seen = drive(Key(requests=3000), 240, senders=64)
    assert seen.share(3000, 20, 240) >= 0.98
    assert sum(at >= 20 for at in seen.refused) <= 0.002 * len(seen.passed)
    assert sum(at >= 120 for at in seen.refused) <= 10
    # Of more than 3,000 requests, those refused until the limit was known included.
    assert seen.refused_share <= 0.005


def test_without_a_stated_time_the_wait_doubles_with_each_refusal_in_a_row(clock: list[float]) -> None:
    told = allowance(now=lambda: clock[0])
    waits = []
    for permit in range(8):
        told.record_refusal(permit, None)
        waits.append(round(told.pause_seconds, 2))
        clock[0] += told.pause_seconds
    assert waits == [FIRST_REFUSAL_SECONDS, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
