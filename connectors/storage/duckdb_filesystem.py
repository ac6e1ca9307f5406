"""Objects as files for DuckDB and pyarrow: by exact URL, in ranges, from many threads.

`obstore.fsspec` is no substitute (tried with obstore 0.12 and DuckDB 2.0). DuckDB seeks and reads one file from
several threads, even with `threads = 1`, and obstore's files have one position for all of them: columns arrive
corrupted. Its reads also end at the end of a buffer, which DuckDB reports as a truncated file, and it splits URLs at
`?` and `#` and expands `[` and `*` in the names of objects.
"""

import io
import threading
from datetime import datetime
from typing import Any

import duckdb
from fsspec import AbstractFileSystem

from connectors.storage import object_store
from connectors.storage.object_store import SCHEMES, StoredObject


class ObjectFile(io.RawIOBase):
    """An object open for reading. Each thread has its own position, since DuckDB seeks and reads in two calls."""

    mode = "rb"

    def __init__(self, url: str, size: int) -> None:
        self._url = url
        self.size = size
        self._thread = threading.local()

    def __str__(self) -> str:
        return self._url

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(getattr(self._thread, "position", 0))

    def seek(self, offset: int, whence: int = 0) -> int:
        self._thread.position = offset + (0, self.tell(), self.size)[whence]
        return self.tell()

    def read(self, length: int = -1) -> bytes:
        start = self.tell()
        rest = max(0, self.size - start)
        content = object_store.read_range(self._url, start, rest if length < 0 else min(length, rest))
        self._thread.position = start + len(content)
        return content


class ObjectFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """The part of a file system that DuckDB needs for reading."""

    protocol = SCHEMES
    cachable = False

    def glob(self, path: str, **_: Any) -> list[str]:
        """Return the path itself: it is always the URL of one object, whatever characters it contains."""
        return [path] if self.exists(path) else []

    def exists(self, path: str, **_: Any) -> bool:
        return object_store.head(path) is not None

    def isfile(self, path: str) -> bool:
        return self.exists(path)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": _existing_object(path).size, "type": "file"}

    def modified(self, path: str) -> datetime:
        return _existing_object(path).modified

    def open(self, path: str, mode: str = "rb", **_: Any) -> ObjectFile:
        return ObjectFile(path, _existing_object(path).size)


def register(connection: duckdb.DuckDBPyConnection) -> None:
    """Let the connection and its cursors read URLs of object stores."""
    if not any(scheme in connection.list_filesystems() for scheme in SCHEMES):
        connection.register_filesystem(ObjectFileSystem())
        # Reading page by page would take ten times the requests.
        connection.execute("set disable_parquet_prefetching = false")


def unregister(connection: duckdb.DuckDBPyConnection) -> None:
    """Undo `register`."""
    for name in connection.list_filesystems():
        if name in SCHEMES:
            connection.unregister_filesystem(name)


def _existing_object(url: str) -> StoredObject:
    stored = object_store.head(url)
    if stored is None:
        raise FileNotFoundError(url)
    return stored
