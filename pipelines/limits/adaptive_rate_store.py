"""Paces that refusals have shown are kept in the workspace: for the next run, and for processes beside this one."""

import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf

from pipelines.limits.adaptive_rate import FIRST_PLATEAU, NO_LEARNED_RATE, LearnedRate
from pipelines.limits.provider_limiter import ProviderLimiter

MAX_RATE_AGE_SECONDS = 8 * 24 * 3600.0
"""Seconds for which a pace is believed that nobody has used since: a job that runs once a week begins with it. It costs
little if it is wrong: a limit that has been raised is found within a minute."""

TABLE = (
    "create table if not exists found_paces (provider text primary key, lowered integer not null, per_second real, "
    "ceiling real not null, plateau real not null, over_minutes integer not null, at real not null) without rowid"
)


@dataclass(frozen=True, slots=True)
class StoredRate:
    """A provider's row."""

    lowered: int
    """How often anybody has lowered it: who knows another number has missed something."""
    rate: LearnedRate
    at: float
    """Seconds since 1970."""


class LearnedRateStore:
    """What this process and the table know of the same keys."""

    def __init__(self, allowances: Mapping[str, ProviderLimiter]) -> None:
        self._allowances = allowances
        self._seen = dict.fromkeys(allowances, 0)
        """The number that was in the table when it was looked at last."""
        self._lowerings = dict.fromkeys(allowances, 0)
        """Those here that the table knows."""

    def begin(self, db: sqlite3.Connection) -> None:
        """Begin with what is believed. Within a transaction."""
        for key, allowance in self._allowances.items():
            kept = _read(db, key)
            if kept is None:
                continue
            self._seen[key] = kept.lowered
            # The limit may be another by now: more is tried soon, as at the first time.
            believed = replace(kept.rate, plateau=FIRST_PLATEAU)
            if not 0 <= time.time() - kept.at <= MAX_RATE_AGE_SECONDS:
                believed = NO_LEARNED_RATE
            _write(db, key, replace(kept, rate=believed))
            allowance.load_learned_rate(believed)

    def exchange(self, db: sqlite3.Connection) -> None:
        """Tell what was found here, and take what others have found. Within a transaction."""
        for key, allowance in self._allowances.items():
            mine, lowered = allowance.learned_rate, allowance.decreases != self._lowerings[key]
            kept = _read(db, key)
            told = StoredRate(self._seen[key], NO_LEARNED_RATE, 0.0) if kept is None else kept
            agreed = _agreed(mine, lowered, told.rate, told.lowered != self._seen[key])
            self._seen[key] = told.lowered + lowered
            self._lowerings[key] = allowance.decreases
            if agreed != told.rate or lowered:
                _write(db, key, StoredRate(self._seen[key], agreed, time.time()))
            if agreed != mine:
                allowance.load_learned_rate(agreed)


def _agreed(mine: LearnedRate, lowered_here: bool, theirs: LearnedRate, lowered_there: bool) -> LearnedRate:
    """Who was refused is right; among those who were not, who has tried more."""
    slower, faster = sorted((mine, theirs), key=lambda found: found.per_second or inf)
    if lowered_here and lowered_there:
        return slower
    if lowered_here or lowered_there:
        return mine if lowered_here else theirs
    return faster


def _write(db: sqlite3.Connection, key: str, kept: StoredRate) -> None:
    found = kept.rate
    row = (key, kept.lowered, found.per_second, found.ceiling, found.plateau, found.over_minutes, kept.at)
    db.execute("insert or replace into found_paces values (?, ?, ?, ?, ?, ?, ?)", row)


def _read(db: sqlite3.Connection, key: str) -> StoredRate | None:
    """What is in the table, as far as it makes sense."""
    row = db.execute(
        "select lowered, per_second, ceiling, plateau, over_minutes, at from found_paces where provider = ?", (key,)
    ).fetchone()
    if row is None:
        return None
    lowered, per_second, ceiling, plateau, over_minutes, at = row
    if any(type(value) is not float or not 0 < value < inf for value in (per_second, ceiling, plateau, at)):
        return StoredRate(lowered if isinstance(lowered, int) else 0, NO_LEARNED_RATE, 0.0)
    return StoredRate(lowered, LearnedRate(per_second, ceiling, plateau, bool(over_minutes)), at)
