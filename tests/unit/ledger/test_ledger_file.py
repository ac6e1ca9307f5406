"""SQLite file of the ledger: new, migrated, newer, damaged and full."""

import fcntl
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from connectors.errors import JobError, Stopped
from pipelines.ledger import ledger_file
from pipelines.ledger.ledger_file import (
    CHECKPOINT_PAGES,
    VERSION,
    Durability,
    database_errors,
    get_or_set_meta,
    ledger_error,
    open_ledger_file,
    write_atomically,
)


def table_names(db: sqlite3.Connection) -> list[str]:
    return [name for (name,) in db.execute("select name from sqlite_master where type = 'table' order by name")]


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Python has synced to the disk, by name and in order."""
    names: list[str] = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: names.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
    )
    return names


@pytest.mark.parametrize(("durability", "synchronous"), [("process", 1), ("power", 2)])
def test_with_power_each_commit_is_synced(tmp_path: Path, durability: Durability, synchronous: int) -> None:
    with closing(open_ledger_file(tmp_path / "ledger.sqlite", durability)) as db:
        assert db.execute("pragma synchronous").fetchone() == (synchronous,)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the names of open files are in /proc")
def test_with_power_a_file_is_synced_before_its_name_and_then_the_folders(tmp_path: Path, synced: list[str]) -> None:
    folder = tmp_path / "answers"
    write_atomically(folder / "ab" / "first", b"1")
    assert synced == []
    write_atomically(folder / "cd" / "second", b"2", "power")
    assert synced == [f"second.{os.getpid()}.part", "cd", "answers", tmp_path.name]
    synced.clear()
    with closing(open_ledger_file(tmp_path / "state" / "ledger.sqlite", "power")):
        assert synced == ["state", tmp_path.name]


def test_a_new_file_has_all_tables_in_wal_mode(tmp_path: Path) -> None:
    with closing(open_ledger_file(tmp_path / "state" / "ledger.sqlite")) as db:
        assert db.execute("pragma user_version").fetchone() == (VERSION,)
        assert db.execute("pragma journal_mode").fetchone() == ("wal",)
        assert {"answers", "batches", "commits", "exchanges", "noted", "schedule"} <= set(table_names(db))


def test_a_file_of_version_1_is_migrated_and_keeps_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with closing(sqlite3.connect(path)) as old:
        old.executescript(f"{ledger_file._FIRST} insert into days values ('2027-01-04', 5); pragma user_version = 1;")
    with closing(open_ledger_file(path)) as db, closing(open_ledger_file(tmp_path / "new.sqlite")) as new:
        assert table_names(db) == table_names(new)
        assert db.execute("select day, spent from days").fetchall() == [("2027-01-04", 5)]
        assert db.execute("pragma user_version").fetchone() == (VERSION,)


def test_a_file_is_not_migrated_while_a_process_that_could_not_use_it_runs_a_job(tmp_path: Path) -> None:
    """Until version 8 a lock file held the number of its process only."""
    path = tmp_path / "ledger.sqlite"
    with closing(sqlite3.connect(path)) as old:
        old.executescript(f"{ledger_file._FIRST} pragma user_version = 1;")
    locks = tmp_path / "locks"
    locks.mkdir()
    for name, text in {"ended": "1", "label": "2", "new": f"3, ledger version {VERSION}"}.items():
        (locks / f"{name}.lock").write_text(text)
    with (locks / "label.lock").open() as held, (locks / "new.lock").open() as also_held:
        for file in (held, also_held):
            fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(JobError, match="an older Rowmill is still running label with it; wait for the end"):
            open_ledger_file(path)
        with closing(sqlite3.connect(path)) as db:
            assert db.execute("pragma user_version").fetchone() == (1,)
        fcntl.flock(held, fcntl.LOCK_UN)
        with closing(open_ledger_file(path)) as db:
            assert db.execute("pragma user_version").fetchone() == (VERSION,)


def test_a_newer_file_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with closing(open_ledger_file(path)) as db:
        db.execute(f"pragma user_version = {VERSION + 1}")
    with pytest.raises(JobError, match="pip install --upgrade rowmill"):
        open_ledger_file(path)


def test_meta_values_are_set_once(tmp_path: Path) -> None:
    with closing(open_ledger_file(tmp_path / "ledger.sqlite")) as db:
        assert [get_or_set_meta(db, "identity", value) for value in ("first", "second")] == ["first", "first"]


def test_a_full_disk_stops_the_run_and_other_errors_are_the_users() -> None:
    path = Path("ledger.sqlite")
    full = ledger_error(path, sqlite3.OperationalError("database or disk is full"))
    assert isinstance(full, Stopped)
    assert "disk full" in str(full)
    damaged = ledger_error(path, sqlite3.DatabaseError("malformed"))
    assert isinstance(damaged, JobError)
    assert ".recover" in str(damaged)
    with pytest.raises(JobError, match="cannot be opened"), database_errors(path):
        raise sqlite3.OperationalError("unable to open database file")


def test_a_file_is_written_completely_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    write_atomically(path, b"first")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


def test_every_connection_moves_the_write_ahead_log_to_the_file_after_as_many_pages(tmp_path: Path) -> None:
    for _ in range(2):
        with closing(open_ledger_file(tmp_path / "ledger.sqlite")) as db:
            assert db.execute("pragma wal_autocheckpoint").fetchone() == (CHECKPOINT_PAGES,)
