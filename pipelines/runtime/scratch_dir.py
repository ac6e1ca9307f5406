"""What a run writes for itself in a workspace's state goes with its process, or else when the next one begins."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def scratch_folder(state: Path) -> Iterator[Path]:
    """A folder for copies of what a run reads; such folders, and unfinished files, of processes that were killed are
    removed."""
    with contextlib.ExitStack() as until_made:
        # So that nobody takes a folder for a dead one's that is made and not yet locked.
        (state / "locks").mkdir(parents=True, exist_ok=True)
        fcntl.flock(until_made.enter_context((state / "locks" / "scratch.lock").open("w")), fcntl.LOCK_EX)
        # What cannot be removed, or is gone by now, is no reason for a run to end.
        for left in state.glob("scratch-*"):
            with contextlib.suppress(OSError):
                _remove_if_dead(left)
        for left in (*state.glob("*.part"), *state.glob("*/*.part")):
            if not _writes(left):
                with contextlib.suppress(OSError):
                    left.unlink()
        made = tempfile.TemporaryDirectory(dir=state, prefix="scratch-")
        held = os.open(made.name, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(held, fcntl.LOCK_EX)
    try:
        with made:
            yield Path(made.name)
    finally:
        os.close(held)


def _remove_if_dead(folder: Path) -> None:
    """The system lets go of the lock when the process that holds it dies."""
    held = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(held)


def _writes(part: Path) -> bool:
    """Whether the process that a file `NAME.PID.part` is named after is alive."""
    number = part.name.split(".")[-2]
    if not (number.isascii() and number.isdigit()):
        return True
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
