"""Source reader: an open source, its columns with types that every table supports, and its selected rows."""

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import duckdb
import pyarrow as pa

from connectors.contracts import SourceContext
from connectors.errors import DataError, JobError, did_you_mean
from connectors.registry import SourceConfig
from connectors.sql import first_line, identifier, literal_list, lock_down, query_connection
from pipelines.config.sql_predicate import predicate_columns

ROW_KEY = "_row_key"
"""The key column of a job without a key: a digest of the row's content, and which of the equal rows it is."""

WIDE_ROW_BYTES = 16 << 10
"""Larger rows are never read by the thousand."""

MEMORY_PER_FILE_BYTE = 3
"""Estimated size of a row in memory relative to its share of the files."""

MAX_MEMORY_BYTES = 1_000_000_000
"""DuckDB's memory limit for a source, whatever the size of its rows."""
MIN_MEMORY_BYTES = 32_000_000
VECTOR_ROWS = 2048
"""Rows that DuckDB reads in one vector, or a whole row group if it is smaller."""

SMALL_PAGE_WRITERS = "^(parquet-cpp|parquet-mr|Polars)"
"""Parquet writers with pages of at most 1 MB. A page of DuckDB's writer may be a whole column of a row group, which
is held both compressed and uncompressed."""

STREAM_BUFFER = "1MB"
"""Rows that DuckDB reads ahead; its default of 10 MB is never needed, since it is faster than any provider."""

_AS_TEXT = ("ENUM", "BIT", "INTERVAL", "UNION", "TIME WITH TIME ZONE", '"NULL"')
"""Types without an equivalent in Arrow or Parquet; they are read as text."""
_NESTED = ("STRUCT", "MAP", "UNION", "JSON")


class SourceReader:
    """One source, open while a run lasts."""

    def __init__(self, source: SourceConfig, facts: SourceContext, known: Mapping[str, str] = {}) -> None:
        """`known`: column -> SQL type for columns without any value."""
        self._source = source
        self._facts = facts
        self._open = contextlib.ExitStack()
        self._db = self._open.enter_context(query_connection(facts.scratch))
        try:
            opened = source.connect(self._db, facts)
            self.relation = opened.relation
            self.rejects = opened.rejects
            """(line number, message, raw line) of rejected lines."""
            self.row_bytes = self._estimate_row_bytes(source.paths(facts), opened.nbytes)
            """Estimated bytes of a row in memory."""
            if self.row_bytes > WIDE_ROW_BYTES:
                # Otherwise a join would combine small row groups into vectors of 2,048 rows again.
                with contextlib.suppress(duckdb.CatalogException):
                    self._db.execute("set global debug_enable_caching_operators = false")
            self._db.execute(f"set memory_limit = '{MAX_MEMORY_BYTES}B'")
            self._kinds = self._column_types()
            self._db.execute(f"set memory_limit = '{self._memory(bool(opened.urls))}B'")
            # Set before the connections are locked.
            self._rows = self._open.enter_context(contextlib.closing(self._db.cursor()))
            self._rows.execute(f"set streaming_buffer_size = '{STREAM_BUFFER}'")
            lock_down(self._db, [facts.scratch], [*source.paths(facts), *opened.urls])
            self._cast_null_columns(known)
            self.schema: pa.Schema = self._arrow_schema(self._kinds)
            self._check()
        except BaseException:
            self._open.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the source; may be called before the end of the `with` block if nothing more is read."""
        self._open.close()

    @property
    def key(self) -> tuple[str, ...]:
        """The key's columns; empty if a row is identified by its content."""
        key = self._source.key
        return (key,) if isinstance(key, str) else tuple(key or ())

    def column(self, name: str) -> str:
        """SQL of a column with a type that Arrow and Parquet support."""
        kind = self._kinds[name]
        if kind.startswith(_AS_TEXT):
            return f"cast({identifier(name)} as VARCHAR)"
        if "TIMESTAMP_NS" in kind:
            # Python's timestamps have microseconds, and so have templates and predicates.
            return f"cast({identifier(name)} as {kind.replace('TIMESTAMP_NS', 'TIMESTAMP')})"
        return identifier(name)

    def text(self, name: str) -> str:
        """SQL of the column's value as text; different values give different texts."""
        kind = self._kinds[name]
        if kind.startswith("BLOB"):
            return f"md5({identifier(name)})"
        if kind.endswith("]") or kind.startswith(_NESTED):
            return f"cast(to_json({self.column(name)}) as VARCHAR)"
        return f"cast({identifier(name)} as VARCHAR)"

    def chosen(self) -> str:
        """The rows after `where` and `limit`, all columns."""
        where = "" if self._source.where is None else f" where (\n{self._source.where}\n)"
        limit = "" if self._source.limit is None else f" limit {self._source.limit}"
        return f"(select * from {self.relation}{where}{limit})"

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """Return a connection for a query while the rows of another are still being read."""
        return self._db.cursor()

    def stream(self, query: str, rows: int) -> pa.RecordBatchReader:
        """Stream the rows of a query in batches of `rows`; the previous stream ends."""
        return self._rows.sql(query).to_arrow_reader(rows)

    @property
    def scratch(self) -> Path:
        return self._facts.scratch

    @property
    def workspace(self) -> Path:
        return self._facts.workspace

    def _estimate_row_bytes(self, paths: Iterable[Path], elsewhere: int) -> float:
        files = [*paths, *self._facts.scratch.glob("*.parquet")]
        nbytes = MEMORY_PER_FILE_BYTE * (elsewhere + sum(file.stat().st_size for file in files))
        self._page = 0
        if parquet := [file for file in files if file.suffix == ".parquet"]:
            # Repetitive text is compressed by a factor of a hundred.
            metadata = f"parquet_metadata({literal_list(parquet)})"
            sizes = "sum(total_uncompressed_size), max(total_uncompressed_size)"
            ((plain, largest),) = self._db.execute(f"select {sizes} from {metadata}").fetchall()
            nbytes = max(nbytes, int(plain or 0))
            files_of_others = (
                f"parquet_file_metadata({literal_list(parquet)}) "
                f"where not regexp_matches(created_by, '{SMALL_PAGE_WRITERS}')"
            )
            ((others,),) = self._db.execute(f"select count(*) from {files_of_others}").fetchall()
            self._page = int(largest or 0) if others else min(int(largest or 0), 1 << 20)
        ((rows,),) = self._db.execute(f"select count(*) from {self.relation}").fetchall()
        self._count = int(rows)
        return nbytes / max(1, int(rows))

    def _memory(self, remote: bool) -> int:
        """Return DuckDB's memory limit. A larger join spills to disk, but a spilled join also needs memory.

        Measured with keys of 16 and 62 characters: 1 million rows join in 32 and 40 MB, 3 million in 48 and 80 MB,
        10 million in 128 MB.
        """
        if remote or self.row_bytes > WIDE_ROW_BYTES:
            return MAX_MEMORY_BYTES
        needed = 20_000_000 + 24 * self._count + 256_000 * len(self._kinds) + 3 * self._page
        return min(MAX_MEMORY_BYTES, max(MIN_MEMORY_BYTES, int(needed + 8 * VECTOR_ROWS * self.row_bytes)))

    def _column_types(self) -> dict[str, str]:
        cursor = self._db.execute(f"select * from {self.relation} limit 0")
        kinds = {str(column[0]): str(column[1]) for column in cursor.description or ()}
        for name in kinds:
            if not name or "\0" in name:
                raise DataError(
                    ("source",), f"has a column {name!r}, which cannot be a name", "rename it in a `sql:` source"
                )
        return kinds

    def _cast_null_columns(self, known: Mapping[str, str]) -> None:
        """Cast columns without any value to their known types."""
        other = [name for name, kind in known.items() if self._kinds.get(name, kind) != kind]
        if not other:
            return
        counts = ", ".join(f"count({identifier(name)})" for name in other)
        (found,) = self._db.execute(f"select {counts} from {self.relation}").fetchall()
        made = [
            f"cast(null as {known[name]}) as {identifier(name)}"
            for name, count in zip(other, found, strict=True)
            if count == 0
        ]
        if made:
            self.relation = f"(select * replace ({', '.join(made)}) from {self.relation})"
            self._kinds = self._column_types()

    def _arrow_schema(self, names: Iterable[str]) -> pa.Schema:
        columns = ", ".join(f"{self.column(name)} as {identifier(name)}" for name in names)
        return _plain_schema(self._db.sql(f"select {columns} from {self.relation} limit 0").to_arrow_table().schema)

    def _check(self) -> None:
        for name in self.key:
            if name not in self.schema.names:
                raise JobError(
                    ("source", "key"), f"no column {name} in the source", did_you_mean(name, self.schema.names)
                )
            if pa.types.is_nested(self.schema.field(name).type):
                raise JobError(
                    ("source", "key"),
                    f"{name} holds lists or structs, by which no row is found again",
                    "name a column of single values, or make a text of it in a `sql:` source",
                )
        for name in self.schema.names:
            if name.startswith("_row_") or name in ("_key", "_part", "_in_errors", "_run_id"):
                # Only the results of another job may have these columns.
                if name in ("_run_id", "_row_fingerprint", ROW_KEY):
                    continue
                raise JobError(
                    ("source",), f"has a column {name}, a name that Rowmill reserves", "rename it in a `sql:` source"
                )
        if self._source.where is not None:
            predicate_columns(self._source.where, self._kinds, ("source", "where"))
            try:
                self._db.execute(f"select 1 from {self.relation} where (\n{self._source.where}\n) limit 0").fetchall()
            except duckdb.Error as exc:
                raise JobError(("source", "where"), first_line(exc), "fix the expression") from exc


def _plain_schema(schema: pa.Schema) -> pa.Schema:
    """Drop metadata and use UTC as the name of every time zone."""
    return pa.schema([pa.field(found.name, _plain_type(found.type)) for found in schema])


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return pa.timestamp(kind.unit, "UTC")
    return kind
