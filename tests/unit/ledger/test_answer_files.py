"""Answer files: a separate one for each large answer, a shared one for the answers of a large exchange."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from connectors.records import RowError
from pipelines.ledger.answer_files import LARGE_ANSWER_BYTES, AnswerFiles, file_name
from pipelines.ledger.entries import AnswerRecord, PendingExchange, SettledExchange
from pipelines.ledger.ledger import Ledger, now_us

FINGERPRINTS = [bytes([number]) * 16 for number in range(8)]


def answer_paths(ledger: Ledger) -> list[Path]:
    return sorted(path for path in ledger.files.folder.rglob("*") if path.is_file())


async def settle_with(ledger: Ledger, answers: list[AnswerRecord]) -> None:
    """Record and settle an exchange with these answers."""
    route_id = ledger.register_route("run-1", "job", "step", "local", "embeddings", "m")
    pending = PendingExchange(
        ledger.next_exchange_id(), route_id, 1, b'["a"]', b"".join(mark for mark, *_ in answers), now_us(), None
    )
    await ledger.record_pending(pending)
    await ledger.settle(
        SettledExchange(
            pending.exchange_id,
            route_id,
            1,
            pending.keys,
            pending.fingerprints,
            pending.started_at,
            200,
            answers=answers,
        )
    )


async def test_with_power_answer_files_are_synced_before_the_ledger_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers_then: list[int] = []
    sync = os.fsync

    def record(descriptor: int) -> None:
        sync(descriptor)
        with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as db:
            answers_then.append(db.execute("select count(*) from answers").fetchone()[0])

    ledger = Ledger(tmp_path / "ledger.sqlite", "power")
    monkeypatch.setattr(os, "fsync", record)
    large = b"x" * (LARGE_ANSWER_BYTES + 1)
    await settle_with(ledger, [(FINGERPRINTS[0], b"{}", large, None)])
    assert set(answers_then) == {0}
    assert ledger.lookup(FINGERPRINTS[:1])[FINGERPRINTS[0]].reply == large
    ledger.close()


async def test_answers_that_are_large_together_share_a_file(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    odd = RowError("invalid_answer", "NaN")
    replies = {mark: bytes([65 + place]) * (LARGE_ANSWER_BYTES // 4) for place, mark in enumerate(FINGERPRINTS[:6])}
    answers: list[AnswerRecord] = [(mark, b"asked", reply, None) for mark, reply in replies.items()]
    await settle_with(ledger, [*answers, (FINGERPRINTS[6], b"asked", None, odd)])
    (file,) = answer_paths(ledger)
    assert file.stat().st_size == 4 + 6 * 16 + 6 * (LARGE_ANSWER_BYTES // 4)
    found = ledger.lookup(FINGERPRINTS)
    assert {mark: one.reply for mark, one in found.items()} == {**replies, FINGERPRINTS[6]: None}
    assert found[FINGERPRINTS[6]].error == odd
    answer = ledger.get_with_request(FINGERPRINTS[2])
    assert answer is not None
    assert (answer.reply, answer.request) == (replies[FINGERPRINTS[2]], b"asked")
    assert ledger.query("select count(*) from answers where reply is not null") == [(0,)]
    ledger.close()


async def test_small_answers_stay_in_the_ledger_and_a_large_one_has_a_separate_file(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    await settle_with(ledger, [(mark, b"", b"small", None) for mark in FINGERPRINTS[:4]])
    assert answer_paths(ledger) == []
    await settle_with(ledger, [(FINGERPRINTS[4], b"", bytes(LARGE_ANSWER_BYTES + 1), None)])
    assert [file.name for file in answer_paths(ledger)] == [FINGERPRINTS[4].hex()]
    found = ledger.lookup(FINGERPRINTS)
    assert [found[mark].reply for mark in FINGERPRINTS[:5]] == [b"small"] * 4 + [bytes(LARGE_ANSWER_BYTES + 1)]
    ledger.close()


async def test_incomplete_and_missing_answers_are_not_returned(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    await settle_with(ledger, [(mark, b"", mark * (LARGE_ANSWER_BYTES // 16), None) for mark in FINGERPRINTS[:3]])
    (file,) = answer_paths(ledger)
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    assert sorted(ledger.lookup(FINGERPRINTS)) == FINGERPRINTS[:2]
    file.unlink()
    assert ledger.lookup(FINGERPRINTS) == {}
    answer = ledger.get_with_request(FINGERPRINTS[0])
    assert answer is not None
    assert answer.reply is None
    ledger.close()


def test_a_file_lists_the_fingerprints_of_its_answers(tmp_path: Path) -> None:
    files = AnswerFiles(tmp_path)
    places = files.write({mark: bytes(LARGE_ANSWER_BYTES) for mark in FINGERPRINTS[:3]}, (7 << 40) + 1)
    (name,) = {file_name(shared) for shared in places.values()}
    assert files.fingerprints(name) == FINGERPRINTS[:3]
    assert files.size(places[FINGERPRINTS[1]]) == LARGE_ANSWER_BYTES
    place = files.write({FINGERPRINTS[5]: bytes(LARGE_ANSWER_BYTES + 1)})[FINGERPRINTS[5]]
    assert files.fingerprints(place) == (FINGERPRINTS[5],)
    assert files.size(place) == LARGE_ANSWER_BYTES + 1
    (tmp_path / "01" / "torn.1.part").write_bytes(b"\xff\xff\xff\xff and no more")
    assert not files.fingerprints("01/torn.1.part")
    assert not files.fingerprints("01/gone")
    assert files.write(dict.fromkeys(FINGERPRINTS, b"little"), 5) == {}
