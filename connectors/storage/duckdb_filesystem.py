"""Objects as DuckDB and pyarrow read them: by exact URL, in ranges, from many threads."""

import io
import threading
from datetime import datetime
from typing import Any

import duckdb
from fsspec import AbstractFileSystem

from connectors.storage import object_store
from connectors.storage.object_store import SCHEMES


class ObjectFile(io.RawIOBase):
    """One object, open for reading; each thread has a position of its own, as DuckDB seeks and reads in two calls."""

    mode = "rb"

    def __init__(self, url: str, size: int) -> None:
        self._url = url
        self.size = size
        self._own = threading.local()

    def __str__(self) -> str:
        return self._url

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(getattr(self._own, "position", 0))

    def seek(self, offset: int, whence: int = 0) -> int:
        self._own.position = offset + (0, self.tell(), self.size)[whence]
        return self.tell()

    def read(self, length: int = -1) -> bytes:
        start = self.tell()
        left = max(0, self.size - start)
        content = object_store.read_range(self._url, start, left if length < 0 else min(length, left))
        self._own.position = start + len(content)
        return content


class ObjectFiles(AbstractFileSystem):  # type: ignore[misc]
    """What DuckDB asks of a file system, for reading alone."""

    protocol = SCHEMES
    cachable = False

    def glob(self, path: str, **_: Any) -> list[str]:
        """The path itself: what is asked for is always one object, whatever characters are in its name."""
        return [] if object_store.head(path) is None else [path]

    def exists(self, path: str, **_: Any) -> bool:
        return object_store.head(path) is not None

    def isfile(self, path: str) -> bool:
        return self.exists(path)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        found = object_store.head(path)
        if found is None:
            raise FileNotFoundError(path)
        return {"name": path, "size": found.size, "type": "file"}

    def modified(self, path: str) -> datetime:
        found = object_store.head(path)
        if found is None:
            raise FileNotFoundError(path)
        return found.modified

    def open(self, path: str, mode: str = "rb", **_: Any) -> ObjectFile:
        found = object_store.head(path)
        if found is None:
            raise FileNotFoundError(path)
        return ObjectFile(path, found.size)


def register(connection: duckdb.DuckDBPyConnection) -> None:
    """From now on the connection and its cursors read URLs of object stores."""
    if not any(scheme in connection.list_filesystems() for scheme in SCHEMES):
        connection.register_filesystem(ObjectFiles())
        # Page by page there would be ten times the requests.
        connection.execute("set disable_parquet_prefetching = false")


def unregister(connection: duckdb.DuckDBPyConnection) -> None:
    """Undo `register`."""
    for name in connection.list_filesystems():
        if name in SCHEMES:
            connection.unregister_filesystem(name)
