"""Rows of the caller as a Parquet file, which the process of the run reads by the chunk."""

import asyncio
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from connectors.errors import JobError, from_os_error

if TYPE_CHECKING:
    import polars as pl

    class ArrowTable(Protocol):
        """A table of any library that exports Arrow: polars, pandas, Arrow, DuckDB."""

        def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...

    Rows: TypeAlias = ArrowTable | pl.LazyFrame | ds.Dataset | pa.RecordBatch
    """What `run` takes in place of a source."""

SLICE_ROWS = 65_536
"""Rows that are converted at a time, and rows of a row group."""


async def spill_rows(rows: "Rows", file: Path) -> None:
    """Write the rows to a file; JobError for what is no table, or holds values that Parquet cannot."""
    try:
        if isinstance(rows, duckdb.DuckDBPyRelation):
            # A connection must not be used by two threads.
            _write_batches(rows.to_arrow_reader(SLICE_ROWS), file)
        else:
            await asyncio.to_thread(_write, rows, file)
    except (JobError, MemoryError):
        raise
    except OSError as exc:
        raise from_os_error(exc) from exc
    except Exception as exc:
        # The libraries share no class of errors.
        if not type(exc).__module__.startswith(("pyarrow", "polars", "duckdb", "_duckdb", "builtins")):
            raise
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        raise JobError("rows", f"cannot be written as Parquet ({reason})", "cast or leave out that column") from exc


def _write(rows: Any, file: Path) -> None:
    library = type(rows).__module__.partition(".")[0]
    kind = type(rows).__name__
    if library == "polars" and kind == "LazyFrame":
        _check_names(rows.collect_schema().names())
        rows.sink_parquet(file, row_group_size=SLICE_ROWS)
    elif library == "polars" and kind == "DataFrame":
        _check_names(rows.columns)
        rows.write_parquet(file, row_group_size=SLICE_ROWS)
    elif library == "pandas" and kind == "DataFrame":
        _check_names(rows.columns)
        schema = _pandas_schema(rows)
        _write_batches(_Batches(schema, _pandas_batches(rows, schema)), file)
    elif isinstance(rows, ds.Dataset):
        _write_batches(_Batches(rows.schema, rows.to_batches(batch_size=SLICE_ROWS)), file)
    elif hasattr(rows, "__arrow_c_stream__") and not (library == "polars" and kind == "Series"):
        _write_batches(pa.RecordBatchReader.from_stream(rows), file)
    elif isinstance(rows, pa.RecordBatch):
        _write_batches(_Batches(rows.schema, [rows]), file)
    else:
        remedy = "pass a polars or pandas frame, an Arrow table or a DuckDB relation"
        raise JobError("rows", f"found {kind}, which is not a table", remedy)


def _pandas_schema(frame: Any) -> pa.Schema:
    """Return the types of the columns; JobError names one whose values have none in common."""
    fields: list[pa.Field] = []
    for name in frame.columns:
        try:
            fields += pa.Schema.from_pandas(frame[[name]], preserve_index=False)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as exc:
            reason = str(exc).splitlines()[0]
            raise JobError(
                "rows", f"{name} cannot be written as Parquet ({reason})", "cast or leave out this column"
            ) from exc
    return pa.schema(fields)


class _Batches:
    """Record batches with their schema."""

    def __init__(self, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
        self.schema = schema
        self._batches = batches

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return iter(self._batches)


def _write_batches(batches: "_Batches | pa.RecordBatchReader", file: Path) -> None:
    _check_names(batches.schema.names)
    with pq.ParquetWriter(file, batches.schema) as writer:
        for batch in batches:
            for start in range(0, batch.num_rows, SLICE_ROWS):
                writer.write_batch(batch.slice(start, SLICE_ROWS))


def _pandas_batches(frame: Any, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(frame), SLICE_ROWS):
        yield pa.RecordBatch.from_pandas(frame.iloc[start : start + SLICE_ROWS], schema, preserve_index=False)


def _check_names(names: Iterable[Any]) -> None:
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str):
            raise JobError("rows", f"the name of a column is {name!r}, not text", "rename it")
        if name in seen:
            raise JobError("rows", f"two columns are named {name}", "rename one of them")
        seen.add(name)
    if not seen:
        raise JobError("rows", "have no column", "pass a table with a key and the values of the prompts")
