"""Provider pools: which member is asked next, and what happens when one is excluded."""

import asyncio

from connectors.records import RowError
from pipelines.dispatch.provider_pool import ProviderPool
from tests.unit.dispatch.conftest import make_requests, make_route

DENIED = RowError("access_denied", "wrong key")


async def test_the_least_loaded_member_is_picked() -> None:
    first, second = make_route(1, provider="first"), make_route(2, provider="second")
    await first.limiters[0].acquire(1)
    assert await ProviderPool((first, second)).pick(None) is second


async def test_the_member_that_failed_the_request_is_picked_only_if_no_other_is_free() -> None:
    first, second = make_route(1, provider="first"), make_route(2, provider="second")
    await first.limiters[0].acquire(1)
    pool = ProviderPool((first, second))
    assert await pool.pick(second) is first
    first.limiters[0].pause_for(600)
    assert await pool.pick(second) is second


async def test_an_excluded_member_is_not_asked_any_more() -> None:
    first, second = make_route(1, provider="first"), make_route(2, provider="second")
    pool = ProviderPool((first, second))
    assert pool.exclude(first, DENIED)
    assert first.limiters[0].excluded_reason == "access_denied: wrong key"
    assert await pool.pick(None) is second
    assert not pool.exclude(second, DENIED)
    assert await pool.pick(None) is None


async def test_a_pick_that_waits_ends_when_its_last_member_is_excluded() -> None:
    member = make_route()
    member.limiters[0].pause_for(600)
    pool = ProviderPool((member,))
    picking = asyncio.create_task(pool.pick(None))
    await asyncio.sleep(0)
    pool.exclude(member, DENIED)
    assert await picking is None


def test_the_maximum_cost_is_that_of_the_most_expensive_active_member() -> None:
    cheap, costly, unbounded = make_route(1, 10), make_route(2, 30), make_route(3)
    unbounded.max_cost = lambda request: None
    (request,) = make_requests(1)
    pool = ProviderPool((cheap, costly))
    assert pool.max_cost(request) == 30
    pool.exclude(costly, DENIED)
    assert pool.max_cost(request) == 10
    assert ProviderPool((cheap, unbounded)).max_cost(request) is None
