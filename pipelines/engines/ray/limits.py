"""Limits and budget of a run on Ray: one actor leases shares to the workers.

No single request asks the actor for anything.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from pipelines.config.job import JobLimits
from pipelines.engines.ray.ledger import actor_result
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
"""The name of the limits that the job file sets, next to the names of providers."""

PAUSE_TOLERANCE_SECONDS = 0.05
"""A pause that differs by less is the one that is known."""

GrantedShares = Mapping[tuple[str, str], float]
"""(limit, kind) -> the share of it; of slots, how many."""


class LimitSpec(Struct, frozen=True):
    """The limits of a provider's key, or of the job."""

    requests_per_minute: float | None
    tokens_per_minute: float | None
    concurrency: int | None
    shared_name: str | None = None
    """The name under which other processes of the workspace use it too; None if it is this run's alone."""


class RunTerms(Struct, frozen=True):
    """What `rowmill control` has asked of the run, for every worker."""

    is_paused: bool = False
    limits: JobLimits | None = None
    """In place of those of the job file; None: nothing was set."""
    senders: int = 0
    """Of each worker, with these limits."""


class LimitUsage(Struct, frozen=True):
    """What a worker reports about one limit when it renews its lease."""

    used: tuple[float, float]
    """Requests and tokens since it began."""
    in_flight: int
    contended: frozenset[str]
    """The kinds that its requests waited for."""
    stated: tuple[float | None, float | None]
    """Requests and tokens a minute, as the provider states them."""
    pause_seconds: float
    demand: Mapping[str, float]


class RenewedLease(Struct, frozen=True):
    """What a worker may use until it renews its lease again."""

    granted: GrantedShares
    pause_seconds: Mapping[str, float]
    """By provider: how long it asked any of the workers to wait."""
    is_short: bool
    """Whether more is due to this worker than is free yet."""
    is_money_short: bool
    """Whether idle money must be returned: another worker waits for some, or the budget was lowered."""
    terms: RunTerms


class ClusterLimit(ProviderLimiter):
    """A limit of the whole cluster, which is divided among the workers: nothing is sent through it."""

    def __init__(self, spec: LimitSpec) -> None:
        super().__init__(spec.requests_per_minute, spec.tokens_per_minute, spec.concurrency, 0.0, 0.0)
        self.run_share: dict[str, float] = {"requests": 1.0, "tokens": 1.0, "slots": float(spec.concurrency or 0)}
        """This run's share of it: other processes of the workspace may have the rest."""
        self.paused_until = 0.0

    def set_share(self, requests: float, tokens: float, slots: int | None) -> None:
        """See ProviderLimiter."""
        self.run_share = {"requests": requests, "tokens": tokens, "slots": float(slots or 0)}

    def set_concurrency(self, concurrency: int) -> None:
        """Replace the concurrency of a limit that is this run's alone."""
        self.concurrency = concurrency
        self.run_share["slots"] = float(concurrency)


class LeaseHolder(Struct):
    """A worker, as the limiter actor knows it."""

    granted: dict[tuple[str, str], float] = field(default_factory=dict)
    held: dict[tuple[str, str], float] = field(default_factory=dict)
    """The same, or the slots that it still uses although they are granted to others by now."""
    usage: dict[str, LimitUsage] = field(default_factory=dict)
    lent: int = 0
    """Pico-dollars, some of which are spent or reserved."""
    spent: int = 0


class LimiterActor:
    """Divides limits and budget among the workers; on the machine of the driver, whose workspace others may use too."""

    def __init__(self, state: Path, limits: Mapping[str, LimitSpec], budget: int | None) -> None:
        """`budget`: what the run may still spend, in pico-dollars."""
        self._state = state
        self._limits = {name: ClusterLimit(spec) for name, spec in limits.items()}
        self._shared = {
            spec.shared_name: self._limits[name] for name, spec in limits.items() if spec.shared_name is not None
        }
        self._budget = budget
        self._holders: dict[int, LeaseHolder] = {}
        self._leases: LimitLeases | None = None
        self._lease_task: asyncio.Task[None] | None = None
        self._borrowers = 0
        self._terms = RunTerms()
        self._changed = asyncio.Event()

    async def start(self) -> None:
        """Lease what is free in the workspace, and keep it."""
        if self._shared:
            self._leases = LimitLeases(self._state, self._shared)
            self._lease_task = asyncio.create_task(self._leases.run())

    async def close(self) -> None:
        """Return what was leased."""
        if self._leases is not None and self._lease_task is not None:
            self._lease_task.cancel()
            self._leases.close()

    async def set_terms(self, terms: RunTerms, budget: int | None) -> None:
        """Put other terms in force: workers get them when they renew. `budget`: see `__init__`; None: as before."""
        self._terms = terms
        if terms.limits is not None:
            self._limits[JOB].set_concurrency(terms.limits.concurrency)
        if budget is not None:
            self._budget = budget
        self._changed.set()

    async def renew(self, worker: int, usage: Mapping[str, LimitUsage], spent: int, returned: int) -> RenewedLease:
        """Return a worker's lease from now on. `spent`, `returned`: of the money that was lent to it."""
        holder = self._holders.setdefault(worker, LeaseHolder())
        holder.spent, holder.lent = spent, holder.lent - returned
        self._changed.set()
        now = time.monotonic()
        is_short = False
        for name, current in usage.items():
            limit = self._limits[name]
            before = holder.usage.get(name)
            limit.requests.used += current.used[0] - (before.used[0] if before else 0.0)
            limit.tokens.used += current.used[1] - (before.used[1] if before else 0.0)
            limit.contended |= current.contended
            if current.stated != (None, None):
                limit.update_from_headers(current.stated, of=worker)
            if current.pause_seconds:
                limit.paused_until = max(limit.paused_until, now + current.pause_seconds)
            holder.usage[name] = current
            limit.in_flight = sum(
                other.usage[name].in_flight for other in self._holders.values() if name in other.usage
            )
            for kind in KINDS:
                is_short |= self._grant(worker, name, kind)
        pauses = {name: max(0.0, limit.paused_until - now) for name, limit in self._limits.items()}
        is_above_budget = self._budget is not None and sum(one.lent for one in self._holders.values()) > self._budget
        is_money_short = self._borrowers > 0 or is_above_budget
        return RenewedLease(dict(holder.granted), pauses, is_short, is_money_short, self._terms)

    async def borrow(self, worker: int, needed: int, spent: int, returned: int) -> int:
        """Lend a worker at least the money that it needs; return 0 if so much will never be left."""
        assert self._budget is not None
        borrower = self._holders[worker]
        borrower.spent, borrower.lent = spent, borrower.lent - returned
        self._changed.set()
        self._borrowers += 1
        try:
            while True:
                holders = self._holders.values()
                left = self._budget - sum(holder.lent for holder in holders)
                if needed <= left:
                    # No more than a share: the others need some too.
                    amount = max(needed, left // (2 * len(holders)))
                    borrower.lent += amount
                    return amount
                # What was lent and is not spent yet may come back, even if it is reserved.
                if needed > self._budget - sum(holder.spent for holder in holders):
                    return 0
                self._changed.clear()
                await self._changed.wait()
        finally:
            self._borrowers -= 1

    async def remove(self, worker: int, spent: int) -> None:
        """Remove a worker that has died. `spent`: by the ledger, exchanges of unknown outcome at their maximum cost."""
        holder = self._holders.get(worker)
        if holder is not None:
            holder.granted, holder.held, holder.usage = {}, {}, {}
            holder.spent = holder.lent = spent
            self._changed.set()

    def _grant(self, worker: int, name: str, kind: str) -> bool:
        """Grant a share from what no other worker holds; return whether more was due."""
        holder, total = self._holders[worker], self._limits[name].run_share[kind]
        if kind != "slots" and total <= 0:
            holder.granted[name, kind] = holder.held[name, kind] = 0.0
            return True
        # Demands are shares of the whole limit, of which this run may have a part only.
        scale = 1.0 if kind == "slots" else total
        demands = {
            str(number): min(1.0, other.usage[name].demand[kind] / scale)
            for number, other in self._holders.items()
            if name in other.usage
        }
        due = fair_shares(total, demands, kind == "slots", time.time() // ROTATION_SECONDS)[str(worker)]
        held = sum(other.held.get((name, kind), 0.0) for number, other in self._holders.items() if number != worker)
        granted = max(0.0, min(due, total - held))
        if kind == "slots":
            granted = float(int(granted + 1e-9))
        holder.granted[name, kind] = granted
        in_flight = holder.usage[name].in_flight if kind == "slots" else 0.0
        # What is in flight is in use, whoever it is due to; but it is not replaced.
        holder.held[name, kind] = max(granted, in_flight)
        return granted < 0.99 * due


class RemoteBudget(RunBudget):
    """A worker's part of the budget: its limit is what was lent to it."""

    def __init__(self, actor: Any, worker: int) -> None:
        """`actor`: the handle of a LimiterActor."""
        super().__init__(0, 0)
        self._actor = actor
        self._worker = worker
        self._lent = 0
        self._turn = asyncio.Lock()

    async def acquire(self, max_cost: int | None) -> bool:
        """See RunBudget; borrows more if what was lent does not suffice."""
        if max_cost is None:
            return False
        began = time.monotonic()
        async with self._turn:
            while self._committed(max_cost) > self._lent:
                # All idle money goes back first: two workers must not wait for the too little that the other keeps.
                returned = self.return_idle()
                needed = self._committed(max_cost) - self._committed()
                amount = await actor_result(self._actor.borrow.remote(self._worker, needed, self.spent, returned))
                if not amount:
                    return False
                self._lent += amount
            self.reserved += max_cost
        self.waited_seconds += time.monotonic() - began
        return True

    @property
    def is_overdrawn(self) -> bool:
        """See RunBudget."""
        return self._committed() > self._lent

    def return_idle(self) -> int:
        """Return the money that is neither spent nor reserved; from now on it is not this worker's any more."""
        idle = self._lent - self._committed()
        self._lent -= idle
        return idle


class LeaseRenewal:
    """Renews a worker's leases twice a second."""

    def __init__(
        self,
        actor: Any,
        worker: int,
        limiters: Mapping[str, ProviderLimiter],
        budget: RunBudget,
        wait_until_recorded: Callable[[], Awaitable[None]],
        apply_terms: Callable[[RunTerms], None],
    ) -> None:
        """`actor`: the handle of a LimiterActor. `wait_until_recorded` returns when what has ended by now is in the
        ledger. `apply_terms` is called with the terms in force at every renewal."""
        self._actor = actor
        self._worker = worker
        self._limiters = limiters
        self._budget = budget
        self._wait_until_recorded = wait_until_recorded
        self._apply_terms = apply_terms
        self._demand = Demand(limiters)
        self._is_short = False
        self._is_money_short = False
        for limiter in limiters.values():
            limiter.set_share(0.0, 0.0, None if limiter.concurrency is None else 0)

    async def run(self) -> None:
        """Renew until cancelled; OSError if the actor is gone."""
        while True:
            await self.renew()
            await asyncio.sleep(SHORT_RENEW_SECONDS if self._is_short or self._is_money_short else RENEW_SECONDS)

    async def renew(self) -> None:
        """Report the usage and the demand, and apply the shares that are granted."""
        contended = {name: frozenset(limiter.contended) for name, limiter in self._limiters.items()}
        self._demand.measure()
        usage = {
            name: LimitUsage(
                (limiter.requests.used, limiter.tokens.used),
                limiter.in_flight,
                contended[name],
                (limiter.requests_per_minute, limiter.tokens_per_minute),
                limiter.pause_seconds,
                {kind: self._demand.shares[name, kind] for kind in KINDS},
            )
            for name, limiter in self._limiters.items()
        }
        # A slot that others may use now must be free in the ledger as well.
        await self._wait_until_recorded()
        budget = self._budget
        returned = budget.return_idle() if self._is_money_short and isinstance(budget, RemoteBudget) else 0
        call = self._actor.renew.remote(self._worker, usage, self._budget.spent, returned)
        lease: RenewedLease = await actor_result(call)
        self._is_short, self._is_money_short = lease.is_short, lease.is_money_short
        self._apply_terms(lease.terms)
        for name, limiter in self._limiters.items():
            granted = {kind: lease.granted[name, kind] for kind in KINDS}
            slots = None if limiter.concurrency is None else int(granted["slots"])
            limiter.set_share(granted["requests"], granted["tokens"], slots)
            if (pause := lease.pause_seconds[name]) > limiter.pause_seconds + PAUSE_TOLERANCE_SECONDS:
                # All workers wait if one was asked to; as an old request, it says nothing of this worker's rate.
                limiter.record_refusal(-1, pause)
