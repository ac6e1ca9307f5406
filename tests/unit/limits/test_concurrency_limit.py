"""Concurrency limit: waiters are admitted in order, and a cancelled waiter loses no slot."""

import asyncio
from collections.abc import Callable

from pipelines.limits.concurrency_limit import ConcurrencyLimit
from tests.support.simulated_key import run_in_virtual_time


def test_waiters_are_admitted_first_in_first_out() -> None:
    async def run(now: Callable[[], float]) -> tuple[list[int], float]:
        limit, order = ConcurrencyLimit(1, now), []
        limit.in_flight = 1

        async def use(number: int) -> None:
            await limit._acquire_slot()
            order.append(number)
            await asyncio.sleep(1)
            limit._release_slot()

        users = [asyncio.ensure_future(use(number)) for number in range(3)]
        await asyncio.sleep(1)
        limit._release_slot()
        await asyncio.gather(*users)
        assert limit.in_flight == 0
        return order, limit.wait_seconds["slots"]

    order, waited = run_in_virtual_time(run)
    assert order == [0, 1, 2]
    assert waited >= 1 + 2 + 3


def test_a_cancelled_waiter_passes_its_slot_on() -> None:
    async def run(now: Callable[[], float]) -> int:
        limit = ConcurrencyLimit(1, now)
        limit.in_flight = 1
        first, second = (asyncio.ensure_future(limit._acquire_slot()) for _ in range(2))
        await asyncio.sleep(0)
        limit._release_slot()
        # The first has its slot, but has not continued yet.
        first.cancel()
        await second
        return limit.in_flight

    assert run_in_virtual_time(run) == 1


def test_watchers_are_set_when_a_slot_is_released() -> None:
    limit, watcher = ConcurrencyLimit(None), asyncio.Event()
    limit.watchers.append(watcher)
    limit.in_flight = 1
    limit._release_slot()
    assert watcher.is_set()
