"""Sums over exchanges: read in windows, only what is new, and the same as one query over all of them."""

import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.dashboard import exchange_totals
from pipelines.dashboard.exchange_totals import ExchangeTotals, FailedExchanges, Timeline, Totals, latency_percentiles
from pipelines.ledger.ledger_file import open_ledger_file
from pipelines.ledger.ledger_reader import LedgerReader

NAMES = (
    "writer", "seq", "leg", "attempt", "keys", "fingerprints", "http_status", "error_class", "input_tokens",
    "output_tokens", "cost", "started_at", "latency_ms", "message",
)  # fmt: skip
DAY = 86_400_000_000


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A ledger with two routes of one run, and one of another."""
    connection = open_ledger_file(tmp_path / "ledger.sqlite")
    for number, (run, step) in enumerate([("r1", "a"), ("r1", "b"), ("r2", "a")], 1):
        connection.execute("insert into legs values (?, ?, 'job', ?, 'p', 'chat', 'm')", (number, run, step))
    yield connection
    connection.close()


def add(db: sqlite3.Connection, writer: int, first: int, last: int) -> None:
    """Add exchanges of a writer; every tenth failed, every seventh has no price."""
    numbers = random.Random(writer)
    for seq in range(first, last + 1):
        failed = seq % 10 == 0
        row = (
            writer, seq, 1 + seq % 3, 1 + failed, "[]", b"", 500 if failed else 200, "server" if failed else None, 3,
            None if failed else 2, None if seq % 7 == 0 else 1000 + seq, numbers.randrange(3 * DAY), 40.0 + seq % 5,
            f"fault {seq}" if failed else None,
        )  # fmt: skip
        marks = ", ".join("?" * len(NAMES))
        db.execute(f"insert into exchanges ({', '.join(NAMES)}) values ({marks})", row)


def test_what_is_added_is_read_once_and_sums_up_as_one_query_does(
    db: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange_totals, "WINDOW_ROWS", 7)
    totals = ExchangeTotals()
    with LedgerReader(tmp_path / "ledger.sqlite") as ledger:
        totals.read(ledger, 60)
        assert (totals.by_day(), totals.share_read) == ({}, 1.0)
        # The writers' exchanges come in between one another.
        for writer, first, last in ((3, 1, 20), (8, 1, 31), (3, 21, 25)):
            add(db, writer, first, last)
            totals.read(ledger, 60)
            totals.read(ledger, 60)
        columns = (
            "count(*), count(error_class), sum(attempt > 1), sum(input_tokens), coalesce(sum(output_tokens), 0), "
            "coalesce(sum(cost), 0), sum(cost is null)"
        )
        days = ledger.query(f"select date(started_at / 1e6, 'unixepoch'), {columns} from exchanges group by 1")
        assert totals.by_day() == {day: Totals(*sums) for day, *sums in days}
        ((*of_run,),) = ledger.query(f"select {columns} from exchanges where leg in (1, 2)")
        assert totals.of_run("r1") == Totals(*of_run)
        steps = ledger.query(f"select leg, {columns} from exchanges where leg in (1, 2) group by 1")
        assert list(totals.by_step("r1").values()) == [Totals(*sums) for _, *sums in sorted(steps)]
        assert sum(bucket.requests for bucket in totals.timeline("r1").buckets.values()) == totals.of_run("r1").requests


def test_a_large_ledger_is_read_little_by_little(
    db: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange_totals, "WINDOW_ROWS", 10)
    add(db, 1, 1, 25)
    totals = ExchangeTotals()
    with LedgerReader(tmp_path / "ledger.sqlite") as ledger:
        shares = []
        for _ in range(3):
            totals.read(ledger, 0)
            shares.append(totals.share_read)
    assert shares == [0.4, 0.8, 1.0]


def test_failures_keep_the_first_message(db: sqlite3.Connection, tmp_path: Path) -> None:
    add(db, 1, 1, 40)
    totals = ExchangeTotals()
    with LedgerReader(tmp_path / "ledger.sqlite") as ledger:
        totals.read(ledger, 60)
        add(db, 1, 41, 70)
        totals.read(ledger, 60)
        ((count, last),) = ledger.query(
            "select count(*), max(started_at) from exchanges where leg = 2 and seq % 10 = 0"
        )
        ((first,),) = ledger.query("select started_at from exchanges where seq = 10")
    of_step = {route.step: failed for route, _, _, failed in totals.failures_of("r1")}
    assert of_step["b"] == FailedExchanges(count, first, last, "fault 10")


def test_a_long_timeline_has_longer_intervals() -> None:
    timeline = Timeline()
    for place in range(1_500):
        timeline.add(place, Totals(requests=1))
    assert timeline.seconds == 4.0
    assert timeline.buckets == {place: Totals(requests=2) for place in range(750)}


def test_percentiles_count_the_newest_exchanges_of_each_step(
    db: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange_totals, "MAX_LATENCIES", 5)
    add(db, 1, 1, 60)
    with LedgerReader(tmp_path / "ledger.sqlite") as ledger:
        found = latency_percentiles(ledger, "r2")
    ((route, (median, *_)),) = found.items()
    assert (route.step, median) == ("a", 42.0)
