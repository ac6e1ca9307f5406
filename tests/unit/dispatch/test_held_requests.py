"""Requests of paused providers are held until their provider may be asked again."""

import asyncio
from typing import Any

import pytest

from connectors.contracts import Provider
from connectors.records import Request, RowError
from pipelines.dispatch.held_requests import MAX_HELD_BYTES, HeldRequests
from pipelines.dispatch.provider_pool import ProviderPool
from pipelines.dispatch.request_types import RequestGroup, Route
from pipelines.limits.provider_limiter import ProviderLimiter

Clock = list[float]


def route_to(name: str, clock: Clock, pool: ProviderPool | None = None) -> Route:
    """Return a route to a provider without limits, or to a pool; `clock` holds the time in seconds."""
    limiter = ProviderLimiter(None, None, None, 900, 60, lambda: clock[0])
    endpoint: Any = None
    limiters = (limiter, limiter)
    return Route("answer", endpoint, Provider(name, "http://x"), limiters, None, lambda _: 0, 1, True, pool=pool)


@pytest.fixture
def clock() -> Clock:
    return [0.0]


@pytest.fixture
def queued() -> list[RequestGroup]:
    return []


@pytest.fixture
def tasks() -> set[asyncio.Task[None]]:
    return set()


@pytest.fixture
def held(queued: list[RequestGroup], tasks: set[asyncio.Task[None]], clock: Clock) -> HeldRequests:
    requests = HeldRequests(queued.append, tasks, lambda task: None)
    requests.register_provider(route_to("other", clock))
    return requests


async def let_tasks_run() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def end(tasks: set[asyncio.Task[None]]) -> None:
    running = list(tasks)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def test_a_group_gets_the_permits_of_the_job_and_of_its_provider(held: HeldRequests, clock: Clock) -> None:
    route = route_to("test", clock)
    permits: list[tuple[ProviderLimiter, int]] = []
    permitted = await held.acquire_permits(RequestGroup(route, ()), 1, permits)
    assert permitted is not None
    assert (permitted[0], [limiter for limiter, _ in permits]) == (route, [route.limiters[1], route.limiters[0]])


async def test_groups_of_a_paused_provider_are_held_and_queued_when_the_pause_is_over(
    held: HeldRequests, queued: list[RequestGroup], tasks: set[asyncio.Task[None]], clock: Clock
) -> None:
    route = route_to("test", clock)
    held.register_provider(route)
    route.limiters[0].pause_for(600)
    group = RequestGroup(route, (Request(b"f" * 16, bytes(MAX_HELD_BYTES), 0, None, ("1",)),))
    assert await held.acquire_permits(group, 1, []) is None
    await let_tasks_run()
    assert (queued, held.is_full) == ([], True)
    clock[0] = 601.0
    for watcher in route.limiters[0].watchers:
        watcher.set()
    await let_tasks_run()
    assert (queued, held.is_full, tasks) == ([group], False, set())


async def test_held_groups_are_not_queued_for_a_member_that_was_excluded_meanwhile(
    held: HeldRequests, queued: list[RequestGroup], tasks: set[asyncio.Task[None]], clock: Clock
) -> None:
    first, second = route_to("first", clock), route_to("second", clock)
    pool = ProviderPool((first, second))
    both = route_to("both", clock, pool)
    held.register_provider(both)
    first.limiters[0].record_refusal(1, 2)
    second.limiters[0].record_refusal(1, 600)
    for _ in range(3):
        assert await held.acquire_permits(RequestGroup(both, ()), 1, []) is None
    await asyncio.sleep(0)
    assert pool.exclude(first, RowError("quota", "none is left"))
    clock[0] = 5.0
    for watcher in first.limiters[0].watchers:
        watcher.set()
    await let_tasks_run()
    assert queued == []
    await end(tasks)


async def test_a_failure_of_the_background_task_is_reported(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*arguments: Any) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("pipelines.dispatch.held_requests.wait_for_event", broken)
    ended: list[asyncio.Task[None]] = []
    held = HeldRequests(lambda group: None, set(), ended.append)
    route = route_to("test", clock)
    for one in (route, route_to("other", clock)):
        held.register_provider(one)
    route.limiters[0].record_refusal(1, 600)
    assert await held.acquire_permits(RequestGroup(route, ()), 1, []) is None
    await let_tasks_run()
    assert [str(task.exception()) for task in ended] == ["a defect"]
