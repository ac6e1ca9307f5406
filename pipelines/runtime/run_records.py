"""Runs in the ledger: one stays open until it has come to its end, and the next invocation continues it."""

import contextlib
import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import orjson

from connectors.errors import Locked
from pipelines.ledger.ledger import Ledger, now_us

CREW_DIES = 60.0
"""Seconds that a run waits for what is left of an earlier one on Ray."""

CLOSING = frozenset({0, 1, 5})
"""Exit codes after which a run is closed; after the others the next invocation continues it."""


@dataclass(frozen=True, slots=True)
class OpenRun:
    """The run that this invocation is part of."""

    run_id: str
    spent: int
    """Pico-dollars that earlier invocations of it have spent."""
    continued: bool


@contextlib.contextmanager
def job_lock(state: Path, job: str) -> Iterator[None]:
    """Held while a run of the job is under way; the system lets go of it when the process dies."""
    with _held(state / "locks" / f"{job}.lock", f"{os.getpid()}") as holder:
        if holder is not None:
            raise Locked(
                f"{job}: another run of this job is under way (process {holder}); "
                "wait for its end, or look at it with: rowmill status"
            )
        yield


@contextlib.contextmanager
def sink_lock(state: Path, place: str, job: str) -> Iterator[None]:
    """Held, in the same way, while the job writes to the sink at that place: two jobs would take each other's rows for
    their own."""
    name = hashlib.blake2b(place.encode(errors="surrogateescape"), digest_size=16).hexdigest()
    with _held(state / "locks" / "sinks" / f"{name}.lock", f"job {job}, process {os.getpid()}") as holder:
        if holder is not None:
            raise Locked(
                f"{job}: another job is writing to the same sink, {place} ({holder}); wait for its end, and give each "
                "job a sink of its own"
            )
        yield


@contextlib.contextmanager
def _held(path: Path, told: str) -> Iterator[str | None]:
    """None while this process holds the lock, which says what is `told`; or what its holder told."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not _taken(descriptor):
            yield os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "unknown"
            return
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, told.encode(), 0)
        yield None
    finally:
        os.close(descriptor)


def _taken(descriptor: int) -> bool:
    """Whether the lock could be had; who only looks whether it is held has it for a moment."""
    for _ in range(4):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return True
    return False


def crew_lock(state: Path, job: str) -> AbstractContextManager[None]:
    """Held by what writes to the ledger for the workers of a run on Ray: it may outlive its driver by moments."""
    return job_lock(state, f"{job}.ray")


def await_crew(state: Path, job: str) -> None:
    """Wait until nothing of an earlier run on Ray writes to the ledger any more; to be called under the job's lock."""
    until = time.monotonic() + CREW_DIES
    while running(state, f"{job}.ray"):
        if time.monotonic() > until:
            raise Locked(f"{job}: Ray workers of an earlier run are still alive; end that Ray job, then run again")
        time.sleep(0.05)


def running(state: Path, job: str) -> bool:
    """Whether a process holds the job's lock."""
    try:
        descriptor = os.open(state / "locks" / f"{job}.lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def open_run(ledger: Ledger, job: str, new: bool) -> OpenRun:
    """The job's open run, or a new one; `new` closes an open one first."""
    if new:
        ledger.write("update runs set state = 'closed' where job = ? and state = 'open'", (job,))
    found = ledger.query(
        "select run_id from runs where job = ? and state = 'open' order by started_at desc limit 1", (job,)
    )
    if found:
        ((run_id,),) = found
        ((spent,),) = ledger.query(
            "select coalesce(sum(e.cost), 0) from exchanges e join legs l on l.id = e.leg where l.run_id = ?", (run_id,)
        )
        return OpenRun(run_id, spent, True)
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    ledger.write("insert into runs (run_id, job, state, started_at) values (?, ?, 'open', ?)", (run_id, job, now_us()))
    return OpenRun(run_id, 0, False)


def end_invocation(ledger: Ledger, run_id: str, exit_code: int, stopped: str | None, report: dict[str, object]) -> None:
    """Note how an invocation ended; the run closes where its exit code says that it has come to its end."""
    ledger.write(
        "update runs set state = ?, ended_at = ?, exit_code = ?, stopped = ?, report = ? where run_id = ?",
        (
            "closed" if exit_code in CLOSING else "open",
            now_us(),
            exit_code,
            stopped,
            orjson.dumps(report).decode(),
            run_id,
        ),
    )
