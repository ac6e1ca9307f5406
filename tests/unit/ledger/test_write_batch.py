"""Write batch: nothing is written before `flush`, and statements see what came before them."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from connectors.records import RowError
from pipelines.ledger.answer_files import AnswerFiles
from pipelines.ledger.entries import PendingExchange, SettledExchange
from pipelines.ledger.ledger_file import open_ledger_file
from pipelines.ledger.write_batch import WriteBatch

DAY = "2027-01-04"


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A new ledger's tables."""
    with closing(open_ledger_file(tmp_path / "ledger.sqlite")) as connection:
        yield connection


def batch_of(db: sqlite3.Connection, tmp_path: Path) -> WriteBatch:
    return WriteBatch(db, AnswerFiles(tmp_path / "answers"), lambda _: {}, 1, 10, 17)


def pending(exchange_id: int, max_cost: int | None = 60) -> PendingExchange:
    return PendingExchange(exchange_id, 1, 1, b'["a"]', b"f" * 16, 17, max_cost)


def count(db: sqlite3.Connection, table: str) -> int:
    ((number,),) = db.execute(f"select count(*) from {table}").fetchall()
    return int(number)


def test_rows_are_written_by_flush(db: sqlite3.Connection, tmp_path: Path) -> None:
    batch = batch_of(db, tmp_path)
    batch.record_pending(pending(1), None)
    assert count(db, "noted") == 0
    batch.flush()
    assert count(db, "noted") == 1


def test_an_exchange_may_become_pending_and_settle_in_one_batch(db: sqlite3.Connection, tmp_path: Path) -> None:
    batch = batch_of(db, tmp_path)
    batch.record_pending(pending(1), None)
    batch.settle(SettledExchange(1, 1, 1, b'["a"]', b"f" * 16, 17, cost=5), None)
    batch.flush()
    assert count(db, "noted") == 0
    assert db.execute("select writer, seq, cost from exchanges").fetchall() == [(1, 11, 5)]
    assert batch.seq == 11


def test_a_statement_sees_what_came_before_it(db: sqlite3.Connection, tmp_path: Path) -> None:
    batch = batch_of(db, tmp_path)
    batch.record_pending(pending(1), None)
    assert batch.run_statement(lambda db: count(db, "noted")) == 1


def test_the_daily_budget_counts_reservations_of_the_same_batch(db: sqlite3.Connection, tmp_path: Path) -> None:
    batch = batch_of(db, tmp_path)
    assert batch.record_pending(pending(1), (DAY, 100))
    assert not batch.record_pending(pending(2), (DAY, 100))
    batch.cancel_pending(pending(1), DAY)
    assert batch.record_pending(pending(3), (DAY, 100))
    batch.flush()
    assert db.execute("select id from noted").fetchall() == [(3,)]
    assert db.execute("select day, spent from days").fetchall() == [(DAY, 60)]


def test_a_newer_answer_replaces_the_older_one(db: sqlite3.Connection, tmp_path: Path) -> None:
    batch = batch_of(db, tmp_path)
    batch.store_answers(1, [(b"f" * 16, b"request", None, RowError("bad_request", "no"))])
    batch.store_answers(2, [(b"f" * 16, b"request", b"reply", None)])
    batch.flush()
    assert db.execute("select leg, reply, error, at from answers").fetchall() == [(2, b"reply", None, 17)]
