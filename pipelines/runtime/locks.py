"""Locks on jobs and sinks, held by one process each; the system releases them when the process dies."""

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from connectors.errors import Locked

CREW_DIES = 60.0
"""Seconds that a run waits for what is left of an earlier one on Ray."""


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


def ray_writer_lock(state: Path, job: str) -> AbstractContextManager[None]:
    """Held by what writes to the ledger for the workers of a run on Ray: it may outlive its driver by moments."""
    return job_lock(state, f"{job}.ray")


def wait_for_ray_writers(state: Path, job: str) -> None:
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
