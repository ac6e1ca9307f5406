"""Source reader: an open source, its columns with types that every table supports, and its selected rows."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import duckdb
import pyarrow as pa
from msgspec.structs import replace

from connectors.contracts import OpenedSource, SourceColumn, SourceContext
from connectors.errors import DataError, JobError, KeyPath, did_you_mean
from connectors.records import TEXT_PREFIX
from connectors.registry import SourceConfig
from connectors.sources.columns.column_types import arrow_type, has_value, plain_type, shape
from connectors.sources.columns.saved_columns import save_columns, saved_kinds
from connectors.sql import first_line, identifier, literal, literal_list, literal_path, lock_down, query_connection
from pipelines.config.sql_predicate import predicate_columns
from pipelines.preparation.earlier_fingerprints import earlier_texts

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

MISFIT_PREFIX = "_row_misfit_"
"""Of the column with whether a value does not fit its column's type in the sink."""
MAX_SHOWN_CHARACTERS = 60
"""Characters of a value in a message."""
_NESTED = ("STRUCT", "MAP", "UNION", "JSON")


class SourceReader:
    """One source, open while a run lasts."""

    def __init__(
        self,
        source: SourceConfig,
        facts: SourceContext,
        known: Mapping[str, str] = {},
        saved: OpenedSource | None = None,
    ) -> None:
        """`known`: column -> SQL type for columns without any value. `saved`: takes the place of the source's rows."""
        self._source = source
        self._facts = facts
        self._open = contextlib.ExitStack()
        self._db = self._open.enter_context(query_connection(facts.scratch))
        try:
            opened = source.connect(self._db, facts) if saved is None else saved
            paths = source.paths(facts) if saved is None else ()
            self._relation = opened.relation
            self.rejects = opened.rejects
            """(line number, message, raw line) of rejected lines."""
            self.warnings = opened.warnings
            """One line each, for the user."""
            self.has_empty_files = opened.has_empty_files
            """Whether a file has no bytes, so that it is unknown which rows have left the source."""
            self.row_bytes = self._estimate_row_bytes(paths, opened.nbytes)
            """Estimated bytes of a row in memory."""
            if self.row_bytes > WIDE_ROW_BYTES:
                # Otherwise a join would combine small row groups into vectors of 2,048 rows again.
                with contextlib.suppress(duckdb.CatalogException):
                    self._db.execute("set global debug_enable_caching_operators = false")
            self._db.execute(f"set memory_limit = '{MAX_MEMORY_BYTES}B'")
            self._columns = dict(self._described() if opened.columns is None else opened.columns)
            self._check_names()
            self._db.execute(f"set memory_limit = '{self._memory(bool(opened.urls))}B'")
            # Set before the connections are locked.
            self._rows = self._open.enter_context(contextlib.closing(self._db.cursor()))
            self._rows.execute(f"set streaming_buffer_size = '{STREAM_BUFFER}'")
            lock_down(self._db, [facts.scratch], [*paths, *map(literal_path, paths), *opened.urls])
            # The types of an earlier run let `where` and `when` stay valid in a run without values.
            self._cast_null_columns({**saved_kinds(facts.columns_file), **known})
            if saved is None:
                self._fit_nanoseconds(facts.known_types)
                save_columns(facts.columns_file, self._columns)
            self._plain_kinds: dict[str, str] = {}
            """SQL type -> the type that Arrow and Parquet have for it."""
            self.schema: pa.Schema = self._arrow_schema()
            self._where_columns: frozenset[str] = frozenset()
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

    @property
    def count(self) -> int:
        """The rows of the source, before `where` and `limit`."""
        return self._count

    @property
    def can_skip_rows(self) -> bool:
        """Whether rows within bounds of a column are found without reading all others: in Parquet, without `limit`."""
        return self._relation.startswith("read_parquet(") and self._source.limit is None

    @property
    def path_columns(self) -> frozenset[str]:
        """The columns whose values are in the paths of files (`year=2024/`)."""
        return frozenset(name for name, column in self._columns.items() if column.is_from_path)

    def column(self, name: str) -> str:
        """SQL of a column of `chosen` with a type that Arrow and Parquet support."""
        kind = self._columns[name].kind
        plain = self._plain_kinds[kind]
        return identifier(name) if plain == kind else f"cast({identifier(name)} as {plain})"

    def text(self, name: str) -> str:
        """SQL of a column's value as text, of `chosen`; different values give different texts."""
        return identifier(TEXT_PREFIX + name) if self.has_text(name) else self._text_of_value(name)

    def has_text(self, name: str) -> bool:
        """Whether `chosen` has the text of the column's value in the file, in a column with TEXT_PREFIX."""
        return self._columns[name].text is not None

    def earlier_texts(self, names: Iterable[str]) -> Sequence[Mapping[str, str]]:
        """Return the texts that earlier versions may have used for fingerprints: column -> SQL, of `chosen`.

        Empty if they are those of `text`.
        """
        guessed = [name for name in names if self._columns[name].is_guessed]
        if not guessed:
            return ()
        nested = {name: self._text_of_value(name) for name in guessed if _is_nested(self._columns[name].kind)}
        texts = {name: (self.text(name), self._columns[name].is_from_path) for name in guessed if name not in nested}
        known = {name: self._facts.known_types[name] for name in texts if name in self._facts.known_types}
        found = earlier_texts(self.cursor(), self.chosen(guessed), texts, known)
        return [{**candidate, **nested} for candidate in found]

    def chosen(self, names: Iterable[str]) -> str:
        """The rows after `where` and `limit` with these columns, their texts, and whether they fit the sink."""
        selected: list[str] = []
        for name in dict.fromkeys([*names, *sorted(self._where_columns)]):
            column = self._columns[name]
            selected.append(f"{column.value} as {identifier(name)}")
            if column.text is not None:
                selected.append(f"{column.text} as {identifier(TEXT_PREFIX + name)}")
            if column.misfit is not None:
                selected.append(f"{column.misfit} as {identifier(MISFIT_PREFIX + name)}")
        rows = f"select {', '.join(selected) or '1 as _row'} from {self._relation}"
        if self._source.where is not None:
            rows = f"select * from ({rows}) where (\n{self._source.where}\n)"
        return f"({rows}{'' if self._source.limit is None else f' limit {self._source.limit}'})"

    def is_guessed(self, name: str) -> bool:
        """Whether the column's type depends on all of its values."""
        return self._columns[name].is_guessed

    def problem(self, names: Iterable[str]) -> str | None:
        """SQL of why a row's values do not fit the sink's columns, of `chosen`; None if all values fit."""
        problems = [
            f"case when {identifier(MISFIT_PREFIX + name)} then {self._misfit_message(name, self.text(name))} end"
            for name in names
            if self._columns[name].misfit is not None
        ]
        return f"coalesce({', '.join(problems)})" if problems else None

    def check_fits(self, names: Iterable[str], where: KeyPath) -> None:
        """DataError at `where` if a value of these columns does not fit its column's type in the sink."""
        for name in sorted(names):
            column = self._columns[name]
            if column.misfit is not None:
                message = self._misfit_message(name, column.text or column.value)
                query = f"select {message} from {self._relation} where {column.misfit} limit 1"
                if (found := self._db.execute(query).fetchone()) is not None:
                    raise DataError(
                        where, str(found[0]), "fix the value, or let the type change (run --schema-change cast)"
                    )

    def check_readable(self, names: Iterable[str]) -> None:
        """DataError for a column whose values would be read with other digits."""
        for name in names:
            if (refusal := self._columns[name].refusal) is not None:
                raise DataError(("source",), *refusal)

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
        if parquet := [file for file in files if file.suffix.lower() == ".parquet"]:
            # It also converts statistics, which may be of moments that DuckDB lacks.
            with contextlib.suppress(duckdb.ConversionException):
                # Repetitive text is compressed by a factor of a hundred.
                names = literal_list(map(literal_path, parquet))
                metadata = f"parquet_metadata({names})"
                sizes = "sum(total_uncompressed_size), max(total_uncompressed_size)"
                ((plain, largest),) = self._db.execute(f"select {sizes} from {metadata}").fetchall()
                nbytes = max(nbytes, int(plain or 0))
                files_of_others = (
                    f"parquet_file_metadata({names}) where not regexp_matches(created_by, '{SMALL_PAGE_WRITERS}')"
                )
                ((others,),) = self._db.execute(f"select count(*) from {files_of_others}").fetchall()
                self._page = int(largest or 0) if others else min(int(largest or 0), 1 << 20)
        ((rows,),) = self._db.execute(f"select count(*) from {self._relation}").fetchall()
        self._count = int(rows)
        return nbytes / max(1, int(rows))

    def _memory(self, remote: bool) -> int:
        """Return DuckDB's memory limit. A larger join spills to disk, but a spilled join also needs memory.

        Measured with keys of 16 and 62 characters: 1 million rows join in 32 and 40 MB, 3 million in 48 and 80 MB,
        10 million in 128 MB.
        """
        if remote or self.row_bytes > WIDE_ROW_BYTES:
            return MAX_MEMORY_BYTES
        needed = 20_000_000 + 24 * self._count + 256_000 * len(self._columns) + 3 * self._page
        return min(MAX_MEMORY_BYTES, max(MIN_MEMORY_BYTES, int(needed + 8 * VECTOR_ROWS * self.row_bytes)))

    def _described(self) -> dict[str, SourceColumn]:
        """Return the columns of the relation, without reading a row."""
        found = self._db.sql(f"select * from {self._relation}")
        return {
            name: SourceColumn(identifier(name), str(kind))
            for name, kind in zip(found.columns, found.types, strict=True)
        }

    def _check_names(self) -> None:
        for name in self._columns:
            if not name or "\0" in name:
                raise DataError(
                    ("source",), f"has a column {name!r}, which cannot be a name", "rename it in a `sql:` source"
                )

    def _cast_null_columns(self, known: Mapping[str, str]) -> None:
        """Give columns without any value their known types."""
        other = [name for name, kind in known.items() if name in self._columns and self._columns[name].kind != kind]
        if not other:
            return
        nulls = ", ".join(f"cast(null as {kind})" for name in other for kind in (self._columns[name].kind, known[name]))
        kinds = self._db.sql(f"select {nulls}").types
        tests: list[str] = []
        for name, kind in zip(other, kinds[::2], strict=True):
            column = self._columns[name]
            value = column.value if _is_nested(column.kind) else column.text or column.value
            tests += (f"count({value})", f"count(*) filter ({has_value(kind, value)})")
        (found,) = self._db.execute(f"select {', '.join(tests)} from {self._relation}").fetchall()
        for index, name in enumerate(other):
            not_null, with_values = found[2 * index : 2 * index + 2]
            if not not_null:
                self._columns[name] = SourceColumn(f"cast(null as {known[name]})", known[name])
            elif not with_values and shape(kinds[2 * index]) == shape(kinds[2 * index + 1]):
                # Empty lists, and lists and structs of nulls, stay what they are.
                self._columns[name] = SourceColumn(f"cast({self._columns[name].value} as {known[name]})", known[name])

    def _fit_nanoseconds(self, known: Mapping[str, str]) -> None:
        """Read moments with microseconds if that changes none, or if the sink has such a column."""
        nano = [name for name, column in self._columns.items() if "TIMESTAMP_NS" in column.kind]
        if not nano:
            return
        short = {name: self._columns[name].kind.replace("TIMESTAMP_NS", "TIMESTAMP") for name in nano}
        changes = {}
        for name in nano:
            column = self._columns[name]
            value = column.value
            changes[name] = f"cast(cast({value} as {short[name]}) as {column.kind}) is distinct from {value}"
            if not _is_nested(column.kind):
                # The greatest nanoseconds are DuckDB's infinity; as microseconds they would be another year.
                changes[name] += f" or isinf({value})"
        tests = ", ".join(f"coalesce(bool_or({change}), false)" for change in changes.values())
        try:
            (are_changed,) = self._db.execute(f"select {tests} from {self._relation}").fetchall()
        except duckdb.Error as exc:
            raise DataError(("source",), first_line(exc), "fix the data") from exc
        for name, is_changed in zip(nano, are_changed, strict=True):
            column = self._columns[name]
            if is_changed and known.get(name) != short[name]:
                continue
            text = None if _is_nested(column.kind) else f"cast({column.value} as VARCHAR)"
            self._columns[name] = replace(
                column,
                value=f"cast({column.value} as {short[name]})",
                kind=short[name],
                text=text if is_changed else None,
                misfit=changes[name] if is_changed else None,
            )

    def _arrow_schema(self) -> pa.Schema:
        kinds = list(dict.fromkeys(column.kind for column in self._columns.values()))
        # Without the rows: thousands of columns would take a buffer each.
        nulls = (f"cast(null as {kind}) as {identifier(str(index))}" for index, kind in enumerate(kinds))
        self._plain_kinds = {
            kind: arrow_type(found)
            for kind, found in zip(kinds, self._db.sql(f"select {', '.join(nulls)}").types, strict=True)
        }
        plain = ", ".join(
            f"cast(null as {kind}) as {identifier(str(index))}" for index, kind in enumerate(self._plain_kinds.values())
        )
        found = self._db.sql(f"select {plain} limit 0").to_arrow_table().schema
        types = {kind: plain_type(found.field(index).type) for index, kind in enumerate(kinds)}
        return pa.schema([pa.field(name, types[column.kind]) for name, column in self._columns.items()])

    def _check(self) -> None:
        for name in self.key:
            if name not in self.schema.names:
                raise JobError(
                    ("source", "key"), f"no column {name} in the source", did_you_mean(name, self.schema.names)
                )
            if pa.types.is_nested(self.schema.field(name).type):
                raise JobError(
                    ("source", "key"),
                    f"{name} holds lists or structs, which cannot identify a row",
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
            kinds = {name: column.kind for name, column in self._columns.items()}
            where = ("source", "where")
            self._where_columns = predicate_columns(self._source.where, kinds, where, allows_clock=True)
            self.check_readable(self._where_columns)
            try:
                self._db.execute(f"select 1 from {self.chosen(())} limit 0").fetchall()
            except duckdb.Error as exc:
                raise JobError(where, first_line(exc), "fix the expression") from exc
            self.check_fits(self._where_columns, where)
        self.check_fits(self.key, ("source", "key"))

    def _misfit_message(self, name: str, text: str) -> str:
        """SQL of the reason why a value with this text (SQL) does not fit."""
        kind = self._columns[name].kind
        return (
            f"{literal(f'{name}: ')} || left(cast({text} as VARCHAR), {MAX_SHOWN_CHARACTERS}) || "
            f"{literal(f' does not fit {kind}, the type of the column in the sink')}"
        )

    def _text_of_value(self, name: str) -> str:
        kind = self._columns[name].kind
        if kind == "BLOB":
            return f"md5({identifier(name)})"
        if kind.endswith("]") or kind.startswith(_NESTED):
            return f"cast(to_json({self.column(name)}) as VARCHAR)"
        return f"cast({identifier(name)} as VARCHAR)"


def _is_nested(kind: str) -> bool:
    return kind.endswith("]") or kind.startswith(_NESTED)
