"""Rate limiter of one key: stated limits are used almost whole and not exceeded; refusals pause the key."""

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest

from connectors.transport.awake_clock import AwakeClock
from pipelines.limits.adaptive_rate import DECREASE_FACTOR
from pipelines.limits.provider_limiter import FIRST_REFUSAL_SECONDS, HEADROOM, ProviderLimiter
from tests.support.exhaustive import marks
from tests.support.simulated_key import SimulatedKey, run_in_virtual_time, simulate


def limiter_with(
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


def set_limit(requests: int) -> Callable[[SimulatedKey], None]:
    def change(key: SimulatedKey) -> None:
        key.requests = requests

    return change


@pytest.mark.parametrize("window", [True, False], ids=["sliding minute", "bucket"])
@pytest.mark.parametrize(("limit", "senders"), [(3000, 100), pytest.param(30000, 400, marks=marks(True))])
def test_a_known_request_limit_is_used_almost_whole_and_never_exceeded(limit: int, senders: int, window: bool) -> None:
    traffic = simulate(SimulatedKey(requests=limit, window=window), 70, configured=(limit, None), senders=senders)
    assert traffic.used_share(limit, 5, 70) >= 0.98
    assert traffic.refused == []


@pytest.mark.parametrize("estimate", [60, 125, 200], ids=["too low", "right", "too high"])
@pytest.mark.parametrize("window", [True, False], ids=["sliding minute", "bucket"])
def test_a_token_limit_holds_whatever_the_estimate_because_estimates_are_settled(window: bool, estimate: int) -> None:
    key = SimulatedKey(tokens=300_000, window=window)
    traffic = simulate(key, 80, configured=(None, 300_000), estimate=estimate)
    assert traffic.used_share(300_000, 5, 80, tokens=True) >= 0.98
    assert traffic.refused_share <= 0.005


def test_a_limit_stated_in_headers_applies_from_the_first_reply() -> None:
    traffic = simulate(SimulatedKey(requests=3000), 60, headers=True, senders=64)
    assert traffic.used_share(3000, 5, 60) >= 0.98
    assert all(at < 1 for at in traffic.refused)


def test_a_limit_that_the_headers_lower_and_raise_is_followed() -> None:
    changes = ((30, set_limit(1500)), (60, set_limit(3000)))
    traffic = simulate(SimulatedKey(requests=3000), 90, configured=(3000, None), headers=True, changes=changes)
    assert traffic.used_share(1500, 35, 60) >= 0.98
    assert traffic.used_share(3000, 65, 90) >= 0.98
    assert traffic.refused_share <= 0.005


def test_the_rate_falls_if_another_program_uses_the_key_too() -> None:
    key = SimulatedKey(requests=3000, window=True)
    traffic = simulate(key, 240, configured=(3000, None), headers=True, others=20)
    assert traffic.refused_share <= 0.005
    # 20 of 50 a second are the other program's.
    assert traffic.used_share(1800, 70, 240) >= 0.7


async def test_nothing_waits_without_limits() -> None:
    async def count(limiter: ProviderLimiter) -> int:
        for _ in range(1000):
            limiter.release(await limiter.acquire(1000), 1000, 1000)
        return limiter.in_flight

    limiter = limiter_with()
    assert await count(limiter) == 0
    assert sum(limiter.wait_seconds.values()) == 0
    assert (limiter.requests.used, limiter.tokens.used) == (1000, 1_000_000)


def test_a_refusal_pauses_every_sender_of_the_key() -> None:
    async def run(now: Callable[[], float]) -> float:
        limiter = limiter_with(now=now)
        limiter.record_refusal(await limiter.acquire(1), 0.2)
        start = now()
        await limiter.acquire(1)
        return now() - start

    assert run_in_virtual_time(run) >= 0.2


def test_a_burst_of_refusals_lowers_the_rate_once_and_pauses_for_the_longest_stated_time() -> None:
    async def run(now: Callable[[], float]) -> tuple[float, float, float | None]:
        limiter = limiter_with(3000, now=now)
        permits = [await limiter.acquire(1) for _ in range(200)]
        for seconds in (1.0, 3.0, 2.0):
            limiter.record_refusal(permits.pop(), seconds)
        pause, start = limiter.pause_seconds, now()
        await limiter.acquire(1)
        return pause, now() - start, limiter.learned_requests_per_minute

    pause, waited, learned = run_in_virtual_time(run)
    assert pause == pytest.approx(3.0)
    assert waited >= 3.0
    assert learned == pytest.approx(DECREASE_FACTOR * 199 / 200 * 3000 * HEADROOM, rel=0.02)


def test_without_a_stated_time_the_pause_doubles_with_each_refusal_in_a_row(clock: list[float]) -> None:
    limiter = limiter_with(now=lambda: clock[0])
    pauses = []
    for permit in range(8):
        limiter.record_refusal(permit, None)
        pauses.append(round(limiter.pause_seconds, 2))
        clock[0] += limiter.pause_seconds
    assert pauses == [FIRST_REFUSAL_SECONDS, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_a_full_concurrency_limit_counts_as_an_unknown_delay() -> None:
    async def run(now: Callable[[], float]) -> tuple[float, float, float]:
        limiter = limiter_with(concurrency=1, now=now)
        before, load = limiter.delay, limiter.load
        permit = await limiter.acquire(1)
        waiting = asyncio.ensure_future(limiter.acquire(1))
        await asyncio.sleep(0)
        assert (limiter.delay, limiter.load, waiting.done()) == (float("inf"), 1.0, False)
        limiter.release(permit, 1, 1)
        await waiting
        return before, load, limiter.in_flight

    assert run_in_virtual_time(run) == (0.0, 0.0, 1)


async def test_after_a_suspension_no_provider_has_been_silent_for_long(clock: list[float]) -> None:
    awake = AwakeClock(lambda: clock[0])
    awake.start_watch()
    limiter = limiter_with(now=awake.now)
    limiter.record_failure(await limiter.acquire(1), no_server=True)
    clock[0] += 8 * 3600
    limiter.record_failure(await limiter.acquire(1), no_server=True)
    assert limiter.seconds_without_reply() == 0.0
    assert 0 < limiter.pause_seconds < 1


async def test_configured_limits_can_be_replaced_while_requests_are_sent() -> None:
    limiter = limiter_with(600, 6000)
    limiter.set_configured(60, None)
    assert (limiter.requests_per_minute, limiter.tokens_per_minute) == (60, None)
    assert limiter.requests.per_second == 1 * HEADROOM
    assert limiter.tokens.per_second is None
    limiter.update_from_headers((30, None))
    limiter.set_configured(None, None)
    assert limiter.requests_per_minute == 30
