"""The command line with a mine laid: where `CRASH_AT` says `point:count`, the process sends itself a signal.

    CRASH_AT=ledgered:17 CRASH_BY=KILL python tests/soak/launcher.py run job.yaml

Commits and chunks are small and frequent here, so that a short run has many of them. Nothing of this is in the product.
"""

import asyncio
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

import pipelines.committer
import pipelines.job_run
from connectors.ledger import Ledger
from connectors.sinks import duckdb_table, parquet_folder
from connectors.staging import Staging
from connectors.transport import HttpTransport
from pipelines.cli import main

POINTS = (
    "noted",
    "sent",
    "arrived",
    "ledgered",
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


class Mine:
    """Goes off once, when its point is reached for the so-many-th time."""

    def __init__(self, point: str, count: int, by: str) -> None:
        self._point = point
        self._left = count
        self._by = by
        self._turn = threading.Lock()

    def reach(self, point: str) -> None:
        if point != self._point:
            return
        with self._turn:
            self._left -= 1
            if self._left:
                return
        if self._by == "TWICE":
            os.kill(os.getpid(), signal.SIGINT)
            threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            os.kill(os.getpid(), signal.Signals[f"SIG{self._by}"])
        if self._by == "KILL":
            time.sleep(10)


class Hurried:
    """asyncio, its naps cut short."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 20)


def after(owner: Any, name: str, reached: Callable[..., None]) -> None:
    """Call `reached` with the arguments of every call that has ended."""
    real = getattr(owner, name)

    if asyncio.iscoroutinefunction(real):

        @functools.wraps(real)
        async def waiting(*arguments: Any, **others: Any) -> Any:
            result = await real(*arguments, **others)
            reached(*arguments)
            return result

        setattr(owner, name, waiting)
        return

    @functools.wraps(real)
    def calling(*arguments: Any, **others: Any) -> Any:
        result = real(*arguments, **others)
        reached(*arguments)
        return result

    setattr(owner, name, calling)


def lay(mine: Mine) -> None:
    """Every point, wherever it is in the code."""

    def at(owner: Any, name: str, point: str) -> None:
        after(owner, name, lambda *_: mine.reach(point))

    real_send = HttpTransport.send

    async def send(self: HttpTransport, provider: Any, call: Any) -> Any:
        under_way = asyncio.ensure_future(real_send(self, provider, call))
        await asyncio.sleep(0.002)
        mine.reach("sent")
        reply = await under_way
        mine.reach("arrived")
        return reply

    HttpTransport.send = send  # type: ignore[method-assign]
    at(Ledger, "note", "noted")
    at(Ledger, "settle", "ledgered")
    at(Ledger, "recover", "recovered")
    after(Ledger, "write", lambda self, sql, *_: mine.reach("commit noted") if "into commits" in sql else None)
    at(parquet_folder, "write_part", "part written")
    at(parquet_folder, "write_merged", "merged")
    at(Staging, "_decide", "part noted")
    at(Staging, "_move", "renamed")
    at(Staging, "_swap", "swapped")
    at(duckdb_table, "_insert", "within a transaction")
    for sink in (parquet_folder.ParquetFolder, duckdb_table.DuckdbTables):
        at(sink, "commit", "committed")
        at(sink, "add_usage", "usage written")


if __name__ == "__main__":
    pipelines.committer.ROWS = 25
    pipelines.job_run.CHUNK_ROWS = 16
    pipelines.job_run.asyncio = Hurried()  # type: ignore[assignment]
    parquet_folder.SMALL_PARTS = 2
    if where := os.environ.get("CRASH_AT"):
        named, _, number = where.rpartition(":")
        assert named in POINTS
        lay(Mine(named, int(number), os.environ["CRASH_BY"]))
    main()
