"""Learned rates in the workspace's SQLite file: for the next run, and for other processes."""

import sqlite3
import time
from collections.abc import Mapping
from math import inf

from msgspec import Struct
from msgspec.structs import replace

from pipelines.limits.adaptive_rate import FIRST_HOLD_SECONDS, NO_LEARNED_RATE, LearnedRate
from pipelines.limits.provider_limiter import ProviderLimiter

MAX_RATE_AGE_SECONDS = 8 * 24 * 3600.0
"""An unused rate is trusted so long: a weekly job starts with it. A wrong one costs little, since a limit that was
raised is found within a minute."""

TABLE = (
    "create table if not exists found_paces (provider text primary key, lowered integer not null, per_second real, "
    "ceiling real not null, plateau real not null, over_minutes integer not null, at real not null) without rowid"
)


class StoredRate(Struct, frozen=True):
    """A provider's row."""

    lowered: int
    """Number of decreases by any process: whoever knows another number has missed one."""
    rate: LearnedRate
    at: float
    """Seconds since 1970."""


class LearnedRateStore:
    """Exchanges learned rates between this process's limiters and the table."""

    def __init__(self, limiters: Mapping[str, ProviderLimiter]) -> None:
        self._limiters = limiters
        self._lowered = dict.fromkeys(limiters, 0)
        """The number in the table when it was last read."""
        self._decreases = dict.fromkeys(limiters, 0)
        """The decreases of this process that the table includes."""

    def load(self, db: sqlite3.Connection) -> None:
        """Start with the rates that are recent enough. Within a transaction."""
        for key, limiter in self._limiters.items():
            stored = _read(db, key)
            if stored is None:
                continue
            self._lowered[key] = stored.lowered
            # The limit may have been raised: probe soon, as the first time.
            rate = replace(stored.rate, plateau=FIRST_HOLD_SECONDS)
            if not 0 <= time.time() - stored.at <= MAX_RATE_AGE_SECONDS:
                rate = NO_LEARNED_RATE
            _write(db, key, replace(stored, rate=rate))
            limiter.load_learned_rate(rate)

    def exchange(self, db: sqlite3.Connection) -> None:
        """Write what this process has learned, load what others have learned. Within a transaction."""
        for key, limiter in self._limiters.items():
            mine, is_lowered = limiter.learned_rate, limiter.decreases != self._decreases[key]
            stored = _read(db, key) or StoredRate(self._lowered[key], NO_LEARNED_RATE, 0.0)
            merged = _merge(mine, is_lowered, stored.rate, stored.lowered != self._lowered[key])
            self._lowered[key] = stored.lowered + is_lowered
            self._decreases[key] = limiter.decreases
            if merged != stored.rate or is_lowered:
                _write(db, key, StoredRate(self._lowered[key], merged, time.time()))
            if merged != mine:
                limiter.load_learned_rate(merged)


def _merge(mine: LearnedRate, lowered_here: bool, theirs: LearnedRate, lowered_there: bool) -> LearnedRate:
    """Return the rate of whoever was refused; if neither was, the rate of whoever has probed further."""
    slower, faster = sorted((mine, theirs), key=lambda rate: rate.per_second or inf)
    if lowered_here and lowered_there:
        return slower
    if lowered_here or lowered_there:
        return mine if lowered_here else theirs
    return faster


def _write(db: sqlite3.Connection, key: str, stored: StoredRate) -> None:
    rate = stored.rate
    row = (key, stored.lowered, rate.per_second, rate.ceiling, rate.plateau, rate.over_minutes, stored.at)
    db.execute("insert or replace into found_paces values (?, ?, ?, ?, ?, ?, ?)", row)


def _read(db: sqlite3.Connection, key: str) -> StoredRate | None:
    """Return the row; no rate if its values make no sense."""
    row = db.execute(
        "select lowered, per_second, ceiling, plateau, over_minutes, at from found_paces where provider = ?", (key,)
    ).fetchone()
    if row is None:
        return None
    lowered, per_second, ceiling, plateau, over_minutes, at = row
    if any(type(value) is not float or not 0 < value < inf for value in (per_second, ceiling, plateau, at)):
        return StoredRate(lowered if isinstance(lowered, int) else 0, NO_LEARNED_RATE, 0.0)
    return StoredRate(lowered, LearnedRate(per_second, ceiling, plateau, bool(over_minutes)), at)
