"""The rows of a job, told apart by what its sink holds: new, changed, done, or failed before.

Fingerprints and comparison are SQL, so that no value of a row that is done reaches Python.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from connectors.contracts import Sink
from connectors.errors import DataError, JobError, did_you_mean
from connectors.records import ROW_ERROR_CLASSES
from connectors.sql import ROW_GROUP_ROWS, first_line, literal, literal_list, query_connection, quoted, quoted_list
from connectors.tables.schemas import failure_names
from pipelines.preparation.source_reader import ROW_KEY, SourceReader

CHUNK_BYTES = 4 << 20
"""A batch with more than this is handed on in pieces."""

LARGE_VALUE_CHARACTERS = 65_536
"""Characters: of a longer value the digest stands in the row's fingerprint."""

MARK_BATCH_PATHS = 10_000
"""Paths whose files are looked at together."""

_STATUSES = ("new", "changed", "done", "failed")
_TABLES = ("seen", "failed")


@dataclass(frozen=True, slots=True)
class RowCounts:
    """How many of the selected rows there are, and how they stand."""

    rows: int
    new: int
    changed: int
    done: int
    failed_before: int
    """Failed for a reason of their own and unchanged since: not asked again but by `retry`."""


def select_rows(
    reader: SourceReader,
    used: Iterable[str],
    columns: Sequence[str] | Literal["all"],
    digest: bytes,
    files: Iterable[str],
    appending: bool,
) -> "RowSelection":
    """The rows with the columns that the job needs. `used`: of the steps; `columns`: carried over; `digest`: of the
    steps; `files`: used columns that name files; `appending`: a key that is there is done, whatever it holds."""
    names = reader.schema.names
    carried = [name for name in names if name not in reader.key] if columns == "all" else list(columns)
    for name in carried:
        if name not in names:
            raise JobError(("sink", "columns"), f"no column {name} in the source", f"{did_you_mean(name, names)}")
    carried = [name for name in dict.fromkeys(carried) if name not in reader.key]
    marked = sorted(name for name in set(files) if not pa.types.is_binary(reader.schema.field(name).type))
    return RowSelection(reader, sorted(set(used)), carried, digest, marked, appending)


@dataclass(slots=True)
class RowSelection:
    """The rows of one job, told apart by what its sink holds already."""

    reader: SourceReader
    used: Sequence[str]
    carried: Sequence[str]
    digest: bytes
    files: Sequence[str]
    appending: bool
    rejects_there: int = 0
    """Lines that were no rows, in the sink's errors."""
    _seen: bool = False
    _there: int = 0
    """Rows of the sink's results and errors."""
    _open: int | None = None
    """Rows that are not done, kept in a file: so the second pass need not compare all of them again; None: not kept."""
    _parts: list[str] = field(default_factory=list)
    """The parts of the sink's results: rows there name theirs by its place (from 1), since a name takes more memory."""
    _marks: list[str] = field(default_factory=list)

    @property
    def key_schema(self) -> pa.Schema:
        """The key's columns as the tables have them."""
        if not self.reader.key:
            return pa.schema([pa.field(ROW_KEY, pa.string())])
        return pa.schema([self.reader.schema.field(name) for name in self.reader.key])

    @property
    def carried_schema(self) -> pa.Schema:
        """The columns carried over."""
        return pa.schema([self.reader.schema.field(name) for name in self.carried])

    def check_keys(self) -> None:
        """DataError where a selected row's key is null or stands twice."""
        key = self.reader.key
        if not key:
            return
        db, names = self.reader.cursor(), quoted_list(key)
        nulls = " or ".join(f"{quoted(name)} is null" for name in key)
        # As the tables will have them: of moments, microseconds.
        written = ", ".join(f"{self.reader.column(name)} as {quoted(name)}" for name in key)
        chosen = f"(select {written} from {self.reader.chosen()})"
        try:
            counted = db.execute(
                f"select count(*) filter ({nulls}), count(*), count(distinct {key_text(key)}) from {chosen}"
            ).fetchone()
        except duckdb.Error as exc:
            raise DataError(
                ("source",), f"{first_line(exc)}", "mend the data, or leave the row out by `where`"
            ) from exc
        assert counted is not None
        if counted[0]:
            raise DataError(
                ("source", "key"),
                f"{', '.join(key)} is null in {counted[0]:,} rows",
                f"fill it in, or leave them out by where: {key[0]} is not null",
            )
        if counted[1] != counted[2]:
            twice = db.execute(
                f"select {key_text(key)}, count(*) from {chosen} group by {names} having count(*) > 1 "
                "order by 2 desc, 1 limit 1"
            ).fetchone()
            assert twice is not None
            raise DataError(
                ("source", "key"),
                f"{', '.join(key)} is not unique: {twice[0]} stands {twice[1]} times ({counted[1] - counted[2]:,} "
                "rows too many)",
                "add a column to the key, or leave the key out",
            )

    def load_sink_state(self, sink: Sink | None) -> None:
        """Look at what the sink holds; None: as if it held nothing."""
        self._seen, self._there, self._open = sink is not None, 0, None
        if sink is None:
            return
        names = self.key_schema.names
        failure = failure_names(names)
        with query_connection(self.reader.scratch) as db:
            sink.attach(db)
            found = db.execute(f"select distinct _part from {sink.results_sql()} order by 1").fetchall()
            # A list without texts would have no type.
            self._parts = [str(part) for (part,) in found] or [""]
            parts = literal_list(self._parts)
            for target, source, extra in (
                (
                    "seen",
                    sink.results_sql(),
                    f"{_short('_row_fingerprint')} as _fp, list_position({parts}, _part) as _part",
                ),
                (
                    "failed",
                    sink.errors_sql(),
                    f"{_short(quoted(failure['fingerprint']))} as _fp, {quoted(failure['error_class'])} as _class",
                ),
            ):
                copied = db.execute(
                    f"copy (select {quoted_list(names)}, {key_text(names)} as _key, {extra} from {source} "
                    f"where {quoted(names[0])} is not null) to {self._kept(target)}"
                ).fetchone()
                self._there += int(copied[0]) if copied else 0
            nulls = " and ".join(f"{quoted(name)} is null" for name in names)
            counted = db.execute(f"select count(*) from {sink.errors_sql()} where {nulls}").fetchone()
            self.rejects_there = int(counted[0]) if counted else 0
            sink.detach(db)

    def counts(self, retried: frozenset[str] = frozenset()) -> RowCounts:
        """One pass over the rows; those that are `retried` do not count as failed before."""
        tests = {name: f"_status = {literal(name)}" for name in _STATUSES}
        tests["failed"] += f" and not {_is_one_of('_class', retried)}"
        counting = ", ".join(f"count(*) filter ({test})" for test in tests.values())
        standing, db = self._standing([]), self.reader.cursor()
        try:
            if self._there:
                kept = "if(_status = 'done', null, _key) as _key, _part, _in_errors, _class, _status"
                db.execute(f"copy (select {kept} from {standing}) to {self._kept('standing')}")
                standing = self._there_as("standing")
            row = db.execute(f"select count(*), {counting} from {standing}").fetchone()
        except duckdb.OutOfMemoryException as exc:
            raise DataError(
                ("source",),
                f"{first_line(exc)}",
                f"its rows take {self.reader.row_bytes / 1000000.0:.1f} MB each: write the file again with fewer "
                "rows in a row group",
            ) from exc
        assert row is not None
        counts = RowCounts(*row)
        self._open = counts.rows - counts.done if self._there else None
        return counts

    def batches(self, rows: int, retried: frozenset[str]) -> Iterator[pa.RecordBatch]:
        """The rows to be asked, at most so many together: key, used and carried columns, `_key` (text), `_part` (of the
        old result, or null), `_in_errors`, `_row_fingerprint`. `retried`: own error classes that are asked again."""
        wanted = f"_status in ('new', 'changed') or (_status = 'failed' and {_is_one_of('_class', retried)})"
        columns = self._columns()
        # The smaller table of the two is held while the rows are read: of a million rows with 100,000 to be asked 10 MB
        # in place of 50; and where nothing is, the source is not read again.
        told = self._standing(columns) if self._open is None or self._open > self._there else self._noted(columns)
        yield from self._read(f"{self._with_part} from {told} where {wanted}", rows)

    def lookup(self, key: str) -> pa.Table | None:
        """The row with this key's text, as `batches` has it; None where there is none."""
        query = f"{self._with_part} from {self._standing(self._columns())} where _key = {literal(key)}"
        found = list(self._read(query, 2))
        return pa.Table.from_batches(found[:1]) if found else None

    def deleted_keys(self) -> pa.Table:
        """The keys in the sink's results or errors that no selected row has."""
        names = quoted_list(self.key_schema.names)
        there = " union ".join(f"select {names}, _key from {self._there_as(table)}" for table in _TABLES)
        return self._keys(f"select {names} from ({there}) anti join {self._keyed([])} using (_key)")

    def count_deleted(self) -> int:
        """How many rows of the sink's results have a key that no selected row has."""
        query = f"select count(*) from {self._there_as('seen')} anti join {self._keyed([])} using (_key)"
        ((count,),) = self.reader.cursor().execute(query).fetchall()
        return int(count)

    def resolved_errors(self) -> pa.Table:
        """The keys in the errors table whose row has its result."""
        names = quoted_list(self.key_schema.names)
        done = f"select _key from {self._standing([])} where _status = 'done'"
        return self._keys(f"select {names} from {self._there_as('failed')} semi join ({done}) using (_key)")

    def _keys(self, query: str) -> pa.Table:
        if not self._seen:
            return self.key_schema.empty_table()
        return self.reader.cursor().sql(query).to_arrow_table().cast(self.key_schema)

    def _columns(self) -> list[str]:
        return list(dict.fromkeys([*self.reader.key, *self.used, *self.carried]))

    def _read(self, query: str, rows: int) -> Iterator[pa.RecordBatch]:
        try:
            fitting = max(1, int(CHUNK_BYTES / max(1.0, self.reader.row_bytes)))
            found = self.reader.stream(query, min(rows, fitting))
            fields = {field.name: field for field in self.reader.schema}
            schema = pa.schema([fields.get(field.name, field) for field in found.schema])
            for batch in found:
                whole = pa.Table.from_batches([batch]).cast(schema)
                pieces = max(1, -(-whole.nbytes // CHUNK_BYTES))
                step = max(1, -(-whole.num_rows // pieces))
                for start in range(0, whole.num_rows, step):
                    yield from whole.slice(start, step).combine_chunks().to_batches()
        except duckdb.Error as exc:
            raise DataError(
                ("source",), f"{first_line(exc)}", "mend the data, or leave the row out by `where`"
            ) from exc

    def _keyed(self, columns: Sequence[str]) -> str:
        """The rows with `_key` and, in place of the used columns, what is asked for."""
        reader = self.reader
        made = "".join(f"{reader.column(name)} as {quoted(name)}, " for name in columns)
        parts = ", ".join(self._told(name) for name in sorted({*self.used, *self.carried}))
        constant = literal(self.digest.hex() + json.dumps([sorted(self.used), list(self.carried)]))
        if reader.key:
            key, source = key_text(reader.key), reader.chosen()
        else:
            content = ", ".join(_told(reader.text(name)) for name in reader.schema.names)
            key = "_row_content || '-' || row_number() over (partition by _row_content)"
            source = f"(select *, md5(concat({content})) as _row_content from {reader.chosen()})"
            made = f"{key} as {quoted(ROW_KEY)}, {made}"
        marks = "".join(
            f" left join read_parquet({literal(self._mark_table(name))}) as {quoted('_marks_' + name)} "
            f"on {quoted('_marks_' + name)}._path = {reader.text(name)}"
            for name in self.files
        )
        fingerprint = f"md5(concat({', '.join(filter(None, (constant, parts)))}))"
        inner = f"select {made}{key} as _key, {fingerprint} as _row_fingerprint from {source}{marks}"
        return f"({inner})"

    def _told(self, name: str) -> str:
        text = _told(self.reader.text(name))
        if name not in self.files:
            return text
        self._mark(name)
        return f"{text}, coalesce({quoted('_marks_' + name)}._mark, '')"

    def _standing(self, columns: Sequence[str]) -> str:
        """The rows with `_status`, `_class`, `_part` (its place) and `_in_errors` beside them."""
        keyed = self._keyed(columns)
        if not self._seen:
            none = "cast(null as INTEGER) as _part, false as _in_errors, cast(null as VARCHAR) as _class"
            return f"(select *, {none}, 'new' as _status from {keyed})"
        done = "s._key is not null" if self.appending else f"s._fp = {_short('r._row_fingerprint')}"
        own_error = _is_one_of("f._class", ROW_ERROR_CLASSES)
        return (
            "(select r.*, s._part as _part, f._key is not null as _in_errors, f._class as _class, "
            f"case when {done} then 'done' "
            f"when f._fp = {_short('r._row_fingerprint')} and {own_error} then 'failed' "
            "when s._key is null then 'new' else 'changed' end as _status "
            f"from {keyed} r left join {self._there_as('seen')} s on s._key = r._key "
            f"left join {self._there_as('failed')} f on f._key = r._key)"
        )

    def _noted(self, columns: Sequence[str]) -> str:
        """The same of the rows that are not done, as `counts` has told them apart."""
        noted = f"(select * from {self._there_as('standing')} where _key is not null)"
        return f"(select * from {self._keyed(columns)} r join {noted} using (_key))"

    @property
    def _with_part(self) -> str:
        return f"select * exclude (_status, _class) replace ({literal_list(self._parts or [''])}[_part] as _part)"

    def _there_as(self, name: str) -> str:
        return f"read_parquet({literal(self._table(name))})"

    def _kept(self, name: str) -> str:
        # In small row groups: each is held while it is read.
        return f"{literal(self._table(name))} (format parquet, row_group_size {ROW_GROUP_ROWS})"

    def _table(self, name: str) -> Path:
        return self.reader.scratch / f"{name}.parquet"

    # Files that rows name: their size and time are part of the row's fingerprint.

    def _mark_table(self, name: str) -> Path:
        return self.reader.scratch / f"marks-{hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()}.parquet"

    def _mark(self, name: str) -> None:
        if name in self._marks:
            return
        self._marks.append(name)
        schema = pa.schema([("_path", pa.string()), ("_mark", pa.string())])
        path, chosen = self.reader.text(name), self.reader.chosen()
        query = f"select distinct {path} as p from {chosen} where {quoted(name)} is not null"
        with pq.ParquetWriter(self._mark_table(name), schema) as writer:
            for batch in self.reader.stream(query, MARK_BATCH_PATHS):
                paths = batch.column(0).to_pylist()
                marks = [file_mark(path, self.reader.workspace) for path in paths]
                writer.write_table(pa.table([paths, marks], schema=schema))


def file_mark(text: str, workspace: Path) -> str:
    """Size and time of the file that a value names (of each, where it is a JSON list); empty where there is none."""
    if text.startswith("["):
        try:
            named = json.loads(text)
        except ValueError:
            named = [text]
        return " ".join(file_mark(path, workspace) for path in named if isinstance(path, str))
    try:
        found = os.stat(workspace / text)  # noqa: PTH116 - never raises for the text alone
    except (OSError, ValueError):
        return ""
    return f"{found.st_size}@{found.st_mtime_ns}"


def key_text(names: Sequence[str]) -> str:
    """A key as text: one column's value, or the JSON array of several."""
    if len(names) == 1:
        return f"cast({quoted(names[0])} as VARCHAR)"
    return f"cast(json_array({quoted_list(names)}) as VARCHAR)"


def _is_one_of(column: str, values: Iterable[str]) -> str:
    listed = ", ".join(literal(value) for value in sorted(values))
    return f"{column} in ({listed})" if listed else "false"


def _short(fingerprint: str) -> str:
    """The first 8 bytes of a fingerprint in hex, as a number: enough to compare two of one row."""
    return f"cast('0x' || left({fingerprint}, 16) as UBIGINT)"


def _told(text: str) -> str:
    """With its length before it, so that no two lists of values make the same text; null apart from empty."""
    # Two arguments of `concat`, which leaves out nulls: put together before, or as it is, a large text would be copied.
    content = f"case when length({text}) > {LARGE_VALUE_CHARACTERS} then md5({text}) else {text} end"
    return f"coalesce(cast(length({text}) as VARCHAR) || ':', 'n'), {content}"
