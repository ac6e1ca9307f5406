"""Parts as objects of a store that cannot rename: one manifest object decides, then staged objects are copied."""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from connectors.storage import object_store
from connectors.storage.duckdb_filesystem import ObjectFile
from connectors.storage.part_store import BUILD, EMPTY_PART, STAGING, Part, PartTransaction

COMMIT = f"{STAGING}/commit"
GUARD = b"This table is being swapped for another: read it again in a moment."
MAX_CONCURRENT_COPIES = 8


class ObjectPartStore:
    """A single new object is atomic by itself. A manifest decides several: they are staged, then copied into place.

    While a table's parts are replaced, its empty part is unreadable (`GUARD`): whoever lists the table in between gets
    an error, never rows twice. The transaction puts that part back last.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._manifest = f"{root}/{COMMIT}/manifest.json"
        self._is_clean = False

    @property
    def is_replacing(self) -> bool:
        manifest = object_store.read(self._manifest)
        return manifest is not None and bool(json.loads(manifest)["guards"])

    def recover(self) -> None:
        self._complete()
        self._delete_below(BUILD.rstrip("/"))

    @contextlib.contextmanager
    def transaction(self) -> Iterator[PartTransaction]:
        self._complete()
        with tempfile.TemporaryDirectory(prefix="rowmill-parts-") as folder:
            transaction = PartTransaction(Path(folder))
            yield transaction
            if len(transaction.files) == 1 and not transaction.merges and not transaction.rebuilt:
                ((path, place),) = transaction.files
                object_store.put(f"{self._root}/{place}", path)
            elif transaction.files or transaction.merges or transaction.rebuilt:
                self._is_clean = False
                self._decide(transaction)
                self._complete()

    def parts(self, folder: str) -> list[Part]:
        url = f"{self._root}/{folder}"
        objects = [one for one in object_store.list_objects(url) if one.url == f"{url}/{one.name}"]
        return [Part(one.name, ObjectFile(one.url, one.size)) for one in objects if one.name.endswith(".parquet")]

    def versions(self, folder: str) -> Mapping[str, str]:
        url = f"{self._root}/{folder}"
        return {one.url: one.version for one in object_store.list_objects(url) if one.url == f"{url}/{one.name}"}

    def has_part(self, place: str) -> bool:
        return object_store.head(f"{self._root}/{place}") is not None

    def size(self, part: Part) -> int:
        assert isinstance(part.source, ObjectFile)
        return part.source.size

    @contextlib.contextmanager
    def local_copy(self, place: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="rowmill-parts-") as folder:
            path = Path(folder, Path(place).name)
            object_store.download(f"{self._root}/{place}", path)
            yield path

    def _decide(self, transaction: PartTransaction) -> None:
        moves: list[tuple[str, str]] = []
        deleted: list[str] = []
        for table in transaction.rebuilt:
            deleted += [f"{table}/{part.name}" for part in self.parts(table) if part.name != EMPTY_PART]
            moves += [(f"{BUILD}{table}/{part.name}", f"{table}/{part.name}") for part in self.parts(f"{BUILD}{table}")]
        files = list(transaction.files)
        for folder, table, replaced in transaction.merges:
            deleted += [f"{table}/{name}" for name in replaced if name != EMPTY_PART]
            files += [(path, f"{table}/{path.name}") for path in folder.iterdir()]
        for number, (path, place) in enumerate(files):
            moves.append((f"{COMMIT}/file-{number}", place))
            object_store.put(f"{self._root}/{COMMIT}/file-{number}", path)
        tables = [*transaction.rebuilt, *(table for _, table, _ in transaction.merges)]
        guards = [f"{table}/{EMPTY_PART}" for table in tables]
        manifest = {"moves": moves, "gone": deleted, "guards": guards}
        object_store.put(self._manifest, json.dumps(manifest).encode())

    def _complete(self) -> None:
        if self._is_clean:
            return
        content = object_store.read(self._manifest)
        if content is not None:
            manifest = json.loads(content)
            for place in manifest["guards"]:
                object_store.put(f"{self._root}/{place}", GUARD)
            object_store.delete([f"{self._root}/{place}" for place in manifest["gone"]])
            for guarded in (False, True):
                moves = [move for move in manifest["moves"] if (move[1] in manifest["guards"]) is guarded]
                with ThreadPoolExecutor(MAX_CONCURRENT_COPIES, "copy") as pool:
                    list(pool.map(self._copy, moves))
            object_store.delete([self._manifest])
        self._delete_below(COMMIT)
        self._is_clean = True

    def _delete_below(self, folder: str) -> None:
        object_store.delete([one.url for one in object_store.list_objects(f"{self._root}/{folder}")])

    def _copy(self, move: tuple[str, str]) -> None:
        staged, place = move
        object_store.copy(f"{self._root}/{staged}", f"{self._root}/{place}")
