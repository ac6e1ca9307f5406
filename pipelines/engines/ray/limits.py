"""Limits and budget of a run on Ray: one actor leases shares to the workers; nothing is asked for one request."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.engines.ray.ledger import answered
from pipelines.limits.limit_leases import (
    KINDS,
    RENEW_SECONDS,
    ROTATION_SECONDS,
    SHORT_RENEW_SECONDS,
    Demand,
    LimitLeases,
    fair_shares,
)
from pipelines.limits.provider_limiter import ProviderLimiter
from pipelines.pricing.run_budget import RunBudget

JOB = "the job itself"
"""The name of the limits that the job file sets, beside those of providers."""

SAME_HOLD = 0.05
"""Seconds by which a hold may differ and still be the one that is known."""

Granted = Mapping[tuple[str, str], float]
"""(limit, kind) -> share of it; of slots, how many."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What a provider's key, or the job, allows."""

    requests_per_minute: float | None
    tokens_per_minute: float | None
    concurrency: int | None
    shared: str | None = None
    """Under this name other processes of the workspace use it as well; None: it is this run's alone."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a worker tells of one limit when it renews its lease."""

    used: tuple[float, float]
    """Requests and tokens since it began."""
    in_flight: int
    waited: frozenset[str]
    stated: tuple[float | None, float | None]
    """Requests and tokens a minute, as the provider states them."""
    held_for: float
    needs: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Renewed:
    """What a worker may use until it renews its lease again."""

    granted: Granted
    held_for: Mapping[str, float]
    """Seconds for which providers asked any of the workers to wait."""
    wanting: bool
    """Whether more is due to this worker than is free yet."""
    money_wanted: bool
    """Whether another waits for money: what is lent and not needed is to be given back."""


class Whole(ProviderLimiter):
    """A limit of the whole cluster: nobody sends by it, it is divided among workers."""

    def __init__(self, limit: Limit) -> None:
        super().__init__(limit.requests_per_minute, limit.tokens_per_minute, limit.concurrency, 0.0, 0.0)
        self.here: dict[str, float] = {"requests": 1.0, "tokens": 1.0, "slots": float(limit.concurrency or 0)}
        """What this run has of it: other processes of the workspace may have the rest."""
        self.held_until = 0.0

    def set_share(self, requests: float, tokens: float, slots: int | None) -> None:
        """See Allowance."""
        self.here = {"requests": requests, "tokens": tokens, "slots": float(slots or 0)}


@dataclass(slots=True)
class Holder:
    """A worker, as the limiter knows it."""

    granted: dict[tuple[str, str], float] = field(default_factory=dict)
    held: dict[tuple[str, str], float] = field(default_factory=dict)
    """The same, or what it still uses of slots that are granted to others by now."""
    told: dict[str, Told] = field(default_factory=dict)
    lent: int = 0
    """Pico-dollars, of which it has spent some and set some aside."""
    spent: int = 0


class LimiterActor:
    """Divides limits and budget among the workers; beside the driver, whose workspace other processes may use too."""

    def __init__(self, state: Path, limits: Mapping[str, Limit], budget: int | None) -> None:
        """`budget`: what the run may still spend, in pico-dollars."""
        self._state = state
        self._wholes = {name: Whole(limit) for name, limit in limits.items()}
        self._shared = {limit.shared: self._wholes[name] for name, limit in limits.items() if limit.shared is not None}
        self._budget = budget
        self._holders: dict[int, Holder] = {}
        self._leases: LimitLeases | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._borrowers = 0
        self._moved = asyncio.Event()

    async def start(self) -> None:
        """Take what is free in the workspace, and keep it."""
        if self._shared:
            self._leases = LimitLeases(self._state, self._shared)
            self._keeping = asyncio.create_task(self._leases.run())

    async def close(self) -> None:
        """Give it back."""
        if self._leases is not None and self._keeping is not None:
            self._keeping.cancel()
            self._leases.close()

    async def renew(self, worker: int, told: Mapping[str, Told], spent: int, returned: int) -> Renewed:
        """A worker's lease from now on. `spent`, `returned`: of the money that was lent to it."""
        holder = self._holders.setdefault(worker, Holder())
        holder.spent, holder.lent = spent, holder.lent - returned
        self._moved.set()
        now = time.monotonic()
        wanting = False
        for name, about in told.items():
            whole = self._wholes[name]
            before = holder.told.get(name)
            whole.requests.used += about.used[0] - (before.used[0] if before else 0.0)
            whole.tokens.used += about.used[1] - (before.used[1] if before else 0.0)
            whole.contended |= about.waited
            if about.stated != (None, None):
                whole.update_from_headers(about.stated, of=worker)
            if about.held_for:
                whole.held_until = max(whole.held_until, now + about.held_for)
            holder.told[name] = about
            whole.in_flight = sum(h.told[name].in_flight for h in self._holders.values() if name in h.told)
            for kind in KINDS:
                wanting |= self._grant(worker, name, kind)
        holds = {name: max(0.0, whole.held_until - now) for name, whole in self._wholes.items()}
        return Renewed(dict(holder.granted), holds, wanting, self._borrowers > 0)

    async def borrow(self, worker: int, needed: int, spent: int, returned: int) -> int:
        """Money for a worker, at least what is needed; 0 where there will never be so much left."""
        assert self._budget is not None
        borrower = self._holders[worker]
        borrower.spent, borrower.lent = spent, borrower.lent - returned
        self._moved.set()
        self._borrowers += 1
        try:
            while True:
                holders = self._holders.values()
                left = self._budget - sum(holder.lent for holder in holders)
                if needed <= left:
                    # No more than a share: the others want some as well.
                    block = max(needed, left // (2 * len(holders)))
                    borrower.lent += block
                    return block
                # What was lent and is not spent yet may come back, be it set aside or not.
                if needed > self._budget - sum(holder.spent for holder in holders):
                    return 0
                self._moved.clear()
                await self._moved.wait()
        finally:
            self._borrowers -= 1

    async def gone(self, worker: int, spent: int) -> None:
        """A worker has died. `spent`: by the ledger, what it left unknown at its worst case."""
        holder = self._holders.get(worker)
        if holder is not None:
            holder.granted, holder.held, holder.told = {}, {}, {}
            holder.spent = holder.lent = spent
            self._moved.set()

    def _grant(self, worker: int, name: str, kind: str) -> bool:
        """Only from what no other worker holds; whether more was due."""
        here = self._wholes[name].here[kind]
        if kind != "slots" and here <= 0:
            self._holders[worker].granted[name, kind] = self._holders[worker].held[name, kind] = 0.0
            return True
        # Needs are told as shares of the whole limit, of which this run may have a part only.
        scale = 1.0 if kind == "slots" else here
        needs = {
            str(number): min(1.0, holder.told[name].needs[kind] / scale)
            for number, holder in self._holders.items()
            if name in holder.told
        }
        due = fair_shares(here, needs, kind == "slots", time.time() // ROTATION_SECONDS)[str(worker)]
        held = sum(h.held.get((name, kind), 0.0) for number, h in self._holders.items() if number != worker)
        granted = max(0.0, min(due, here - held))
        if kind == "slots":
            granted = float(int(granted + 1e-9))
        self._holders[worker].granted[name, kind] = granted
        in_flight = self._holders[worker].told[name].in_flight if kind == "slots" else 0.0
        # What is in flight is in use, whoever it is due to; but it is not replaced.
        self._holders[worker].held[name, kind] = max(granted, in_flight)
        return granted < 0.99 * due


class RemoteBudget(RunBudget):
    """A worker's part of the budget: what was lent to it is the limit."""

    def __init__(self, actor: Any, worker: int) -> None:
        """`actor`: the handle of a LimiterActor."""
        super().__init__(0, 0)
        self._actor = actor
        self._worker = worker
        self._lent = 0
        self._turn = asyncio.Lock()

    async def reserve(self, worst: int | None) -> bool:
        """See Purse; where what was lent does not suffice, more is asked for."""
        if worst is None:
            return False
        began = time.monotonic()
        async with self._turn:
            while self.spent + self.reserved + worst > self._lent:
                # All that is idle goes back first: two workers must not wait for what the other keeps of too little.
                returned = self.give_back()
                block = await answered(self._actor.borrow.remote(self._worker, worst, self.spent, returned))
                if not block:
                    return False
                self._lent += block
            self.reserved += worst
        self.waited_seconds += time.monotonic() - began
        return True

    def give_back(self) -> int:
        """What is neither spent nor set aside; from now on it is not this worker's any more."""
        idle = self._lent - self.spent - self.reserved
        self._lent -= idle
        return idle


class Leasing:
    """A worker's leases, renewed twice a second."""

    def __init__(
        self,
        actor: Any,
        worker: int,
        allowances: Mapping[str, ProviderLimiter],
        purse: RunBudget,
        caught_up: Callable[[], Awaitable[None]],
    ) -> None:
        """`actor`: the handle of a LimiterActor. `caught_up`: returns when what has ended by now is in the ledger."""
        self._actor = actor
        self._worker = worker
        self._allowances = allowances
        self._purse = purse
        self._caught_up = caught_up
        self._needs = Demand(allowances)
        self._wanting = False
        self._money_wanted = False
        for allowance in allowances.values():
            allowance.set_share(0.0, 0.0, None if allowance.concurrency is None else 0)

    async def keep(self) -> None:
        """Renew until cancelled; OSError where the actor is gone."""
        while True:
            await self.renew()
            await asyncio.sleep(SHORT_RENEW_SECONDS if self._wanting or self._money_wanted else RENEW_SECONDS)

    async def renew(self) -> None:
        """Tell what is needed, take what is due."""
        waited = {name: frozenset(allowance.contended) for name, allowance in self._allowances.items()}
        self._needs.measure()
        told = {
            name: Told(
                (allowance.requests.used, allowance.tokens.used),
                allowance.in_flight,
                waited[name],
                (allowance.requests_per_minute, allowance.tokens_per_minute),
                allowance.pause_seconds,
                {kind: self._needs.shares[name, kind] for kind in KINDS},
            )
            for name, allowance in self._allowances.items()
        }
        # A place that others may have now is free in the ledger as well.
        await self._caught_up()
        returned = self._purse.give_back() if self._money_wanted and isinstance(self._purse, RemoteBudget) else 0
        call = self._actor.renew.remote(self._worker, told, self._purse.spent, returned)
        renewed: Renewed = await answered(call)
        self._wanting, self._money_wanted = renewed.wanting, renewed.money_wanted
        for name, allowance in self._allowances.items():
            granted = {kind: renewed.granted[name, kind] for kind in KINDS}
            slots = None if allowance.concurrency is None else int(granted["slots"])
            allowance.set_share(granted["requests"], granted["tokens"], slots)
            if (hold := renewed.held_for[name]) > allowance.pause_seconds + SAME_HOLD:
                # What one worker was asked to wait, all of them wait; sent before, it says nothing of this one's pace.
                allowance.record_refusal(-1, hold)
