"""Parquet parts: writing in row groups of bounded size, reading by key, and rewriting without some rows."""

import contextlib
import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from connectors.contracts import Commit
from connectors.errors import DataError

ROW_GROUP_ROWS = 65_536
ROW_GROUP_BYTES = 16 << 20
READ_BATCH_ROWS = 4096
"""At most so many rows of a part are read together when it is rewritten."""
READ_BATCH_BYTES = 4 << 20
"""So many bytes of large rows."""
READ_BUFFER_BYTES = 1 << 20
FOUND_BYTES = 4 << 20
"""Bytes of columns of a part among which rows are found together."""


class PartWriter:
    """Writer of one part; tables of any size become row groups of bounded size."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._file = pa.OSFile(str(path), "wb")
        # A dictionary on vectors takes three times as long; statistics on them are useless.
        self._writer = pq.ParquetWriter(
            self._file,
            schema,
            compression="zstd",
            use_dictionary=[field.name for field in schema if _is_text(field.type)],
            use_byte_stream_split=list(_float_paths(schema)),
            write_statistics=[field.name for field in schema if not pa.types.is_nested(field.type)],
            # Arrow's default pool retains what each row group took: four times as much as writing needs.
            memory_pool=pa.system_memory_pool(),
        )
        self._waiting: list[pa.Table] = []
        self._rows = 0
        self._nbytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            try:
                self._flush(1)
                self._writer.close()
            finally:
                self._close_file()
        else:
            self._close_file()

    def write(self, table: pa.Table) -> None:
        """Append rows."""
        if not table.num_rows:
            return
        self._waiting.append(table)
        self._rows += table.num_rows
        self._nbytes += table.nbytes
        group_rows = self._group_rows()
        if self._rows >= group_rows:
            self._flush(group_rows)

    @property
    def size(self) -> int:
        """Bytes in the file so far, without those of the last, unfinished row group."""
        return int(self._file.tell())

    def add_metadata(self, key: str, text: str) -> None:
        """Add a text to the part's footer."""
        self._writer.add_key_value_metadata({key: text})

    def _group_rows(self) -> int:
        """How many rows as large as the waiting ones make a row group."""
        return max(1, min(ROW_GROUP_ROWS, self._rows * ROW_GROUP_BYTES // max(1, self._nbytes)))

    def _flush(self, unit: int) -> None:
        """Write as many of the waiting rows as are a multiple of the unit."""
        if not self._rows:
            return
        rows = pa.concat_tables(self._waiting).cast(self._schema)
        count = self._rows // unit * unit
        self._writer.write_table(rows.slice(0, count), self._group_rows())
        rest = rows.slice(count)
        self._waiting, self._rows, self._nbytes = [rest], rest.num_rows, rest.nbytes

    def _close_file(self) -> None:
        # Closing writes the footer, which fails on a full disk too; left open, the writer would try again later.
        with contextlib.suppress(OSError, pa.ArrowException, ValueError):
            self._writer.close()
        with contextlib.suppress(OSError):
            self._file.close()


def write_part(path: Path, table: pa.Table) -> None:
    """Write a whole part."""
    with PartWriter(path, table.schema) as out:
        out.write(table)


def rewrite_part(source: Path, target: Path, schema: pa.Schema, dropped: pa.BooleanArray, added: pa.Table) -> None:
    """Write a part again, without the dropped rows, with the added ones at its end."""
    with PartWriter(target, schema) as out:
        start = 0
        for table in read_batches(source):
            mask = dropped.slice(start, table.num_rows)
            out.write(table.filter(pc.invert(mask)) if mask.true_count else table)
            start += table.num_rows
        out.write(added)


def add_null_columns(source: Path, target: Path, schema: pa.Schema, key: str) -> None:
    """Write a part again with all columns of the schema, and with this key of its footer."""
    text = read_footer(source)[2].get(key.encode())
    with PartWriter(target, schema) as out:
        for table in read_batches(source):
            for field in schema:
                if field.name not in table.column_names:
                    table = table.append_column(field, pa.nulls(table.num_rows, field.type))
            out.write(table.select(schema.names))
        if text is not None:
            out.add_metadata(key, text.decode())


def read_batches(part: Path) -> Iterator[pa.Table]:
    """Iterate over a part's rows, some thousand at a time."""
    # With pre-buffering, every row group would be held until the last one is read.
    with pq.ParquetFile(part, pre_buffer=False, buffer_size=READ_BUFFER_BYTES) as file:
        meta = file.metadata
        nbytes = sum(meta.row_group(number).total_byte_size for number in range(meta.num_row_groups))
        batch_rows = max(1, min(READ_BATCH_ROWS, READ_BATCH_BYTES * meta.num_rows // max(1, nbytes)))
        for batch in file.iter_batches(batch_size=batch_rows):
            yield pa.Table.from_batches([batch]).replace_schema_metadata(None)


def find_rows(
    part: Path | io.RawIOBase, names: Sequence[str], find: Callable[[pa.Table], pa.BooleanArray]
) -> tuple[pa.BooleanArray, pa.Table]:
    """Return which of a part's rows `find` finds by some of their columns, and these columns of the found rows.

    Memory is bounded by FOUND_BYTES and what is found, however large the part is.
    """
    masks: list[pa.BooleanArray] = []
    found: list[pa.Table] = []
    with pq.ParquetFile(part) as file:
        # So that `found` has a schema.
        waiting = [file.schema_arrow.remove_metadata().empty_table().select(names)]
        for number in range(file.num_row_groups):
            waiting.append(file.read_row_group(number, list(names)).select(names).replace_schema_metadata(None))
            if number + 1 == file.num_row_groups or sum(table.nbytes for table in waiting) >= FOUND_BYTES:
                rows = pa.concat_tables(waiting)
                masks.append(find(rows))
                found.append(rows.filter(masks[-1]))
                waiting = [rows.slice(0, 0)]
    return pa.chunked_array(masks, pa.bool_()).combine_chunks(), pa.concat_tables(found or waiting)


def read_footer(part: Path | io.RawIOBase) -> tuple[int, pa.Schema, dict[bytes, bytes]]:
    """Return (rows, schema, metadata) from a part's footer; DataError for a file that is not a whole Parquet file."""
    try:
        with pq.ParquetFile(part) as file:
            return file.metadata.num_rows, file.schema_arrow.remove_metadata(), file.metadata.metadata or {}
    except (pa.ArrowInvalid, OSError) as exc:
        # A folder has no number; an error of the system has.
        if isinstance(exc, OSError) and exc.errno is not None:
            raise
        raise DataError(
            str(part),
            f"cannot be read ({str(exc).splitlines()[0].rstrip('.')})",
            "move it away and run again: answers in the ledger are not requested again",
        ) from exc


def drop_rows(table: pa.Table, indexes: Collection[int]) -> pa.Table:
    """Return the other rows; without copying if none is dropped."""
    if not indexes:
        return table
    return table.take(pa.array(sorted(set(range(table.num_rows)).difference(indexes)), pa.int64()))


def matching_rows(rows: pa.Table, wanted: pa.Table) -> pa.BooleanArray:
    """Return which rows are among the wanted ones, which have the same columns; null equals null."""
    matches: pa.BooleanArray | None = None
    values = {name: wanted.column(name).combine_chunks() for name in rows.column_names}
    for name in rows.column_names:
        hits = pc.is_in(rows.column(name), value_set=values[name]).combine_chunks()
        matches = hits if matches is None else pc.and_(matches, hits)
    assert matches is not None
    if len(rows.column_names) == 1 or not matches.true_count:
        return matches
    # Each value of a composite key occurs among the wanted keys; their combination may not.
    keys = set(_positions(wanted, values))
    found = pa.array([key in keys for key in _positions(rows.filter(matches), values)], pa.bool_())
    return pc.replace_with_mask(matches, matches, found)


def rows_without_key(keys: pa.Table) -> pa.BooleanArray:
    """Return which rows have null in every column of the key: unreadable lines of the source."""
    nulls = [column.is_null() for column in keys.columns]
    every = nulls[0]
    for column in nulls[1:]:
        every = pc.and_(every, column)
    return every.combine_chunks()


def replaced_errors(rows: pa.Table, commit: Commit, key: Sequence[str], details: str) -> pa.BooleanArray:
    """Return which errors are replaced: the key is resolved or failed again; without a key, the details are equal."""
    keys, new = rows.select(key), commit.errors.select(key)
    replaced = matching_rows(keys, new.filter(pc.invert(rows_without_key(new))))
    same_details = matching_rows(rows.select([details]), commit.errors.filter(rows_without_key(new)).select([details]))
    replaced = pc.or_(replaced, pc.and_(rows_without_key(keys), same_details))
    return pc.or_(replaced, matching_rows(keys, commit.resolved_keys.select(key).cast(new.schema)))


def _positions(keys: pa.Table, values: Mapping[str, pa.Array]) -> Iterator[tuple[int | None, ...]]:
    """Iterate over the keys, each value as its position in an array: Python lacks some dates, and NaN is not NaN."""
    return zip(*(pc.index_in(keys.column(name), value_set=values[name]).to_pylist() for name in values), strict=True)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _float_paths(schema: pa.Schema) -> Iterator[str]:
    """Return the Parquet paths of float columns and of vectors of floats."""
    for field in schema:
        if pa.types.is_floating(field.type):
            yield field.name
        elif pa.types.is_fixed_size_list(field.type) and pa.types.is_floating(field.type.value_type):
            yield f"{field.name}.list.element"
