"""Free space: whether the ledger's disk has room for the answers of the requests in flight."""

import errno
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from pipelines.formatting import format_bytes

BYTES_PER_EXCHANGE = 32 << 10
"""What an exchange may take besides its answers: eight pages of the write-ahead log, if it is committed alone."""

COPIES = 2
"""An answer is in the write-ahead log and in the file."""

DISK_FULL = "disk full: make room and run again; answers that were received are kept in the ledger"
"""Stop reason of a run whose writes find no space."""


class FreeSpace:
    """The room that must be left so that every answer in flight can still be stored."""

    def __init__(self, folder: Path, exchanges: int) -> None:
        """`exchanges`: so many may be in flight."""
        self._folder = folder
        self.exchanges = exchanges
        self._count = self._bytes = self._largest = 0

    def record(self, answer_bytes: Sequence[int]) -> None:
        """Record the sizes of the answers that were written together."""
        self._count += len(answer_bytes)
        self._bytes += sum(answer_bytes)
        self._largest = max(self._largest, *answer_bytes)

    @property
    def needed_bytes(self) -> int:
        """For answers as large as the mean so far, and one as large as the largest."""
        mean = self._bytes // self._count if self._count else 0
        return self.exchanges * (BYTES_PER_EXCHANGE + COPIES * mean) + COPIES * self._largest

    def shortage(self) -> str | None:
        """Return what is missing, as a line for the user; None if there is room, or the disk does not report it."""
        try:
            disk = os.statvfs(self._folder)
        except OSError:
            return None
        free, needed = disk.f_bavail * disk.f_frsize, self.needed_bytes
        if free >= needed or not disk.f_blocks:
            return None
        return (
            f"{self._folder}: disk full: {format_bytes(free)} left, the answers of {self.exchanges:,} requests in "
            f"flight may need {format_bytes(needed)}; make room and run again to continue"
        )


def is_disk_full(error: BaseException) -> bool:
    """Return whether a write has failed because no space is left."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_FULL
