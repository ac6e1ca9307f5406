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
from pipelines.ledger.ledger_file import VERSION
from pipelines.ledger.older_versions import lock_holder

RAY_WRITERS_SECONDS = 60.0
"""How long a run waits for the ledger writers of an earlier run on Ray."""


def lock_path(state: Path, job: str) -> Path:
    """Return the lock file of a job."""
    return state / "locks" / f"{job}.lock"


def sink_lock_path(state: Path, location: str) -> Path:
    """Return the lock file of the sink at this location."""
    name = hashlib.blake2b(location.encode(errors="surrogateescape"), digest_size=16).hexdigest()
    return state / "locks" / "sinks" / f"{name}.lock"


@contextlib.contextmanager
def job_lock(state: Path, job: str) -> Iterator[None]:
    """Hold the job's lock; Locked if another process runs the job."""
    with _lock_file(lock_path(state, job), lock_holder(VERSION)) as holder:
        if holder is not None:
            raise Locked(
                f"{job}: another run of this job is under way (process {holder.partition(',')[0]}); "
                "wait for its end, or look at it with: rowmill status"
            )
        yield


@contextlib.contextmanager
def sink_lock(state: Path, location: str, job: str) -> Iterator[None]:
    """Hold the lock of the sink at this location: two jobs would each take the other's rows for their own."""
    with _lock_file(sink_lock_path(state, location), f"job {job}, process {os.getpid()}") as holder:
        if holder is not None:
            raise Locked(
                f"{job}: another job is writing to the same sink, {location} ({holder}); wait for its end, and give "
                "each job a separate sink"
            )
        yield


def ray_writer_lock(state: Path, job: str) -> AbstractContextManager[None]:
    """Hold the lock of the process that writes the ledger for Ray workers; it may outlive its driver by moments."""
    return job_lock(state, f"{job}.ray")


def wait_for_ray_writers(state: Path, job: str) -> None:
    """Wait until no earlier run on Ray writes to the ledger; the caller holds the job's lock."""
    deadline = time.monotonic() + RAY_WRITERS_SECONDS
    while is_running(state, f"{job}.ray"):
        if time.monotonic() > deadline:
            raise Locked(f"{job}: Ray workers of an earlier run are still alive; end that Ray job, then run again")
        time.sleep(0.05)


def is_running(state: Path, job: str) -> bool:
    """Return whether a process holds the job's lock."""
    try:
        descriptor = os.open(lock_path(state, job), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # Shared: it needs no permission to write, and two that ask do not take each other for the job.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextlib.contextmanager
def _lock_file(path: Path, holder: str) -> Iterator[str | None]:
    """Yield None while this process holds the lock, with `holder` as the file's text; else the text of its holder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not _try_lock(descriptor):
            yield os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "unknown"
            return
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode(), 0)
        yield None
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    """Return whether the lock was acquired; `is_running` in another process holds it for a moment."""
    for _ in range(4):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return True
    return False
