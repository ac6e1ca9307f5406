"""Part stores: where the Parquet parts of a job's tables are kept, and how several of them change at once."""

import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from msgspec import Struct

STAGING = ".staging"
"""Folder of everything unfinished; it is gone when nothing is in progress."""
BUILD = f"{STAGING}/fresh/"
"""Folder of tables that are rebuilt, over many transactions."""
EMPTY_PART = "0-empty.parquet"
"""A part without rows that each table has, so that its schema outlasts its rows."""


class Part(Struct, frozen=True):
    """A Parquet file of a table."""

    name: str
    source: Path | io.RawIOBase
    """For pyarrow to read; as text the path or URL, for DuckDB."""


class PartTransaction:
    """Parts that change together. Places are paths below the store's root, such as `results/part.parquet`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.files: list[tuple[Path, str]] = []
        """(new file, place)."""
        self.merges: list[tuple[Path, str, frozenset[str]]] = []
        """(folder of new parts, table, names of the parts that they replace)."""
        self.rebuilt: list[str] = []
        """Tables to replace by those below `BUILD`."""

    def add(self, place: str) -> Path:
        """Return where to write a part; parts appear in the order of these calls."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"file-{len(self.files)}"
        self.files.append((path, place))
        return path

    def merge(self, table: str, parts: Sequence[Part]) -> Path:
        """Return a folder to write `EMPTY_PART` and the parts to that together replace `parts`."""
        folder = self._folder / f"folder-{len(self.merges)}"
        folder.mkdir(parents=True)
        self.merges.append((folder, table, frozenset([EMPTY_PART, *(part.name for part in parts)])))
        return folder


class PartStore(Protocol):
    """Where the parts of a job's tables are kept."""

    @property
    def is_replacing(self) -> bool:
        """Whether the replacement of a table was decided but not completed."""

    def recover(self) -> None:
        """Complete the transaction that was decided, and delete what was not, rebuilt tables included."""

    def transaction(self) -> AbstractContextManager[PartTransaction]:
        """Parts that change when the block ends: all or, if it fails, none. The next recovery completes or undoes what
        a kill interrupts."""

    def parts(self, folder: str) -> list[Part]:
        """The parts in a folder, sorted by name."""

    def versions(self, folder: str) -> Mapping[str, str]:
        """The paths or URLs of the parts in a folder -> a text that differs once the part is replaced."""

    def has_part(self, place: str) -> bool:
        """Whether there is a part at a place."""

    def size(self, part: Part) -> int:
        """A part's size in bytes."""

    def local_copy(self, place: str) -> AbstractContextManager[Path]:
        """Provide a part as a file on this machine."""
