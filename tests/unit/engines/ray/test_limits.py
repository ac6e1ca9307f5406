"""Limits of a run on Ray: leases of the workers, and the budget that is lent to them."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.config.job import JobLimits
from pipelines.engines.ray.limits import (
    JOB,
    LeaseRenewal,
    LimiterActor,
    LimitSpec,
    LimitUsage,
    RemoteBudget,
    RenewedLease,
    RunTerms,
)
from pipelines.limits.provider_limiter import ProviderLimiter
from pipelines.pricing.run_budget import RunBudget


def usage(in_flight: int = 0, demand: float = 1.0) -> dict[str, LimitUsage]:
    demands = {"requests": demand, "tokens": demand, "slots": demand}
    return {JOB: LimitUsage((0.0, 0.0), in_flight, frozenset(), (None, None), 0.0, demands)}


@pytest.fixture
def limiter(tmp_path: Path) -> LimiterActor:
    return LimiterActor(tmp_path, {JOB: LimitSpec(600.0, None, 10)}, budget=100)


async def test_a_pause_other_limits_and_another_budget_reach_the_workers_with_their_leases(
    limiter: LimiterActor,
) -> None:
    assert (await limiter.renew(1, usage(), 0, 0)).terms == RunTerms()
    assert await limiter.borrow(1, 40, 0, 0) == 50
    terms = RunTerms(is_paused=True, limits=JobLimits(concurrency=4), senders=4)
    await limiter.set_terms(terms, 45)
    lease = await limiter.renew(1, usage(), 0, 0)
    assert (lease.terms, lease.granted[JOB, "slots"], lease.is_money_short) == (terms, 4.0, True)
    assert await limiter.borrow(1, 40, 30, 20) == 0
    await limiter.set_terms(terms, 200)
    assert await limiter.borrow(1, 40, 30, 0) >= 40


async def test_workers_share_the_slots_and_never_hold_more_than_there_are(limiter: LimiterActor) -> None:
    first = await limiter.renew(1, usage(), 0, 0)
    assert (first.granted[JOB, "slots"], first.is_short) == (10.0, False)
    second = await limiter.renew(2, usage(), 0, 0)
    assert (second.granted[JOB, "slots"], second.is_short) == (0.0, True)
    first = await limiter.renew(1, usage(in_flight=7), 0, 0)
    assert first.granted[JOB, "slots"] == 5.0
    # Two of the first worker's slots are still in use.
    second = await limiter.renew(2, usage(), 0, 0)
    assert (second.granted[JOB, "slots"], second.is_short) == (3.0, True)
    await limiter.renew(1, usage(in_flight=5), 0, 0)
    second = await limiter.renew(2, usage(), 0, 0)
    assert (second.granted[JOB, "slots"], second.is_short) == (5.0, False)


async def test_a_pause_that_one_worker_was_asked_for_holds_for_all(limiter: LimiterActor) -> None:
    await limiter.renew(1, {JOB: LimitUsage((0.0, 0.0), 0, frozenset(), (None, None), 30.0, usage()[JOB].demand)}, 0, 0)
    lease = await limiter.renew(2, usage(), 0, 0)
    assert 29 < lease.pause_seconds[JOB] <= 30


async def test_money_is_lent_until_the_budget_is_used_up(limiter: LimiterActor) -> None:
    await limiter.renew(1, usage(), 0, 0)
    assert await limiter.borrow(1, 10, 0, 0) == 50
    assert await limiter.borrow(1, 50, 50, 0) == 50
    assert await limiter.borrow(1, 1, 100, 0) == 0


async def test_a_worker_waits_for_money_that_another_may_return(limiter: LimiterActor) -> None:
    await limiter.renew(1, usage(), 0, 0)
    await limiter.renew(2, usage(), 0, 0)
    assert await limiter.borrow(1, 80, 0, 0) == 80
    waiting = asyncio.create_task(limiter.borrow(2, 60, 0, 0))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert (await limiter.renew(1, usage(), 20, 60)).is_money_short
    assert await waiting == 60


async def test_the_money_of_a_dead_worker_that_is_not_spent_can_be_lent_again(limiter: LimiterActor) -> None:
    await limiter.renew(1, usage(), 0, 0)
    await limiter.renew(2, usage(), 0, 0)
    assert await limiter.borrow(1, 90, 0, 0) == 90
    await limiter.remove(1, 30)
    assert await limiter.borrow(2, 70, 0, 0) == 70


@pytest.mark.ray
async def test_a_remote_budget_returns_idle_money_before_it_borrows_more() -> None:
    calls: list[tuple[int, int, int, int]] = []

    async def borrow(worker: int, needed: int, spent: int, returned: int) -> int:
        calls.append((worker, needed, spent, returned))
        return 0 if len(calls) == 3 else 50

    budget = RemoteBudget(SimpleNamespace(borrow=SimpleNamespace(remote=borrow)), 1)
    assert await budget.acquire(20)
    budget.settle(20, 15)
    assert await budget.acquire(40)
    assert not await budget.acquire(30)
    assert calls == [(1, 20, 0, 0), (1, 40, 15, 35), (1, 30, 15, 10)]
    assert (budget.spent, budget.reserved) == (15, 40)


@pytest.mark.ray
async def test_a_slot_is_free_for_others_only_after_its_outcome_is_in_the_ledger() -> None:
    is_waiting, is_recorded = asyncio.Event(), asyncio.Event()
    reported: list[int] = []

    async def renew(worker: int, of: Any, spent: int, returned: int) -> RenewedLease:
        reported.append(of[JOB].in_flight)
        granted = {(JOB, "requests"): 1.0, (JOB, "tokens"): 1.0, (JOB, "slots"): 5.0}
        return RenewedLease(granted, {JOB: 0.0}, False, False, RunTerms(is_paused=True))

    async def wait_until_recorded() -> None:
        is_waiting.set()
        await is_recorded.wait()

    actor = SimpleNamespace(renew=SimpleNamespace(remote=renew))
    limiters = {JOB: ProviderLimiter(None, None, 10, 0.0, 0.0)}
    terms: list[RunTerms] = []
    renewal = LeaseRenewal(actor, 1, limiters, RunBudget(None, 0), wait_until_recorded, terms.append)
    renewing = asyncio.create_task(renewal.renew())
    await is_waiting.wait()
    assert reported == []
    is_recorded.set()
    await renewing
    assert (reported, terms) == ([0], [RunTerms(is_paused=True)])
