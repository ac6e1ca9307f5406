"""The purse: nothing above the limit is ever set aside."""

import asyncio

from pipelines.pricing.run_budget import RunBudget


async def test_without_a_limit_everything_fits_and_is_counted() -> None:
    purse = RunBudget(None, 5)
    assert await purse.acquire(None)
    assert await purse.acquire(10)
    purse.settle(10, 7)
    assert (purse.spent, purse.reserved, purse.remaining) == (12, 0, None)


async def test_a_request_without_a_bound_is_refused_under_a_limit() -> None:
    assert not await RunBudget(100, 0).acquire(None)


async def test_what_earlier_invocations_spent_counts() -> None:
    purse = RunBudget(100, 95)
    assert not await purse.acquire(6)
    assert await purse.acquire(5)


async def test_a_request_waits_for_money_that_requests_in_flight_may_give_back() -> None:
    purse = RunBudget(100, 0)
    assert await purse.acquire(80)
    waiting = asyncio.create_task(purse.acquire(50))
    await asyncio.sleep(0)
    assert not waiting.done()
    purse.settle(80, 40)
    assert await waiting
    assert (purse.spent, purse.reserved, purse.remaining) == (40, 50, 10)


async def test_a_request_that_cannot_fit_whatever_comes_back_is_refused_at_once() -> None:
    purse = RunBudget(100, 60)
    assert await purse.acquire(10)
    assert not await purse.acquire(41)
