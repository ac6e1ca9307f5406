"""What one transaction writes to the ledger: many notes, outcomes and answers, each kind of them in one go."""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import orjson

from connectors.records import RowError
from pipelines.ledger.answer_files import AnswerFiles
from pipelines.ledger.entries import AnswerRecord, PendingExchange, SettledExchange

T = TypeVar("T")

_NOTE = "insert into noted values (?,?,?,?,?,?,?)"
_EXCHANGE = "insert into exchanges values (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
_ANSWER = (
    "insert into answers (fingerprint, leg, request, reply, file, error, at) values (?,?,?,?,?,?,?) "
    "on conflict (fingerprint) do update set leg = excluded.leg, request = excluded.request, "
    "reply = excluded.reply, file = excluded.file, error = excluded.error, at = excluded.at"
)
_DAY = "insert into days values (?, ?) on conflict (day) do update set spent = spent + excluded.spent"


class WriteBatch:
    """Gathers what is to be written together, in the order in which it came; `flush` writes it.

    One statement for many rows takes a sixth less CPU time than one for each, with values for many rows in it no less.
    """

    def __init__(self, db: sqlite3.Connection, files: AnswerFiles, writer: int, seq: int, at: int) -> None:
        """`db`: within a transaction. `seq`: of the last exchange that this writer settled. `at`: microseconds since
        1970, UTC."""
        self._db = db
        self._files = files
        self._writer = writer
        self.seq = seq
        self._at = at
        self._notes: list[tuple[Any, ...]] = []
        self._exchanges: list[tuple[Any, ...]] = []
        self._answers: list[tuple[Any, ...]] = []
        self._gone: list[tuple[int]] = []
        """Notes that are none any more."""
        self._spent: dict[str, int] = {}
        """Pico-dollars by date, as the ledger has them."""
        self._moved: dict[str, int] = {}
        """What is to be added to that."""

    def record_pending(self, noted: PendingExchange, day: tuple[str, int] | None) -> bool:
        """See Ledger.note."""
        if day is not None and not self._set_aside(noted.max_cost or 0, *day):
            return False
        keys = noted.keys.decode()
        self._notes.append(
            (noted.exchange_id, noted.route_id, noted.attempt, keys, noted.fingerprints, noted.max_cost, noted.started_at)
        )
        return True

    def cancel_pending(self, noted: PendingExchange, day: str | None) -> None:
        """See Ledger.take_back."""
        self._gone.append((noted.exchange_id,))
        if day is not None:
            self._add_to_day(day, -(noted.max_cost or 0))

    def settle(self, ended: SettledExchange, day: str | None) -> None:
        """See Ledger.settle."""
        self.seq += 1
        use = ended.usage
        self._exchanges.append(
            (
                self._writer, self.seq, ended.route_id, ended.attempt, ended.keys.decode(), ended.fingerprints,
                ended.http_status, ended.error_class, use.input_tokens, use.cached_tokens, use.output_tokens,
                use.reasoning_tokens, use.audio_seconds, use.characters, use.images, use.model_version,
                use.finish_reason, ended.cost, ended.started_at, ended.latency_ms, ended.first_token_ms,
                ended.request_id, ended.message,
            )
        )  # fmt: skip
        self.store_answers(ended.route_id, ended.answers, ended.exchange_id)
        self._gone.append((ended.exchange_id,))
        if day is not None:
            self._add_to_day(day, (ended.cost or 0) - ended.reserved)

    def store_answers(self, leg: int, answers: Sequence[AnswerRecord], note: int | None = None) -> None:
        """Keep answers, in place of those that are there. `note`: they came together in this exchange."""
        places = self._files.write({mark: reply for mark, _, reply, _ in answers if reply is not None}, note)
        for mark, sent, reply, error in answers:
            place = places.get(mark)
            self._answers.append(
                (mark, leg, sent, reply if place is None else None, place, _error_text(error), self._at)
            )

    def run_statement(self, write: Callable[[sqlite3.Connection], T]) -> T:
        """What `write` returns; it finds written what came before it."""
        self.flush()
        return write(self._db)

    def flush(self) -> None:
        """Write what has been gathered."""
        for statement, rows in (
            (_NOTE, self._notes),
            (_EXCHANGE, self._exchanges),
            (_ANSWER, self._answers),
            # What was noted in this very group as well.
            ("delete from noted where id = ?", self._gone),
            (_DAY, list(self._moved.items())),
        ):
            if rows:
                self._db.executemany(statement, rows)
        self._notes, self._exchanges, self._answers, self._gone = [], [], [], []
        self._spent, self._moved = {}, {}

    def _set_aside(self, pico: int, date: str, limit: int) -> bool:
        """Whether the budget of the day has room for it; then it is taken."""
        if date not in self._spent:
            found = self._db.execute("select spent from days where day = ?", (date,)).fetchone()
            self._spent[date] = found[0] if found else 0
        if self._spent[date] + self._moved.get(date, 0) + pico > limit:
            return False
        self._add_to_day(date, pico)
        return True

    def _add_to_day(self, date: str, pico: int) -> None:
        self._moved[date] = self._moved.get(date, 0) + pico


def _error_text(error: RowError | None) -> str | None:
    return None if error is None else orjson.dumps(error).decode()
