"""Circuit and slots: a dead provider is held and probed by single requests, and no more are in flight than allowed."""

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest

from pipelines.limits.circuit_breaker import OPEN_AFTER
from pipelines.limits.provider_limiter import Allowance


def allowance(
    concurrency: int | None = None, now: Callable[[], float] = time.monotonic, longest_wait: float = 60
) -> Allowance:
    return Allowance(None, None, concurrency, longest_hold=900, longest_wait=longest_wait, now=now)


@pytest.fixture
def clock() -> Iterator[list[float]]:
    """A clock that a test moves."""
    yield [100.0]


async def test_after_failures_in_a_row_single_requests_try_whether_the_provider_is_back() -> None:
    dead = allowance(longest_wait=0.01)
    permits = [await dead.take(1) for _ in range(OPEN_AFTER)]
    assert [dead.failed(permit) for permit in permits] == [False] * OPEN_AFTER
    assert dead.open_circuit
    probe = await dead.take(1)
    second = asyncio.create_task(dead.take(1))
    await asyncio.sleep(0.05)
    assert not second.done()
    assert dead.failed(probe)
    dead.done(probe, 1, None)
    third = await asyncio.wait_for(second, 5)
    dead.succeeded(third)
    dead.done(third, 1, None)
    assert not dead.open_circuit
    await asyncio.wait_for(asyncio.gather(*(dead.take(1) for _ in range(10))), 5)


def test_failures_of_requests_sent_before_the_circuit_opened_do_not_put_the_next_probe_off(clock: list[float]) -> None:
    dead = allowance(now=lambda: clock[0])
    for _ in range(500):
        dead.failed(0)
    assert dead.held_for == 0.5


def test_two_connections_that_cannot_be_made_open_the_circuit(clock: list[float]) -> None:
    dead = allowance(now=lambda: clock[0])
    assert [dead.failed(0, no_server=True), dead.open_circuit] == [False, False]
    assert [dead.failed(0, no_server=True), dead.open_circuit] == [False, True]
    dead.succeeded(0)
    assert (dead.open_circuit, dead.held_for) == (False, 0)


def test_it_tells_for_how_long_nothing_was_answered(clock: list[float]) -> None:
    silent = allowance(now=lambda: clock[0])
    assert silent.silent_for() == 0
    silent.failed(0)
    clock[0] += 30
    silent.refused(0, 1.0)
    assert silent.silent_for() == 30
    silent.succeeded(1)
    assert silent.silent_for() == 0


async def test_no_more_requests_are_in_flight_than_the_provider_allows() -> None:
    narrow = allowance(concurrency=2)
    first = await narrow.take(1)
    await narrow.take(1)
    third, fourth = asyncio.create_task(narrow.take(1)), asyncio.create_task(narrow.take(1))
    await asyncio.sleep(0)
    assert not third.done()
    narrow.done(first, 1, None)
    assert narrow.in_flight == 2
    await third
    assert not fourth.done()
    fourth.cancel()
    await asyncio.gather(fourth, return_exceptions=True)
    assert narrow.in_flight == 2
