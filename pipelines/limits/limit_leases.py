"""LimitLeases: the processes of a workspace share what a provider's key allows, through a small SQLite table.

Each holds a share of the requests and tokens a minute and some of the requests in flight, and renews it twice a
second: nothing is asked for a single request. What one does not use goes to the others. A share is only ever taken
from what nobody holds, so that together they never hold more than there is; a process that has died holds nothing.
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
from pipelines.limits.adaptive_rate_store import TABLE as FOUND_PACES
from pipelines.limits.adaptive_rate_store import LearnedRateStore
from pipelines.limits.provider_limiter import ProviderLimiter

RENEW_SECONDS = 0.5
"""Seconds between renewals."""

SHORT_RENEW_SECONDS = 0.1
"""Seconds between them while others are yet to give back what is due to this process."""

ROTATION_SECONDS = 2.0
"""Seconds after which the odd slot, where slots do not divide, goes to the next process."""

DEMAND_MARGIN = 1.25
"""A process that waits for nothing keeps so much of what it uses, and SOME of the whole to begin with."""

MIN_DEMAND = 0.02

PAUSE_TOLERANCE_SECONDS = 0.25
"""Seconds by which the ends of holds differ that are the same: every process reads the clock at its own moment."""

HOLD = "hold"
"""Not a limit but until when a refusal holds the key's senders, by a clock that all processes of a machine share and
nobody sets."""

KINDS = ("requests", "tokens", "slots")

_TABLE = (
    "create table if not exists leases (provider text not null, kind text not null, holder text not null, "
    "need real not null, granted real not null, primary key (provider, kind, holder)) without rowid"
)


@contextlib.contextmanager
def share_limits(folder: Path, allowances: Mapping[str, ProviderLimiter]) -> Iterator[None]:
    """Share these allowances, by the name and address of their provider, with other processes meanwhile.

    `folder`: the workspace's state. To be entered in a running event loop.
    """
    if not allowances:
        yield
        return
    leases = LimitLeases(folder, allowances)
    keeping = asyncio.create_task(leases.run())
    try:
        yield
    finally:
        keeping.cancel()
        leases.close()


class LimitLeases:
    """What this process holds of each provider's limits."""

    def __init__(self, folder: Path, allowances: Mapping[str, ProviderLimiter]) -> None:
        """Takes what is free at once. `folder`: the workspace's state."""
        self._allowances = allowances
        self._locks = folder / "leases"
        self._locks.mkdir(parents=True, exist_ok=True)
        self._holder = f"{os.getpid()}-{secrets.token_hex(4)}"
        # Locked before any row names it: the system lets go of it when this process dies, however it dies.
        self._lock = os.open(self._locks / self._holder, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._db = _opened(folder / "leases.sqlite")
        self._needs = Demand(allowances)
        self._paces = LearnedRateStore(allowances)
        self.is_short = False
        """Whether others are yet to give back what is due to this process."""
        for allowance in allowances.values():
            allowance.set_share(0.0, 0.0, None if allowance.concurrency is None else 0)
        self.renew(first=True)

    async def run(self) -> None:
        """Renew until cancelled."""
        while True:
            await asyncio.sleep(SHORT_RENEW_SECONDS if self.is_short else RENEW_SECONDS)
            self.renew()

    def renew(self, first: bool = False) -> None:
        """Tell the others what is needed here, and take what is due."""
        if not first:
            self._needs.measure()
        try:
            with self._db:
                self._db.execute("begin immediate")
                if first:
                    self._paces.begin(self._db)
                self._paces.exchange(self._db)
                granted, holds, self.is_short = self._take()
        except sqlite3.OperationalError:
            # Somebody else is at it, or the disk is full: until the next time all stays as it is.
            self.is_short = True
            return
        for key, allowance in self._allowances.items():
            slots = None if allowance.concurrency is None else int(granted[key, "slots"])
            allowance.set_share(granted[key, "requests"], granted[key, "tokens"], slots)
            if holds[key] > allowance.requested_pause + PAUSE_TOLERANCE_SECONDS:
                # What one process was asked to wait, all of them wait; it says nothing of this one's pace.
                allowance.pause_for(holds[key])

    def close(self) -> None:
        """Give everything back."""
        with contextlib.suppress(sqlite3.OperationalError), self._db:
            self._db.execute("begin immediate")
            self._paces.exchange(self._db)
            self._db.execute("delete from leases where holder = ?", (self._holder,))
        self._db.close()
        (self._locks / self._holder).unlink(missing_ok=True)
        os.close(self._lock)

    def _take(self) -> tuple[dict[tuple[str, str], float], dict[str, float], bool]:
        """What this process holds from now on, the seconds for which other processes were asked to wait, and whether
        more is due to it than was free."""
        held: dict[tuple[str, str], dict[str, tuple[float, float]]] = {}
        alive: dict[str, bool] = {self._holder: True}
        for provider, kind, holder, need, granted in self._db.execute(
            "select provider, kind, holder, need, granted from leases"
        ).fetchall():
            if holder not in alive:
                alive[holder] = self._lives(holder)
            if alive[holder]:
                held.setdefault((provider, kind), {})[holder] = (need, granted)
            else:
                self._db.execute("delete from leases where holder = ?", (holder,))
        now_held: dict[tuple[str, str], float] = {}
        holds: dict[str, float] = {}
        wanting = False
        now = time.monotonic()
        for key, allowance in self._allowances.items():
            told = held.get((key, HOLD), {})
            holds[key] = max(
                (until - now for holder, (until, _) in told.items() if holder != self._holder), default=0.0
            )
            self._write(key, HOLD, now + allowance.requested_pause, 0.0)
            for kind in KINDS:
                whole = 1.0 if kind != "slots" else float(allowance.concurrency or 0)
                others = held.get((key, kind), {})
                others.pop(self._holder, None)
                needs = {holder: need for holder, (need, _) in others.items()}
                needs[self._holder] = self._needs.shares[key, kind]
                due = fair_shares(whole, needs, kind == "slots", now // ROTATION_SECONDS)[self._holder]
                free = whole - sum(granted for _, granted in others.values())
                granted = max(0.0, min(due, free))
                in_use = granted
                if kind == "slots" and whole:
                    granted = float(int(granted + 1e-9))
                    # What is in flight is in use, whoever it is due to; no more than is due is sent from now on.
                    in_use = max(granted, float(allowance.in_flight))
                wanting |= granted < 0.99 * due
                now_held[key, kind] = granted
                self._write(key, kind, needs[self._holder], in_use)
        return now_held, holds, wanting

    def _write(self, key: str, kind: str, need: float, granted: float) -> None:
        self._db.execute(
            "insert or replace into leases values (?, ?, ?, ?, ?)", (key, kind, self._holder, need, granted)
        )

    def _lives(self, holder: str) -> bool:
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
    """What somebody needs of each limit: told by what was used and waited for since it was measured last."""

    def __init__(self, allowances: Mapping[str, ProviderLimiter]) -> None:
        self._allowances = allowances
        self.shares = {(key, kind): 1.0 for key in allowances for kind in KINDS}
        """(key, kind) -> share of the whole."""
        self._used = dict.fromkeys(allowances, (0.0, 0.0))
        self._measured_at = time.monotonic()

    def measure(self) -> None:
        """Look again."""
        now = time.monotonic()
        seconds, self._measured_at = max(now - self._measured_at, 0.01), now
        for key, allowance in self._allowances.items():
            used = (allowance.requests.used, allowance.tokens.used)
            limits = (allowance.effective_requests_per_minute, allowance.tokens_per_minute)
            for place, kind in enumerate(KINDS[:2]):
                limit = limits[place]
                share = 1.0 if limit is None else (used[place] - self._used[key][place]) * 60 / seconds / limit
                self._need(key, kind, share, kind in allowance.contended)
            self._need(key, "slots", allowance.in_flight / (allowance.concurrency or 1), "slots" in allowance.contended)
            self._used[key] = used
            allowance.contended.clear()

    def _need(self, key: str, kind: str, share: float, waited: bool) -> None:
        # A lull of half a second is no reason to give everything away.
        lately = 0.7 * self.shares[key, kind]
        self.shares[key, kind] = 1.0 if waited else min(1.0, max(lately, DEMAND_MARGIN * share + MIN_DEMAND))


def fair_shares(whole: float, needs: Mapping[str, float], seats: bool, turn: float) -> dict[str, float]:
    """Who gets how much: at least an equal part or what is needed, if that is less; what nobody needs, in equal parts.

    `needs`: shares of the whole. `seats`: in whole numbers; the odd ones go to those whose turn it is.
    """
    got: dict[str, float] = {}
    left = whole
    for place, (holder, need) in enumerate(sorted(needs.items(), key=lambda one: (one[1], one[0]))):
        got[holder] = min(need * whole, left / (len(needs) - place))
        left -= got[holder]
    got = {holder: part + left / len(needs) for holder, part in got.items()}
    return _seated(whole, got, turn) if seats else got


def _seated(whole: float, parts: Mapping[str, float], turn: float) -> dict[str, float]:
    seated = {holder: float(int(part + 1e-9)) for holder, part in parts.items()}
    odd = int(whole - sum(seated.values()) + 1e-9)
    queue: Sequence[str] = sorted(parts)
    for place in range(odd):
        seated[queue[(int(turn) + place) % len(queue)]] += 1
    return seated


def _opened(path: Path) -> sqlite3.Connection:
    try:
        return _connected(path)
    except sqlite3.DatabaseError as exc:
        if isinstance(exc, sqlite3.OperationalError):
            raise
        # Damaged: what lasts in it is found again by a few refusals.
        path.unlink()
        return _connected(path)


def _connected(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=0.1, isolation_level=None)
    db.execute("pragma busy_timeout = 2000")
    enable_wal(db, 2)
    db.execute("pragma synchronous = off")
    db.execute(_TABLE)
    db.execute(FOUND_PACES)
    for table in ("leases", "found_paces"):
        # Damage shows when it is read.
        db.execute(f"select * from {table}").fetchall()
    db.execute("pragma busy_timeout = 20")
    return db
