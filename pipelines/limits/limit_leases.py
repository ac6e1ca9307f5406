"""Limit leases: the processes of a workspace share the limits of a provider's key through a small SQLite table.

Each holds shares of the requests and tokens a minute and of the requests in flight, and renews them twice a second;
no single request needs a query. Unused shares go to the other processes. A share is only taken from what is free, so
that together they never exceed the limit; the shares of a dead process are free.
"""

import asyncio
import contextlib
import fcntl
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipelines.ledger.ledger_file import enable_wal
from pipelines.limits.adaptive_rate_store import TABLE as LEARNED_RATES_TABLE
from pipelines.limits.adaptive_rate_store import LearnedRateStore
from pipelines.limits.provider_limiter import ProviderLimiter

RENEW_SECONDS = 0.5
"""Time between renewals."""

SHORT_RENEW_SECONDS = 0.1
"""The same while other processes have yet to return what is due to this one."""

ROTATION_SECONDS = 2.0
"""If slots do not divide evenly, the odd ones go to the next process after this time."""

DEMAND_MARGIN = 1.25
"""A process that does not wait demands so many times what it uses, and at least MIN_DEMAND of the whole."""

MIN_DEMAND = 0.02

PAUSE_TOLERANCE_SECONDS = 0.25
"""Ends of the same pause differ by up to this time, because each process reads the clock at another moment."""

HOLD = "hold"
"""Not a limit but the end of the pause after a refusal, by the monotonic clock that all processes of a machine
share."""

KINDS = ("requests", "tokens", "slots")

_TABLE = (
    "create table if not exists leases (provider text not null, kind text not null, holder text not null, "
    "need real not null, granted real not null, primary key (provider, kind, holder)) without rowid"
)


@contextlib.contextmanager
def share_limits(folder: Path, limiters: Mapping[str, ProviderLimiter]) -> Iterator[None]:
    """Share the limits of these limiters, by name and address of their provider, with other processes.

    `folder`: the workspace's state. Requires a running event loop.
    """
    if not limiters:
        yield
        return
    leases = LimitLeases(folder, limiters)
    renewing = asyncio.create_task(leases.run())
    try:
        yield
    finally:
        renewing.cancel()
        leases.close()


class LimitLeases:
    """This process's shares of each provider's limits."""

    def __init__(self, folder: Path, limiters: Mapping[str, ProviderLimiter]) -> None:
        """Take what is free at once. `folder`: the workspace's state."""
        self._limiters = limiters
        self._locks = folder / "leases"
        self._locks.mkdir(parents=True, exist_ok=True)
        self._holder = f"{os.getpid()}-{secrets.token_hex(4)}"
        # Locked before any row names it: the system releases the lock when this process dies, however it dies.
        self._lock = os.open(self._locks / self._holder, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._db = _open(folder / "leases.sqlite")
        self._demand = Demand(limiters)
        self._rates = LearnedRateStore(limiters)
        self.is_short = False
        """Whether other processes have yet to return what is due to this one."""
        for limiter in limiters.values():
            limiter.set_share(0.0, 0.0, None if limiter.concurrency is None else 0)
        self.renew(first=True)

    async def run(self) -> None:
        """Renew until cancelled."""
        while True:
            await asyncio.sleep(SHORT_RENEW_SECONDS if self.is_short else RENEW_SECONDS)
            self.renew()

    def renew(self, first: bool = False) -> None:
        """Write this process's demand and take what is due to it."""
        if not first:
            self._demand.measure()
        try:
            with self._db:
                self._db.execute("begin immediate")
                if first:
                    self._rates.load(self._db)
                self._rates.exchange(self._db)
                granted, holds, self.is_short = self._take()
        except sqlite3.OperationalError:
            # The file is busy or the disk is full: keep the present shares until the next renewal.
            self.is_short = True
            return
        for key, limiter in self._limiters.items():
            slots = None if limiter.concurrency is None else int(granted[key, "slots"])
            limiter.set_share(granted[key, "requests"], granted[key, "tokens"], slots)
            if holds[key] > limiter.requested_pause + PAUSE_TOLERANCE_SECONDS:
                # A pause requested from one process applies to all; it does not change this one's rate.
                limiter.pause_for(holds[key])

    def close(self) -> None:
        """Return all shares."""
        with contextlib.suppress(sqlite3.OperationalError), self._db:
            self._db.execute("begin immediate")
            self._rates.exchange(self._db)
            self._db.execute("delete from leases where holder = ?", (self._holder,))
        self._db.close()
        (self._locks / self._holder).unlink(missing_ok=True)
        os.close(self._lock)

    def _take(self) -> tuple[dict[tuple[str, str], float], dict[str, float], bool]:
        """Return this process's new shares, the pauses requested from other processes (seconds), and whether more is
        due to it than was free."""
        held: dict[tuple[str, str], dict[str, tuple[float, float]]] = {}
        alive: dict[str, bool] = {self._holder: True}
        for provider, kind, holder, need, granted in self._db.execute(
            "select provider, kind, holder, need, granted from leases"
        ).fetchall():
            if holder not in alive:
                alive[holder] = self._is_alive(holder)
            if alive[holder]:
                held.setdefault((provider, kind), {})[holder] = (need, granted)
            else:
                self._db.execute("delete from leases where holder = ?", (holder,))
        now_held: dict[tuple[str, str], float] = {}
        holds: dict[str, float] = {}
        wanting = False
        now = time.monotonic()
        for key, limiter in self._limiters.items():
            pauses = held.get((key, HOLD), {})
            holds[key] = max(
                (until - now for holder, (until, _) in pauses.items() if holder != self._holder), default=0.0
            )
            self._write(key, HOLD, now + limiter.requested_pause, 0.0)
            for kind in KINDS:
                whole = 1.0 if kind != "slots" else float(limiter.concurrency or 0)
                others = held.get((key, kind), {})
                others.pop(self._holder, None)
                needs = {holder: need for holder, (need, _) in others.items()}
                needs[self._holder] = self._demand.shares[key, kind]
                due = fair_shares(whole, needs, kind == "slots", now // ROTATION_SECONDS)[self._holder]
                free = whole - sum(granted for _, granted in others.values())
                granted = max(0.0, min(due, free))
                in_use = granted
                if kind == "slots" and whole:
                    granted = float(int(granted + 1e-9))
                    # Requests in flight still use their slots; from now on no more than is due is sent.
                    in_use = max(granted, float(limiter.in_flight))
                wanting |= granted < 0.99 * due
                now_held[key, kind] = granted
                self._write(key, kind, needs[self._holder], in_use)
        return now_held, holds, wanting

    def _write(self, key: str, kind: str, need: float, granted: float) -> None:
        self._db.execute(
            "insert or replace into leases values (?, ?, ?, ?, ?)", (key, kind, self._holder, need, granted)
        )

    def _is_alive(self, holder: str) -> bool:
        try:
            descriptor = os.open(self._locks / holder, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            (self._locks / holder).unlink(missing_ok=True)
            return False
        finally:
            os.close(descriptor)


class Demand:
    """Demand for each limit, from what was used and waited for since the last measurement."""

    def __init__(self, limiters: Mapping[str, ProviderLimiter]) -> None:
        self._limiters = limiters
        self.shares = {(key, kind): 1.0 for key in limiters for kind in KINDS}
        """(key, kind) -> share of the whole limit."""
        self._used = dict.fromkeys(limiters, (0.0, 0.0))
        self._measured_at = time.monotonic()

    def measure(self) -> None:
        """Measure again."""
        now = time.monotonic()
        seconds, self._measured_at = max(now - self._measured_at, 0.01), now
        for key, limiter in self._limiters.items():
            used = (limiter.requests.used, limiter.tokens.used)
            limits = (limiter.effective_requests_per_minute, limiter.tokens_per_minute)
            for place, kind in enumerate(KINDS[:2]):
                limit = limits[place]
                share = 1.0 if limit is None else (used[place] - self._used[key][place]) * 60 / seconds / limit
                self._set_demand(key, kind, share, kind in limiter.contended)
            self._set_demand(key, "slots", limiter.in_flight / (limiter.concurrency or 1), "slots" in limiter.contended)
            self._used[key] = used
            limiter.contended.clear()

    def _set_demand(self, key: str, kind: str, share: float, waited: bool) -> None:
        # A lull of half a second is no reason to return everything.
        recent = 0.7 * self.shares[key, kind]
        self.shares[key, kind] = 1.0 if waited else min(1.0, max(recent, DEMAND_MARGIN * share + MIN_DEMAND))


def fair_shares(whole: float, needs: Mapping[str, float], in_whole_numbers: bool, turn: float) -> dict[str, float]:
    """Divide `whole`: each holder gets an equal part, or its demand if that is less; the rest is split evenly.

    `needs`: holder -> share of the whole. `in_whole_numbers`: the odd ones rotate with `turn`.
    """
    parts: dict[str, float] = {}
    left = whole
    for place, (holder, need) in enumerate(sorted(needs.items(), key=lambda one: (one[1], one[0]))):
        parts[holder] = min(need * whole, left / (len(needs) - place))
        left -= parts[holder]
    parts = {holder: part + left / len(needs) for holder, part in parts.items()}
    return _whole_parts(whole, parts, turn) if in_whole_numbers else parts


def _whole_parts(whole: float, parts: Mapping[str, float], turn: float) -> dict[str, float]:
    rounded = {holder: float(int(part + 1e-9)) for holder, part in parts.items()}
    odd = int(whole - sum(rounded.values()) + 1e-9)
    queue: Sequence[str] = sorted(parts)
    for place in range(odd):
        rounded[queue[(int(turn) + place) % len(queue)]] += 1
    return rounded


def _open(path: Path) -> sqlite3.Connection:
    try:
        return _connect(path)
    except sqlite3.DatabaseError as exc:
        if isinstance(exc, sqlite3.OperationalError):
            raise
        # Damaged: its learned rates are found again after a few refusals.
        path.unlink()
        return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=0.1, isolation_level=None)
    db.execute("pragma busy_timeout = 2000")
    enable_wal(db, 2)
    db.execute("pragma synchronous = off")
    db.execute(_TABLE)
    db.execute(LEARNED_RATES_TABLE)
    for table in ("leases", "found_paces"):
        # Reading reveals damage.
        db.execute(f"select * from {table}").fetchall()
    db.execute("pragma busy_timeout = 20")
    return db
