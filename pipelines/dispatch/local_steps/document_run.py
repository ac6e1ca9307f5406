"""Reading of documents in a run: the files of a chunk's rows, through the worker processes."""

import asyncio
import hashlib
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from msgspec import Struct

from connectors.documents.document import Document
from connectors.documents.document_reader import DocumentReader, ReaderUnavailable
from connectors.documents.document_store import DocumentStore
from connectors.media.document_types import DocumentError
from connectors.media.media_reader import MediaError, MediaReader, named_path
from connectors.media.url_fetcher import FetchError, redact_url
from connectors.records import RowError
from pipelines.dispatch.local_steps.local_run import ColumnsOfRows, LocalRun
from pipelines.dispatch.media_files import write_files
from pipelines.transforms.read import Read

MAX_OPEN_FILES = 4
"""Files of a chunk that are fetched or read at the same time."""
_BLOCK_BYTES = 1 << 20


class DocumentAccess(Struct, frozen=True):
    """What reads the documents of rows, and where the pictures of their pages go."""

    media: MediaReader
    reader: DocumentReader
    store: DocumentStore
    files_prefix: str
    """Of a picture's name in a results column."""
    files_folder: Path | None
    """None: no page is drawn."""
    scratch: Path

    async def close(self) -> None:
        """End the processes that read, and keep the store within its size."""
        await self.reader.close()
        await asyncio.to_thread(self.store.limit_size)


def read_run(name: str, read: Read, access: DocumentAccess) -> LocalRun:
    """Return a `read` step that is ready to run."""

    async def run(rows: pa.Table) -> ColumnsOfRows:
        wanted, broken = read.wanted(rows)
        values = rows.column(read.column).to_pylist()
        slots = asyncio.Semaphore(MAX_OPEN_FILES)

        async def read_value(value: Any) -> Document | RowError | None:
            async with slots:
                return await read_document(value, read, access)

        asked = [row for row, is_wanted in enumerate(wanted) if is_wanted and values[row] is not None]
        found = dict(zip(asked, await asyncio.gather(*(read_value(values[row]) for row in asked)), strict=True))
        errors = {row: each for row, each in found.items() if isinstance(each, RowError)}
        documents: list[Document | None] = [None] * rows.num_rows
        for row, each in found.items():
            if isinstance(each, Document):
                documents[row] = each
        return read.table(documents, access.files_prefix), {**broken, **errors}

    return LocalRun(name, run)


async def read_document(value: Any, read: Read, access: DocumentAccess) -> Document | RowError:
    """Return the document that a row's value names or contains, with the pictures of its pages written."""
    folder = access.files_folder if read.draws_pages else None
    try:
        async with access.media.open(value, read.max_bytes) as file:
            place = await _place_in_store(value, file, folder is not None, access)
            if place is not None and (stored := await _stored_document(place, folder, access)) is not None:
                return stored
            before = os.fstat(file.fileno())
            document = await _read_file(file, folder, access)
            after = os.fstat(file.fileno())
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise DocumentError("changed while it was read; run again")
            if place is not None:
                await asyncio.to_thread(access.store.save, place, document)
            return document
    except (MediaError, FetchError) as exc:
        return RowError(exc.error_class, f"{read.column}: {exc}")
    except ReaderUnavailable as exc:
        return RowError("connection", f"{read.column}: {_shown(value)} {exc}")
    except DocumentError as exc:
        return RowError("input", f"{read.column}: {_shown(value)} {exc}")


async def _place_in_store(value: Any, file: BinaryIO, draws_pages: bool, access: DocumentAccess) -> Path | None:
    """Return where the document is stored: by path, size and time of a file, by the content of anything else."""
    if (path := named_path(value)) is not None:
        return access.store.place_of_file(path, os.fstat(file.fileno()), draws_pages)
    return access.store.place_of_content(await asyncio.to_thread(_digest, file), draws_pages)


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(_BLOCK_BYTES):
        digest.update(block)
    file.seek(0)
    return digest.hexdigest()


async def _stored_document(place: Path, folder: Path | None, access: DocumentAccess) -> Document | None:
    """Return a document that was read before; None: not stored, or one of its pictures is gone from `folder`."""

    def load() -> Document | None:
        found = access.store.load(place)
        is_whole = folder is None or all((folder / name).exists() for name in (found and found.pictures) or ())
        return found if is_whole else None

    return await asyncio.to_thread(load)


async def _read_file(file: BinaryIO, folder: Path | None, access: DocumentAccess) -> Document:
    if folder is None:
        return await access.reader.read(file)
    access.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=access.scratch) as drawn:
        document = await access.reader.read(file, Path(drawn))
        await asyncio.to_thread(write_files, folder, partial(_contents, Path(drawn), document.pictures or ()))
        return document


def _contents(folder: Path, names: Sequence[str]) -> list[tuple[str, bytes]]:
    return [(name, (folder / name).read_bytes()) for name in dict.fromkeys(names)]


def _shown(value: Any) -> str:
    return redact_url(value) if isinstance(value, str) and value[:5].lower() != "data:" else "the content"
