"""The budget of a run: nothing above the limit is ever reserved, and every reservation is settled."""

import asyncio

import pytest

from pipelines.pricing.run_budget import BudgetExhausted, RunBudget


async def test_without_a_limit_everything_fits_and_is_counted() -> None:
    budget = RunBudget(None, 5)
    assert await budget.acquire(None)
    async with budget.reserve(10) as reservation:
        assert budget.reserved == 10
        reservation.settle(7)
    assert (budget.spent, budget.reserved, budget.remaining) == (12, 0, None)


async def test_a_request_without_a_maximum_cost_is_refused_under_a_limit() -> None:
    assert not await RunBudget(100, 0).acquire(None)


async def test_what_earlier_invocations_spent_counts() -> None:
    budget = RunBudget(100, 95)
    assert not await budget.acquire(6)
    assert await budget.acquire(5)


async def test_a_request_waits_for_money_that_requests_in_flight_may_give_back() -> None:
    budget = RunBudget(100, 0)
    assert await budget.acquire(80)
    waiting = asyncio.create_task(budget.acquire(50))
    await asyncio.sleep(0)
    assert not waiting.done()
    budget.settle(80, 40)
    assert await waiting
    assert (budget.spent, budget.reserved, budget.remaining) == (40, 50, 10)


async def test_a_request_that_cannot_fit_whatever_comes_back_is_refused_at_once() -> None:
    budget = RunBudget(100, 60)
    assert await budget.acquire(10)
    assert not await budget.acquire(41)


async def test_a_reservation_that_cannot_fit_raises_before_the_block() -> None:
    budget = RunBudget(100, 60)
    with pytest.raises(BudgetExhausted):
        async with budget.reserve(41):
            raise AssertionError("entered")
    assert (budget.spent, budget.reserved) == (60, 0)


async def test_a_block_that_sends_nothing_costs_nothing() -> None:
    budget = RunBudget(100, 0)
    async with budget.reserve(40):
        pass
    assert (budget.spent, budget.reserved) == (0, 0)


async def test_a_request_that_was_sent_and_not_settled_counts_at_its_maximum_cost() -> None:
    budget = RunBudget(100, 0)
    with pytest.raises(asyncio.CancelledError):
        async with budget.reserve(40) as reservation:
            reservation.mark_sent()
            raise asyncio.CancelledError
    assert (budget.spent, budget.reserved) == (40, 0)


async def test_a_settled_reservation_is_not_settled_again_when_its_block_ends() -> None:
    budget = RunBudget(100, 0)
    async with budget.reserve(40) as reservation:
        reservation.mark_sent()
        reservation.settle(15)
    assert (budget.spent, budget.reserved) == (15, 0)


async def test_a_reservation_that_is_kept_open_is_settled_after_its_block() -> None:
    budget = RunBudget(100, 0)
    async with budget.reserve(40) as reservation:
        reservation.mark_sent()
        reservation.keep_open()
    assert (budget.spent, budget.reserved) == (0, 40)
    reservation.settle(15)
    assert (budget.spent, budget.reserved) == (15, 0)


@pytest.mark.parametrize("limit", [None, 100])
async def test_a_reservation_can_change_to_a_lower_maximum_cost(limit: int | None) -> None:
    budget = RunBudget(limit, 0)
    async with budget.reserve(40) as reservation:
        reservation.change_to(30)
        assert budget.reserved == 30
        reservation.settle(20)
    assert (budget.spent, budget.reserved) == (20, 0)


async def test_a_reservation_of_unknown_cost_can_change_to_a_known_one() -> None:
    budget = RunBudget(None, 0)
    async with budget.reserve(None) as reservation:
        reservation.change_to(30)
        assert budget.reserved == 30
    assert (budget.spent, budget.reserved) == (0, 0)


async def test_a_raised_limit_admits_a_request_that_waits_and_a_lowered_one_refuses_the_next() -> None:
    budget = RunBudget(10, 0)
    assert await budget.acquire(8)
    waiting = asyncio.create_task(budget.acquire(8))
    await asyncio.sleep(0)
    assert not waiting.done()
    budget.set_limit(16)
    assert await asyncio.wait_for(waiting, 10)
    budget.set_limit(5)
    budget.settle(16, 5)
    assert not await budget.acquire(1)


async def test_requests_reserve_more_after_one_that_cost_more_than_its_maximum() -> None:
    budget = RunBudget(1000, 0)
    async with budget.reserve(100) as reservation:
        reservation.settle(250)
    async with budget.reserve(101) as reservation:
        assert (reservation.max_cost, budget.remaining) == (253, 1000 - 250 - 253)
        # A lower price, in a pool.
        reservation.change_to(50)
        assert (reservation.max_cost, budget.remaining) == (125, 1000 - 250 - 125)
        reservation.settle(125)
    assert (budget.spent, budget.reserved) == (375, 0)
    with pytest.raises(BudgetExhausted):
        async with budget.reserve(251):
            raise AssertionError("entered")


async def test_a_cost_above_its_maximum_raises_what_is_reserved_for_requests_in_flight() -> None:
    budget = RunBudget(1000, 0)
    assert await budget.acquire(100)
    assert await budget.acquire(100)
    reservation = budget.reserve(100)
    async with reservation:
        assert not budget.is_overdrawn
        # Before it is settled: what is sent meanwhile depends on it.
        reservation.record_cost(400)
        assert (reservation.max_cost, budget.remaining, budget.is_overdrawn) == (400, -200, True)
        waiting = asyncio.create_task(budget.acquire(50))
        await asyncio.sleep(0)
        reservation.settle(400)
    # 400 are spent, and each of the two others may cost as much.
    await asyncio.sleep(0)
    assert (budget.remaining, waiting.done()) == (-200, False)
    budget.settle(100, 100)
    await asyncio.sleep(0)
    assert (budget.remaining, waiting.done()) == (100, False)
    budget.settle(100, 100)
    assert (await waiting, budget.remaining) == (True, 200)


@pytest.mark.parametrize(("has_daily_limit", "max_cost"), [(False, 100), (True, 250)], ids=["without", "with"])
async def test_without_a_limit_the_maximum_cost_is_raised_for_a_daily_one_only(
    has_daily_limit: bool, max_cost: int
) -> None:
    budget = RunBudget(None, 0, has_daily_limit)
    async with budget.reserve(100) as reservation:
        reservation.settle(250)
    async with budget.reserve(100) as reservation:
        assert reservation.max_cost == max_cost
