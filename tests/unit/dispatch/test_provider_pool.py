"""Provider pools: which member is asked next, and what happens when one is excluded."""

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest

from connectors.records import RowError
from pipelines.dispatch.provider_pool import ProviderPool
from pipelines.limits.provider_limiter import HEADROOM
from tests.support.simulated_key import run_in_virtual_time
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


async def test_a_request_waits_for_the_rate_limit_of_another_member_than_the_one_that_failed_it() -> None:
    """Else a member that fails at once takes all attempts of a row in a moment, although the other one is healthy."""
    healthy, failing = make_route(1, provider="healthy"), make_route(2, provider="failing")
    healthy.limiters[0].set_configured(60, None)
    await healthy.limiters[0].acquire(1)
    pool = ProviderPool((healthy, failing))
    assert await pool.pick(None) is failing
    assert await pool.pick(failing) is healthy


def test_members_with_low_rates_are_used_as_far_as_their_rates_permit() -> None:
    """At 60 requests a minute the time for one is longer than a burst; so is that for a request of many tokens."""

    async def send(now: Callable[[], float]) -> tuple[float, Counter[str]]:
        slow, fast = make_route(1, provider="slow"), make_route(2, provider="fast")
        slow.limiters[0].set_configured(60, None)
        fast.limiters[0].set_configured(None, 180 * 1000)
        pool, start, picked = ProviderPool((slow, fast)), now(), Counter[str]()
        async with asyncio.timeout(60):
            for _ in range(40):
                member = await pool.pick(None)
                assert member is not None
                await member.limiters[0].acquire(1000)
                picked[member.provider.name] += 1
        return now() - start, picked

    seconds, picked = run_in_virtual_time(send)
    assert seconds == pytest.approx(40 / (4 * HEADROOM), rel=0.1)
    assert picked["slow"] == pytest.approx(10, abs=1)


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
