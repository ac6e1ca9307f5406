"""Ledger: pending exchanges before sending, settled ones and answers after it, and recovery from a kill."""

import asyncio
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from connectors.errors import JobError
from connectors.records import RowError, Usage
from pipelines.ledger.entries import PendingExchange, SettledExchange
from pipelines.ledger.ledger import Ledger

FINGERPRINT = b"0123456789abcdef"


def settled_exchange(exchange_id: int, route_id: int, **changes: object) -> SettledExchange:
    values: dict[str, object] = {
        "exchange_id": exchange_id,
        "route_id": route_id,
        "attempt": 1,
        "keys": b'["a"]',
        "fingerprints": FINGERPRINT,
        "started_at": 1,
    }
    return SettledExchange(**{**values, **changes})  # type: ignore[arg-type]


async def add_pending(
    ledger: Ledger, route_id: int, reserved: int | None = None, day: tuple[str, int] | None = None
) -> int | None:
    exchange_id = ledger.next_exchange_id()
    return (
        exchange_id
        if await ledger.record_pending(
            PendingExchange(exchange_id, route_id, 1, b'["a"]', FINGERPRINT, 1, reserved), day
        )
        else None
    )


async def test_an_answer_is_found_by_its_fingerprint_with_the_run_that_paid_for_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    route_id = ledger.register_route("run-1", "job", "step", "local", "chat", "m")
    exchange_id = await add_pending(ledger, route_id)
    assert exchange_id is not None
    await ledger.settle(
        settled_exchange(exchange_id, route_id, http_status=200, answers=[(FINGERPRINT, b"asked", b"reply", None)])
    )
    found = ledger.lookup([FINGERPRINT, b"f" * 16])
    assert list(found) == [FINGERPRINT]
    assert (found[FINGERPRINT].reply, found[FINGERPRINT].error, found[FINGERPRINT].run_id) == (b"reply", None, "run-1")
    answer = ledger.get_with_request(FINGERPRINT)
    assert answer is not None
    assert answer.request == b"asked"
    ledger.close()


async def test_an_error_of_the_row_is_stored_unchanged(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    route_id = ledger.register_route("run-1", "job", "step", "local", "chat", "m")
    error = RowError("bad_request", "no such thing", 400, "invalid_request_error", "messages", None, '{"a": 1}', "r-1")
    exchange_id = await add_pending(ledger, route_id)
    assert exchange_id is not None
    await ledger.settle(settled_exchange(exchange_id, route_id, answers=[(FINGERPRINT, b"asked", None, error)]))
    assert ledger.lookup([FINGERPRINT])[FINGERPRINT].error == error
    ledger.close()


async def test_a_pending_exchange_that_was_never_settled_becomes_unknown_at_its_maximum_cost(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "ledger.sqlite")
    route_id = first.register_route("run-1", "job", "step", "local", "chat", "m")
    other = first.register_route("run-2", "another-job", "step", "local", "chat", "m")
    await add_pending(first, route_id, reserved=70)
    await add_pending(first, other, reserved=1)
    first.close()
    second = Ledger(tmp_path / "ledger.sqlite")
    assert second.recover("job") == 1
    assert second.recover("job") == 0
    assert second.query("select error_class, cost, keys from exchanges") == [("unknown", 70, '["a"]')]
    assert second.query("select count(*) from noted") == [(1,)]
    second.close()


async def test_exchanges_of_each_process_are_numbered_without_gaps(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    for _ in range(2):
        ledger = Ledger(path)
        route_id = ledger.register_route("run-1", "job", "step", "local", "chat", "m")
        exchange_ids = await asyncio.gather(*(add_pending(ledger, route_id) for _ in range(50)))
        await asyncio.gather(
            *(ledger.settle(settled_exchange(exchange_id, route_id)) for exchange_id in exchange_ids if exchange_id)
        )
        ledger.close()
    last = Ledger(path)
    rows = last.query("select writer, count(*), min(seq), max(seq) from exchanges group by writer order by writer")
    assert rows == [(1, 50, 1, 50), (2, 50, 1, 50)]
    assert last.query("select count(*) from noted") == [(0,)]
    last.close()


async def test_the_daily_budget_refuses_what_does_not_fit_and_refunds_what_was_not_spent(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    route_id = ledger.register_route("run-1", "job", "step", "local", "chat", "m")
    exchange_id = await add_pending(ledger, route_id, reserved=60, day=("2026-01-01", 100))
    assert exchange_id is not None
    assert await add_pending(ledger, route_id, reserved=60, day=("2026-01-01", 100)) is None
    assert ledger.query("select count(*) from noted") == [(1,)]
    await ledger.settle(
        settled_exchange(exchange_id, route_id, cost=10, reserved=60, usage=Usage(input_tokens=1)), "2026-01-01"
    )
    assert await add_pending(ledger, route_id, reserved=60, day=("2026-01-01", 100)) is not None
    assert ledger.query("select day, spent from days") == [("2026-01-01", 70)]
    ledger.close()


async def test_calls_of_one_batch_take_effect_in_order(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    route_id = ledger.register_route("run-1", "job", "step", "local", "chat", "m")
    day = ("2026-01-01", 100)
    first, second, third, fourth = (
        PendingExchange(ledger.next_exchange_id(), route_id, 1, b'["a"]', FINGERPRINT, 1, 60) for _ in range(4)
    )
    ended = settled_exchange(
        first.exchange_id, route_id, cost=30, reserved=60, answers=[(FINGERPRINT, b"asked", b"reply", None)]
    )
    results = await ledger.write_batch(
        [
            ("record_pending", (first, day)),
            ("record_pending", (second, day)),
            ("settle", (ended, "2026-01-01")),
            ("record_pending", (third, day)),
            ("write_queued", ("update days set spent = spent - 5", ())),
            ("cancel_pending", (third, "2026-01-01")),
            ("store_answer", (FINGERPRINT, route_id, b"asked", b"another reply")),
            ("record_pending", (fourth, day)),
        ]
    )
    assert results == [True, False, None, True, None, None, None, True]
    assert ledger.query("select id from noted") == [(fourth.exchange_id,)]
    assert ledger.query("select day, spent from days") == [("2026-01-01", 85)]
    assert ledger.query("select seq, cost from exchanges") == [(1, 30)]
    assert ledger.lookup([FINGERPRINT])[FINGERPRINT].reply == b"another reply"
    ledger.close()


async def test_exchanges_are_numbered_without_gaps_after_a_failed_batch(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    route_id = ledger.register_route("run-1", "job", "step", "local", "chat", "m")
    one, other = await add_pending(ledger, route_id), await add_pending(ledger, route_id)
    assert one is not None
    assert other is not None
    with pytest.raises(sqlite3.OperationalError):
        await ledger.write_batch(
            [
                ("settle", (settled_exchange(one, route_id), None)),
                ("write_queued", ("insert into no_such_table values (1)", ())),
            ]
        )
    await ledger.settle(settled_exchange(other, route_id))
    assert ledger.query("select seq from exchanges") == [(1,)]
    assert ledger.query("select id from noted") == [(one,)]
    ledger.close()


async def test_a_failed_write_does_not_end_the_writing_thread(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    with pytest.raises(sqlite3.Error):
        await ledger.write_queued("insert into no_such_table values (?)", (1,))
    route_id = ledger.register_route("run-1", "job", "step", "local", "chat", "m")
    assert await add_pending(ledger, route_id) is not None
    ledger.close()


async def test_answers_wait_for_space_on_a_full_disk_and_nothing_is_sent_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.ledger.ledger.FULL_DISK_RETRY_SECONDS", 0.001)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    route_id = ledger.register_route("run-1", "job", "step", "local", "chat", "m")
    messages: list[str] = []

    def make_room(message: str) -> None:
        messages.append(message)
        (limit,) = ledger._write.execute("pragma max_page_count = 1000000").fetchone()
        assert limit == 1_000_000

    ledger.watch_free_space(8, make_room)
    first, second = await add_pending(ledger, route_id), await add_pending(ledger, route_id)
    assert first is not None
    assert second is not None
    assert messages == []
    ledger._write.execute("pragma max_page_count = 1")
    answers = [(FINGERPRINT, b"asked", b"reply" * 5000, None)]
    await ledger.settle(settled_exchange(first, route_id, answers=answers))
    assert set(messages) == {"disk full: make room and run again; answers that were received are kept in the ledger"}
    assert list(ledger.lookup([FINGERPRINT])) == [FINGERPRINT]
    messages.clear()
    monkeypatch.setattr(os, "statvfs", lambda folder: os.statvfs_result((4096, 4096, 1000, 100, 100, *[0] * 6)))
    await ledger.settle(settled_exchange(second, route_id))
    assert messages == []
    await add_pending(ledger, route_id)
    assert messages == [
        f"{tmp_path}: disk full: 409.6 kB left, the answers of 8 requests in flight may need 512.2 kB; "
        "make room and run again to continue"
    ]
    ledger.close()


async def test_a_write_that_cannot_begin_fails_and_the_next_one_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.ledger.ledger_file.BUSY_SECONDS", 0.0)
    with closing(Ledger(tmp_path / "ledger.sqlite")) as ledger:
        route_id = ledger.register_route("run", "job", "step", "provider", "chat", "model")
        with closing(sqlite3.connect(ledger.path, isolation_level=None)) as other:
            other.execute("begin immediate")
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                await ledger.store_answer(b"a" * 16, route_id, b"{}", b"1")
            other.execute("rollback")
        async with asyncio.timeout(20):
            await ledger.store_answer(b"a" * 16, route_id, b"{}", b"2")
        assert ledger.lookup([b"a" * 16])[b"a" * 16].reply == b"2"


def test_opening_waits_for_a_process_that_is_creating_the_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as other, ThreadPoolExecutor(1) as pool:
        other.execute("begin immediate")
        making = pool.submit(Ledger, path)
        with pytest.raises(TimeoutError):
            making.result(0.3)
        other.execute("rollback")
        ledger = making.result(10)
        assert ledger.writer == 1
        ledger.close()


def test_a_ledger_of_a_newer_version_is_refused_and_left_untouched(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger(path).close()
    with sqlite3.connect(path) as db:
        db.execute("pragma user_version = 99")
    db.close()
    with pytest.raises(JobError, match=r"written by a newer Rowmill \(schema 99, known here: \d+\); upgrade with"):
        Ledger(path)


def test_a_file_that_is_not_a_ledger_is_refused_and_left_untouched(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"not a database, surely" * 100)
    with pytest.raises(JobError, match=r"the ledger cannot be read .*; nothing was changed"):
        Ledger(path)
    assert path.read_bytes() == b"not a database, surely" * 100
