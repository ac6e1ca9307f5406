"""The heartbeat file of a run in progress: its figures once a second, in the state folder, for `rowmill status`."""

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import orjson

from pipelines.ledger.ledger_file import write_atomically
from pipelines.monitoring.progress import ThroughputMeter, progress_figures
from pipelines.monitoring.run_view import FollowRun, RunView
from pipelines.runtime.locks import is_running

HEARTBEAT_SECONDS = 1.0


def with_heartbeat(state: Path, job: str, run_id: str, follow: FollowRun) -> FollowRun:
    """Return a follower that writes the heartbeat file as well."""

    async def both(view: RunView) -> None:
        await asyncio.gather(follow(view), _write_heartbeats(_heartbeat_file(state, job), job, run_id, view))

    return both


def read_heartbeat(state: Path, job: str) -> dict[str, Any] | None:
    """Return the latest figures of a run in progress; None if there is no run or it has not written any yet."""
    return read_last_heartbeat(state, job) if is_running(state, job) else None


def read_last_heartbeat(state: Path, job: str) -> dict[str, Any] | None:
    """Return the last figures that a run wrote, even if it was killed since; None if there are none."""
    try:
        figures: dict[str, Any] = orjson.loads(_heartbeat_file(state, job).read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return None
    return figures


def _heartbeat_file(state: Path, job: str) -> Path:
    return state / "running" / f"{job}.json"


async def _write_heartbeats(file: Path, job: str, run_id: str, view: RunView) -> None:
    meter, began = ThroughputMeter(), time.time()
    try:
        while True:
            bottleneck = None if view.time_breakdown is None else view.time_breakdown.to_json()["bound_by"]
            figures = {
                "job": job,
                "run_id": run_id,
                "began": began,
                "seconds": round(view.counters.seconds, 1),
                "bound_by": bottleneck,
                **progress_figures(view, meter.measure(view)),
            }
            # The file is a convenience and must not end a run: the ledger reports a full disk.
            with contextlib.suppress(OSError):
                write_atomically(file, orjson.dumps(figures))
            await asyncio.sleep(HEARTBEAT_SECONDS)
    finally:
        _delete(file)


def _delete(file: Path) -> None:
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)
