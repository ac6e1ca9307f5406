"""Mapped tables: Arrow tables in files, of which only the pages at hand are in memory."""

import mmap
import weakref
from pathlib import Path

import pyarrow as pa

_MAPPED: "weakref.WeakSet[mmap.mmap]" = weakref.WeakSet()


def map_table(path: Path) -> pa.Table:
    """Return the table of an Arrow IPC file. Its values stay readable after the file's name is removed."""
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    _MAPPED.add(memory)
    return pa.ipc.open_file(pa.BufferReader(pa.py_buffer(memory))).read_all()


def release_pages() -> None:
    """Let the process forget the pages of mapped tables that it has read; those still needed are read again."""
    if hasattr(mmap, "MADV_DONTNEED"):
        for memory in list(_MAPPED):
            memory.madvise(mmap.MADV_DONTNEED)
