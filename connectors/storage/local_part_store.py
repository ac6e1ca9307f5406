"""Parts in a folder of this machine: written in a staging folder, decided by one rename, then moved one by one."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from connectors.storage.part_store import BUILD, STAGING, Part, PartTransaction


class LocalPartStore:
    """A manifest, renamed into place, decides a transaction; moving its files and folders completes it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._staging = root / STAGING
        self._commit = self._staging / "commit"
        self._manifest = self._commit / "manifest.json"

    @property
    def is_replacing(self) -> bool:
        return self._manifest.exists() and bool(json.loads(self._manifest.read_text())["swaps"])

    def recover(self) -> None:
        self._complete()
        if (self._root / BUILD).exists():
            shutil.rmtree(self._root / BUILD)
            self._remove_staging()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[PartTransaction]:
        self._complete()
        transaction = PartTransaction(self._commit)
        try:
            yield transaction
            if transaction.files or transaction.merges or transaction.rebuilt:
                self._decide(transaction)
        except BaseException:
            if not self._manifest.exists():
                with contextlib.suppress(OSError):
                    # What cannot be deleted now is deleted by the next recovery.
                    self._complete()
            raise
        self._complete()

    def parts(self, folder: str) -> list[Part]:
        return [Part(path.name, path) for path in sorted((self._root / folder).glob("*.parquet"))]

    def versions(self, folder: str) -> Mapping[str, str]:
        versions: dict[str, str] = {}
        for part in self.parts(folder):
            with contextlib.suppress(FileNotFoundError):
                # Merged with others since it was listed.
                stat = Path(str(part.source)).stat()
                versions[str(part.source)] = f"{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}"
        return versions

    def has_part(self, place: str) -> bool:
        return (self._root / place).exists()

    def size(self, part: Part) -> int:
        return Path(str(part.source)).stat().st_size

    def local_copy(self, place: str) -> contextlib.AbstractContextManager[Path]:
        return contextlib.nullcontext(self._root / place)

    def _decide(self, transaction: PartTransaction) -> None:
        swaps = [(f"{BUILD}{table}", table) for table in transaction.rebuilt]
        # After a power loss a decision must not be there without the parts that it puts in place of others.
        for path, _ in transaction.files:
            _sync(path)
        for folder, table, replaced in transaction.merges:
            for path in folder.iterdir():
                _sync(path)
            for path in (self._root / table).glob("*.parquet"):
                if path.name not in replaced:
                    _link(path, folder / path.name)
            swaps.append((str(folder.relative_to(self._root)), table))
        moves = [(str(path.relative_to(self._root)), place) for path, place in transaction.files]
        self._commit.mkdir(parents=True, exist_ok=True)
        draft = self._commit / "manifest.draft"
        draft.write_text(json.dumps({"moves": moves, "swaps": swaps}))
        _sync(draft)
        draft.replace(self._manifest)

    def _complete(self) -> None:
        if self._manifest.exists():
            manifest = json.loads(self._manifest.read_text())
            for path, place in manifest["moves"]:
                self._move(self._root / path, self._root / place)
            for number, (path, table) in enumerate(manifest["swaps"]):
                self._swap(self._root / path, self._root / table, self._commit / f"old-{number}")
            self._manifest.unlink()
        if self._commit.exists():
            shutil.rmtree(self._commit)
        self._remove_staging()

    def _remove_staging(self) -> None:
        with contextlib.suppress(OSError):
            # Not empty while tables are rebuilt.
            self._staging.rmdir()

    def _move(self, path: Path, target: Path) -> None:
        if path.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)

    def _swap(self, path: Path, target: Path, old: Path) -> None:
        if path.exists():
            if target.exists():
                target.replace(old)
            path.replace(target)


def _sync(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(path: Path, target: Path) -> None:
    try:
        target.hardlink_to(path)
    except OSError:
        # The file system has no links.
        shutil.copyfile(path, target)
