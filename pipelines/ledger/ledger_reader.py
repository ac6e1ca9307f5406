"""Ledger reader: the SQLite file opened read-only, for commands and pages that must not disturb a run."""

import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import orjson

from connectors.errors import JobError
from connectors.records import RowError
from pipelines.ledger.answer_files import AnswerFiles
from pipelines.ledger.answer_index import AnswerLookup
from pipelines.ledger.entries import StoredAnswer
from pipelines.ledger.ledger_file import FIRST_WITH_ANSWER_INDEX, VERSION, database_errors, newer_ledger

READ_BUSY_SECONDS = 5.0
"""How long a reader waits for a process that recovers the file; writers do not block readers."""

ANSWER_COLUMNS = "a.reply, a.file, a.error, l.run_id, a.at, a.request"
"""What `answer_with_request` needs of an answer `a` and its route `l`."""


class ReadableLedger(Protocol):
    """What a reader of answers needs: the open ledger of a run, or a `LedgerReader`."""

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a small read."""

    def stream(self, sql: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a large read."""

    def get_with_request(self, fingerprint: bytes) -> StoredAnswer | None:
        """Return one answer with its request as it was sent."""


class AnswerReads(ReadableLedger):
    """Reads through one connection, from any thread: what the ledger of a run and a `LedgerReader` share."""

    path: Path
    files: AnswerFiles
    _read: sqlite3.Connection
    _read_lock: threading.Lock
    _lookup: AnswerLookup

    def lookup(self, fingerprints: Sequence[bytes]) -> dict[bytes, StoredAnswer]:
        """Return fingerprint -> answer for those of these requests that have one."""
        rows = self.select_answers("a.fingerprint, a.reply, a.file, a.error, l.run_id, a.at", fingerprints)
        in_files = self.files.read({fingerprint: file for fingerprint, _, file, *_ in rows if file is not None})
        return {
            fingerprint: StoredAnswer(in_files.get(fingerprint, reply), parse_error(error), run_id, at)
            for fingerprint, reply, _, error, run_id, at in rows
            if reply is not None or error is not None or fingerprint in in_files
        }

    def select_answers(self, columns: str, fingerprints: Sequence[bytes]) -> list[tuple[Any, ...]]:
        """Return these columns of the answers `a` and their routes `l`, for those of these requests that have one."""
        with database_errors(self.path), self._read_lock:
            return self._lookup.select(columns, fingerprints)

    def get_with_request(self, fingerprint: bytes) -> StoredAnswer | None:
        """Return one answer with its request as it was sent."""
        return answer_with_request(self.select_answers(ANSWER_COLUMNS, [fingerprint]), self.files, fingerprint)

    def last_answers(self, job: str, step: str, requests: Sequence[bytes]) -> dict[tuple[bytes, str], bytes]:
        """Return (first request, key) -> last answer, all as fingerprints, of rows that took repair turns."""
        found: dict[tuple[bytes, str], bytes] = {}
        with database_errors(self.path), self._read_lock:
            if not self._has_rows("last_answers where job = ? and step = ?", (job, step)):
                return found
            for start in range(0, len(requests), 500):
                chunk = requests[start : start + 500]
                placeholders = ",".join("?" * len(chunk))
                rows = self._read.execute(
                    "select request, key, answer from last_answers where job = ? and step = ? "
                    f"and request in ({placeholders})",
                    (job, step, *chunk),
                )
                found |= {(request, key): answer for request, key, answer in rows}
        return found

    def packed_answers(self, fingerprints: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return fingerprint -> packed answer of those of these requests that are to be verified alone."""
        found: dict[bytes, bytes] = {}
        with database_errors(self.path), self._read_lock:
            if not self._has_rows("packed_answers"):
                return found
            for start in range(0, len(fingerprints), 500):
                chunk = fingerprints[start : start + 500]
                placeholders = ",".join("?" * len(chunk))
                found |= self._read.execute(
                    f"select fingerprint, answer from packed_answers where fingerprint in ({placeholders})", chunk
                )
        return found

    def _has_rows(self, table: str, values: Sequence[Any] = ()) -> bool:
        """Return whether a table has rows: most runs repair and verify none, and need not seek each request there."""
        return self._read.execute(f"select 1 from {table} limit 1", values).fetchone() is not None

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a small read."""
        with database_errors(self.path), self._read_lock:
            return self._read.execute(sql, values).fetchall()


class LedgerReader(AnswerReads):
    """Ledger opened for reading: nothing is written, created or migrated, and no writer waits for it."""

    def __init__(self, path: Path) -> None:
        """JobError if the file is missing, unreadable, or written by a newer Rowmill."""
        self.path = path
        self.files = AnswerFiles(path.parent / "answers")
        self._read_lock = threading.Lock()
        with database_errors(path):
            self._read, self.version = _open_for_reading(path)
        if self.version > VERSION or self.version == 0:
            self._read.close()
            if self.version:
                raise newer_ledger(path, self.version)
            raise JobError(path, "the ledger has no tables yet", "run a job")
        self._lookup = AnswerLookup(self._read)

    def close(self) -> None:
        """Close the file."""
        self._read.close()

    def __enter__(self) -> "LedgerReader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def is_current(self) -> bool:
        """Whether the file has the tables of this version; the next run migrates an older one."""
        return bool(self.version == VERSION)

    def stream(self, sql: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a large read; no other thread may read meanwhile."""
        with database_errors(self.path):
            yield from self._read.execute(sql, values)

    def get_with_request(self, fingerprint: bytes) -> StoredAnswer | None:
        """Return one answer with its request as it was sent; unlike `lookup`, without a copy of the index's tail."""
        entries = "select id from answer_index where fingerprint = ?1 union select id from answer_tail where "
        if self.version < FIRST_WITH_ANSWER_INDEX:
            entries = "select id from answers where "
        rows = self.query(
            f"select {ANSWER_COLUMNS} from answers a join legs l on l.id = a.leg "
            f"where a.id in ({entries} fingerprint = ?1) and a.fingerprint = ?1",
            (fingerprint,),
        )
        return answer_with_request(rows, self.files, fingerprint)


def _open_for_reading(path: Path) -> tuple[sqlite3.Connection, int]:
    """Return a connection to the file and its schema version.

    SQLite opens a file in WAL mode only if it finds, or may create, the files next to it. If they do not exist and the
    folder cannot be written, the file is complete, and is opened as unchanging.
    """
    address = f"{path.absolute().as_uri()}?mode=ro"
    try:
        return _connect(address)
    except sqlite3.OperationalError as exc:
        log = path.with_name(f"{path.name}-wal")
        # Read-only disks give the first, missing permissions the second.
        is_refused = exc.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
        if not is_refused or not path.exists() or os.access(path.parent, os.W_OK):
            raise
        if log.exists() and log.stat().st_size:
            found = "the ledger cannot be read: a run was killed, and its folder cannot be written"
            raise JobError(path, found, "copy the folder to where it can be written, or run a job of it there") from exc
        return _connect(f"{address}&immutable=1")


def _connect(address: str) -> tuple[sqlite3.Connection, int]:
    db = sqlite3.connect(address, uri=True, timeout=READ_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        ((version,),) = db.execute("pragma user_version").fetchall()
    except sqlite3.Error:
        db.close()
        raise
    return db, int(version)


def answer_with_request(rows: Sequence[tuple[Any, ...]], files: AnswerFiles, fingerprint: bytes) -> StoredAnswer | None:
    """Return the answer whose ANSWER_COLUMNS are in `rows`, with its request as it was sent; None without one."""
    for reply, file, error, run_id, at, request in rows:
        whole = reply if file is None else files.read({fingerprint: file}).get(fingerprint)
        return StoredAnswer(whole, parse_error(error), run_id, at, request)
    return None


def parse_error(text: str | None) -> RowError | None:
    """Return the row's error that an answer has in the ledger."""
    if text is None:
        return None
    fields: Mapping[str, Any] = orjson.loads(text)
    return RowError(**fields)
