"""Several objects that come into place all or not at all, on a store that cannot rename: one manifest decides."""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from connectors.storage import object_store

STAGING = ".staging"
"""Below the sink's place: all that is not finished; gone when nothing is under way."""
GUARD = b"This table is being swapped for another: read it again in a moment."
AT_A_TIME = 8


class Changes:
    """Objects being written, each with the place where it will stand, and those that will be gone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        """For files of this machine, for the time of the changes."""
        self.files: list[tuple[Path, str]] = []
        self.copies: list[tuple[str, str]] = []
        self.gone: list[str] = []
        self.guards: list[str] = []

    def file(self, target: str) -> Path:
        """Where to write the file that will be put at `target`."""
        path = self.folder / f"file-{len(self.files)}"
        self.files.append((path, target))
        return path

    def guard(self, part: str) -> None:
        """Until all else is in place, let this part be none that can be read: whoever lists the table in between gets
        an error, never rows twice. The changes themselves put a part there again."""
        self.guards.append(part)


class ObjectStaging:
    """What a kill at any moment leaves is brought to an end by the next `recover`: undone, or done."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._commit = f"{STAGING}/commit"
        self._manifest = f"{root}/{self._commit}/manifest.json"
        self.fresh = f"{STAGING}/fresh"
        """Where tables are built anew, over many commits."""
        self._clean = False

    @property
    def swapping(self) -> bool:
        """Whether a swap of tables was decided but not brought to its end."""
        found = object_store.read(self._manifest)
        return found is not None and bool(json.loads(found)["guards"])

    @contextlib.contextmanager
    def together(self) -> Iterator[Changes]:
        """Changes that are decided, and then made, when the block ends; forgotten where it fails."""
        if not self._clean:
            self.recover()
        with tempfile.TemporaryDirectory(prefix="rowmill-parts-") as folder:
            changes = Changes(Path(folder))
            yield changes
            if len(changes.files) == 1 and not changes.copies and not changes.gone:
                # To put one object is whole or nothing by itself.
                ((path, target),) = changes.files
                object_store.put(f"{self._root}/{target}", path)
            elif changes.files or changes.copies or changes.gone:
                self._clean = False
                self._decide(changes)
                self.recover()

    def recover(self) -> None:
        """Bring what was decided to its end, and forget what was not."""
        found = object_store.read(self._manifest)
        if found is not None:
            told = json.loads(found)
            for part in told["guards"]:
                object_store.put(f"{self._root}/{part}", GUARD)
            object_store.delete([f"{self._root}/{part}" for part in told["gone"]])
            last = [move for move in told["moves"] if move[1] in told["guards"]]
            for moves in ([move for move in told["moves"] if move not in last], last):
                with ThreadPoolExecutor(AT_A_TIME, "copy") as pool:
                    list(pool.map(self._copy, moves))
            object_store.delete([self._manifest])
        object_store.delete([one.url for one in object_store.listed(f"{self._root}/{self._commit}")])
        self._clean = True

    def fresh_there(self) -> bool:
        """Whether tables that are built anew have been begun."""
        return bool(object_store.listed(f"{self._root}/{self.fresh}"))

    def forget_fresh(self) -> None:
        """Drop tables that were not built to their end, or are in place by now."""
        object_store.delete([one.url for one in object_store.listed(f"{self._root}/{self.fresh}")])

    def _decide(self, changes: Changes) -> None:
        moves = list(changes.copies)
        for number, (path, target) in enumerate(changes.files):
            staged = f"{self._commit}/file-{number}"
            object_store.put(f"{self._root}/{staged}", path)
            moves.append((staged, target))
        told = {"moves": moves, "gone": changes.gone, "guards": changes.guards}
        object_store.put(self._manifest, json.dumps(told).encode())

    def _copy(self, move: tuple[str, str]) -> None:
        staged, target = move
        object_store.copy(f"{self._root}/{staged}", f"{self._root}/{target}")
