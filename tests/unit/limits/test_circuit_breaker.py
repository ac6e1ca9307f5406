"""Circuit breaker: a dead provider is paused and probed by single requests."""

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest

from pipelines.limits.circuit_breaker import FAILURES_TO_OPEN
from pipelines.limits.provider_limiter import ProviderLimiter


def limiter_with(
    concurrency: int | None = None, now: Callable[[], float] = time.monotonic, longest_wait: float = 60
) -> ProviderLimiter:
    return ProviderLimiter(None, None, concurrency, longest_hold=900, longest_wait=longest_wait, now=now)


@pytest.fixture
def clock() -> Iterator[list[float]]:
    """A clock that a test moves."""
    yield [100.0]


async def test_after_failures_in_a_row_single_requests_probe_the_provider() -> None:
    dead = limiter_with(longest_wait=0.01)
    permits = [await dead.acquire(1) for _ in range(FAILURES_TO_OPEN)]
    assert [dead.record_failure(permit) for permit in permits] == [False] * FAILURES_TO_OPEN
    assert dead.is_circuit_open
    probe = await dead.acquire(1)
    second = asyncio.create_task(dead.acquire(1))
    await asyncio.sleep(0.05)
    assert not second.done()
    assert dead.record_failure(probe)
    dead.release(probe, 1, None)
    third = await asyncio.wait_for(second, 5)
    dead.record_success(third)
    dead.release(third, 1, None)
    assert not dead.is_circuit_open
    await asyncio.wait_for(asyncio.gather(*(dead.acquire(1) for _ in range(10))), 5)


def test_failures_of_requests_sent_before_the_circuit_opened_do_not_delay_the_probe(clock: list[float]) -> None:
    dead = limiter_with(now=lambda: clock[0])
    for _ in range(500):
        dead.record_failure(0)
    assert dead.pause_seconds == 0.5


def test_two_failed_connections_open_the_circuit(clock: list[float]) -> None:
    dead = limiter_with(now=lambda: clock[0])
    assert [dead.record_failure(0, no_server=True), dead.is_circuit_open] == [False, False]
    assert [dead.record_failure(0, no_server=True), dead.is_circuit_open] == [False, True]
    dead.record_success(0)
    assert (dead.is_circuit_open, dead.pause_seconds) == (False, 0)


def test_the_time_is_measured_for_which_requests_are_refused_or_the_circuit_is_open(clock: list[float]) -> None:
    silent = limiter_with(now=lambda: clock[0])
    assert silent.seconds_without_reply() == 0
    silent.record_refusal(0, 1.0)
    clock[0] += 30
    assert silent.seconds_without_reply() == 30
    silent.record_success(1)
    assert silent.seconds_without_reply() == 0
    silent.record_failure(1, no_server=True)
    silent.record_failure(1, no_server=True)
    clock[0] += 20
    silent.record_failure(2)
    silent.record_refusal(2, 1.0)
    assert silent.seconds_without_reply() == 20


def test_failures_that_use_attempts_are_no_silence_however_long_each_takes(clock: list[float]) -> None:
    """The only row that is left may time out, at 600 s each, as often as it has attempts."""
    slow = limiter_with(now=lambda: clock[0])
    slow.record_refusal(0, 1.0)
    for _ in range(6):
        clock[0] += 600
        slow.record_failure(1)
        assert slow.seconds_without_reply() == 0
    slow.record_success(1)
    for _ in range(FAILURES_TO_OPEN - 1):
        slow.record_failure(1)
    assert not slow.is_circuit_open


async def test_the_concurrency_limit_is_not_exceeded() -> None:
    narrow = limiter_with(concurrency=2)
    first = await narrow.acquire(1)
    await narrow.acquire(1)
    third, fourth = asyncio.create_task(narrow.acquire(1)), asyncio.create_task(narrow.acquire(1))
    await asyncio.sleep(0)
    assert not third.done()
    narrow.release(first, 1, None)
    assert narrow.in_flight == 2
    await third
    assert not fourth.done()
    fourth.cancel()
    await asyncio.gather(fourth, return_exceptions=True)
    assert narrow.in_flight == 2


async def test_a_pause_of_the_run_is_no_silence_of_the_provider(clock: list[float]) -> None:
    limiter = limiter_with(now=lambda: clock[0])
    limiter.record_refusal(await limiter.acquire(1), 1.0)
    clock[0] += 10
    limiter.record_run_pause(True)
    clock[0] += 5000
    assert limiter.seconds_without_reply() == 10
    limiter.record_run_pause(False)
    clock[0] += 1
    assert limiter.seconds_without_reply() == 11


async def test_silence_that_begins_in_a_pause_of_the_run_counts_from_its_end(clock: list[float]) -> None:
    limiter = limiter_with(now=lambda: clock[0])
    permit = await limiter.acquire(1)
    limiter.record_run_pause(True)
    clock[0] += 100
    limiter.record_refusal(permit, 1.0)
    clock[0] += 5000
    assert limiter.seconds_without_reply() == 0
    limiter.record_run_pause(False)
    clock[0] += 3
    assert limiter.seconds_without_reply() == 3
