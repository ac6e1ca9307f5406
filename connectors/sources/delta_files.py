"""Delta tables given as `parquet:` folders: only the files that the table's log lists are read."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import unquote

from connectors.errors import DataError, JobError
from connectors.storage import object_store

LOG_FOLDER = "_delta_log"
WHERE = ("source", "parquet")


def live_files(files: Sequence[Path], folders: Iterable[Path]) -> tuple[Path, ...]:
    """Return the files without those that a Delta table below the folders has removed.

    JobError if deltalake is missing or cannot read the table as plain Parquet files.
    """
    live = set(files)
    for folder in folders:
        if (table := next((above for above in folder.parents if (above / LOG_FOLDER).is_dir()), None)) is not None:
            raise JobError(WHERE, f"{folder} is a part of the Delta table {table}", f"name {table}")
        for log in sorted(folder.rglob(LOG_FOLDER)):
            if log.is_dir():
                listed = _table_files(log.parent)
                if missing := sorted(file for file in listed if not file.is_file()):
                    raise DataError(
                        missing[0], f"is not there, but the Delta table {log.parent} lists it", "restore it"
                    )
                live = {file for file in live if not file.is_relative_to(log.parent)} | listed
    return tuple(sorted(live))


def check_no_delta_table(patterns: str | Iterable[str]) -> None:
    """JobError for the URL of a Delta table: its removed files would be read as well."""
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if object_store.is_url(pattern) and object_store.list_objects(f"{pattern.rstrip('/')}/{LOG_FOLDER}"):
            raise JobError(WHERE, f"{pattern} is a Delta table", "copy it to this machine, or name its Parquet files")


def _table_files(table: Path) -> set[Path]:
    try:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError
    except ImportError as exc:
        raise JobError(
            WHERE, f"{table} is a Delta table, which needs the package deltalake", "pip install 'rowmill[delta]'"
        ) from exc
    try:
        delta = DeltaTable(str(table))
        features = set(delta.protocol().reader_features or ())
        if delta.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
            features.add("columnMapping")
        urls = delta.file_uris()
    except (DeltaError, OSError, ValueError) as exc:
        raise DataError(table, f"is a Delta table that cannot be read ({_first_line(exc)})", "check its log") from exc
    if unread := sorted(features - {"timestampNtz", "appendOnly", "invariants"}):
        raise JobError(WHERE, f"{table} is a Delta table with {', '.join(unread)}", "write it again without that")
    return {_local_path(url) for url in urls}


def _local_path(url: str) -> Path:
    path = Path(os.path.abspath(url.removeprefix("file://")))  # noqa: PTH100 - Path.resolve would follow links
    return path if path.exists() else Path(unquote(str(path)))


def _first_line(exc: Exception) -> str:
    return str(exc).strip().split("\n", 1)[0].rstrip(". ")
