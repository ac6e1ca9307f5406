"""Saved columns: those of the last run that saw a row, for a source that has no rows and no header."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import orjson

from connectors.contracts import OpenedSource, SourceColumn
from connectors.errors import DataError
from connectors.sql import identifier


def save_columns(file: Path | None, columns: Mapping[str, SourceColumn]) -> None:
    """Save the columns for a run whose files have no bytes; not in a folder that cannot be written."""
    if file is None:
        return
    kinds = {name: column.kind for name, column in columns.items()}
    if kinds != _saved_kinds(file):
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
    kinds = _saved_kinds(file)
    if not kinds:
        raise DataError(first, "has no rows, so its columns are unknown", "run again when it has some")
    columns = ", ".join(f"cast(null as {kind}) as {identifier(name)}" for name, kind in kinds.items())
    return OpenedSource(f"(select {columns} where false)", warnings=warnings, has_empty_files=True)


def no_bytes_warning(file: str) -> str:
    """Return the warning for a file of no bytes."""
    return f"{file}: has no bytes: it has no rows, and no row is removed"


def _saved_kinds(file: Path | None) -> dict[str, str]:
    """Return the columns when the source last had a row; none if unknown."""
    try:
        kinds = orjson.loads(file.read_bytes()) if file is not None else {}
    except (FileNotFoundError, orjson.JSONDecodeError):
        return {}
    return kinds if isinstance(kinds, dict) else {}
