"""Several files that come into place all or not at all: written beside, decided by one rename, moved one by one."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

STAGING = ".staging"
"""The folder, in the sink's own, of all that is not finished; gone when nothing is under way."""


class Changes:
    """Files and folders being written, each with the place where it will stand."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._root = root
        self._folder = folder
        self.moves: list[tuple[str, str]] = []
        self.swaps: list[tuple[str, str]] = []

    def file(self, target: str) -> Path:
        """Where to write the file that will stand at `target`; files come into place in the order of these calls."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"file-{len(self.moves)}"
        self.moves.append((str(path.relative_to(self._root)), target))
        return path

    def folder(self, target: str) -> Path:
        """A new folder that will stand in the place of the folder `target`."""
        path = self._folder / f"folder-{len(self.swaps)}"
        path.mkdir(parents=True)
        self.swap(path, target)
        return path

    def swap(self, path: Path, target: str) -> None:
        """Let a folder that is there already stand in the place of the folder `target`."""
        self.swaps.append((str(path.relative_to(self._root)), target))


class Staging:
    """What a kill at any moment leaves is brought to an end by the next `recover`: undone, or done."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._staging = root / STAGING
        self._folder = self._staging / "commit"
        self._manifest = self._folder / "manifest.json"
        self.fresh = self._staging / "fresh"
        """The folder of tables that are built anew, over many commits."""

    @property
    def swapping(self) -> bool:
        """Whether a swap of folders was decided but not brought to its end."""
        return self._manifest.exists() and bool(json.loads(self._manifest.read_text())["swaps"])

    @contextlib.contextmanager
    def together(self) -> Iterator[Changes]:
        """Changes that are decided, and then made, when the block ends; forgotten where it fails."""
        self.recover()
        changes = Changes(self._root, self._folder)
        try:
            yield changes
            if changes.moves or changes.swaps:
                self._decide(changes)
        except BaseException:
            if not self._manifest.exists():
                with contextlib.suppress(OSError):
                    # What cannot be removed now is removed by the next recovery.
                    self.recover()
            raise
        self.recover()

    def recover(self) -> None:
        """Bring what was decided to its end, and forget what was not."""
        if self._manifest.exists():
            told = json.loads(self._manifest.read_text())
            for path, target in told["moves"]:
                self._move(self._root / path, self._root / target)
            for number, (path, target) in enumerate(told["swaps"]):
                self._swap(self._root / path, self._root / target, self._folder / f"old-{number}")
            self._manifest.unlink()
        if self._folder.exists():
            shutil.rmtree(self._folder)
        with contextlib.suppress(OSError):
            # Not empty while tables are built anew.
            self._staging.rmdir()

    def forget_fresh(self) -> None:
        """Drop tables that were not built to their end."""
        if self.fresh.exists():
            shutil.rmtree(self.fresh)

    def _decide(self, changes: Changes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = self._folder / "manifest.draft"
        draft.write_text(json.dumps({"moves": changes.moves, "swaps": changes.swaps}))
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
