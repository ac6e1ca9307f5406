"""State watch: notices if another program removes or replaces the ledger, a lock or the sink of a run in progress.

An open file outlives its name: a run whose ledger was removed could go on, and nobody would ever see its answers.
"""

import asyncio
import os
from collections.abc import Callable, Iterable
from pathlib import Path

WATCH_SECONDS = 1.0
"""Time between two looks."""


class StateWatch:
    """The files and folders that a run depends on, as they were when it began."""

    def __init__(self, state: Iterable[Path], sink: Iterable[Path]) -> None:
        """`state`: the state folder, ledger and locks. `sink`: the folders and files of its tables."""
        tables = tuple(path for path in sink if path.exists())
        self._state = {path: _Identity(path) for path in state if path.exists()}
        self._sink = {path: _Identity(path) for path in dict.fromkeys(path.parent for path in tables)}
        # A sink may itself replace these, so that only their absence counts.
        self._tables = tables

    def close(self) -> None:
        for identity in (*self._state.values(), *self._sink.values()):
            identity.close()

    def lost_state(self) -> Path | None:
        """Return the first path of the state that was removed, moved or replaced."""
        return next((path for path, identity in self._state.items() if not identity.is_at(path)), None)

    def lost_sink(self) -> Path | None:
        """Return the first folder of the sink that was removed, moved or replaced, or the first missing table."""
        replaced = (path for path, identity in self._sink.items() if not identity.is_at(path))
        return next(replaced, None) or next((path for path in self._tables if not path.exists()), None)

    async def run(self, on_loss: Callable[[Path], None]) -> None:
        """Look until something is lost; then call `on_loss` with its path."""
        before: Path | None = None
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if (path := self.lost_state()) is not None:
                break
            # A sink that replaces a table by renaming lets it be absent for a moment.
            if (path := self.lost_sink()) is not None and path == before:
                break
            before = path
        on_loss(path)


class _Identity:
    """Which file or folder a path leads to."""

    def __init__(self, path: Path) -> None:
        # An open descriptor keeps the system from giving the same number to another file. With O_PATH, closing it
        # releases none of SQLite's locks.
        flags = getattr(os, "O_PATH", None)
        self._descriptor = None if flags is None else os.open(path, flags | os.O_CLOEXEC)
        found = path.stat() if self._descriptor is None else os.fstat(self._descriptor)
        self._number = (found.st_dev, found.st_ino)

    def is_at(self, path: Path) -> bool:
        try:
            found = path.stat()
        except FileNotFoundError:
            return False
        except OSError:
            # A network folder that does not answer for a moment is not lost.
            return True
        return (found.st_dev, found.st_ino) == self._number

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
