"""The source of a job, open for reading: its columns with types that every table has, and the rows that are chosen."""

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
from connectors.sql import first_line, literal_list, lock_down, query_connection, quoted
from pipelines.config.sql_predicate import checked_predicate

ROW_KEY = "_row_key"
"""The key column of a job without a key: a digest of the row's content, and which of the equal rows it is."""

WIDE_ROW_BYTES = 16 << 10
"""Bytes: rows that are larger are never gathered by the thousand."""

MEMORY_PER_FILE_BYTE = 3
"""A row in memory against its share of the files."""

MAX_MEMORY_BYTES = 1_000_000_000
"""Bytes that DuckDB may hold of a source, however large its rows are."""
MIN_MEMORY_BYTES = 32_000_000
VECTOR_ROWS = 2048
"""Rows that DuckDB reads together, or a whole row group of fewer."""

SMALL_PAGE_WRITERS = "^(parquet-cpp|parquet-mr|Polars)"
"""Those whose pages take a megabyte; DuckDB's may be a column of a whole row group, held packed and unpacked."""

STREAM_BUFFER = "1MB"
"""Of rows that wait to be fetched; DuckDB's own 10 MB are never needed, since it keeps up with any provider."""

_AS_TEXT = ("ENUM", "BIT", "INTERVAL", "UNION", "TIME WITH TIME ZONE", '"NULL"')
"""Types that Arrow or Parquet have no plain column for."""
_NESTED = ("STRUCT", "MAP", "UNION", "JSON")


class SourceReader:
    """One source, open for the time of a run."""

    def __init__(self, source: SourceConfig, facts: SourceContext, known: Mapping[str, str] = {}) -> None:
        """`known`: column -> SQL type that it has where it holds no value."""
        self._source = source
        self._facts = facts
        self._open = contextlib.ExitStack()
        self._db = self._open.enter_context(query_connection(facts.scratch))
        try:
            opened = source.connect(self._db, facts)
            self.relation = opened.relation
            self.rejects = opened.rejects
            """(line number, message, raw line) of lines that are no rows."""
            self.row_bytes = self._measured(source.paths(facts), opened.nbytes)
            """About so many bytes a row takes."""
            if self.row_bytes > WIDE_ROW_BYTES:
                # After a join it would make 2,048 rows of small row groups again.
                with contextlib.suppress(duckdb.CatalogException):
                    self._db.execute("set global debug_enable_caching_operators = false")
            self._db.execute(f"set memory_limit = '{MAX_MEMORY_BYTES}B'")
            self._kinds = self._described()
            self._db.execute(f"set memory_limit = '{self._memory(bool(opened.urls))}B'")
            # A setting of one connection, not to be changed any more once they are locked.
            self._rows = self._open.enter_context(contextlib.closing(self._db.cursor()))
            self._rows.execute(f"set streaming_buffer_size = '{STREAM_BUFFER}'")
            lock_down(self._db, [facts.scratch], [*source.paths(facts), *opened.urls])
            self._follow(known)
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
        """Let go of the source, before the end of the `with` where nothing is to be read any more."""
        self._open.close()

    @property
    def key(self) -> tuple[str, ...]:
        """The key's columns; empty where a row's content is its key."""
        key = self._source.key
        return (key,) if isinstance(key, str) else tuple(key or ())

    def column(self, name: str) -> str:
        """A column's expression, of a type that Arrow and Parquet have as well."""
        kind = self._kinds[name]
        if kind.startswith(_AS_TEXT):
            return f"cast({quoted(name)} as VARCHAR)"
        if "TIMESTAMP_NS" in kind:
            # Python's timestamps, and so templates and predicates, know microseconds.
            return f"cast({quoted(name)} as {kind.replace('TIMESTAMP_NS', 'TIMESTAMP')})"
        return quoted(name)

    def text(self, name: str) -> str:
        """An expression of the column's value as text that tells different values apart."""
        kind = self._kinds[name]
        if kind.startswith("BLOB"):
            return f"md5({quoted(name)})"
        if kind.endswith("]") or kind.startswith(_NESTED):
            return f"cast(to_json({self.column(name)}) as VARCHAR)"
        return f"cast({quoted(name)} as VARCHAR)"

    def chosen(self) -> str:
        """The rows after `where` and `limit`, all columns."""
        where = "" if self._source.where is None else f" where (\n{self._source.where}\n)"
        limit = "" if self._source.limit is None else f" limit {self._source.limit}"
        return f"(select * from {self.relation}{where}{limit})"

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection for one more query while another's rows are being read."""
        return self._db.cursor()

    def stream(self, query: str, rows: int) -> pa.RecordBatchReader:
        """The rows of a query as they come, so many together; the rest of the one before is given up."""
        return self._rows.sql(query).to_arrow_reader(rows)

    @property
    def scratch(self) -> Path:
        return self._facts.scratch

    @property
    def workspace(self) -> Path:
        return self._facts.workspace

    def _measured(self, paths: Iterable[Path], elsewhere: int) -> float:
        files = [*paths, *self._facts.scratch.glob("*.parquet")]
        nbytes = MEMORY_PER_FILE_BYTE * (elsewhere + sum(file.stat().st_size for file in files))
        self._page = 0
        if parquet := [file for file in files if file.suffix == ".parquet"]:
            # Text that repeats itself is packed a hundred times smaller.
            told = f"parquet_metadata({literal_list(parquet)})"
            sizes = "sum(total_uncompressed_size), max(total_uncompressed_size)"
            ((plain, largest),) = self._db.execute(f"select {sizes} from {told}").fetchall()
            nbytes = max(nbytes, int(plain or 0))
            made = f"parquet_file_metadata({literal_list(parquet)}) where not regexp_matches(created_by, '{SMALL_PAGE_WRITERS}')"
            ((others,),) = self._db.execute(f"select count(*) from {made}").fetchall()
            self._page = int(largest or 0) if others else min(int(largest or 0), 1 << 20)
        ((rows,),) = self._db.execute(f"select count(*) from {self.relation}").fetchall()
        self._count = int(rows)
        return nbytes / max(1, int(rows))

    def _memory(self, remote: bool) -> int:
        """Bytes that DuckDB may hold: a join of more rows than that spills, but a spilled one needs its share as well.

        Tried with keys of 16 and 62 characters: a million rows join in 32 and 40 MB, 3 in 48 and 80, 10 in 128.
        """
        if remote or self.row_bytes > WIDE_ROW_BYTES:
            return MAX_MEMORY_BYTES
        needed = 20_000_000 + 24 * self._count + 256_000 * len(self._kinds) + 3 * self._page
        return min(MAX_MEMORY_BYTES, max(MIN_MEMORY_BYTES, int(needed + 8 * VECTOR_ROWS * self.row_bytes)))

    def _described(self) -> dict[str, str]:
        cursor = self._db.execute(f"select * from {self.relation} limit 0")
        kinds = {str(column[0]): str(column[1]) for column in cursor.description or ()}
        for name in kinds:
            if not name or "\0" in name:
                raise DataError(("source",), f"has a column {name!r}, which is no name", "rename it in a `sql:` source")
        return kinds

    def _follow(self, known: Mapping[str, str]) -> None:
        """Columns without any value have the types that are known of them: their own tell nothing."""
        other = [name for name, kind in known.items() if self._kinds.get(name, kind) != kind]
        if not other:
            return
        counts = ", ".join(f"count({quoted(name)})" for name in other)
        (found,) = self._db.execute(f"select {counts} from {self.relation}").fetchall()
        made = [
            f"cast(null as {known[name]}) as {quoted(name)}"
            for name, count in zip(other, found, strict=True)
            if count == 0
        ]
        if made:
            self.relation = f"(select * replace ({', '.join(made)}) from {self.relation})"
            self._kinds = self._described()

    def _arrow_schema(self, names: Iterable[str]) -> pa.Schema:
        columns = ", ".join(f"{self.column(name)} as {quoted(name)}" for name in names)
        return _plain_schema(self._db.sql(f"select {columns} from {self.relation} limit 0").to_arrow_table().schema)

    def _check(self) -> None:
        for name in self.key:
            if name not in self.schema.names:
                raise JobError(
                    ("source", "key"), f"no column {name} in the source", f"{did_you_mean(name, self.schema.names)}"
                )
            if pa.types.is_nested(self.schema.field(name).type):
                raise JobError(
                    ("source", "key"),
                    f"{name} holds lists or structs, by which no row is found again",
                    "name a column of single values, or make a text of it in a `sql:` source",
                )
        for name in self.schema.names:
            if name.startswith("_row_") or name in ("_key", "_part", "_in_errors", "_run_id"):
                # The results of another job carry these two; nobody else may have them.
                if name in ("_run_id", "_row_fingerprint", ROW_KEY):
                    continue
                raise JobError(
                    ("source",), f"has a column {name}, a name that Rowmill needs", "rename it in a `sql:` source"
                )
        if self._source.where is not None:
            checked_predicate(self._source.where, self._kinds, ("source", "where"))
            try:
                self._db.execute(f"select 1 from {self.relation} where (\n{self._source.where}\n) limit 0").fetchall()
            except duckdb.Error as exc:
                raise JobError(("source", "where"), f"{first_line(exc)}", "mend the expression") from exc


def _plain_schema(schema: pa.Schema) -> pa.Schema:
    """Without metadata, time zones by one name."""
    return pa.schema([pa.field(found.name, _plain_type(found.type)) for found in schema])


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return pa.timestamp(kind.unit, "UTC")
    return kind
