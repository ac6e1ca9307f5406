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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import orjson

from connectors.exchange import NO_USAGE, RowError, Usage
from connectors.ledger_file import meta_value, open_ledger_file, plainly, write_whole

T = TypeVar("T")

LARGE = 128 << 10
"""Bytes: an answer with more lies in a file of its own beside the ledger, named by its request's fingerprint."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the ledger keeps of a settled request: the reply, or why the row itself is at fault."""

    reply: bytes | None
    error: RowError | None
    run_id: str
    at: int
    """Microseconds since 1970, UTC."""
    request: bytes | None = None


@dataclass(frozen=True, slots=True)
class Settled:
    """How an exchange ended: one row of the usage table, and the answers it brought."""

    note: int
    leg: int
    attempt: int
    keys: bytes
    """JSON list of the rows' keys as text."""
    fingerprints: bytes
    """The requests' fingerprints, 16 bytes each, in the order of `keys`."""
    started_at: int
    http_status: int | None = None
    error_class: str | None = None
    usage: Usage = NO_USAGE
    cost: int | None = None
    """Pico-dollars; None where no price is known."""
    released: int = 0
    """Pico-dollars that were reserved for it in the day's budget."""
    latency_ms: float | None = None
    first_token_ms: float | None = None
    request_id: str | None = None
    message: str | None = None
    answers: Sequence[tuple[bytes, bytes, bytes | None, RowError | None]] = ()
    """(fingerprint, request as sent, reply, error of the row's own) to be kept."""


class Ledger:
    """One open ledger: bulk reads from any thread, grouped writes from one of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._answers = path.parent / "answers"
        self._write = open_ledger_file(path)
        self._read = open_ledger_file(path)
        self._read_turn = threading.Lock()
        with plainly(path), self._write:
            self._write.execute("begin immediate")
            self.identity = meta_value(self._write, "identity", secrets.token_hex(4))
            self.writer = int(meta_value(self._write, "writers", "0")) + 1
            self._write.execute("update meta set value = ? where key = 'writers'", (str(self.writer),))
        self._seq = 0
        self.busy = 0.0
        """Seconds of writing so far."""
        self._notes = self.writer << 40
        self._queue: list[tuple[Callable[[sqlite3.Connection], Any], asyncio.Future[Any]]] = []
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

    def next_note(self) -> int:
        """A number for an exchange about to be noted, unique in this ledger."""
        self._notes += 1
        return self._notes

    async def note(
        self,
        note: int,
        leg: int,
        attempt: int,
        keys: bytes,
        fingerprints: bytes,
        reserved: int | None,
        started_at: int,
        day: tuple[str, int] | None = None,
    ) -> bool:
        """Record that a request is about to be sent. `day`: (date, limit in pico-dollars) of the daily budget, in
        which `reserved` is set aside; False (and nothing noted) where it does not fit."""

        given = (note, leg, attempt, keys, fingerprints, reserved, started_at, day)
        return bool(await self._queued(lambda db: _note(db, *given)))

    async def settle(self, ended: Settled, day: str | None = None) -> None:
        """Record how a noted exchange ended, and keep its answers; `day`: the date whose budget it was taken from."""
        await self._queued(lambda db: self._settle(db, ended, day))

    def _settle(self, db: sqlite3.Connection, ended: Settled, day: str | None) -> None:
        self._seq += 1
        use = ended.usage
        db.execute(
            "insert into exchanges values (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                self.writer, self._seq, ended.leg, ended.attempt, ended.keys.decode(), ended.fingerprints,
                ended.http_status, ended.error_class, use.input_tokens, use.cached_tokens, use.output_tokens,
                use.reasoning_tokens, use.audio_seconds, use.characters, use.images, use.model_version,
                use.finish_reason, ended.cost, ended.started_at, ended.latency_ms, ended.first_token_ms,
                ended.request_id, ended.message,
            ),
        )  # fmt: skip
        at = now_us()
        for fingerprint, request, reply, error in ended.answers:
            self._keep(db, fingerprint, ended.leg, request, reply, error, at)
        db.execute("delete from noted where id = ?", (ended.note,))
        if day is not None:
            _add_to_day(db, day, (ended.cost or 0) - ended.released)

    async def write_group(self, asked: Sequence[tuple[str, Sequence[Any]]]) -> Sequence[Any]:
        """What several of note, settle, keep and write_queued return, as (name, arguments), all committed together."""
        do: Mapping[str, Callable[..., Any]] = {
            "note": _note,
            "settle": self._settle,
            "keep": lambda db, mark, leg, sent, reply: self._keep(db, mark, leg, sent, reply, None, now_us()),
            "write_queued": lambda db, sql, values: db.execute(sql, values) and None,
        }
        results: Sequence[Any] = await self._queued(lambda db: [do[name](db, *given) for name, given in asked])
        return results

    async def keep(self, fingerprint: bytes, leg: int, request: bytes, reply: bytes) -> None:
        """Keep an answer that was made of others, or one in another form than it came in."""
        await self._queued(lambda db: self._keep(db, fingerprint, leg, request, reply, None, now_us()))

    def _keep(
        self,
        db: sqlite3.Connection,
        fingerprint: bytes,
        leg: int,
        request: bytes,
        reply: bytes | None,
        error: RowError | None,
        at: int,
    ) -> None:
        file: str | None = None
        if reply is not None and len(reply) > LARGE:
            file = f"{fingerprint.hex()[:2]}/{fingerprint.hex()}"
            write_whole(self._answers / file, reply)
            reply = None
        db.execute(
            "insert into answers (fingerprint, leg, request, reply, file, error, at) values (?,?,?,?,?,?,?) "
            "on conflict (fingerprint) do update set leg = excluded.leg, request = excluded.request, "
            "reply = excluded.reply, file = excluded.file, error = excluded.error, at = excluded.at",
            (fingerprint, leg, request, reply, file, None if error is None else _error_text(error), at),
        )

    def _reply(self, reply: bytes | None, file: str | None) -> bytes | None:
        """A kept reply; None where there is none, or its file is gone."""
        if file is None:
            return reply
        try:
            return (self._answers / file).read_bytes()
        except FileNotFoundError:
            return None

    def recover(self, job: str) -> int:
        """Settle as `unknown` what earlier runs of the job noted and never saw answered; how many there were.

        Only to be called under the job's lock: then nobody else can be waiting for them.
        """
        with closing(self._write_now()) as db, db:
            db.execute("begin immediate")
            # The lines of a batch may still be answered.
            which = "l.job = ? and not exists (select 1 from batch_lines b where b.note = n.id)"
            return len(self._settle_unknown(db, which, (job,)))

    async def recover_notes(self, first: int, last: int) -> Sequence[int]:
        """Settle as `unknown` those of these notes that are not settled; what was reserved for each."""
        reserved: list[int] = await self._queued(
            lambda db: self._settle_unknown(db, "n.id between ? and ?", (first, last))
        )
        return reserved

    def _settle_unknown(self, db: sqlite3.Connection, which: str, values: Sequence[Any]) -> list[int]:
        found = db.execute(
            "select n.id, n.leg, n.attempt, n.keys, n.fingerprints, n.reserved, n.started_at "
            f"from noted n join legs l on l.id = n.leg where {which} order by n.id",
            values,
        ).fetchall()
        for note, leg, attempt, keys, fingerprints, reserved, started_at in found:
            self._settle(
                db,
                Settled(
                    note, leg, attempt, keys.encode(), fingerprints, started_at,
                    error_class="unknown", cost=reserved,
                    message="sent, but the run ended before its outcome was seen",
                ),
                None,
            )  # fmt: skip
        return [reserved or 0 for *_, reserved, _ in found]

    def lookup(self, fingerprints: Sequence[bytes]) -> dict[bytes, Answer]:
        """The kept answers among these requests."""
        found: dict[bytes, Answer] = {}
        with plainly(self.path), self._read_turn:
            for start in range(0, len(fingerprints), 500):
                some = fingerprints[start : start + 500]
                marks = ",".join("?" * len(some))
                for fingerprint, reply, file, error, run_id, at in self._read.execute(
                    "select a.fingerprint, a.reply, a.file, a.error, l.run_id, a.at from answers a join legs l "
                    f"on l.id = a.leg where a.fingerprint in ({marks})",
                    some,
                ):
                    answer = Answer(self._reply(reply, file), _error_of(error), run_id, at)
                    if answer.reply is not None or answer.error is not None:
                        found[fingerprint] = answer
        return found

    def as_sent(self, fingerprint: bytes) -> Answer | None:
        """One kept answer with its request as it was sent."""
        for reply, file, error, run_id, at, request in self.query(
            "select a.reply, a.file, a.error, l.run_id, a.at, a.request from answers a join legs l on l.id = a.leg "
            "where a.fingerprint = ?",
            (fingerprint,),
        ):
            return Answer(self._reply(reply, file), _error_of(error), run_id, at, request)
        return None

    # Runs, commits and what else is told.

    def leg(self, run_id: str, job: str, step: str, provider: str, endpoint: str, model: str) -> int:
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
        with plainly(self.path), self._read_turn:
            return self._read.execute(sql, values).fetchall()

    def writers(self) -> int:
        """The highest number that a process has taken to write under."""
        ((number,),) = self.query("select value from meta where key = 'writers'")
        return int(number)

    def stream(self, sql: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a large read, on a connection of its own."""
        with plainly(self.path), closing(open_ledger_file(self.path)) as db:
            yield from db.execute(sql, values)

    def write(self, sql: str, values: Sequence[Any] = ()) -> None:
        """One small write, committed on return."""
        with plainly(self.path), closing(self._write_now()) as db, db:
            db.execute(sql, values)

    async def write_queued(self, sql: str, values: Sequence[Any]) -> None:
        """One write in the order of notes and outcomes, committed on return."""
        await self._queued(lambda db: db.execute(sql, values) and None)

    async def write_together(self, write: Callable[[sqlite3.Connection], T]) -> T:
        """What `write` returns, its statements committed together in the order of notes and outcomes."""
        result: T = await self._queued(write)
        return result

    def _write_now(self) -> sqlite3.Connection:
        return open_ledger_file(self.path)

    # The thread that writes: all that is queued goes into one transaction.

    def _queued(self, write: Callable[[sqlite3.Connection], Any]) -> asyncio.Future[Any]:
        future = asyncio.get_running_loop().create_future()
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
                group, self._queue = self._queue, []
            loop = group[0][1].get_loop()
            seq, began = self._seq, time.perf_counter()
            try:
                with self._write:
                    self._write.execute("begin immediate")
                    results = [write(self._write) for write, _ in group]
                self.busy += time.perf_counter() - began
                told: Iterable[tuple[asyncio.Future[Any], Any]] = zip((f for _, f in group), results, strict=True)
                loop.call_soon_threadsafe(_resolve, list(told))
            except (sqlite3.Error, OSError) as exc:
                self._seq = seq
                loop.call_soon_threadsafe(_fail, [f for _, f in group], exc)
            # Else their answers would be held until the next ones are here.
            group.clear()


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


def _note(
    db: sqlite3.Connection,
    note: int,
    leg: int,
    attempt: int,
    keys: bytes,
    fingerprints: bytes,
    reserved: int | None,
    started_at: int,
    day: tuple[str, int] | None,
) -> bool:
    if day is not None:
        date, limit = day
        spent = db.execute("select spent from days where day = ?", (date,)).fetchone()
        if (spent[0] if spent else 0) + (reserved or 0) > limit:
            return False
        _add_to_day(db, date, reserved or 0)
    db.execute(
        "insert into noted values (?, ?, ?, ?, ?, ?, ?)",
        (note, leg, attempt, keys.decode(), fingerprints, reserved, started_at),
    )
    return True


def _add_to_day(db: sqlite3.Connection, day: str, pico: int) -> None:
    db.execute(
        "insert into days values (?, ?) on conflict (day) do update set spent = spent + excluded.spent", (day, pico)
    )


def _error_text(error: RowError) -> str:
    return orjson.dumps(error).decode()


def _error_of(text: str | None) -> RowError | None:
    if text is None:
        return None
    fields: Mapping[str, Any] = orjson.loads(text)
    return RowError(**fields)
