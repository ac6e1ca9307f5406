"""The ledger: every exchange noted before it is sent, every answer kept, in one SQLite file a workspace.

Safe against the death of the process at any moment (WAL, synchronous=NORMAL). After a loss of power the last
moments of it may be missing: SQLite then opens at an earlier, whole state.
"""

import asyncio
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import orjson

from connectors.records import RowError
from pipelines.ledger.answer_files import AnswerFiles
from pipelines.ledger.entries import PendingExchange, SettledExchange, StoredAnswer
from pipelines.ledger.ledger_file import database_errors, get_or_set_meta, open_ledger_file
from pipelines.ledger.write_batch import WriteBatch

T = TypeVar("T")


class Ledger:
    """One open ledger: bulk reads from any thread, grouped writes from one of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = AnswerFiles(path.parent / "answers")
        self._write = open_ledger_file(path)
        self._read = open_ledger_file(path)
        self._read_turn = threading.Lock()
        with database_errors(path), self._write:
            self._write.execute("begin immediate")
            self.identity = get_or_set_meta(self._write, "identity", secrets.token_hex(4))
            self.writer = int(get_or_set_meta(self._write, "writers", "0")) + 1
            self._write.execute("update meta set value = ? where key = 'writers'", (str(self.writer),))
        self._seq = 0
        self.write_seconds = 0.0
        """Seconds of writing so far."""
        self._notes = self.writer << 40
        self._queue: list[tuple[Callable[[WriteBatch], Any], asyncio.Future[Any]]] = []
        self._arrived = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._write_groups, name="ledger", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what is queued, then close the file."""
        with self._arrived:
            self._closed = True
            self._arrived.notify()
        self._thread.join()
        self._read.close()
        self._write.close()

    # Exchanges: noted, then settled.

    def next_exchange_id(self) -> int:
        """A number for an exchange about to be noted, unique in this ledger."""
        self._notes += 1
        return self._notes

    def record_pending(self, noted: PendingExchange, day: tuple[str, int] | None = None) -> asyncio.Future[bool]:
        """Record that a request is about to be sent. `day`: (date, limit in pico-dollars) of the daily budget, in
        which its worst case is set aside; False (and nothing noted) where it does not fit."""
        return self._queued(lambda group: group.record_pending(noted, day))

    def cancel_pending(self, noted: PendingExchange, day: str | None = None) -> asyncio.Future[None]:
        """What was noted was not sent after all; `day`: the date whose budget it was taken from."""
        return self._queued(lambda group: group.cancel_pending(noted, day))

    def settle(self, ended: SettledExchange, day: str | None = None) -> asyncio.Future[None]:
        """Record how a noted exchange ended, and keep its answers; `day`: the date whose budget it was taken from.

        What is noted from now on is not noted before this is recorded.
        """
        return self._queued(lambda group: group.settle(ended, day))

    async def store_answer(self, fingerprint: bytes, leg: int, request: bytes, reply: bytes) -> None:
        """Keep an answer that was made of others, or one in another form than it came in."""
        await self._queued(lambda group: group.store_answers(leg, [(fingerprint, request, reply, None)]))

    async def write_batch(self, asked: Sequence[tuple[str, Sequence[Any]]]) -> Sequence[Any]:
        """What several of these methods and write_queued return, as (name, arguments), all committed together."""
        do: Mapping[str, Callable[..., Any]] = {
            "record_pending": WriteBatch.record_pending,
            "cancel_pending": WriteBatch.cancel_pending,
            "settle": WriteBatch.settle,
            "store_answer": lambda batch, mark, route, sent, reply: batch.store_answers(route, [(mark, sent, reply, None)]),
            "write_queued": lambda batch, sql, values: batch.run_statement(lambda db: db.execute(sql, values) and None),
        }
        return await self._queued(lambda group: [do[name](group, *given) for name, given in asked])

    def recover(self, job: str) -> int:
        """Settle as `unknown` what earlier runs of the job noted and never saw answered; how many there were.

        Only to be called under the job's lock: then nobody else can be waiting for them.
        """
        with closing(self._write_now()) as db, db:
            db.execute("begin immediate")
            # The lines of a batch may still be answered.
            which = "l.job = ? and not exists (select 1 from batch_lines b where b.note = n.id)"
            group = self._group(db)
            settled = group.run_statement(lambda db: _settle_unknown(db, group, which, (job,)))
            group.flush()
            self._seq = group.seq
            return len(settled)

    async def recover_exchanges(self, first: int, last: int) -> Sequence[int]:
        """Settle as `unknown` those of these notes that are not settled; what was reserved for each."""
        return await self._queued(
            lambda group: group.run_statement(
                lambda db: _settle_unknown(db, group, "n.id between ? and ?", (first, last)),
            )
        )

    def lookup(self, fingerprints: Sequence[bytes]) -> dict[bytes, StoredAnswer]:
        """The kept answers among these requests."""
        rows: list[tuple[bytes, bytes | None, str | None, str | None, str, int]] = []
        with database_errors(self.path), self._read_turn:
            for start in range(0, len(fingerprints), 500):
                some = fingerprints[start : start + 500]
                marks = ",".join("?" * len(some))
                rows += self._read.execute(
                    "select a.fingerprint, a.reply, a.file, a.error, l.run_id, a.at from answers a join legs l "
                    f"on l.id = a.leg where a.fingerprint in ({marks})",
                    some,
                )
        in_files = self.files.read({mark: file for mark, _, file, *_ in rows if file is not None})
        return {
            mark: StoredAnswer(in_files.get(mark, reply), _error_of(error), run_id, at)
            for mark, reply, _, error, run_id, at in rows
            if reply is not None or error is not None or mark in in_files
        }

    def get_with_request(self, fingerprint: bytes) -> StoredAnswer | None:
        """One kept answer with its request as it was sent."""
        for reply, file, error, run_id, at, request in self.query(
            "select a.reply, a.file, a.error, l.run_id, a.at, a.request from answers a join legs l on l.id = a.leg "
            "where a.fingerprint = ?",
            (fingerprint,),
        ):
            whole = reply if file is None else self.files.read({fingerprint: file}).get(fingerprint)
            return StoredAnswer(whole, _error_of(error), run_id, at, request)
        return None

    # Runs, commits and what else is told.

    def register_route(self, run_id: str, job: str, step: str, provider: str, endpoint: str, model: str) -> int:
        """The number under which the exchanges of one step of one run are noted."""
        self.write(
            "insert or ignore into legs (run_id, job, step, provider, endpoint, model) values (?, ?, ?, ?, ?, ?)",
            (run_id, job, step, provider, endpoint, model),
        )
        ((number,),) = self.query(
            "select id from legs where run_id = ? and step = ? and provider = ? and endpoint = ? and model = ?",
            (run_id, step, provider, endpoint, model),
        )
        return int(number)

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a small read."""
        with database_errors(self.path), self._read_turn:
            return self._read.execute(sql, values).fetchall()

    def writers(self) -> int:
        """The highest number that a process has taken to write under."""
        ((number,),) = self.query("select value from meta where key = 'writers'")
        return int(number)

    def stream(self, sql: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a large read, on a connection of its own."""
        with database_errors(self.path), closing(open_ledger_file(self.path)) as db:
            yield from db.execute(sql, values)

    def write(self, sql: str, values: Sequence[Any] = ()) -> None:
        """One small write, committed on return."""
        with database_errors(self.path), closing(self._write_now()) as db, db:
            db.execute(sql, values)

    async def write_queued(self, sql: str, values: Sequence[Any]) -> None:
        """One write in the order of notes and outcomes, committed on return."""
        await self.write_together(lambda db: db.execute(sql, values) and None)

    async def write_together(self, write: Callable[[sqlite3.Connection], T]) -> T:
        """What `write` returns, its statements committed together in the order of notes and outcomes."""
        return await self._queued(lambda group: group.run_statement(write))

    def _write_now(self) -> sqlite3.Connection:
        return open_ledger_file(self.path)

    # The thread that writes: all that is queued goes into one transaction.

    def _queued(self, write: Callable[[WriteBatch], T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        with self._arrived:
            self._queue.append((write, future))
            if len(self._queue) == 1:
                self._arrived.notify()
        return future

    def _write_groups(self) -> None:
        while True:
            with self._arrived:
                while not self._queue:
                    if self._closed:
                        return
                    self._arrived.wait()
                queue, self._queue = self._queue, []
            loop, began = queue[0][1].get_loop(), time.perf_counter()
            try:
                results = self._written([write for write, _ in queue])
                self.write_seconds += time.perf_counter() - began
                told: Iterable[tuple[asyncio.Future[Any], Any]] = zip((f for _, f in queue), results, strict=True)
                loop.call_soon_threadsafe(_resolve, list(told))
            except Exception as exc:  # noqa: BLE001 - whoever waits gets it; a thread that dies would leave them waiting
                loop.call_soon_threadsafe(_fail, [f for _, f in queue], exc)
            # Else their answers would be held until the next ones are here.
            queue.clear()

    def _written(self, writes: Sequence[Callable[[WriteBatch], Any]]) -> list[Any]:
        """What each of these returns, all committed together."""
        with self._write:
            self._write.execute("begin immediate")
            group = self._group(self._write)
            results = [write(group) for write in writes]
            group.flush()
        self._seq = group.seq
        return results

    def _group(self, db: sqlite3.Connection) -> WriteBatch:
        return WriteBatch(db, self.files, self.writer, self._seq, now_us())


def now_us() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1000


def _resolve(told: Sequence[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in told:
        if not future.done():
            future.set_result(result)


def _fail(futures: Sequence[asyncio.Future[Any]], exc: Exception) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(exc)


def _settle_unknown(db: sqlite3.Connection, group: WriteBatch, which: str, values: Sequence[Any]) -> list[int]:
    """What was reserved for each of the exchanges that it finds noted."""
    found = db.execute(
        "select n.id, n.leg, n.attempt, n.keys, n.fingerprints, n.reserved, n.started_at "
        f"from noted n join legs l on l.id = n.leg where {which} order by n.id",
        values,
    ).fetchall()
    for note, leg, attempt, keys, fingerprints, reserved, started_at in found:
        group.settle(PendingExchange(note, leg, attempt, keys.encode(), fingerprints, started_at, reserved).as_unknown(), None)
    return [reserved or 0 for *_, reserved, _ in found]


def _error_of(text: str | None) -> RowError | None:
    if text is None:
        return None
    fields: Mapping[str, Any] = orjson.loads(text)
    return RowError(**fields)
