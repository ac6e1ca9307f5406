"""The folder of a job's tables, on this machine or on an object store: what Parquet and Delta sinks share."""

import os
from pathlib import Path

import duckdb

from connectors.storage import object_store
from connectors.storage.media_upload import MediaUpload
from connectors.tables.schema_checks import check_folder

TABLES = ("results", "usage", "errors")
FILES = "files/"
"""Folder of the rows' media files."""


def folder_identity(path: str) -> str:
    """Return one text for a path or URL, however the job file writes it."""
    return object_store.normalize_url(path) if object_store.is_url(path) else os.path.normpath(path)


def folder_location(path: str, workspace: Path) -> str:
    """Return where a path or URL of a job file leads, links followed."""
    return object_store.normalize_url(path) if object_store.is_url(path) else os.path.realpath(workspace / path)


class TableFolder:
    """Where a sink has its tables and media files."""

    def __init__(self, path: str, workspace: Path, kind: str) -> None:
        """JobError if the packages for an object store are missing. `kind`: of sink, as the job file names it."""
        self.name = path
        self._where = ("sink", kind)
        self.is_remote = object_store.is_url(path)
        if self.is_remote:
            object_store.check_installed(self._where)
            self.root = object_store.normalize_url(path)
        else:
            self.root = os.path.abspath(workspace / path)  # noqa: PTH100 - Path.resolve would follow links
        self._upload = MediaUpload(f"{self.root}/{FILES}") if self.is_remote else None

    @property
    def files_folder(self) -> Path:
        """Where media files are written, on this machine."""
        return Path(self.root, FILES) if self._upload is None else self._upload.folder

    def check(self) -> None:
        """DataError if a table's folder, or one above it, is a file. An object never conflicts with those below it."""
        for table in () if self.is_remote else TABLES:
            check_folder(self._where, Path(self.root, table))

    def create(self) -> None:
        """Create the folder of media files; an object store needs none."""
        if not self.is_remote:
            self.files_folder.mkdir(parents=True, exist_ok=True)

    def upload_files(self) -> None:
        """Upload the media files written since the last call."""
        if self._upload is not None:
            self._upload.upload()

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Let the connection read the folder; DuckDB reads files of this machine by itself."""
        if self.is_remote:
            from connectors.storage.duckdb_filesystem import register

            register(connection)

    def detach(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Undo `attach`."""
        if self.is_remote:
            from connectors.storage.duckdb_filesystem import unregister

            unregister(connection)
