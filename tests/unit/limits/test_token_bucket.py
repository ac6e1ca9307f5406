"""Token bucket with debt: amounts of any size leave at once and are paid off by waiting."""

from collections.abc import Callable

import pytest

from pipelines.limits.token_bucket import BURST_SECONDS, TokenBucket
from tests.support.simulated_key import run_in_virtual_time


def test_an_amount_larger_than_the_bucket_leaves_at_once_and_is_paid_off_by_waiting() -> None:
    async def run(now: Callable[[], float]) -> float:
        bucket = TokenBucket(100)
        start = now()
        await bucket.wait()
        bucket.consume(1000)
        assert now() == start
        await bucket.wait()
        return now() - start

    assert run_in_virtual_time(run) == pytest.approx(10 - BURST_SECONDS, abs=0.01)


def test_a_debt_of_rounding_errors_does_not_wait() -> None:
    async def run(now: Callable[[], float]) -> bool:
        bucket = TokenBucket(49.65)
        for units in (0.1, 0.2, 1e-17, 5e-324):
            bucket.consume(units)
            await bucket.wait()
        return bucket.is_ready

    assert run_in_virtual_time(run)


def test_an_unused_reservation_is_refunded() -> None:
    async def run(now: Callable[[], float]) -> tuple[float, float]:
        bucket = TokenBucket(100)
        bucket.consume(500)
        bucket.settle(500, 100)
        start = now()
        await bucket.wait()
        return now() - start, bucket.used

    waited, used = run_in_virtual_time(run)
    assert waited == pytest.approx(1 - BURST_SECONDS, abs=0.01)
    assert used == 100


def test_a_drained_bucket_allows_no_burst() -> None:
    async def run(now: Callable[[], float]) -> tuple[bool, float]:
        bucket = TokenBucket(100)
        bucket.drain()
        return bucket.is_ready, bucket.delay

    assert run_in_virtual_time(run) == (False, BURST_SECONDS)


def test_without_a_rate_units_are_counted_and_nothing_waits() -> None:
    bucket = TokenBucket()
    bucket.consume(7)
    bucket.settle(7, 5)
    assert (bucket.is_ready, bucket.delay, bucket.used) == (True, 0.0, 5)
