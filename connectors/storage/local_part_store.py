"""Parts in a folder of this machine: written in a staging folder, decided by one rename, then moved one by one."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import duckdb

from connectors.storage.part_store import BUILD, EMPTY_PART, FILES, STAGING, TABLES, Part

T = TypeVar("T")


class LocalTransaction:
    """Files and folders being written, each with the place that it will have."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._root = root
        self._folder = folder
        self.moves: list[tuple[str, str]] = []
        """(staged file, place) below the root."""
        self.swaps: list[tuple[str, str]] = []
        """(staged folder, table) below the root."""

    def add(self, place: str) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"file-{len(self.moves)}"
        self.moves.append((str(path.relative_to(self._root)), place))
        return path

    def local_copy(self, place: str) -> contextlib.AbstractContextManager[Path]:
        return contextlib.nullcontext(self._root / place)

    def merge(self, table: str, merged: Sequence[Part]) -> Path:
        folder = self._folder / f"folder-{len(self.swaps)}"
        folder.mkdir(parents=True)
        self.swaps.append((str(folder.relative_to(self._root)), table))
        rewritten = {EMPTY_PART, *(part.name for part in merged)}
        for path in (self._root / table).glob("*.parquet"):
            if path.name not in rewritten:
                _link(path, folder / path.name)
        return folder

    def replace_table(self, table: str) -> None:
        self.swaps.append((f"{BUILD}{table}", table))


class LocalPartStore:
    """A folder. A manifest, renamed into place, decides a transaction; moving the files completes it."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self._root = root
        self._staging = root / STAGING
        self._folder = self._staging / "commit"
        self._manifest = self._folder / "manifest.json"

    @property
    def files_folder(self) -> Path:
        return self._root / FILES

    @property
    def is_replacing(self) -> bool:
        return self._manifest.exists() and bool(json.loads(self._manifest.read_text())["swaps"])

    @property
    def has_build(self) -> bool:
        return (self._root / BUILD).exists()

    def create_folders(self) -> None:
        self.files_folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[LocalTransaction]:
        self.recover()
        transaction = LocalTransaction(self._root, self._folder)
        try:
            yield transaction
            if transaction.moves or transaction.swaps:
                self._decide(transaction)
        except BaseException:
            if not self._manifest.exists():
                with contextlib.suppress(OSError):
                    # What cannot be deleted now is deleted by the next recovery.
                    self.recover()
            raise
        self.recover()

    def recover(self) -> None:
        if self._manifest.exists():
            manifest = json.loads(self._manifest.read_text())
            for path, place in manifest["moves"]:
                self._move(self._root / path, self._root / place)
            for number, (path, table) in enumerate(manifest["swaps"]):
                self._swap(self._root / path, self._root / table, self._folder / f"old-{number}")
            self._manifest.unlink()
        if self._folder.exists():
            shutil.rmtree(self._folder)
        self._remove_empty_staging()

    def delete_build(self) -> None:
        if self.has_build:
            shutil.rmtree(self._root / BUILD)
        self._remove_empty_staging()

    def parts(self, folder: str) -> list[Part]:
        return [Part(path.name, str(path)) for path in sorted((self._root / folder).glob("*.parquet"))]

    def part_exists(self, place: str) -> bool:
        return (self._root / place).exists()

    def size(self, part: Part) -> int:
        return Path(part.location).stat().st_size

    def reader(self, part: Part) -> Path:
        return Path(part.location)

    def map(self, function: Callable[[Part], T], parts: Iterable[Part]) -> Iterator[T]:
        return map(function, parts)

    def upload_files(self) -> None:
        """They are in place already."""

    def readable_paths(self) -> Sequence[Path | str]:
        return tuple(self._root / table for table in TABLES)

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        """DuckDB reads files by itself."""

    def detach(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Nothing was attached."""

    def _remove_empty_staging(self) -> None:
        with contextlib.suppress(OSError):
            # Not empty while tables are rebuilt.
            self._staging.rmdir()

    def _decide(self, transaction: LocalTransaction) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = self._folder / "manifest.draft"
        draft.write_text(json.dumps({"moves": transaction.moves, "swaps": transaction.swaps}))
        draft.replace(self._manifest)

    def _move(self, path: Path, target: Path) -> None:
        if path.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)

    def _swap(self, path: Path, target: Path, old: Path) -> None:
        if path.exists():
            if target.exists():
                target.replace(old)
            path.replace(target)


def _link(path: Path, target: Path) -> None:
    try:
        target.hardlink_to(path)
    except OSError:
        # The file system has no links.
        shutil.copyfile(path, target)
