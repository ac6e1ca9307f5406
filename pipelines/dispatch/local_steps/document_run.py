"""Reading of documents in a run: the files of a chunk's rows, through the worker processes."""

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from connectors.documents.document import Document
from connectors.documents.document_reader import DocumentReader, ReaderUnavailable
from connectors.media.document_types import DocumentError
from connectors.media.media_reader import MediaError, MediaReader
from connectors.media.url_fetcher import FetchError, redact_url
from connectors.records import RowError
from pipelines.dispatch.local_steps.local_run import ColumnsOfRows, LocalRun
from pipelines.dispatch.media_files import write_files
from pipelines.transforms.read import Read

MAX_OPEN_FILES = 4
"""Files of a chunk that are fetched or read at the same time."""


@dataclass(frozen=True, slots=True)
class DocumentAccess:
    """What reads the documents of rows, and where the pictures of their pages go."""

    media: MediaReader
    reader: DocumentReader
    files_prefix: str
    """Of a picture's name in a results column."""
    files_folder: Path | None
    """None: no page is drawn."""
    scratch: Path


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
    try:
        async with access.media.open(value, read.max_bytes) as file:
            if not read.draws_pages or access.files_folder is None:
                return await access.reader.read(file)
            access.scratch.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=access.scratch) as folder:
                document = await access.reader.read(file, Path(folder))
                pictures = partial(_contents, Path(folder), document.pictures or ())
                await asyncio.to_thread(write_files, access.files_folder, pictures)
                return document
    except (MediaError, FetchError) as exc:
        return RowError(exc.error_class, f"{read.column}: {exc}")
    except ReaderUnavailable as exc:
        return RowError("connection", f"{read.column}: {_shown(value)} {exc}")
    except DocumentError as exc:
        return RowError("input", f"{read.column}: {_shown(value)} {exc}")


def _contents(folder: Path, names: Sequence[str]) -> list[tuple[str, bytes]]:
    return [(name, (folder / name).read_bytes()) for name in dict.fromkeys(names)]


def _shown(value: Any) -> str:
    return redact_url(value) if isinstance(value, str) and value[:5].lower() != "data:" else "the content"
