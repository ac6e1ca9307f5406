"""Allowances: the pace that was told or learned is kept, a refusal holds everybody, a dead provider is probed."""

import asyncio
import time

from connectors.limiter import OPEN_AFTER, Allowance, TokenBucket


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def allowance(
    requests: float | None = None, tokens: float | None = None, concurrency: int | None = None, hold: float = 900
) -> Allowance:
    return Allowance(requests, tokens, concurrency, longest_hold=hold, longest_wait=60)


def test_a_token_bucket_gives_a_second_at_once_and_then_its_rate() -> None:
    clock = Clock()
    bucket = TokenBucket(6000, clock)
    assert bucket.wait(100) == 0
    bucket.take(100)
    assert bucket.wait(50) == 0.5
    clock.seconds += 0.5
    assert bucket.wait(50) == 0


def test_a_request_larger_than_the_bucket_takes_all_of_it_and_is_paid_off_by_waiting() -> None:
    clock = Clock()
    bucket = TokenBucket(6000, clock)
    assert bucket.wait(1000) == 0
    bucket.take(1000)
    assert bucket.wait(1) == 9.01


def test_what_was_reserved_too_much_comes_back() -> None:
    clock = Clock()
    bucket = TokenBucket(6000, clock)
    bucket.take(100)
    bucket.settle(100, 40)
    assert bucket.wait(60) == 0
    assert bucket.wait(61) > 0


async def test_without_limits_nothing_waits() -> None:
    free = allowance()
    began = time.monotonic()
    for _ in range(1000):
        await free.take(1000)
        free.done(1000, 1000)
    assert time.monotonic() - began < 5


async def test_requests_are_spread_and_never_above_the_pace() -> None:
    paced = allowance(requests=6000)
    began = time.monotonic()
    for _ in range(60):
        await paced.take(1)
    # 100 a second: a quarter of a second's worth at once, the other 35 one by one.
    assert time.monotonic() - began >= 0.34


async def test_a_refusal_holds_every_sender_of_the_key() -> None:
    held = allowance()
    held.refused(0.2, 1)
    began = time.monotonic()
    await asyncio.gather(*(held.take(1) for _ in range(5)))
    assert time.monotonic() - began >= 0.19


async def test_a_lower_limit_that_the_provider_states_is_kept_and_a_higher_one_is_not() -> None:
    told = allowance(requests=600, tokens=None)
    told.learn(300, 1200)
    assert (told.requests_per_minute, told.tokens_per_minute) == (300, 1200)
    told.learn(6000, None)
    assert told.requests_per_minute == 600
    told.learn(None, None)
    assert told.requests_per_minute == 600


async def test_after_failures_in_a_row_single_requests_try_whether_the_provider_is_back() -> None:
    dead = Allowance(None, None, None, longest_hold=900, longest_wait=0.01)
    assert [dead.failed() for _ in range(OPEN_AFTER)] == [False] * OPEN_AFTER
    assert dead.open_circuit
    await dead.take(1)
    second = asyncio.create_task(dead.take(1))
    await asyncio.sleep(0.05)
    assert not second.done()
    assert dead.failed()
    await second
    dead.succeeded()
    assert not dead.open_circuit
    await asyncio.gather(*(dead.take(1) for _ in range(10)))


async def test_it_tells_for_how_long_nothing_was_answered() -> None:
    clock = Clock()
    silent = Allowance(None, None, None, 900, 60, clock)
    assert silent.silent_for() == 0
    silent.failed()
    clock.seconds += 30
    silent.refused(1.0, 1)
    assert silent.silent_for() == 30
    silent.succeeded()
    assert silent.silent_for() == 0


async def test_a_refusal_without_a_stated_limit_lowers_the_pace_to_what_was_answered() -> None:
    clock = Clock()
    learning = Allowance(None, None, None, 900, 60, clock)
    for _ in range(100):
        learning.succeeded()
    clock.seconds += 1
    learning.refused(0.1, 1)
    assert learning.requests_per_minute == 0.9 * 60 * 100
    clock.seconds += 6
    learning.succeeded()
    assert learning.requests_per_minute == 0.9 * 60 * 100 * 1.05
    learning.learn(600, None)
    assert learning.requests_per_minute == 600


async def test_no_more_requests_are_in_flight_than_the_provider_allows() -> None:
    narrow = allowance(concurrency=2)
    await narrow.take(1)
    await narrow.take(1)
    third = asyncio.create_task(narrow.take(1))
    await asyncio.sleep(0)
    assert not third.done()
    narrow.done(1, None)
    await third
