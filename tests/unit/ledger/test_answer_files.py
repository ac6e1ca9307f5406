"""Large answers lie in files beside the ledger: each in its own, those of one exchange together in one."""

from pathlib import Path

from connectors.records import RowError
from pipelines.ledger.answer_files import LARGE_ANSWER_BYTES, AnswerFiles, file_name
from pipelines.ledger.entries import AnswerRecord, PendingExchange, SettledExchange
from pipelines.ledger.ledger import Ledger, now_us

MARKS = [bytes([number]) * 16 for number in range(8)]


def files(ledger: Ledger) -> list[Path]:
    return sorted(path for path in ledger.files.folder.rglob("*") if path.is_file())


async def exchange(ledger: Ledger, answers: list[AnswerRecord]) -> None:
    """One that brings these answers."""
    leg = ledger.register_route("run-1", "job", "step", "local", "embeddings", "m")
    noted = PendingExchange(ledger.next_exchange_id(), leg, 1, b'["a"]', b"".join(mark for mark, *_ in answers), now_us(), None)
    await ledger.record_pending(noted)
    await ledger.settle(
        SettledExchange(noted.exchange_id, leg, 1, noted.keys, noted.fingerprints, noted.started_at, 200, answers=answers)
    )


async def test_answers_that_are_large_together_lie_in_one_file(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    odd = RowError("invalid_answer", "NaN")
    replies = {mark: bytes([65 + place]) * (LARGE_ANSWER_BYTES // 4) for place, mark in enumerate(MARKS[:6])}
    answers: list[AnswerRecord] = [(mark, b"asked", reply, None) for mark, reply in replies.items()]
    await exchange(ledger, [*answers, (MARKS[6], b"asked", None, odd)])
    (file,) = files(ledger)
    assert file.stat().st_size == 4 + 6 * 16 + 6 * (LARGE_ANSWER_BYTES // 4)
    found = ledger.lookup(MARKS)
    assert {mark: answer.reply for mark, answer in found.items()} == {**replies, MARKS[6]: None}
    assert found[MARKS[6]].error == odd
    as_sent = ledger.get_with_request(MARKS[2])
    assert as_sent is not None
    assert (as_sent.reply, as_sent.request) == (replies[MARKS[2]], b"asked")
    assert ledger.query("select count(*) from answers where reply is not null") == [(0,)]
    ledger.close()


async def test_small_answers_stay_in_the_ledger_and_a_large_one_alone_has_its_own_file(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    await exchange(ledger, [(mark, b"", b"small", None) for mark in MARKS[:4]])
    assert files(ledger) == []
    await exchange(ledger, [(MARKS[4], b"", bytes(LARGE_ANSWER_BYTES + 1), None)])
    assert [file.name for file in files(ledger)] == [MARKS[4].hex()]
    found = ledger.lookup(MARKS)
    assert [found[mark].reply for mark in MARKS[:5]] == [b"small"] * 4 + [bytes(LARGE_ANSWER_BYTES + 1)]
    ledger.close()


async def test_answers_that_are_not_there_whole_count_as_not_kept(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    await exchange(ledger, [(mark, b"", mark * (LARGE_ANSWER_BYTES // 16), None) for mark in MARKS[:3]])
    (file,) = files(ledger)
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    assert sorted(ledger.lookup(MARKS)) == MARKS[:2]
    file.unlink()
    assert ledger.lookup(MARKS) == {}
    as_sent = ledger.get_with_request(MARKS[0])
    assert as_sent is not None
    assert as_sent.reply is None
    ledger.close()


def test_a_file_tells_whose_answers_it_was_written_with(tmp_path: Path) -> None:
    there = AnswerFiles(tmp_path)
    together = there.write({mark: bytes(LARGE_ANSWER_BYTES) for mark in MARKS[:3]}, (7 << 40) + 1)
    (name,) = {file_name(place) for place in together.values()}
    assert there.fingerprints(name) == MARKS[:3]
    assert there.size(together[MARKS[1]]) == LARGE_ANSWER_BYTES
    alone = there.write({MARKS[5]: bytes(LARGE_ANSWER_BYTES + 1)})[MARKS[5]]
    assert there.fingerprints(alone) == (MARKS[5],)
    assert there.size(alone) == LARGE_ANSWER_BYTES + 1
    (tmp_path / "01" / "torn.1.part").write_bytes(b"\xff\xff\xff\xff and no more")
    assert not there.fingerprints("01/torn.1.part")
    assert not there.fingerprints("01/gone")
    assert there.write(dict.fromkeys(MARKS, b"little"), 5) == {}
