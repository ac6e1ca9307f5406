"""Requests of paused providers: they are held, and requests to other providers are sent meanwhile."""

import asyncio
from collections import deque
from collections.abc import Callable
from math import inf

from pipelines.dispatch.request_types import RequestGroup, Route
from pipelines.limits.circuit_breaker import SHORT_PAUSE_SECONDS, ProviderPaused
from pipelines.limits.provider_limiter import ProviderLimiter
from pipelines.limits.token_bucket import wait_for_event

MAX_HELD_BYTES = 64 << 20
"""Size of the held requests from which on no further rows are read."""

MEDIA_REQUEST_BYTES = 1 << 20
"""Size that a request with media counts as: its files are read when it is sent."""


class HeldRequests:
    """Acquires the permits of a group, or holds the group until its provider may be asked again."""

    def __init__(
        self,
        enqueue: Callable[[RequestGroup], None],
        tasks: set["asyncio.Task[None]"],
        on_task_done: Callable[["asyncio.Task[None]"], None],
    ) -> None:
        """`enqueue` sends a group again. `tasks`: cancelled when the run stops. `on_task_done`: called when a
        background task finishes or fails."""
        self._enqueue = enqueue
        self._tasks = tasks
        self._on_task_done = on_task_done
        self._providers: set[str] = set()
        self._held: dict[str, deque[RequestGroup]] = {}
        self._changed: dict[str, asyncio.Event] = {}
        self._bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether no further requests should be added."""
        return self._bytes >= MAX_HELD_BYTES

    def register_provider(self, route: Route) -> None:
        """Announce requests of this route: groups are held only if the run uses several providers."""
        self._providers.add(route.provider.name)

    async def acquire_permits(
        self, group: RequestGroup, tokens: int, permits: list[tuple[ProviderLimiter, int]]
    ) -> tuple[Route, int] | None:
        """Return the provider that may be asked now, and its permit; None if the group is held or no member is left.

        Adds to `permits` what must be released.
        """
        route = group.route
        is_only_provider = len(self._providers) < 2
        if not is_only_provider and all(member.limiters[0].is_paused for member in route.members):
            self._hold(group)
            return None
        job_limiter = route.limiters[1]
        if (permit := job_limiter.acquire_free(tokens)) is None:
            permit = await job_limiter.acquire(tokens)
        permits.append((job_limiter, permit))
        member = route if route.pool is None else await route.pool.pick(group.failed_member)
        if member is None:
            return None
        limiter = member.limiters[0]
        if (permit := limiter.acquire_free(tokens)) is None:
            try:
                permit = await limiter.acquire(tokens, inf if is_only_provider else SHORT_PAUSE_SECONDS)
            except ProviderPaused:
                job_limiter.cancel(tokens)
                self._hold(group)
                return None
        permits.append((limiter, permit))
        return member, permit

    def _hold(self, group: RequestGroup) -> None:
        name = group.route.provider.name
        self._bytes += _held_bytes(group)
        self._held.setdefault(name, deque()).append(group)
        if name in self._changed:
            self._changed[name].set()
            return
        self._changed[name] = asyncio.Event()
        task = asyncio.create_task(self._release_when_ready(name, group.route))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._on_task_done)

    async def _release_when_ready(self, name: str, route: Route) -> None:
        """Enqueue the groups when their provider may be asked; one by one while it is being probed."""
        held, changed = self._held[name], self._changed[name]
        watched = [member.limiters[0] for member in route.members]
        for limiter in watched:
            limiter.watchers.append(changed)
        try:
            while held:
                changed.clear()
                # A member that was excluded meanwhile takes no group, however free it is.
                limiters = [member.limiters[0] for member in route.members]
                free = [limiter for limiter in limiters if not limiter.is_paused]
                is_sure = any(not limiter.is_probing for limiter in free)
                for _ in range(len(held) if is_sure else min(1, len(free))):
                    group = held.popleft()
                    self._bytes -= _held_bytes(group)
                    self._enqueue(group)
                if held:
                    pause = min((limiter.pause_seconds for limiter in limiters), default=0.0)
                    await wait_for_event(changed, pause if not free and pause else None)
        finally:
            for limiter in watched:
                limiter.watchers.remove(changed)
            del self._changed[name]


def _held_bytes(group: RequestGroup) -> int:
    return sum(MEDIA_REQUEST_BYTES if request.media else len(request.body) for request in group.requests)
