"""Who knows of which request: the ledger, the usage table, the server and the log of each process; they must agree.

A request is identified by the number under which the ledger recorded it. It is sent with the request, and the process
logs it with what identifies the usage row, and the ledger's own list of what is noted and not settled is read after
each death, from a copy: the next run is to find the files as the dead one left them.
"""

import json
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.soak.counting_server import CountingServer, Seen

SURE = frozenset({"noted", "sending", "arrived"})
"""Stages in which an exchange is certainly recorded as pending; while it is being recorded or settled it may be."""
PICO = 10**12
ZERO = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Accounts:
    """The books of one workspace."""

    ledger: Path
    server: CountingServer
    noted: dict[tuple[Any, ...], int] = field(default_factory=dict)
    """What identifies a usage row -> the number of its note."""
    reserved: dict[int, int] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)
    """In flight at a death, for the ledger: noted and not settled."""
    unsettled: set[int] = field(default_factory=set)
    """Those of them that no later run has settled yet."""
    never_sent: set[int] = field(default_factory=set)
    """Those of them of which no byte had left, for the process that died."""
    most_lost: int = 0
    """At one death."""
    left_at_once: int = 0
    """Deaths by the second Ctrl-C."""
    answered: int = 0

    def ended(self, log: Path, point: str, by: str, code: int) -> bool:
        """Read the log of a process; return whether it was killed at its named point."""
        died: dict[int, tuple[str, bool]] = {}
        reached: int | None = None
        went_off = False
        for line in log.read_text().splitlines() if log.exists() else ():
            result = json.loads(line)
            if "at" in result:
                name = (result["at"], result["attempt"], tuple(result["keys"]), result["marks"])
                assert name not in self.noted
                self.noted[name] = result["note"]
                self.reserved[result["note"]] = result["reserved"]
            elif "reached" in result:
                assert (result["reached"], went_off) == (point, False)
                went_off, reached = True, result["note"]
            else:
                died = {int(note): (stage, left) for note, (stage, left) in result["died"].items()}
        assert code == -9 if by == "KILL" and went_off else code in (0, 130)
        noted = {note for (note,) in ledger_rows(self.ledger, "select id from noted")}
        # Either its recovery came to its end, or what earlier deaths left is all there still.
        assert noted & self.unsettled in (set(), self.unsettled)
        lost = noted - self.unsettled
        assert {note for note, (stage, _) in died.items() if stage in SURE} <= lost <= died.keys()
        self.unsettled = noted
        self.lost |= lost
        self.never_sent |= {note for note in lost if not died[note][1]}
        self.most_lost = max(self.most_lost, len(lost))
        self.left_at_once += by == "TWICE" and bool(died)
        if by == "KILL" and reached is not None:
            self._was_there(point, reached, lost)
        return went_off

    def facts(self) -> dict[str, int]:
        """Of how many requests the books agree."""
        return {
            "requests seen by the server": len(self.server.seen),
            "answered": self.answered,
            "unknown": len(self.lost),
            "of these never sent": len(self.never_sent),
            "left at once": self.left_at_once,
        }

    def _was_there(self, point: str, note: int, lost: set[int]) -> None:
        """The point is what it is called: of the exchange that came there, ledger and server know as much."""
        self.settle_down()
        seen = {one.note for one in self.server.seen}
        knows = (note in lost, note in seen, note in self.server.delivered)
        wanted = {
            "noted": (True, False, False),
            "sent": (True, True, knows[2]),
            "arrived": (True, True, True),
            "ledgered": (False, True, True),
        }
        assert knows == wanted.get(point, knows), (point, knows)

    def settle_down(self) -> None:
        """Wait until the server has read what dead processes have sent."""
        until = time.monotonic() + 10
        while self.server.connections:
            assert time.monotonic() < until
            time.sleep(0.001)

    def balance(self, usage: Iterable[dict[str, Any]], concurrency: int) -> None:
        """After the last run: every book says the same."""
        self.settle_down()
        rows: dict[int, dict[str, Any]] = {}
        for row in usage:
            at = (row["started_at"] - ZERO) // timedelta(microseconds=1)
            note = self.noted[at, row["attempt"], tuple(row["keys"]), "".join(row["fingerprints"])]
            assert note not in rows, "two usage rows of one exchange"
            rows[note] = row
        seen = {one.note: one for one in self.server.seen}
        assert len(seen) == len(self.server.seen), "one note sent twice"
        answered = {note: row for note, row in rows.items() if row["error_class"] is None}
        unknown = {note: row for note, row in rows.items() if row["error_class"] == "unknown"}
        assert len(answered) + len(unknown) == len(rows)

        # Every request that the server saw has one usage row; every usage row without one was never sent.
        assert seen.keys() - rows.keys() == set()
        assert unknown.keys() == self.lost
        assert rows.keys() - seen.keys() == self.never_sent
        assert len(seen) == len(answered) + len(unknown) - len(self.never_sent)
        assert self.most_lost <= concurrency

        # Answered exchanges equal the server's count, to the token and the pico-dollar.
        assert {note: _ledger_row(row) for note, row in answered.items()} == {
            note: _billed(seen[note]) for note in answered
        }
        assert answered.keys() <= self.server.delivered
        assert {note: _cost(row) for note, row in unknown.items()} == {note: self.reserved[note] for note in unknown}
        for note in unknown.keys() & seen.keys():
            assert seen[note].billed <= self.reserved[note]
        assert all(row["input_tokens"] is None and row["request_id"] is None for row in unknown.values())

        # No answer that reached the ledger was asked for again.
        marks = Counter(mark for row in answered.values() for mark in set(row["fingerprints"]))
        assert set(marks.values()) == {1}
        lost_and_seen = self.lost - self.never_sent
        assert len(seen) == len(answered) + len(lost_and_seen)

        self.answered = len(answered)
        # The budget's own books.
        ((spent,),) = ledger_rows(self.ledger, "select sum(spent) from days")
        ((open_notes,),) = ledger_rows(self.ledger, "select count(*) from noted")
        assert (spent, open_notes) == (sum(_cost(row) for row in rows.values()), 0)


def _cost(row: dict[str, Any]) -> int:
    """Pico-dollars."""
    return round(row["cost_usd"] * PICO)


def _ledger_row(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["http_status"], row["request_id"], row["input_tokens"], row["output_tokens"], _cost(row)


def _billed(seen: Seen) -> tuple[Any, ...]:
    return 200, seen.request_id, *seen.tokens, seen.billed


def ledger_rows(ledger: Path, sql: str) -> list[tuple[Any, ...]]:
    """The rows of a read from a copy of the ledger; none where there is none yet."""
    if not ledger.exists():
        return []
    with tempfile.TemporaryDirectory() as folder:
        for name in (ledger.name, f"{ledger.name}-wal"):
            if (ledger.parent / name).exists():
                shutil.copy(ledger.parent / name, folder)
        with closing(sqlite3.connect(Path(folder) / ledger.name)) as db:
            try:
                return db.execute(sql).fetchall()
            except sqlite3.OperationalError:
                # Killed before its tables were made.
                return []
