"""The command line with a mine laid: at a named point, or at some moment, the process sends itself a signal.

Started once, it takes orders as lines of JSON and forks a process for each, which saves importing it all again. What
such a process notes, sends and settles it writes to a log; at its death also what was under way, and which of that
had left by its socket, as the kernel counts it. Commits and chunks are small and frequent here, so that a short run
has many of them. Nothing of this is in the product.
"""

import asyncio
import contextvars
import functools
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import replace

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

import aiohttp

import pipelines.commands.jobs.run
import pipelines.execution.committer
import pipelines.execution.job_run
import pipelines.ledger.answer_index
from connectors.sinks import duckdb_table, parquet_table
from connectors.storage.local_part_store import LocalPartStore
from connectors.transport.client import HttpTransport
from connectors.transport.fast_post import CleanConnector
from pipelines.cli import main
from pipelines.dispatch.online_dispatcher import OnlineDispatcher
from pipelines.ledger.entries import PendingExchange, SettledExchange
from pipelines.ledger.ledger import Ledger

POINTS = (
    "noted",
    "sent",
    "arrived",
    "ledgered",
    "index merged",
    "commit noted",
    "part written",
    "part noted",
    "renamed",
    "merged",
    "swapped",
    "within a transaction",
    "committed",
    "usage written",
    "recovered",
)
RANDOM = "at random"

LONGEST = 120
"""Seconds of a run."""
BYTES_SENT = 200
"""Where Linux's struct tcp_info has tcpi_bytes_sent, 64 bits."""

_note: contextvars.ContextVar[int] = contextvars.ContextVar("note")
"""The exchange that this task is about."""


@dataclass(slots=True)
class UnderWay:
    """An exchange between its note and its outcome."""

    stage: str = "noting"
    wire: socket.socket | None = None
    before: int = 0
    """Bytes that its connection had carried for others."""
    sent: bool = False

    def has_left(self) -> bool:
        """Whether the kernel has sent anything of it."""
        return self.sent or (self.wire is not None and _sent_by(self.wire) > self.before)


@dataclass(slots=True)
class Mine:
    """Goes off once, when its point is reached for the so-many-th time."""

    point: str
    count: int
    by: str
    log: int
    """File descriptor."""
    turn: Any = field(default_factory=threading.Lock)
    under_way: dict[int, UnderWay] = field(default_factory=dict)
    loop: asyncio.AbstractEventLoop | None = None
    dying: bool = False

    def tell(self, **facts: Any) -> None:
        os.write(self.log, json.dumps(facts).encode() + b"\n")

    def reach(self, point: str) -> None:
        if point != self.point:
            return
        with self.turn:
            self.count -= 1
            if self.count:
                return
        self.tell(reached=point, note=_note.get(None))
        if self.by == "KILL":
            self.be_killed()
        elif self.by == "TWICE":
            os.kill(os.getpid(), signal.SIGINT)
            again = threading.Timer(0.005, os.kill, (os.getpid(), signal.SIGINT))
            again.daemon = True
            again.start()
        else:
            os.kill(os.getpid(), signal.Signals[f"SIG{self.by}"])

    def be_killed(self) -> None:
        """In the loop's thread, so that nothing is sent between the look at what is under way and the end."""
        if self.loop is None or not self.loop.is_running() or threading.current_thread() is threading.main_thread():
            self.look_back()
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            self.loop.call_soon_threadsafe(self.be_killed)
        time.sleep(30)

    def look_back(self) -> None:
        self.dying = True
        self.tell(died={note: [one.stage, one.has_left()] for note, one in self.under_way.items()})

    def exit(self, code: int) -> None:
        """In the place of os._exit."""
        self.look_back()
        _exit(code)


_exit = os._exit


def _sent_by(wire: socket.socket) -> int:
    result = wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int(struct.unpack_from("Q", result, BYTES_SENT)[0])


class Hurried:
    """asyncio, its naps cut short."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 20)


def after(owner: Any, name: str, reached: Callable[..., None]) -> None:
    """Call `reached` with the arguments of every call that has ended."""
    real = getattr(owner, name)

    @functools.wraps(real)
    def calling(*arguments: Any, **others: Any) -> Any:
        result = real(*arguments, **others)
        reached(*arguments)
        return result

    setattr(owner, name, calling)


def follow_exchanges(mine: Mine) -> None:
    """Know of each exchange how far it is, by the calls of the dispatcher to the ledger and of the transport."""
    real_note, real_take_back, real_settle = Ledger.record_pending, Ledger.cancel_pending, Ledger.settle
    real_send = HttpTransport.send
    real_connect = aiohttp.TCPConnector.connect
    real_idle_connection = CleanConnector.idle_connection

    async def note(self: Ledger, noted: PendingExchange, *others: Any) -> bool:
        if mine.dying:
            await asyncio.Event().wait()
        one = mine.under_way[noted.exchange_id] = UnderWay()
        mine.tell(
            note=noted.exchange_id,
            attempt=noted.attempt,
            keys=json.loads(noted.keys),
            marks=noted.fingerprints.hex(),
            reserved=noted.max_cost,
            at=noted.started_at,
        )
        assert await real_note(self, noted, *others)
        one.stage = "noted"
        _note.set(noted.exchange_id)
        mine.reach("noted")
        return True

    async def send(self: HttpTransport, provider: Any, call: Any) -> Any:
        number = _note.get()
        one = mine.under_way[number]
        one.stage = "sending"
        work = real_send(self, provider, replace(call, path=f"{call.path}?note={number}"))
        if mine.point == "sent" and mine.count > 0:
            task = asyncio.ensure_future(work)
            while not one.has_left() and not task.done():  # noqa: ASYNC110 - the kernel sends no notification.
                await asyncio.sleep(0)
            mine.reach("sent")
            reply = await task
        else:
            reply = await work
        one.stage = "arrived"
        mine.reach("arrived")
        return reply

    def follow(connection: Any) -> None:
        one = mine.under_way[_note.get()]
        # Not its own file descriptor: never closed by this object.
        wire = socket.socket(fileno=connection.transport.get_extra_info("socket").fileno())
        one.before = _sent_by(wire)
        one.wire = wire

    async def connect(self: aiohttp.TCPConnector, *arguments: Any, **others: Any) -> Any:
        connection = await real_connect(self, *arguments, **others)
        follow(connection)
        return connection

    def idle_connection(self: CleanConnector, *arguments: Any) -> Any:
        connection = real_idle_connection(self, *arguments)
        if connection is not None:
            follow(connection)
        return connection

    def take_back(self: Ledger, noted: PendingExchange, *others: Any) -> "asyncio.Future[None]":
        mine.under_way[noted.exchange_id].stage = "settling"
        taking = real_take_back(self, noted, *others)
        taking.add_done_callback(lambda _: mine.under_way.pop(noted.exchange_id))
        return taking

    def settle(self: Ledger, ended: SettledExchange, *others: Any) -> "asyncio.Future[None]":
        one = mine.under_way[ended.exchange_id]
        one.sent = one.has_left()
        if one.wire is not None:
            one.wire.detach()
            one.wire = None
        one.stage = "settling"
        settling = real_settle(self, ended, *others)

        def ledgered(_: object) -> None:
            if not settling.cancelled() and settling.exception() is None:
                del mine.under_way[ended.exchange_id]
                mine.reach("ledgered")

        settling.add_done_callback(ledgered)
        return settling

    Ledger.record_pending = note  # type: ignore[method-assign, assignment]
    Ledger.cancel_pending = take_back  # type: ignore[method-assign]
    Ledger.settle = settle  # type: ignore[method-assign]
    HttpTransport.send = send  # type: ignore[method-assign]
    aiohttp.TCPConnector.connect = connect  # type: ignore[method-assign]
    CleanConnector.idle_connection = idle_connection  # type: ignore[method-assign]
    os._exit = mine.exit  # type: ignore[assignment]


def lay(mine: Mine) -> None:
    """Every other point, wherever it is in the code."""

    def at(owner: Any, name: str, point: str) -> None:
        after(owner, name, lambda *_: mine.reach(point))

    def started(*_: Any) -> None:
        mine.loop = asyncio.get_running_loop()

    after(OnlineDispatcher, "start", started)
    at(Ledger, "recover", "recovered")
    at(pipelines.ledger.answer_index.IndexMerge, "_move_slice", "index merged")
    after(Ledger, "write", lambda self, sql, *_: mine.reach("commit noted") if "into commits" in sql else None)
    after(
        Ledger,
        "write_all",
        lambda self, statements: mine.reach("commit noted") if "into commits" in statements[0][0] else None,
    )
    at(parquet_table, "write_part", "part written")
    at(parquet_table, "write_merged_part", "merged")
    at(LocalPartStore, "_decide", "part noted")
    at(LocalPartStore, "_move", "renamed")
    at(LocalPartStore, "_swap", "swapped")
    at(duckdb_table, "_insert", "within a transaction")
    for sink in (parquet_table.ParquetTables, duckdb_table.DuckdbTables):
        at(sink, "commit", "committed")
        at(sink, "add_usage", "usage written")


def launch(order: dict[str, Any]) -> None:
    """Become the process that was ordered."""
    for number, place in ((0, os.devnull), (1, order["out"]), (2, order["err"])):
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(descriptor, number)
        os.close(descriptor)
    # A run that hangs is ended, which no kill of ours looks like.
    signal.alarm(LONGEST)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    mine = Mine(order["point"], order["count"], order["by"], log)
    follow_exchanges(mine)
    lay(mine)
    if order["point"] == RANDOM:
        soon = threading.Timer(order["delay"], mine.reach, (RANDOM,))
        soon.daemon = True
        soon.start()
    main(order["arguments"])


def take_orders() -> None:
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            launch(json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    pipelines.execution.committer.COMMIT_ROWS = 12
    pipelines.ledger.answer_index.MIN_TAIL, pipelines.ledger.answer_index.SLICE_ENTRIES = 12, 4
    pipelines.execution.job_run.CHUNK_ROWS = 8
    pipelines.execution.job_run.asyncio = Hurried()  # type: ignore[assignment]
    parquet_table.MAX_SMALL_PARTS = 2
    parquet_table.MAX_REWRITTEN_BYTES = 0
    take_orders()
