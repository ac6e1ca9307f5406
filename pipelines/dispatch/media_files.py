"""Files of rows: what a row names is read before its request, what an answer holds is written beside the table."""

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from connectors.contracts import MediaColumn
from connectors.records import Row, RowError

MAX_ROWS_AT_ONCE = 8
"""Rows whose files are read or fetched together."""


class MediaSource(Protocol):
    """See connectors.media.media_reader.MediaReader."""

    async def read(self, value: Any, use: MediaColumn, name: str | None = None) -> Any:
        """Media, a URL, a list of them, None, or a RowError."""


async def read_media(
    reader: MediaSource, rows: Sequence[Row], uses: Mapping[str, MediaColumn], wanted: Iterable[int]
) -> dict[int, Row | RowError]:
    """The wanted rows with Media in place of what names it; a RowError for a row whose file cannot be taken."""
    turns = asyncio.Semaphore(MAX_ROWS_AT_ONCE)
    columns = {name: use for name, use in uses.items() if rows and name in rows[0]}

    async def one(place: int) -> tuple[int, Row | RowError]:
        row = dict(rows[place])
        async with turns:
            for name, use in columns.items():
                value = await reader.read(row[name], use, name)
                if isinstance(value, RowError):
                    return place, value
                row[name] = value
        return place, row

    return dict(await asyncio.gather(*(one(place) for place in wanted)))


def write_files(folder: Path, files: Callable[[], Iterable[tuple[str, bytes]]]) -> None:
    """Write each file, whole or not at all; one that is there already has the same content, by its name."""
    for name, content in files():
        target = folder / name
        if target.exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".{name}.{os.getpid()}.part"
        unfinished.write_bytes(content)
        unfinished.replace(target)
