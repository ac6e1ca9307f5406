"""Files of rows: those that a row names are read before its request, those of an answer are written to a folder."""

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from connectors.contracts import MediaColumn
from connectors.records import Row, RowError

MAX_ROWS_AT_ONCE = 8
"""Rows whose files are read or fetched at the same time."""


class MediaSource(Protocol):
    """Reads files; see connectors.media.media_reader.MediaReader."""

    async def read(self, value: Any, use: MediaColumn, name: str | None = None) -> Any:
        """Return Media, a URL, a list of them, None, or a RowError."""


async def read_media(
    reader: MediaSource, rows: Sequence[Row], uses: Mapping[str, MediaColumn], selected: Iterable[int]
) -> dict[int, Row | RowError]:
    """Return the selected rows with Media in place of what names it; a RowError for a row with an invalid file."""
    slots = asyncio.Semaphore(MAX_ROWS_AT_ONCE)
    columns = {name: use for name, use in uses.items() if rows and name in rows[0]}

    async def read_row(index: int) -> tuple[int, Row | RowError]:
        row = dict(rows[index])
        async with slots:
            for name, use in columns.items():
                value = await reader.read(row[name], use, name)
                if isinstance(value, RowError):
                    return index, value
                row[name] = value
        return index, row

    return dict(await asyncio.gather(*(read_row(index) for index in selected)))


def write_files(folder: Path, files: Callable[[], Iterable[tuple[str, bytes]]]) -> None:
    """Write each file completely or not at all; a file that exists has the same content, as its name is a hash."""
    for name, content in files():
        target = folder / name
        if target.exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".{name}.{os.getpid()}.part"
        unfinished.write_bytes(content)
        unfinished.replace(target)
