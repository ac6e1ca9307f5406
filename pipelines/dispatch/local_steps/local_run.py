"""Local steps of a run: those that add columns to the rows of a chunk without a request."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import pyarrow as pa

from connectors.records import RowError

ColumnsOfRows = tuple[pa.Table, Mapping[int, RowError]]
"""The columns that a step adds, one row for each of the chunk, and the errors of rows that it fails."""


class LocalRun:
    """One local step, ready to run."""

    def __init__(self, name: str, run: Callable[[pa.Table], Awaitable[ColumnsOfRows]]) -> None:
        """`run`: makes the columns of a chunk's rows; several chunks may call it at the same time."""
        self.name = name
        self.run = run


def in_thread(name: str, apply: Callable[[pa.Table], ColumnsOfRows]) -> LocalRun:
    """Return a step that runs in a thread, one chunk after the other."""
    turn = asyncio.Lock()

    async def run(rows: pa.Table) -> ColumnsOfRows:
        async with turn:
            return await asyncio.to_thread(apply, rows)

    return LocalRun(name, run)
