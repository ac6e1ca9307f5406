"""Saved columns: those of the source when it was opened last, for when it has no rows and no header, or is not read."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import orjson
from msgspec.structs import replace

from connectors.contracts import OpenedSource, SourceColumn
from connectors.errors import DataError
from connectors.sql import identifier


def save_columns(file: Path | None, columns: Mapping[str, SourceColumn]) -> None:
    """Save the columns for a run whose files have no bytes and for a rebuild; not in a folder that is read-only."""
    if file is None:
        return
    kinds = {name: column.kind for name, column in columns.items()}
    if kinds != saved_kinds(file):
        # Several commands may do so at once.
        draft = file.with_suffix(f".{os.getpid()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(orjson.dumps(kinds))
            draft.replace(file)
        except OSError as exc:
            # Commands that send nothing work there too; a run needs its ledger first.
            if exc.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise


def empty_source(first: Path, file: Path | None, warnings: tuple[str, ...]) -> OpenedSource:
    """Return a source without rows that has the saved columns; DataError if there are none. `first`: its first file."""
    found = saved_source(file)
    if found is None:
        raise DataError(first, "has no rows, so its columns are unknown", "run again when it has some")
    return replace(found, warnings=warnings)


def saved_source(file: Path | None) -> OpenedSource | None:
    """Return a source without rows that has the saved columns, whatever has become of the source; None without any."""
    kinds = saved_kinds(file)
    if not kinds:
        return None
    columns = ", ".join(f"cast(null as {kind}) as {identifier(name)}" for name, kind in kinds.items())
    return OpenedSource(f"(select {columns} where false)", has_empty_files=True)


def no_bytes_warning(file: str) -> str:
    """Return the warning for a file of no bytes."""
    return f"{file}: has no bytes: it has no rows, and no row is removed"


def saved_kinds(file: Path | None) -> dict[str, str]:
    """Return the columns that the source had last; none if unknown."""
    try:
        kinds = orjson.loads(file.read_bytes()) if file is not None else {}
    except (FileNotFoundError, orjson.JSONDecodeError):
        return {}
    return kinds if isinstance(kinds, dict) else {}
