"""Ledger reader: the SQLite file opened read-only, for commands and pages that must not disturb a run."""

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import orjson

from connectors.errors import JobError
from connectors.records import RowError
from pipelines.ledger.answer_files import AnswerFiles
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


class LedgerReader:
    """Ledger opened for reading: nothing is written, created or migrated, and no writer waits for it."""

    def __init__(self, path: Path) -> None:
        """JobError if the file is missing, unreadable, or written by a newer Rowmill."""
        self.path = path
        self.files = AnswerFiles(path.parent / "answers")
        self._lock = threading.Lock()
        with database_errors(path):
            self._db = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=READ_BUSY_SECONDS, isolation_level=None,
                check_same_thread=False,
            )  # fmt: skip
            try:
                ((self.version,),) = self._db.execute("pragma user_version").fetchall()
            except sqlite3.Error:
                self._db.close()
                raise
        if self.version > VERSION or self.version == 0:
            self._db.close()
            if self.version:
                raise newer_ledger(path, self.version)
            raise JobError(path, "the ledger has no tables yet", "run a job")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> "LedgerReader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def is_current(self) -> bool:
        """Whether the file has the tables of this version; the next run migrates an older one."""
        return bool(self.version == VERSION)

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a read."""
        with database_errors(self.path), self._lock:
            return self._db.execute(sql, values).fetchall()

    def stream(self, sql: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a large read; no other thread may read meanwhile."""
        with database_errors(self.path):
            yield from self._db.execute(sql, values)

    def get_with_request(self, fingerprint: bytes) -> StoredAnswer | None:
        """Return one answer with its request as it was sent."""
        entries = "select id from answer_index where fingerprint = ?1 union select id from answer_tail where "
        if self.version < FIRST_WITH_ANSWER_INDEX:
            entries = "select id from answers where "
        rows = self.query(
            f"select {ANSWER_COLUMNS} from answers a join legs l on l.id = a.leg "
            f"where a.id in ({entries} fingerprint = ?1) and a.fingerprint = ?1",
            (fingerprint,),
        )
        return answer_with_request(rows, self.files, fingerprint)


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
