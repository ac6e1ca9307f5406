"""Packs whose provider holds its senders for longer than a moment: they wait aside, and others are sent meanwhile."""

import asyncio
from collections import deque
from collections.abc import Callable
from math import inf

from pipelines.dispatch.request_types import RequestGroup, Route
from pipelines.limits.circuit_breaker import SHORT_PAUSE_SECONDS, ProviderPaused
from pipelines.limits.provider_limiter import ProviderLimiter
from pipelines.limits.token_bucket import wait_for_event

MAX_HELD_BYTES = 64 << 20
"""Bytes of requests that wait aside at most before no more rows are read."""

MEDIA_REQUEST_BYTES = 1 << 20
"""What a request with media counts: they are read when it is sent."""


class HeldRequests:
    """Takes the permits for a pack, or puts it aside until its provider may be asked again."""

    def __init__(
        self,
        again: Callable[[RequestGroup], None],
        tasks: set["asyncio.Task[None]"],
        ended: Callable[["asyncio.Task[None]"], None],
    ) -> None:
        """`again`: queues a pack. `tasks`: those that are cancelled when nothing more is sent. `ended` hears of each
        task of ours that has ended, however it did."""
        self._again = again
        self._tasks = tasks
        self._ended = ended
        self._providers: set[str] = set()
        self._aside: dict[str, deque[RequestGroup]] = {}
        self._moved: dict[str, asyncio.Event] = {}
        self._bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether so much waits aside that it should not become more."""
        return self._bytes >= MAX_HELD_BYTES

    def register_provider(self, lane: Route) -> None:
        """Requests of this lane will come: only where there are several providers, others can go first."""
        self._providers.add(lane.provider.name)

    async def acquire_permits(
        self, pack: RequestGroup, tokens: int, taken: list[tuple[ProviderLimiter, int]]
    ) -> tuple[Route, int] | None:
        """The provider that may be asked now and its permit; None where the pack waits aside or nobody is left to ask.

        What is to be given back is added to `taken`.
        """
        lane = pack.route
        alone = len(self._providers) < 2
        if not alone and all(member.limiters[0].is_paused for member in lane.members):
            self._put(pack)
            return None
        job = lane.limiters[1]
        taken.append((job, await job.acquire(tokens)))
        member = lane if lane.pool is None else await lane.pool.pick(pack.failed_member)
        if member is None:
            return None
        own = member.limiters[0]
        try:
            permit = await own.acquire(tokens, inf if alone else SHORT_PAUSE_SECONDS)
        except ProviderPaused:
            job.cancel(tokens)
            self._put(pack)
            return None
        taken.append((own, permit))
        return member, permit

    def _put(self, pack: RequestGroup) -> None:
        name = pack.route.provider.name
        self._bytes += _size(pack)
        self._aside.setdefault(name, deque()).append(pack)
        if name in self._moved:
            self._moved[name].set()
            return
        self._moved[name] = asyncio.Event()
        task = asyncio.create_task(self._release(name, pack.route))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._ended)

    async def _release(self, name: str, lane: Route) -> None:
        """Queue the packs again when their provider may be asked; while it is in doubt, one by one."""
        aside, moved = self._aside[name], self._moved[name]
        watched = [member.limiters[0] for member in lane.members]
        for allowance in watched:
            allowance.watchers.append(moved)
        try:
            while aside:
                moved.clear()
                # A member that is left out meanwhile takes none of them, however free it is.
                allowances = [member.limiters[0] for member in lane.members]
                free = [allowance for allowance in allowances if not allowance.is_paused]
                sure = any(not allowance.is_probing for allowance in free)
                for _ in range(len(aside) if sure else min(1, len(free))):
                    pack = aside.popleft()
                    self._bytes -= _size(pack)
                    self._again(pack)
                if aside:
                    held = min((allowance.pause_seconds for allowance in allowances), default=0.0)
                    await wait_for_event(moved, held if not free and held else None)
        finally:
            for allowance in watched:
                allowance.watchers.remove(moved)
            del self._moved[name]


def _size(pack: RequestGroup) -> int:
    return sum(MEDIA_REQUEST_BYTES if request.media else len(request.body) for request in pack.requests)
