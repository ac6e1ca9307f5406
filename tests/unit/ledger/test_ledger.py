"""The ledger: what is noted before sending, what is kept after, and what a kill leaves behind."""

import asyncio
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from connectors.errors import JobError
from connectors.records import RowError, Usage
from pipelines.ledger.entries import PendingExchange, SettledExchange
from pipelines.ledger.ledger import Ledger

MARK = b"0123456789abcdef"


def settled(ledger: Ledger, note: int, leg: int, **changes: object) -> SettledExchange:
    values: dict[str, object] = {
        "exchange_id": note,
        "route_id": leg,
        "attempt": 1,
        "keys": b'["a"]',
        "fingerprints": MARK,
        "started_at": 1,
    }
    return SettledExchange(**{**values, **changes})  # type: ignore[arg-type]


async def noted(
    ledger: Ledger, leg: int, reserved: int | None = None, day: tuple[str, int] | None = None
) -> int | None:
    note = ledger.next_exchange_id()
    return note if await ledger.record_pending(PendingExchange(note, leg, 1, b'["a"]', MARK, 1, reserved), day) else None


async def test_an_answer_is_found_by_its_fingerprint_with_the_run_that_paid_for_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    leg = ledger.register_route("run-1", "job", "step", "local", "chat", "m")
    note = await noted(ledger, leg)
    assert note is not None
    await ledger.settle(settled(ledger, note, leg, http_status=200, answers=[(MARK, b"asked", b"reply", None)]))
    found = ledger.lookup([MARK, b"f" * 16])
    assert list(found) == [MARK]
    assert (found[MARK].reply, found[MARK].error, found[MARK].run_id) == (b"reply", None, "run-1")
    as_sent = ledger.get_with_request(MARK)
    assert as_sent is not None
    assert as_sent.request == b"asked"
    ledger.close()


async def test_a_failure_of_the_rows_own_is_kept_word_for_word(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    leg = ledger.register_route("run-1", "job", "step", "local", "chat", "m")
    error = RowError("bad_request", "no such thing", 400, "invalid_request_error", "messages", None, '{"a": 1}', "r-1")
    note = await noted(ledger, leg)
    assert note is not None
    await ledger.settle(settled(ledger, note, leg, answers=[(MARK, b"asked", None, error)]))
    assert ledger.lookup([MARK])[MARK].error == error
    ledger.close()


async def test_what_was_noted_and_never_settled_becomes_unknown_at_its_worst_case(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "ledger.sqlite")
    leg = first.register_route("run-1", "job", "step", "local", "chat", "m")
    other = first.register_route("run-2", "another-job", "step", "local", "chat", "m")
    await noted(first, leg, reserved=70)
    await noted(first, other, reserved=1)
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
        leg = ledger.register_route("run-1", "job", "step", "local", "chat", "m")
        notes = await asyncio.gather(*(noted(ledger, leg) for _ in range(50)))
        await asyncio.gather(*(ledger.settle(settled(ledger, note, leg)) for note in notes if note))
        ledger.close()
    last = Ledger(path)
    rows = last.query("select writer, count(*), min(seq), max(seq) from exchanges group by writer order by writer")
    assert rows == [(1, 50, 1, 50), (2, 50, 1, 50)]
    assert last.query("select count(*) from noted") == [(0,)]
    last.close()


async def test_the_days_budget_refuses_what_does_not_fit_and_takes_back_what_was_not_spent(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    leg = ledger.register_route("run-1", "job", "step", "local", "chat", "m")
    note = await noted(ledger, leg, reserved=60, day=("2026-01-01", 100))
    assert note is not None
    assert await noted(ledger, leg, reserved=60, day=("2026-01-01", 100)) is None
    assert ledger.query("select count(*) from noted") == [(1,)]
    await ledger.settle(settled(ledger, note, leg, cost=10, reserved=60, usage=Usage(input_tokens=1)), "2026-01-01")
    assert await noted(ledger, leg, reserved=60, day=("2026-01-01", 100)) is not None
    assert ledger.query("select day, spent from days") == [("2026-01-01", 70)]
    ledger.close()


async def test_what_is_written_together_counts_in_the_order_in_which_it_came(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    leg = ledger.register_route("run-1", "job", "step", "local", "chat", "m")
    day = ("2026-01-01", 100)
    first, second, third, fourth = (PendingExchange(ledger.next_exchange_id(), leg, 1, b'["a"]', MARK, 1, 60) for _ in range(4))
    ended = settled(ledger, first.exchange_id, leg, cost=30, reserved=60, answers=[(MARK, b"asked", b"reply", None)])
    told = await ledger.write_batch(
        [
            ("record_pending", (first, day)),
            ("record_pending", (second, day)),
            ("settle", (ended, "2026-01-01")),
            ("record_pending", (third, day)),
            ("write_queued", ("update days set spent = spent - 5", ())),
            ("cancel_pending", (third, "2026-01-01")),
            ("store_answer", (MARK, leg, b"asked", b"another reply")),
            ("record_pending", (fourth, day)),
        ]
    )
    assert told == [True, False, None, True, None, None, None, True]
    assert ledger.query("select id from noted") == [(fourth.exchange_id,)]
    assert ledger.query("select day, spent from days") == [("2026-01-01", 85)]
    assert ledger.query("select seq, cost from exchanges") == [(1, 30)]
    assert ledger.lookup([MARK])[MARK].reply == b"another reply"
    ledger.close()


async def test_exchanges_are_numbered_without_gaps_though_a_group_fails(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    leg = ledger.register_route("run-1", "job", "step", "local", "chat", "m")
    one, other = await noted(ledger, leg), await noted(ledger, leg)
    assert one is not None
    assert other is not None
    with pytest.raises(sqlite3.OperationalError):
        await ledger.write_batch(
            [
                ("settle", (settled(ledger, one, leg), None)),
                ("write_queued", ("insert into no_such_table values (1)", ())),
            ]
        )
    await ledger.settle(settled(ledger, other, leg))
    assert ledger.query("select seq from exchanges") == [(1,)]
    assert ledger.query("select id from noted") == [(one,)]
    ledger.close()


async def test_a_ledger_that_cannot_be_written_fails_the_write_and_not_the_process(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    with pytest.raises(sqlite3.Error):
        await ledger.write_queued("insert into no_such_table values (?)", (1,))
    leg = ledger.register_route("run-1", "job", "step", "local", "chat", "m")
    assert await noted(ledger, leg) is not None
    ledger.close()


async def test_a_write_that_cannot_begin_fails_and_the_next_one_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.ledger.ledger_file.BUSY_SECONDS", 0.0)
    with closing(Ledger(tmp_path / "ledger.sqlite")) as ledger:
        leg = ledger.register_route("run", "job", "step", "provider", "chat", "model")
        with closing(sqlite3.connect(ledger.path, isolation_level=None)) as other:
            other.execute("begin immediate")
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                await ledger.store_answer(b"a" * 16, leg, b"{}", b"1")
            other.execute("rollback")
        async with asyncio.timeout(20):
            await ledger.store_answer(b"a" * 16, leg, b"{}", b"2")
        assert ledger.lookup([b"a" * 16])[b"a" * 16].reply == b"2"


def test_a_ledger_that_another_process_is_making_is_waited_for(tmp_path: Path) -> None:
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


def test_a_ledger_from_a_newer_version_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger(path).close()
    with sqlite3.connect(path) as db:
        db.execute("pragma user_version = 99")
    db.close()
    with pytest.raises(JobError, match=r"written by a newer Rowmill \(schema 99, known here: \d+\); upgrade with"):
        Ledger(path)


def test_a_file_that_is_no_ledger_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"not a database, surely" * 100)
    with pytest.raises(JobError, match=r"the ledger cannot be read .*; nothing was changed"):
        Ledger(path)
    assert path.read_bytes() == b"not a database, surely" * 100
