"""What a run tells of itself while it is under way: a small file in the state folder that `status` reads."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson

from pipelines.ledger.ledger_file import write_whole
from pipelines.monitoring.progress import ThroughputMeter, progress_figures
from pipelines.monitoring.run_view import RunView
from pipelines.runtime.locks import running

HEARTBEAT_SECONDS = 1.0

Follow = Callable[[RunView], Awaitable[None]]


def with_heartbeat(state: Path, job: str, run_id: str, follow: Follow) -> Follow:
    """`follow`, with the figures of the run noted once a second beside it."""

    async def both(watch: RunView) -> None:
        await asyncio.gather(follow(watch), _keep_noting(_file(state, job), job, run_id, watch))

    return both


def read_heartbeat(state: Path, job: str) -> dict[str, Any] | None:
    """The figures of a run that is under way, the latest that it noted; None where none is, or nothing is noted yet."""
    return read_last_heartbeat(state, job) if running(state, job) else None


def read_last_heartbeat(state: Path, job: str) -> dict[str, Any] | None:
    """The figures that a run noted last, be it under way or one that was killed; None where nothing is noted."""
    try:
        told: dict[str, Any] = orjson.loads(_file(state, job).read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return None
    return told


def _file(state: Path, job: str) -> Path:
    return state / "running" / f"{job}.json"


async def _keep_noting(file: Path, job: str, run_id: str, watch: RunView) -> None:
    pace, began = ThroughputMeter(), time.time()
    try:
        while True:
            told = {"job": job, "run_id": run_id, "began": began, "seconds": round(watch.tally.seconds, 1)}
            told["bound_by"] = None if watch.time_breakdown is None else watch.time_breakdown.to_json()["bound_by"]
            # What others may look at is no reason for a run to end: a full disk is told by the ledger.
            with contextlib.suppress(OSError):
                write_whole(file, orjson.dumps({**told, **progress_figures(watch, pace.measure(watch))}))
            await asyncio.sleep(HEARTBEAT_SECONDS)
    finally:
        _forget(file)


def _forget(file: Path) -> None:
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)
