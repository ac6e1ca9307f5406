"""Outputs of children in the results: one list for each source row, for checks that have changed since."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from connectors.records import KEPT_CHILDREN_PREFIX, KEPT_PREFIX, KEPT_ROW
from connectors.sql import SCRATCH_ROW_GROUP_ROWS


def store_lists(children: duckdb.DuckDBPyRelation, key: str, single: Sequence[str], path: Path) -> tuple[int, int]:
    """Write one row for each source row to a Parquet file; return (source rows, children).

    `children`: in the order of `key`, the text of their source row, and of their places. `single`: the columns that
    all children of a source row have in common; the others become lists.
    """
    rows = count = 0
    writer: pq.ParquetWriter | None = None
    # DuckDB would hold all lists in memory; of these batches only one source row waits for its end.
    for batch in _whole_source_rows(children.to_arrow_reader(SCRATCH_ROW_GROUP_ROWS), key):
        starts = _starts(batch.column(key))
        offsets = pa.array([*starts, batch.num_rows], pa.int32())
        first = batch.take(pa.array(starts, pa.int64()))
        columns = [
            first.column(name)
            if name in single
            else pa.ListArray.from_arrays(offsets, batch.column(name).combine_chunks())
            for name in batch.column_names
        ]
        table = pa.table(columns, names=batch.column_names)
        if writer is None:
            writer = pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
        rows, count = rows + len(starts), count + batch.num_rows
    if writer is not None:
        writer.close()
    return rows, count


def _whole_source_rows(batches: Iterable[pa.RecordBatch], key: str) -> Iterator[pa.Table]:
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        if not batch.num_rows:
            continue
        last = batch.column(key)[batch.num_rows - 1]
        if waiting and last == waiting[0].column(key)[0]:
            waiting.append(batch)
            continue
        end = pc.index(batch.column(key), last).as_py()
        whole = pa.Table.from_batches([*waiting, batch.slice(0, end)])
        if whole.num_rows:
            yield whole
        waiting = [batch.slice(end)]
    if waiting:
        yield pa.Table.from_batches(waiting)


def _starts(keys: pa.ChunkedArray) -> list[int]:
    """Return the place of the first row of each key."""
    lengths = pc.run_end_encode(keys.combine_chunks()).run_ends.to_pylist()
    return [0, *lengths[:-1]]


def outputs_of_children(
    rows: pa.Table, counts: Sequence[int], places: Sequence[int], indexes: Sequence[int]
) -> Mapping[str, pa.Array]:
    """Return the columns KEPT_ROW and KEPT_PREFIX of children.

    `rows`: source rows with KEPT_ROW and KEPT_CHILDREN_PREFIX. `counts`: the children of each. `places`, `indexes`: of
    each child, its source row and its place among the children. No column if `rows` has none.
    """
    names = [name for name in rows.column_names if name.startswith(KEPT_CHILDREN_PREFIX)]
    if not names:
        return {}
    lists = {name: rows.column(name).combine_chunks() for name in names}
    lengths = pc.list_value_length(lists[names[0]]).to_pylist()
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + (length or 0))
    # Another number of children: these are not the ones that the results have.
    has_lists = [length == count for length, count in zip(lengths, counts, strict=True)]
    chosen = pa.array(
        [starts[place] + index if has_lists[place] else None for place, index in zip(places, indexes, strict=True)],
        pa.int64(),
    )
    columns: dict[str, pa.Array] = {
        KEPT_PREFIX + name.removeprefix(KEPT_CHILDREN_PREFIX): pc.list_flatten(values).take(chosen)
        for name, values in lists.items()
    }
    return {**columns, KEPT_ROW: chosen.is_valid()}
