"""Scratch folders in a workspace's state: removed when their process ends, or when the next run begins.

If the state folder cannot be written, they are in the system's folder for temporary files.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def scratch_folder(state: Path) -> Iterator[Path]:
    """Create a folder for temporary files; remove the folders and unfinished files of processes that were killed."""
    if not can_write(state):
        with tempfile.TemporaryDirectory(prefix="rowmill-") as name:
            yield Path(name)
        return
    with contextlib.ExitStack() as until_locked:
        # A new folder that is not locked yet must not pass for the folder of a dead process.
        (state / "locks").mkdir(parents=True, exist_ok=True)
        fcntl.flock(until_locked.enter_context((state / "locks" / "scratch.lock").open("w")), fcntl.LOCK_EX)
        # A file that cannot be removed, or is gone by now, must not stop the run.
        for folder in state.glob("scratch-*"):
            with contextlib.suppress(OSError):
                _remove_if_dead(folder)
        for part in (*state.glob("*.part"), *state.glob("*/*.part")):
            if not _has_living_writer(part):
                with contextlib.suppress(OSError):
                    part.unlink()
        temporary = tempfile.TemporaryDirectory(dir=state, prefix="scratch-")
        lock = os.open(temporary.name, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with temporary:
            yield Path(temporary.name)
    finally:
        os.close(lock)


def can_write(folder: Path) -> bool:
    """Return whether files can be created in the folder, or in the one above it where it would be created."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return os.access(existing, os.W_OK | os.X_OK)


def _remove_if_dead(folder: Path) -> None:
    """Remove the folder if no process holds its lock; the system releases the lock when the process dies."""
    lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(lock)


def _has_living_writer(part: Path) -> bool:
    """Return whether the process in the name of a file `NAME.PID.part` is alive."""
    pid = part.name.split(".")[-2]
    if not (pid.isascii() and pid.isdigit()):
        return True
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
