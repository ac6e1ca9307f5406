"""Parts as objects of a store that cannot rename: one manifest object decides, then staged objects are copied."""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import duckdb

from connectors.storage import duckdb_filesystem, object_store
from connectors.storage.media_upload import MediaUpload
from connectors.storage.part_store import BUILD, EMPTY_PART, FILES, STAGING, TABLES, Part

T = TypeVar("T")

COMMIT = f"{STAGING}/commit"
GUARD = b"This table is being swapped for another: read it again in a moment."
MAX_CONCURRENT_REQUESTS = 8


class ObjectTransaction:
    """Objects being written, each with the place that it will have, and those that will be deleted."""

    def __init__(self, store: "ObjectPartStore", folder: Path) -> None:
        self._store = store
        self._folder = folder
        self._merged: list[tuple[Path, str]] = []
        """(folder of this machine, table)."""
        self._added: list[tuple[Path, str]] = []
        self.copies: list[tuple[str, str]] = []
        self.deleted: list[str] = []
        self.guards: list[str] = []
        """Parts that are unreadable until everything else is in place: whoever lists the table in between gets an
        error, never rows twice. The transaction puts them back."""

    @property
    def files(self) -> list[tuple[Path, str]]:
        """(file of this machine, place)."""
        merged = [(path, f"{table}/{path.name}") for folder, table in self._merged for path in sorted(folder.iterdir())]
        return [*self._added, *merged]

    def add(self, place: str) -> Path:
        path = self._folder / f"file-{len(self._added)}"
        self._added.append((path, place))
        return path

    @contextlib.contextmanager
    def local_copy(self, place: str) -> Iterator[Path]:
        path = self._folder / place.rpartition("/")[2]
        object_store.fetch(f"{self._store.root}/{place}", path)
        try:
            yield path
        finally:
            path.unlink()

    def merge(self, table: str, merged: Sequence[Part]) -> Path:
        folder = self._folder / table
        folder.mkdir()
        self._merged.append((folder, table))
        self._delete(table, merged)
        return folder

    def replace_table(self, table: str) -> None:
        self._delete(table, [part for part in self._store.parts(table) if part.name != EMPTY_PART])
        built = f"{BUILD}{table}"
        self.copies += [(f"{built}/{part.name}", f"{table}/{part.name}") for part in self._store.parts(built)]

    def _delete(self, table: str, parts: Sequence[Part]) -> None:
        self.guards.append(f"{table}/{EMPTY_PART}")
        self.deleted += [f"{table}/{part.name}" for part in parts]


class ObjectPartStore:
    """A folder of a bucket. A single new object is atomic by itself; more of them are decided by a manifest."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._manifest = f"{root}/{COMMIT}/manifest.json"
        self._files = MediaUpload(f"{root}/{FILES}")
        self._is_clean = False

    @property
    def files_folder(self) -> Path:
        return self._files.folder

    @property
    def is_replacing(self) -> bool:
        manifest = object_store.read(self._manifest)
        return manifest is not None and bool(json.loads(manifest)["guards"])

    @property
    def has_build(self) -> bool:
        return bool(object_store.listed(f"{self.root}/{BUILD}".rstrip("/")))

    def create_folders(self) -> None:
        """A bucket has no folders."""

    @contextlib.contextmanager
    def transaction(self) -> Iterator[ObjectTransaction]:
        if not self._is_clean:
            self.recover()
        with tempfile.TemporaryDirectory(prefix="rowmill-parts-") as folder:
            transaction = ObjectTransaction(self, Path(folder))
            yield transaction
            files = transaction.files
            if len(files) == 1 and not transaction.copies and not transaction.deleted:
                ((path, place),) = files
                object_store.put(f"{self.root}/{place}", path)
            elif files or transaction.copies or transaction.deleted:
                self._is_clean = False
                self._decide(transaction)
                self.recover()

    def recover(self) -> None:
        found = object_store.read(self._manifest)
        if found is not None:
            manifest = json.loads(found)
            for place in manifest["guards"]:
                object_store.put(f"{self.root}/{place}", GUARD)
            object_store.delete([f"{self.root}/{place}" for place in manifest["gone"]])
            guarded = [move for move in manifest["moves"] if move[1] in manifest["guards"]]
            for moves in ([move for move in manifest["moves"] if move not in guarded], guarded):
                with ThreadPoolExecutor(MAX_CONCURRENT_REQUESTS, "copy") as pool:
                    list(pool.map(self._copy, moves))
            object_store.delete([self._manifest])
        object_store.delete([one.url for one in object_store.listed(f"{self.root}/{COMMIT}")])
        self._is_clean = True

    def delete_build(self) -> None:
        object_store.delete([one.url for one in object_store.listed(f"{self.root}/{BUILD}".rstrip("/"))])

    def parts(self, folder: str) -> list[Part]:
        url = f"{self.root}/{folder}"
        objects = [one for one in object_store.listed(url) if f"{url}/{one.name}" == one.url]
        return [Part(one.name, one.url, one.size) for one in objects if one.name.endswith(".parquet")]

    def part_exists(self, place: str) -> bool:
        return object_store.head(f"{self.root}/{place}") is not None

    def size(self, part: Part) -> int:
        assert part.bytes_listed is not None
        return part.bytes_listed

    def reader(self, part: Part) -> duckdb_filesystem.ObjectFile:
        return duckdb_filesystem.ObjectFile(part.location, self.size(part))

    def map(self, function: Callable[[Part], T], parts: Iterable[Part]) -> Iterator[T]:
        with ThreadPoolExecutor(MAX_CONCURRENT_REQUESTS, "read") as pool:
            yield from pool.map(function, parts)

    def upload_files(self) -> None:
        self._files.upload()

    def readable_paths(self) -> Sequence[Path | str]:
        return tuple(part.location for table in TABLES for part in self.parts(table))

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        duckdb_filesystem.register(connection)

    def detach(self, connection: duckdb.DuckDBPyConnection) -> None:
        duckdb_filesystem.unregister(connection)

    def _decide(self, transaction: ObjectTransaction) -> None:
        moves = list(transaction.copies)
        for number, (path, place) in enumerate(transaction.files):
            staged = f"{COMMIT}/file-{number}"
            object_store.put(f"{self.root}/{staged}", path)
            moves.append((staged, place))
        manifest = {"moves": moves, "gone": transaction.deleted, "guards": transaction.guards}
        object_store.put(self._manifest, json.dumps(manifest).encode())

    def _copy(self, move: tuple[str, str]) -> None:
        staged, place = move
        object_store.copy(f"{self.root}/{staged}", f"{self.root}/{place}")
