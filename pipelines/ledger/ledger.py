"""Ledger: one SQLite file for each workspace that records every exchange before it is sent, and every answer.

Safe against SIGKILL at any time (WAL, synchronous=NORMAL). After a power loss the last transactions may be missing:
SQLite then opens an earlier consistent state. With durability `power` each commit is on the disk (synchronous=FULL).
"""

import asyncio
import contextlib
import os
import secrets
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from pipelines.ledger.answer_files import AnswerFiles
from pipelines.ledger.answer_index import (
    AnswerLookup,
    IndexMerge,
    delete_answers,
    delete_selected,
    rebuild_lost_index,
)
from pipelines.ledger.entries import PendingExchange, SettledExchange
from pipelines.ledger.free_space import DISK_FULL, FreeSpace, is_disk_full
from pipelines.ledger.ledger_file import (
    Durability,
    database_errors,
    file_id,
    get_or_set_meta,
    lost_file,
    open_ledger_file,
    place_without_overwriting,
)
from pipelines.ledger.ledger_reader import AnswerReads
from pipelines.ledger.write_batch import WriteBatch

T = TypeVar("T")

FULL_DISK_SECONDS = 10.0
"""How long a write to a full disk is tried again: an unfinished part of a table may be removed in this time."""

FULL_DISK_RETRY_SECONDS = 0.2
"""Time between these."""


class Ledger(AnswerReads):
    """Open ledger: bulk reads from any thread, batched writes from a dedicated thread."""

    def __init__(self, path: Path, durability: Durability = "process") -> None:
        self.path = path
        """Where the file is; another path after `restore`, if another file has taken its place."""
        self.durability = durability
        self.files = AnswerFiles(path.parent / "answers", durability)
        self._open(path)
        self._file_id = file_id(path)
        self._read_lock = threading.Lock()
        with database_errors(path), self._write:
            self._write.execute("begin immediate")
            self.identity = get_or_set_meta(self._write, "identity", secrets.token_hex(4))
            self.writer = int(get_or_set_meta(self._write, "writers", "0")) + 1
            self._write.execute("update meta set value = ? where key = 'writers'", (str(self.writer),))
            rebuild_lost_index(self._write)
        self._space = FreeSpace(path.parent, 0)
        self._on_full_disk: Callable[[str], None] | None = None
        self._has_new_answers = False
        """Whether answers were written, whose entries are to be in the index in the end."""
        self._seq = 0
        self.write_seconds = 0.0
        """Total time spent on writing."""
        self._last_exchange_id = self.writer << 40
        self._queue: deque[tuple[Callable[[WriteBatch], Any], asyncio.Future[Any]]] = deque()
        self._is_waiting = False
        """Whether the writing thread has found the queue empty, and must be woken."""
        self._waking_loop: asyncio.AbstractEventLoop | None = None
        """The event loop that is about to wake it."""
        self._wake = threading.Event()
        self._is_closed = False
        self._thread = threading.Thread(target=self._write_batches, name="ledger", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what is queued, then close the file."""
        self._is_closed = True
        self._wake_thread()
        self._thread.join()
        self._read.close()
        self._write.close()

    @property
    def is_in_place(self) -> bool:
        """Whether the open file is still the one at its path."""
        return file_id(self.path) == self._file_id

    def watch_free_space(self, exchanges: int, on_full: Callable[[str], None]) -> None:
        """Call `on_full` in the event loop, with a line for the user, if an exchange is about to be sent and the disk
        may be too full for the answers of so many in flight; also if it is full."""
        self._space.exchanges, self._on_full_disk = exchanges, on_full

    def restore(self) -> Path:
        """Write the file again from the open connection if it was removed or replaced; return where it is now.

        If another file has taken its place, it gets a name of its own next to that. Nothing may be queued.
        """
        if self.is_in_place:
            return self.path
        written = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        written.parent.mkdir(parents=True, exist_ok=True)
        with database_errors(written), self._read_lock:
            with closing(sqlite3.connect(written)) as target:
                self._read.backup(target)
            path = place_without_overwriting(written, self.path, f"{self.path.stem}-{self.identity}-{self.writer}")
            self._read.close()
            self._write.close()
            self._open(path)
        self.path, self._file_id = path, file_id(path)
        return path

    def _open(self, path: Path) -> None:
        self._read, self._write = (open_ledger_file(path, self.durability) for _ in range(2))
        self._lookup, self._merge = AnswerLookup(self._read), IndexMerge(self._write)

    # Exchanges: pending, then settled.

    def next_exchange_id(self) -> int:
        """Return a number for a new exchange, unique in this ledger."""
        self._last_exchange_id += 1
        return self._last_exchange_id

    def record_pending(self, pending: PendingExchange, day: tuple[str, int] | None = None) -> asyncio.Future[bool]:
        """Record an exchange that is about to be sent.

        `day`: (date, limit in pico-dollars) of the daily budget in which its maximum cost is reserved. False, with
        nothing recorded, if it does not fit.
        """
        return self._enqueue(lambda batch: batch.record_pending(pending, day))

    def cancel_pending(self, pending: PendingExchange, day: str | None = None) -> asyncio.Future[None]:
        """Delete a pending exchange that was not sent after all; `day`: the date of its reservation."""
        return self._enqueue(lambda batch: batch.cancel_pending(pending, day))

    def settle(self, settled: SettledExchange, day: str | None = None) -> asyncio.Future[None]:
        """Record the outcome of a pending exchange and store its answers; `day`: the date of its reservation.

        Exchanges that become pending later are not recorded before this.
        """
        return self._enqueue(lambda batch: batch.settle(settled, day))

    async def store_answer(self, fingerprint: bytes, route_id: int, request: bytes, reply: bytes) -> None:
        """Store an answer that was composed of others, or converted."""
        await self._enqueue(lambda batch: batch.store_answers(route_id, [(fingerprint, request, reply, None)]))

    async def write_batch(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> Sequence[Any]:
        """Run several of these methods, as (name, arguments), in one transaction; return their results."""
        methods: Mapping[str, Callable[..., Any]] = {
            "record_pending": WriteBatch.record_pending,
            "cancel_pending": WriteBatch.cancel_pending,
            "settle": WriteBatch.settle,
            "store_answer": lambda batch, fingerprint, route_id, sent, reply: batch.store_answers(
                route_id, [(fingerprint, sent, reply, None)]
            ),
            "write_queued": lambda batch, sql, values: batch.run_statement(lambda db: db.execute(sql, values) and None),
        }
        return await self._enqueue(lambda batch: [methods[name](batch, *arguments) for name, arguments in calls])

    def recover(self, job: str, packed_steps: Collection[str] = ()) -> int:
        """Settle as `unknown` the pending exchanges of the job's earlier runs; return their number.

        `packed_steps`: the steps that have `pack`. Packed answers of others are removed: their rows go alone.

        Call it only under the job's lock: then no other process can be waiting for them.
        """
        with closing(self._open_again()) as db, db:
            db.execute("begin immediate")
            # The lines of a batch may still be answered.
            condition = "l.job = ? and not exists (select 1 from batch_lines b where b.note = n.id)"
            batch = self._batch(db)
            reserved = batch.run_statement(lambda db: _settle_unknown(db, batch, condition, (job,)))
            steps = ",".join("?" * len(packed_steps))
            db.execute(
                "delete from packed_answers where leg in "
                f"(select id from legs where job = ? and step not in ({steps}))",
                (job, *packed_steps),
            )
            batch.flush()
            self._seq = batch.seq
            return len(reserved)

    async def recover_exchanges(self, first: int, last: int) -> Sequence[int]:
        """Settle as `unknown` the pending exchanges of this range; return what was reserved for each."""
        return await self._enqueue(
            lambda batch: batch.run_statement(
                lambda db: _settle_unknown(db, batch, "n.id between ? and ?", (first, last)),
            )
        )

    def delete_answers(self, ids: Sequence[int]) -> None:
        """Delete these answers in one transaction, committed on return: best many at a time."""
        with database_errors(self.path), closing(self._open_again()) as db:
            delete_answers(db, ids)

    def delete_selected_answers(self, selection: str, values: Sequence[Any]) -> None:
        """Delete the answers whose ids a `select` returns; a kill leaves all of them, some, or none. Vacuum afterwards:
        until then the file may contain what was deleted."""
        with database_errors(self.path), closing(self._open_again()) as db:
            delete_selected(db, selection, values)

    # Runs, commits and other tables.

    def register_route(self, run_id: str, job: str, step: str, provider: str, endpoint: str, model: str) -> int:
        """Return the row id of a run, step, provider, endpoint and model; its exchanges refer to it."""
        self.write(
            "insert or ignore into legs (run_id, job, step, provider, endpoint, model) values (?, ?, ?, ?, ?, ?)",
            (run_id, job, step, provider, endpoint, model),
        )
        ((number,),) = self.query(
            "select id from legs where run_id = ? and step = ? and provider = ? and endpoint = ? and model = ?",
            (run_id, step, provider, endpoint, model),
        )
        return int(number)

    def has_answers(self, job: str, step: str, provider: str, model: str) -> tuple[bool, bool]:
        """Return whether the provider has answered with this model at all, and whether in this step of the job."""
        answered = "exists (select 1 from exchanges e where e.leg = l.id and e.error_class is null)"
        ((model_answered, step_answered),) = self.query(
            f"select exists (select 1 from legs l where provider = ?1 and model = ?2 and {answered}), "
            "exists (select 1 from legs l where provider = ?1 and model = ?2 and job = ?3 and step = ?4 "
            f"and {answered})",
            (provider, model, job, step),
        )
        return bool(model_answered), bool(step_answered)

    def stream(self, sql: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a large read from a separate connection."""
        with database_errors(self.path), closing(self._open_again()) as db:
            yield from db.execute(sql, values)

    def write(self, sql: str, values: Sequence[Any] = ()) -> None:
        """Run one small write, committed on return."""
        # Not in a transaction of its own: VACUUM is refused there.
        with database_errors(self.path), closing(self._open_again()) as db:
            db.execute(sql, values)

    def write_all(self, statements: Iterable[tuple[str, Sequence[Sequence[Any]]]]) -> None:
        """Run each statement with each of its lists of values, all in one transaction, committed on return."""
        with database_errors(self.path), closing(self._open_again()) as db:
            db.execute("begin immediate")
            for sql, rows in statements:
                db.executemany(sql, rows)
            db.execute("commit")

    async def write_queued(self, sql: str, values: Sequence[Any]) -> None:
        """Run one write in the order of the exchanges, committed on return."""
        await self.write_together(lambda db: db.execute(sql, values) and None)

    async def write_together(self, write: Callable[[sqlite3.Connection], T]) -> T:
        """Run `write` in one transaction, in the order of the exchanges; return its result."""
        return await self._enqueue(lambda batch: batch.run_statement(write))

    def _open_again(self) -> sqlite3.Connection:
        """Return another connection; Stopped if the file is gone, since opening it would begin an empty ledger."""
        if not self.is_in_place:
            raise lost_file(self.path)
        return open_ledger_file(self.path, self.durability)

    # The writing thread: everything in the queue becomes one transaction.

    def _enqueue(self, write: Callable[[WriteBatch], T]) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._queue.append((write, future))
        if self._is_waiting and self._waking_loop is not loop:
            # After all that is ready now has queued its own writes: a larger transaction costs less for each.
            self._waking_loop = loop
            loop.call_soon(self._wake_thread)
        return future

    def _wake_thread(self) -> None:
        self._is_waiting, self._waking_loop = False, None
        self._wake.set()

    def _take_queue(self) -> list[tuple[Callable[[WriteBatch], Any], asyncio.Future[Any]]]:
        """Return all that is queued, at least one write; none once the ledger is closed."""
        while not self._queue:
            if self._is_closed:
                return []
            self._wake.clear()
            self._is_waiting = True
            # What was queued before that has not woken this thread.
            if not self._queue and not self._is_closed:
                self._wake.wait()
            self._is_waiting = False
        return [self._queue.popleft() for _ in range(len(self._queue))]

    def _write_batches(self) -> None:
        while queue := self._take_queue():
            loop, began = queue[0][1].get_loop(), time.perf_counter()
            try:
                results = self._write_or_wait([write for write, _ in queue], loop)
                self.write_seconds += time.perf_counter() - began
                resolved: Iterable[tuple[asyncio.Future[Any], Any]] = zip((f for _, f in queue), results, strict=True)
                loop.call_soon_threadsafe(_resolve, list(resolved))
            except Exception as exc:  # noqa: BLE001 - the callers get it; if this thread died, they would wait forever
                loop.call_soon_threadsafe(_fail, [f for _, f in queue], exc)
            # Otherwise the answers would stay in memory until the next ones arrive.
            queue.clear()
            self._merge_answers(self._merge.continue_if_due)
        if self._has_new_answers:
            self._merge_answers(self._merge.finish)

    def _write_or_wait(
        self, writes: Sequence[Callable[[WriteBatch], Any]], loop: asyncio.AbstractEventLoop
    ) -> list[Any]:
        """Run these in one transaction; return their results. On a full disk, wait a while for space."""
        deadline = time.monotonic() + FULL_DISK_SECONDS
        while True:
            try:
                results, has_pending = self._write_together(writes)
            except (OSError, sqlite3.OperationalError) as exc:
                if not is_disk_full(exc) or self._on_full_disk is None or time.monotonic() > deadline:
                    raise
                loop.call_soon_threadsafe(self._on_full_disk, DISK_FULL)
                time.sleep(FULL_DISK_RETRY_SECONDS)
                continue
            if has_pending and self._on_full_disk is not None and (shortage := self._space.shortage()) is not None:
                # Before those who wait for `results` send anything.
                loop.call_soon_threadsafe(self._on_full_disk, shortage)
            return results

    def _merge_answers(self, merge: Callable[[], None]) -> None:
        # On a full disk, for example: the answers are stored, and a later merge includes them.
        with contextlib.suppress(sqlite3.Error):
            merge()

    def _write_together(self, writes: Sequence[Callable[[WriteBatch], Any]]) -> tuple[list[Any], bool]:
        """Run these in one transaction; return their results, and whether one of them recorded a pending exchange."""
        with self._write:
            self._write.execute("begin immediate")
            batch = self._batch(self._write)
            results = [write(batch) for write in writes]
            batch.flush()
        self._seq = batch.seq
        self._has_new_answers |= bool(batch.answer_ids)
        if batch.answer_sizes:
            self._space.record(batch.answer_sizes)
        return results, batch.has_pending

    def _batch(self, db: sqlite3.Connection) -> WriteBatch:
        return WriteBatch(db, self.files, self._answer_ids, self.writer, self._seq, now_us())

    def _answer_ids(self, fingerprints: Sequence[bytes]) -> Mapping[bytes, int]:
        return dict(self.select_answers("a.fingerprint, a.id", fingerprints))


def now_us() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1000


def _resolve(resolved: Sequence[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in resolved:
        if not future.done():
            future.set_result(result)


def _fail(futures: Sequence[asyncio.Future[Any]], exc: Exception) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(exc)


def _settle_unknown(db: sqlite3.Connection, batch: WriteBatch, condition: str, values: Sequence[Any]) -> list[int]:
    """Settle the pending exchanges as `unknown`; return what was reserved for each."""
    rows = db.execute(
        "select n.id, n.leg, n.attempt, n.keys, n.fingerprints, n.reserved, n.started_at "
        f"from noted n join legs l on l.id = n.leg where {condition} order by n.id",
        values,
    ).fetchall()
    for exchange_id, route_id, attempt, keys, fingerprints, reserved, started_at in rows:
        batch.settle(
            PendingExchange(
                exchange_id, route_id, attempt, keys.encode(), fingerprints, started_at, reserved
            ).as_unknown(),
            None,
        )
    return [reserved or 0 for *_, reserved, _ in rows]
