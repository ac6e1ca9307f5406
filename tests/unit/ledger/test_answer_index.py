"""Answer index: every answer is found at any time, and once, whatever is merged, killed, deleted or migrated."""

import hashlib
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from connectors.errors import JobError
from pipelines.ledger import answer_index, ledger_file
from pipelines.ledger.answer_index import AnswerLookup, IndexMerge
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.ledger_file import Durability, open_ledger_file
from pipelines.ledger.ledger_reader import LedgerReader


@pytest.fixture(autouse=True)
def merge_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge of some slices after each dozen of answers."""
    monkeypatch.setattr(answer_index, "MIN_TAIL", 12)
    monkeypatch.setattr(answer_index, "SLICE_ENTRIES", 3)


def fingerprint(number: int) -> bytes:
    return hashlib.blake2b(str(number).encode(), digest_size=16).digest()


def opened(path: Path, durability: Durability = "process") -> tuple[Ledger, int]:
    ledger = Ledger(path, durability)
    return ledger, ledger.register_route("run", "job", "step", "provider", "chat", "model")


def reply(number: int) -> bytes:
    return f"reply {number}".encode()


async def store(ledger: Ledger, route_id: int, numbers: Sequence[int]) -> None:
    """Store an answer for each number, all in one transaction."""
    calls = [("store_answer", (fingerprint(number), route_id, b"asked", reply(number))) for number in numbers]
    await ledger.write_batch(calls)


def replies(ledger: Ledger, numbers: Sequence[int]) -> dict[int, bytes | None]:
    found = ledger.lookup([fingerprint(number) for number in numbers])
    return {number: found[fingerprint(number)].reply for number in numbers if fingerprint(number) in found}


def tail_and_index(ledger: Ledger) -> tuple[int, int]:
    ((tail, index),) = ledger.query("select (select count(*) from answer_tail), (select count(*) from answer_index)")
    return tail, index


def check(path: Path, numbers: Sequence[int], total: int | None = None) -> None:
    """Check that these answers are there, each once, for writers and readers, and no others (or so many in total)."""
    expected = {number: reply(number) for number in numbers}
    with closing(Ledger(path)) as ledger, LedgerReader(path) as reader:
        assert replies(ledger, numbers) == expected
        read = {number: reader.get_with_request(fingerprint(number)) for number in numbers}
        assert {number: answer and answer.reply for number, answer in read.items()} == expected
        assert ledger.query("select count(*), count(distinct fingerprint) from answers") == [
            (total or len(numbers),) * 2
        ]
        assert ledger.query("pragma integrity_check") == [("ok",)]


@pytest.mark.parametrize("durability", ["process", "power"])
async def test_each_answer_is_found_from_its_commit_on_by_every_process(tmp_path: Path, durability: Durability) -> None:
    path = tmp_path / "ledger.sqlite"
    one, route_id = opened(path, durability)
    other = Ledger(path)
    seen: set[tuple[bool, bool]] = set()
    with LedgerReader(path) as reader:
        for last in range(60):
            await store((one, other)[last % 2], route_id, [last])
            everything = {number: reply(number) for number in range(last + 1)}
            assert [replies(ledger, range(last + 1)) for ledger in (one, other)] == [everything] * 2
            answer = reader.get_with_request(fingerprint(last))
            assert answer is not None
            assert answer.reply == reply(last)
            tail, index = tail_and_index(one)
            seen.add((tail > 0, index > 0))
    assert seen >= {(True, False), (True, True)}
    one.close()
    other.close()
    check(path, range(60))
    with closing(Ledger(path)) as ledger:
        assert tail_and_index(ledger) == (0, 60)


async def test_an_answer_that_is_stored_again_replaces_the_former_wherever_its_entry_is(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger, route_id = opened(path)
    asked = [fingerprint(number) for number in range(30)]
    for turn in range(3):
        for one in asked:
            await ledger.store_answer(one, route_id, b"asked", b"%d" % turn)
        # In one transaction, with a statement between.
        await ledger.write_batch(
            [
                ("store_answer", (asked[0], route_id, b"asked", b"former")),
                ("write_queued", ("delete from days", ())),
                ("store_answer", (asked[0], route_id, b"asked", b"later")),
            ]
        )
        found = ledger.lookup(asked)
        assert [found[one].reply for one in asked] == [b"later", *[b"%d" % turn] * 29]
        assert ledger.query("select count(*), count(distinct fingerprint), max(id) from answers") == [(30, 30, 30)]
    ledger.close()


async def test_deleted_answers_are_gone_and_their_ids_are_not_used_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger, route_id = opened(path)
    other = Ledger(path)
    await store(ledger, route_id, range(20))
    assert len(replies(other, range(20))) == 20
    # The last ones are in the tail of both, with ids that a new answer would get.
    ledger.delete_answers([5, *range(15, 21)])
    kept = [number for number in range(20) if number + 1 not in (5, *range(15, 21))]
    assert sorted(replies(ledger, range(20))) == sorted(replies(other, range(20))) == kept
    await store(ledger, route_id, [17, 100])
    assert sorted(replies(other, [*range(20), 100])) == [*kept, 17, 100]
    assert ledger.query("select min(id), max(id) from answers where id > 14") == [(21, 22)]
    ledger.write("vacuum")
    assert sorted(replies(other, [*range(20), 100])) == [*kept, 17, 100]
    ledger.delete_answers([id_ for (id_,) in ledger.query("select id from answers")])
    assert tail_and_index(ledger) == (0, 0)
    await store(ledger, route_id, [1])
    assert ledger.query("select id from answers") == [(23,)]
    ledger.close()
    other.close()


@pytest.mark.parametrize(("kept", "states"), [(5, [60, 5]), (40, [60, 53, 46, 40])], ids=["few stay", "most stay"])
async def test_a_deletion_that_is_killed_at_any_moment_deletes_all_or_a_batch_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int, states: Sequence[int]
) -> None:
    monkeypatch.setattr(answer_index, "DELETE_BATCH", 7)
    path = tmp_path / "ledger.sqlite"
    filled(path, in_index=35, in_tail=25)
    seen = []
    selection = "select id from answers where id > ?"
    for copy in as_killed(path, lambda db: answer_index.delete_selected(db, selection, [kept]), 100):
        with closing(sqlite3.connect(copy)) as db:
            ((count,),) = db.execute("select count(*) from answers").fetchall()
        check(copy, [*range(kept), *range(kept + 60 - count, 60)])
        seen.append(count)
    assert list(dict.fromkeys(seen)) == states
    ledger, route_id = opened(path)
    await store(ledger, route_id, [60])
    assert ledger.query("select max(id) from answers") == [(61,)]
    ledger.close()
    check(path, [*range(kept), 60])


async def test_an_entry_without_its_answer_or_of_another_request_finds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger, route_id = opened(path)
    await store(ledger, route_id, range(3))
    ledger.write_all([("insert into answer_index values (?, ?)", [(fingerprint(7), 2), (fingerprint(8), 99)])])
    assert sorted(replies(ledger, range(10))) == [0, 1, 2]
    await store(ledger, route_id, [7, 8])
    ledger.close()
    check(path, [0, 1, 2, 7, 8])


async def test_requests_whose_fingerprints_begin_alike_have_their_own_answers(tmp_path: Path) -> None:
    ledger, route_id = opened(tmp_path / "ledger.sqlite")
    alike = [bytes(answer_index.PREFIX_BYTES) + number.to_bytes(8, "big") for number in range(3)]
    for number in (0, 1):
        await ledger.write_batch([("store_answer", (alike[number], route_id, b"asked", reply(number)))])
    found = ledger.lookup(alike)
    assert {key: answer.reply for key, answer in found.items()} == {alike[0]: reply(0), alike[1]: reply(1)}
    ledger.close()


async def test_a_failed_lookup_leaves_the_copy_of_the_tail_as_it_was(tmp_path: Path) -> None:
    ledger, route_id = opened(tmp_path / "ledger.sqlite")
    await store(ledger, route_id, range(3))
    assert len(replies(ledger, range(3))) == 3
    await store(ledger, route_id, range(3, 6))
    # The fault is found when the first row is read, after the tail.
    for _ in range(2):
        with pytest.raises(JobError, match="malformed JSON"):
            ledger.select_answers("json_extract(a.reply, '$')", [fingerprint(5)])
    assert len(replies(ledger, range(6))) == 6
    ledger.close()


def filled(path: Path, in_index: int, in_tail: int) -> None:
    """Write a ledger with these answers, as a killed process leaves it."""
    with closing(open_ledger_file(path)) as db:
        db.execute("insert into legs values (1, 'run', 'job', 'step', 'provider', 'chat', 'model')")
        rows = [(fingerprint(number), 1, b"asked", reply(number), None, None, 1) for number in range(in_index)]
        answer_index.append_answers(db, rows)
        IndexMerge(db).finish()
        numbers = range(in_index, in_index + in_tail)
        answer_index.append_answers(
            db, [(fingerprint(number), 1, b"asked", reply(number), None, None, 1) for number in numbers]
        )


def as_killed(path: Path, act: Callable[[sqlite3.Connection], object], instructions: int) -> list[Path]:
    """Let `act` write to the file; return copies of it as a kill would leave it, after each so many instructions."""
    copies: list[Path] = []

    def copy() -> int:
        target = path.with_name(f"copy-{len(copies)}.sqlite")
        for ending in ("", "-wal"):
            shutil.copy(f"{path}{ending}", f"{target}{ending}")
        copies.append(target)
        return 0

    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("pragma journal_mode = wal")
        db.execute("pragma cache_size = 4")
        db.set_progress_handler(copy, instructions)
        act(db)
    return [*copies, path]


def test_a_merge_that_is_killed_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    filled(path, in_index=6, in_tail=8)
    copies = as_killed(path, lambda db: IndexMerge(db).finish(), 30)
    assert len(copies) > 10
    for copy in copies:
        check(copy, range(14))
        with closing(open_ledger_file(copy)) as db:
            IndexMerge(db).finish()
        check(copy, range(14))


KILLED = """
import asyncio, sys
from pathlib import Path
from pipelines.ledger import answer_index
from tests.unit.ledger.test_answer_index import opened, store
answer_index.MIN_TAIL, answer_index.SLICE_ENTRIES = 12, 3

async def main():
    ledger, route_id = opened(Path(sys.argv[1]))
    for number in range(int(sys.argv[2]), 10 ** 9):
        await store(ledger, route_id, [number])
        print(number, flush=True)

asyncio.run(main())
"""


def test_a_killed_process_has_every_answer_that_it_has_acknowledged(tmp_path: Path) -> None:
    path, dice, last = tmp_path / "ledger.sqlite", random.Random(1), -1
    for _ in range(2):
        command = [sys.executable, "-c", KILLED, str(path), str(last + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(dice.randrange(20, 200)):
                last = int(process.stdout.readline())
            process.kill()
            for line in process.stdout:
                last = int(line)
        with closing(Ledger(path)) as ledger:
            # Perhaps the one whose acknowledgement was not printed any more.
            last += len(replies(ledger, [last + 1]))
        check(path, range(last + 1))


async def test_a_full_disk_in_a_merge_fails_no_write_and_the_next_merge_includes_the_answers(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    filled(path, in_index=400, in_tail=400)
    with closing(open_ledger_file(path)) as db:
        ((pages,),) = db.execute("pragma page_count").fetchall()
        db.execute(f"pragma max_page_count = {pages + 1}")
        with pytest.raises(sqlite3.OperationalError, match="full"):
            IndexMerge(db).finish()
        assert AnswerLookup(db).select("count(*)", [fingerprint(799)]) == [(1,)]
    ledger, route_id = opened(path)
    ledger._write.execute(f"pragma max_page_count = {pages + 1}")
    await store(ledger, route_id, [800])
    ledger.close()
    with closing(Ledger(path)) as again:
        assert tail_and_index(again)[0] == 401
    check(path, range(801))
    ledger, route_id = opened(path)
    await store(ledger, route_id, [801])
    ledger.close()
    with closing(Ledger(path)) as again:
        assert tail_and_index(again) == (0, 802)
    check(path, range(802))


def test_a_lost_index_is_filled_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    filled(path, in_index=30, in_tail=5)
    with closing(open_ledger_file(path)) as db:
        db.execute("delete from answer_index")
    with closing(Ledger(path)) as ledger:
        assert tail_and_index(ledger) == (5, 35)
    check(path, range(35))


# Files of version 7.


def old_file(path: Path, numbers: Sequence[int]) -> None:
    schema = ";".join((ledger_file._FIRST.rstrip().rstrip(";"), *ledger_file.MIGRATIONS[:6]))
    with closing(sqlite3.connect(path)) as old:
        old.executescript(f"{schema}; pragma user_version = 7; pragma journal_mode = wal;")
        old.execute("insert into legs values (1, 'run', 'job', 'step', 'provider', 'chat', 'model')")
        old.executemany(
            "insert into answers (fingerprint, leg, request, reply, at) values (?, 1, x'', ?, 1)",
            [(fingerprint(number), reply(number)) for number in numbers],
        )
        old.commit()


def schema_of(path: Path) -> Mapping[str, str]:
    with closing(sqlite3.connect(path)) as db:
        return dict(db.execute("select name, sql from sqlite_master where sql is not null").fetchall())


def test_an_older_file_gets_the_tables_of_a_new_one_and_is_read_before_that(tmp_path: Path) -> None:
    path, new = tmp_path / "ledger.sqlite", tmp_path / "new.sqlite"
    old_file(path, range(500))
    with LedgerReader(path) as reader:
        answer = reader.get_with_request(fingerprint(499))
        assert answer is not None
        assert answer.reply == reply(499)
        assert reader.get_with_request(fingerprint(500)) is None
    ((before,),) = sqlite3.connect(path).execute("pragma page_count").fetchall()
    open_ledger_file(path).close()
    open_ledger_file(new).close()
    assert schema_of(path) == schema_of(new)
    check(path, range(500))
    with closing(open_ledger_file(path)) as db:
        assert db.execute("pragma user_version").fetchall() == [(8,)]
        # The pages of the former index are free for what comes.
        ((free,),) = db.execute("pragma freelist_count").fetchall()
        assert free >= (db.execute("pragma page_count").fetchall()[0][0] - before) - 1 > 0


def test_a_migration_that_is_killed_at_any_moment_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    old_file(path, range(2000))
    versions = []
    for copy in as_killed(path, lambda db: ledger_file._migrate(db, path), 2500):
        with closing(sqlite3.connect(copy)) as db:
            versions += db.execute("pragma user_version").fetchone()
            assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
        check(copy, range(0, 2000, 13), 2000)
    assert len(versions) > 10
    assert (set(versions[:-1]), versions[-1]) == ({7}, 8)


async def test_a_file_whose_unique_index_cannot_be_dropped_works_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.sqlite"
    old_file(path, range(20))
    refused = ledger_file._DROP_UNIQUE_INDEX.replace("drop index", "drop index no_such_name; drop index")
    monkeypatch.setattr(ledger_file, "_DROP_UNIQUE_INDEX", refused)
    ledger, route_id = opened(path)
    assert "sqlite_autoindex_answers_1" in {name for (name,) in ledger.query("select name from sqlite_master")}
    await store(ledger, route_id, range(10, 50))
    ledger.delete_answers([50])
    await store(ledger, route_id, [49])
    ledger.close()
    check(path, range(50))
