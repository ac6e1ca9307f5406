"""Rows of the caller as a file: every kind of table, and one line for what is none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from connectors.errors import JobError
from pipelines.python_api.spilled_rows import SLICE_ROWS, spill_rows

TABLE = pa.table({"id": [1, 2, 3], "text": ["a", None, "ü"], "tags": [["x"], [], None]})
KINDS: dict[str, Callable[[], Any]] = {
    "arrow": lambda: TABLE,
    "batch": lambda: TABLE.to_batches()[0],
    "reader": lambda: TABLE.to_reader(),
    "dataset": lambda: ds.dataset(TABLE),
    "polars": lambda: pl.from_arrow(TABLE),
    "lazy": lambda: pl.from_arrow(TABLE).lazy(),  # type: ignore[union-attr]
    "pandas": lambda: TABLE.to_pandas(),
    "duckdb": lambda: duckdb.from_arrow(TABLE),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_each_kind_of_table_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    await spill_rows(KINDS[kind](), tmp_path / "rows.parquet")
    assert pq.read_table(tmp_path / "rows.parquet").to_pylist() == TABLE.to_pylist()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_table_without_rows_has_its_columns(tmp_path: Path, kind: str) -> None:
    empty = {"reader": lambda: TABLE.slice(0, 0).to_reader(), "dataset": lambda: ds.dataset(TABLE.slice(0, 0))}
    rows = empty[kind]() if kind in empty else _emptied(KINDS[kind]())
    await spill_rows(rows, tmp_path / "rows.parquet")
    found = pq.read_table(tmp_path / "rows.parquet")
    assert (found.num_rows, found.column_names) == (0, TABLE.column_names)


def _emptied(rows: Any) -> Any:
    if isinstance(rows, duckdb.DuckDBPyRelation):
        return rows.limit(0)
    return rows.slice(0, 0) if hasattr(rows, "slice") else rows.iloc[:0]


async def test_row_groups_are_small_and_the_index_of_pandas_is_no_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": range(SLICE_ROWS + 1)}, index=[f"i{n}" for n in range(SLICE_ROWS + 1)])
    await spill_rows(frame, tmp_path / "rows.parquet")
    metadata = pq.read_metadata(tmp_path / "rows.parquet")
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [SLICE_ROWS, 1]
    assert metadata.schema.names == ["id"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"id": 1}],
            "rows: found list, which is not a table; pass a polars or pandas frame, an Arrow table or a DuckDB",
        ),
        (pl.Series([1]), "rows: found Series, which is not a table; pass a polars or pandas frame"),
        (pd.DataFrame({0: [1]}), "rows: the name of a column is 0, not text; rename it"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "rows: two columns are named a; rename one of them"),
        (
            pd.DataFrame({"a": [1, "x"]}),
            "rows: a cannot be written as Parquet (Could not convert 'x' with type str: tried to convert to int64); ",
        ),
        (pl.DataFrame(), "rows: have no column; pass a table with a key"),
        (pa.table({}), "rows: have no column; pass a table with a key"),
        (pl.DataFrame({"a": [object()]}), "rows: cannot be written as Parquet ("),
    ],
)
async def test_what_is_no_table_is_refused_in_one_line(tmp_path: Path, rows: Any, message: str) -> None:
    with pytest.raises(JobError) as caught:
        await spill_rows(rows, tmp_path / "rows.parquet")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
