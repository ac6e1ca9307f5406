"""Row selection: compares the source with the sink and finds new, changed, done and failed rows.

Fingerprints and comparison are SQL, so that values of finished rows never reach Python.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Literal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct, field

from connectors.contracts import Sink
from connectors.error_classes import ROW_ERROR_CLASSES
from connectors.errors import DataError, JobError, did_you_mean
from connectors.records import (
    FAILED_CLASS,
    FAILED_STEP,
    KEPT_CHILDREN_PREFIX,
    KEPT_PREFIX,
    KEPT_ROW,
    ROW_PROBLEM,
    TEXT_PREFIX,
)
from connectors.sql import (
    SCRATCH_ROW_GROUP_ROWS,
    first_line,
    identifier,
    identifier_list,
    key_text,
    literal,
    literal_list,
    scratch_connection,
)
from connectors.tables.schemas import failure_names
from pipelines.formatting import format_count
from pipelines.preparation.child_outputs import store_lists
from pipelines.preparation.row_fingerprints import (
    RowFingerprints,
    content_digest,
    digest_number,
    fingerprint_number,
    quality_number,
    stored_fingerprint,
    swapped_bytes,
)
from pipelines.preparation.source_reader import ROW_KEY, SourceReader

CHUNK_BYTES = 4 << 20
"""A larger batch is yielded in pieces."""

CONTENT_KEY_PREFIX = "r"
"""Of the key of a job without one; earlier versions wrote a digest that depended on the order of columns."""

ROWS_PER_JOIN = 1_000_000
"""About so many rows of a Parquet source are joined with the sink's at a time: larger joins spill to disk."""

_STATUSES = ("new", "changed", "done", "failed")
_TABLES = ("seen", "failed")


class RowCounts(Struct, frozen=True):
    """Selected rows by state."""

    rows: int
    new: int
    changed: int
    done: int
    failed_before: int
    """Failed for a reason of their own and unchanged since: only `retry` requests them again."""
    rescued: int = 0
    """Failed for a reason of their own and unchanged since, and a rung may request them again."""


def select_rows(
    reader: SourceReader,
    used: Iterable[str],
    columns: Sequence[str] | Literal["all"],
    digest: bytes,
    files: Iterable[str],
    appending: bool,
    every_column: Sequence[str] | None = None,
    quality: bytes | None = None,
    checked: Iterable[str] = (),
    kept_outputs: Sequence[str] = (),
    child_index: str | None = None,
    child_outputs: Iterable[str] = (),
) -> "RowSelection":
    """Select the rows of an open source.

    `used`: columns that steps read; `columns`: columns carried over to the results; `digest`: of the steps' settings;
    `files`: used columns that name files; `appending`: a key in the sink is done, whatever its values.
    `every_column`: all columns in the order of the results; None: in that of the source. `quality`: digest of checks
    and evidence; `checked`: the columns that these read; `kept_outputs`: columns of the results that other checks than
    those of the last run may accept. `child_index`: see TableShape; `child_outputs`: those of `kept_outputs` that the
    children of a source row differ in.
    """
    used, names = sorted(set(used)), reader.schema.names
    every = [name for name in every_column or names if name not in reader.key]
    carried = every if columns == "all" else list(columns)
    for name in carried:
        if name not in names:
            raise JobError(("sink", "columns"), f"no column {name} in the source", did_you_mean(name, names))
    carried = [name for name in dict.fromkeys(carried) if name not in reader.key]
    others = sorted(set(checked).difference(used, carried))
    reader.check_readable(sorted({*used, *carried, *others, *reader.key}))
    marked = sorted(name for name in set(files) if not pa.types.is_binary(reader.schema.field(name).type))
    fingerprints = RowFingerprints(reader, used, carried, digest, marked, quality, others)
    return RowSelection(reader, fingerprints, appending, kept_outputs, child_index, frozenset(child_outputs))


class RowSelection(Struct):
    """The rows of one job, by their state in the sink."""

    reader: SourceReader
    fingerprints: RowFingerprints
    appending: bool
    """Whether a key in the sink is done, whatever its values."""
    kept_outputs: Sequence[str] = ()
    """Columns of the results that other checks than those of the last run may accept."""
    child_index: str | None = None
    """The column of the sink's results that numbers the children of a source row; None: a source row is one result."""
    child_outputs: frozenset[str] = frozenset()
    """Those of `kept_outputs` that the children of a source row differ in."""
    rejects_there: int = 0
    """Rejected lines in the sink's errors table."""
    rejected_before: Counter[str] = field(default_factory=Counter)
    """The text of the rejected lines in the sink's errors table, with their number."""
    rescued: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Step -> the error classes whose rows are requested again by a rung that may be new to them."""
    failed_before: frozenset[tuple[str, str]] = frozenset()
    """(key, row fingerprint) of the errors that `write: replace` is about to write again; empty for other jobs."""
    is_restricted: bool = False
    """Whether only rows with given keys are processed."""
    _has_whole_number_key: bool = False
    """Whether the key is one whole number, with the same type in the sink: rows are joined by it, not by its text."""
    _ranges: Sequence[str] | None = None
    """See `_key_ranges`; None: not determined yet."""
    _is_sink_loaded: bool = False
    _sink_rows: int = 0
    """Rows in the sink's results and errors."""
    _failed_rows: int = 0
    """Rows in the sink's errors."""
    _unfinished: int | None = None
    """Unfinished rows, stored in a file so that the second pass compares nothing again; None: not stored."""
    _earlier_texts: Sequence[Mapping[str, str]] = ()
    """What fingerprints of earlier versions in the sink may cover: column -> SQL; empty: there are none."""
    _has_old_content_keys: bool = False
    """Whether the sink has rows of a job without a key by the digest of earlier versions."""
    _kept: Sequence[str] = ()
    """The columns of the outputs that are stored, because rows of the sink were accepted by other checks."""
    _kept_per_row: int = 1
    """Stored results of a row, on average."""
    _parts: list[str] = field(default_factory=list)
    """The parts of the sink's results. Rows refer to a part by its position (from 1), which takes less memory."""

    @property
    def read(self) -> Sequence[str]:
        """The columns that steps, checks and evidence read."""
        return [*self.fingerprints.used, *self.fingerprints.checked]

    @property
    def carried(self) -> Sequence[str]:
        """The columns carried over to the results."""
        return self.fingerprints.carried

    @property
    def key_schema(self) -> pa.Schema:
        """The key's columns with the types of the tables."""
        if not self.reader.key:
            return pa.schema([pa.field(ROW_KEY, pa.string())])
        return pa.schema([self.reader.schema.field(name) for name in self.reader.key])

    @property
    def carried_schema(self) -> pa.Schema:
        """The columns carried over."""
        return pa.schema([self.reader.schema.field(name) for name in self.carried])

    def check_keys(self) -> None:
        """Raise DataError if a selected row's key is null or occurs twice."""
        key = self.reader.key
        if not key:
            return
        db, names = self.reader.cursor(), identifier_list(key)
        nulls = " or ".join(f"{identifier(name)} is null" for name in key)
        # With the types of the tables: timestamps have microseconds.
        written = ", ".join(f"{self.reader.column(name)} as {identifier(name)}" for name in key)
        chosen = f"(select {written} from {self.reader.chosen(key)})"
        try:
            counted = db.execute(f"select count(*) filter ({nulls}), count(*) from {chosen}").fetchone()
            assert counted is not None
            distinct = 0
            # For many numbers DuckDB needs more memory than for texts, of which it spills.
            value = names if len(self._key_ranges) > 1 else key_text(key)
            for condition in self._key_ranges:
                query = f"select count(distinct {value}) from (select * from {chosen} where {condition})"
                ((found,),) = db.execute(query).fetchall()
                distinct += int(found)
        except duckdb.Error as exc:
            raise DataError(("source",), first_line(exc), "fix the data, or exclude the row with `where`") from exc
        if counted[0]:
            raise DataError(
                ("source", "key"),
                f"{', '.join(key)} is null in {format_count(counted[0], 'row')}",
                f"fill it in, or leave them out by where: {key[0]} is not null",
            )
        if counted[1] != distinct:
            twice = db.execute(
                f"select {key_text(key)}, count(*) from {chosen} group by {names} having count(*) > 1 "
                "order by 2 desc, 1 limit 1"
            ).fetchone()
            assert twice is not None
            raise DataError(
                ("source", "key"),
                f"{', '.join(key)} is not unique: {twice[0]} occurs {twice[1]} times "
                f"({format_count(counted[1] - distinct, 'row')} too many)",
                "add a column to the key, or leave the key out",
            )

    def restrict(self, keys: Iterable[str]) -> None:
        """Process only the rows with these keys (as text)."""
        pq.write_table(pa.table({"_key": pa.array(keys, pa.string())}), self._stored_path("restricted"))
        self.is_restricted = True

    def query(self, sql: str, columns: Sequence[str]) -> pa.Table:
        """Run a query over `rows`: `_key` (text) and these columns of every row of the source.

        Texts of values in the file are in columns with TEXT_PREFIX. DataError if a value breaks the query.
        """
        reader = self.reader
        made = "".join(f"{reader.column(name)} as {identifier(name)}, " for name in columns)
        made += "".join(f"{identifier(TEXT_PREFIX + name)}, " for name in columns if reader.has_text(name))
        if reader.key:
            key, source = key_text(reader.key, reader.column), reader.chosen([*reader.key, *columns])
        else:
            key, source = "_row_identity", self._with_content_key_sql()
        try:
            rows = f"(select {made}{key} as _key from {source})"
            return reader.cursor().sql(f"with rows as {rows} {sql}").to_arrow_table()
        except duckdb.Error as exc:
            raise DataError(("source",), first_line(exc), "fix the data, or exclude the row with `where`") from exc

    def load_sink_state(
        self, sink: Sink | None, childless: Iterable[tuple[str, str]] = (), keeps_outputs: bool = False
    ) -> None:
        """Load the keys, fingerprints and errors of the sink; None: treat it as empty.

        `childless`: (key as text, row fingerprint) of the rows that are done although the sink has no row of them.
        `keeps_outputs`: other checks may still accept the outputs that were loaded before.
        """
        self._is_sink_loaded, self._sink_rows, self._failed_rows, self._unfinished = sink is not None, 0, 0, None
        self._has_whole_number_key = False
        self._has_old_content_keys = False
        self._earlier_texts = ()
        if not keeps_outputs:
            self._kept, self._kept_per_row = (), 1
        if sink is None:
            return
        with scratch_connection(self.reader.scratch) as db:
            sink.attach(db)
            self._store_sink_rows(db, sink)
            if self.child_index is not None:
                self._sink_rows += self._store_childless(childless)
            nulls = " and ".join(f"{identifier(name)} is null" for name in self.key_schema.names)
            counted = db.execute(f"select count(*) from {sink.errors_sql()} where {nulls}").fetchone()
            self.rejects_there = int(counted[0]) if counted else 0
            self._store_kept(db, sink)
            sink.detach(db)
            self._find_earlier_fingerprints(db)

    def _store_sink_rows(self, db: duckdb.DuckDBPyConnection, sink: Sink) -> None:
        """Store keys and fingerprints of the sink's results and errors in files."""
        names = self.key_schema.names
        failure = failure_names(names)
        found = db.execute(f"select distinct _part from {sink.results_sql()} order by 1").fetchall()
        # An empty list would have no type.
        self._parts = [str(part) for (part,) in found] or [""]
        parts = literal_list(self._parts)
        numbers_of = partial(stored_fingerprint, is_versioned=self.fingerprints.is_versioned)
        self._has_whole_number_key = self._is_whole_number_key(db.sql(f"from {sink.results_sql()} limit 0"))
        seen = f"{numbers_of('_row_fingerprint')}, list_position({parts}, _part) as _part"
        failed = (
            f"{numbers_of(identifier(failure['fingerprint']))}, "
            f"{identifier(failure['error_class'])} as _class, {identifier(failure['step'])} as _row_step"
        )
        for target, source, extra in (("seen", sink.results_sql(), seen), ("failed", sink.errors_sql(), failed)):
            key = "" if target == "seen" and self._has_whole_number_key else f"{key_text(names)} as _key, "
            rows = (
                f"select {identifier_list(names)}, {key}{extra} from {source} where {identifier(names[0])} is not null"
            )
            if self.child_index is not None:
                rows = _by_source_row(rows, names, target)
            copied = db.execute(f"copy ({rows}) to {self._copy_target_sql(target)}").fetchone()
            self._failed_rows = int(copied[0]) if copied else 0
            self._sink_rows += self._failed_rows

    def _find_earlier_fingerprints(self, db: duckdb.DuckDBPyConnection) -> None:
        """Find out whether the sink has keys or fingerprints that earlier versions wrote."""
        if not self.reader.key:
            stored = " union all ".join(f"select _key from {self._stored_table_sql(table)}" for table in _TABLES)
            old = f"select 1 from ({stored}) where not starts_with(_key, {literal(CONTENT_KEY_PREFIX)}) limit 1"
            self._has_old_content_keys = bool(db.execute(old).fetchall())
        every = self.reader.schema.names
        names = every if self._has_old_content_keys else [*self.fingerprints.used, *self.carried]
        earlier = " union all ".join(f"select _is_earlier from {self._stored_table_sql(name)}" for name in _TABLES)
        if self.fingerprints.is_versioned and db.execute(f"from ({earlier}) where _is_earlier limit 1").fetchall():
            self._earlier_texts = self.reader.earlier_texts(dict.fromkeys(names))

    def _is_whole_number_key(self, results: duckdb.DuckDBPyRelation) -> bool:
        """Whether the key is one whole number with the same type in the source as in the sink's results."""
        if len(self.reader.key) != 1 or self.child_index is not None:
            return False
        field = self.reader.schema.field(self.reader.key[0])
        stored = results.to_arrow_table().schema
        return bool(pa.types.is_integer(field.type)) and stored.field(field.name).type == field.type

    def _store_childless(self, rows: Iterable[tuple[str, str]]) -> int:
        """Store the rows that are done without any result; return their number."""
        schema = pa.schema([("_key", pa.string()), ("_row_fingerprint", pa.string())])
        count, stored = 0, iter(rows)
        with pq.ParquetWriter(self._stored_path("childless"), schema) as writer:
            while chunk := list(islice(stored, SCRATCH_ROW_GROUP_ROWS)):
                writer.write_table(pa.table(list(zip(*chunk, strict=True)), schema=schema))
                count += len(chunk)
        return count

    def _store_kept(self, db: duckdb.DuckDBPyConnection, sink: Sink) -> None:
        """Store the outputs of the sink's rows if other checks have accepted some of them."""
        there = db.sql(f"select * from {sink.results_sql()} limit 0").columns
        outputs = [name for name in self.kept_outputs if name in there]
        has_children = self.child_index is None or self.child_index in there
        if not outputs or self.appending or not has_children:
            return
        if not self.fingerprints.checked:
            current = (
                "0"
                if self.fingerprints.quality is None
                else f"cast('0x' || {self.fingerprints.quality_sql(identifier)} as UBIGINT)"
            )
            differs = f"select 1 from {self._stored_table_sql('seen')} where _quality <> {current} limit 1"
            if not db.execute(differs).fetchall():
                return
        names = {name: KEPT_PREFIX + name for name in outputs}
        if self.child_index is not None:
            names |= {name: KEPT_CHILDREN_PREFIX + name for name in outputs if name in self.child_outputs}
        columns = "".join(f", {identifier(name)} as {identifier(kept)}" for name, kept in names.items())
        key = self.key_schema.names
        rows = (
            f"select {key_text(key)} as _kept_key, "
            f"{fingerprint_number('_row_fingerprint')} as _kept_fp{columns} "
            f"from {sink.results_sql()} where {identifier(key[0])} is not null"
        )
        self._kept = list(names.values())
        if self.child_index is None:
            db.execute(f"copy ({rows}) to {self._copy_target_sql('kept')}")
            return
        children = db.sql(f"{rows} order by _kept_key, {identifier(self.child_index)}")
        single = ["_kept_key", "_kept_fp", *(kept for kept in self._kept if kept.startswith(KEPT_PREFIX))]
        sources, count = store_lists(children, "_kept_key", single, self._stored_path("kept"))
        self._kept_per_row = -(-count // max(1, sources))
        if not count:
            self._kept = ()

    def _with_kept(self, query: str) -> str:
        """Add the stored outputs of rows that differ from the sink's in their checks only."""
        if not self._kept:
            return query
        names = identifier_list(self._kept)
        same = f"_kept_key = r._key and _kept_fp = {fingerprint_number('r._row_fingerprint')}"
        return (
            f"select r.*, _kept_key is not null as {KEPT_ROW}, {names} from ({query}) r "
            f"left join {self._stored_table_sql('kept')} on {same}"
        )

    def load_old_errors(self, sink: Sink, is_rewritten: bool) -> None:
        """Load what failed in earlier runs and is processed again: rejected lines, and all rows if `is_rewritten`."""
        names = self.key_schema.names
        failure, key = failure_names(names), key_text(names)
        no_key = " and ".join(f"{identifier(name)} is null" for name in names)
        with scratch_connection(self.reader.scratch) as db:
            sink.attach(db)
            errors, details = sink.errors_sql(), identifier(failure["details"])
            rejected = db.execute(f"select {details} from {errors} where {no_key}").fetchall()
            self.rejected_before = Counter(json.loads(text)["text"] for (text,) in rejected if text)
            if is_rewritten:
                fingerprint = identifier(failure["fingerprint"])
                failed = db.execute(f"select {key}, {fingerprint} from {errors} where not ({no_key})").fetchall()
                self.failed_before = frozenset((str(key), str(fingerprint)) for key, fingerprint in failed)
            sink.detach(db)

    def count_new_rejects(self) -> int:
        """Count the rejected lines of the source that no earlier run has rejected, wherever they are now."""
        return (Counter(raw for _, _, raw in self.reader.rejects) - self.rejected_before).total()

    def counts(self, retried: frozenset[str] = frozenset()) -> RowCounts:
        """Count the rows by state in one pass; `retried` error classes do not count as failed before."""
        tests = {name: f"_status = {literal(name)}" for name in _STATUSES if name != "done"}
        tests["failed"] += f" and not {self._has_class('_class', retried)}"
        tests["rescued"] = f"{tests['failed']} and {self._is_rescued_sql}"
        tests["failed"] += f" and not {self._is_rescued_sql}"
        counting = ", ".join(f"count(*) filter ({test})" for test in tests.values())
        states, db = self._with_status_sql([]), self.reader.cursor()
        total: int | None = None
        try:
            if self._sink_rows:
                total = self._count_rows(db)
                states = self._store_unfinished(db)
            row = db.execute(f"select count(*), {counting} from {states}").fetchone()
        except duckdb.OutOfMemoryException as exc:
            raise DataError(
                ("source",),
                first_line(exc),
                f"its rows take {self.reader.row_bytes / 1000000.0:.1f} MB each: write the file again with fewer "
                "rows in a row group",
            ) from exc
        except duckdb.Error as exc:
            raise DataError(("source",), first_line(exc), "fix the data, or exclude the row with `where`") from exc
        assert row is not None
        unfinished, new, changed, failed, rescued = row
        self._unfinished = None if total is None else unfinished
        rows = unfinished if total is None else total
        return RowCounts(rows, new, changed, rows - unfinished, failed, rescued)

    def _count_rows(self, db: duckdb.DuckDBPyConnection) -> int:
        rows = self._restricted(self._with_key_sql([])) if self.is_restricted else self.reader.chosen(())
        ((count,),) = db.execute(f"select count(*) from {rows}").fetchall()
        return int(count)

    def _store_unfinished(self, db: duckdb.DuckDBPyConnection) -> str:
        """Store the rows that are not done, with their states; return SQL of them."""
        among = None
        if not self._earlier_texts and self.child_index is None:
            # As a rule most rows are done: only the others are compared in full.
            among = "unmatched"
            with pq.ParquetWriter(self._stored_path(among), pa.schema([("_row_join", self._join_type)])) as writer:
                for condition in self._key_ranges if self._has_whole_number_key else ("true",):
                    for batch in self.reader.stream(self._unmatched_sql(condition), SCRATCH_ROW_GROUP_ROWS):
                        writer.write_batch(batch)
        columns = "_key, _row_join, _part, _in_errors, _class, _row_step, _status"
        states = f"select {columns} from {self._with_status_sql([], among)} where _status <> 'done'"
        db.execute(f"copy ({states}) to {self._copy_target_sql('unfinished')}")
        return self._stored_table_sql("unfinished")

    def _unmatched_sql(self, condition: str) -> str:
        """SQL of `_row_join` of the rows that the sink's results do not have with the same fingerprint.

        `condition`: one of `_key_ranges`.
        """
        made, same = "", self._is_same_key_sql("s")
        seen = f"(select * from {self._stored_table_sql('seen')} where {condition})"
        if not self.appending:
            text = self.reader.text
            made = f", {digest_number(self.fingerprints.content_sql(text))} as _row_fp"
            same += f" and s._fp = {swapped_bytes('r._row_fp')}"
            if self.fingerprints.quality is None:
                seen = f"(select * from {seen} where _quality = 0)"
            else:
                made += f", cast('0x' || {self.fingerprints.quality_sql(text)} as UBIGINT) as _row_quality"
                same += " and s._quality = r._row_quality"
        source = self._keyed_source_sql(None, condition)
        rows = f"(select {self._join_value_sql} as _row_join{made} from {source})"
        return f"select _row_join from {rows} r anti join {seen} s on {same}"

    @property
    def _join_type(self) -> pa.DataType:
        """Of `_row_join`."""
        return self.reader.schema.field(self.reader.key[0]).type if self._has_whole_number_key else pa.string()

    @property
    def _key_ranges(self) -> Sequence[str]:
        """Conditions (SQL) that divide the rows of a large source by their key, so that a part can be read alone."""
        if self._ranges is None:
            self._ranges = self._find_key_ranges()
        return self._ranges

    def _find_key_ranges(self) -> Sequence[str]:
        count = -(-self.reader.count // ROWS_PER_JOIN)
        key = self.reader.key
        if count < 2 or len(key) != 1 or not self.reader.can_skip_rows:
            return ("true",)
        if not pa.types.is_integer(self.reader.schema.field(key[0]).type):
            return ("true",)
        name, shares = identifier(key[0]), [place / count for place in range(1, count)]
        sample = f"(select {name} from {self.reader.chosen(key)} using sample 1% (bernoulli))"
        ((found,),) = self.reader.cursor().execute(f"select approx_quantile({name}, {shares}) from {sample}").fetchall()
        bounds = sorted({int(bound) for bound in found or ()})
        if not bounds:
            return ("true",)
        between = (f"{name} >= {low} and {name} < {high}" for low, high in pairwise(bounds))
        return (f"{name} < {bounds[0]} or {name} is null", *between, f"{name} >= {bounds[-1]}")

    def batches(self, rows: int, retried: frozenset[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows to request in batches of at most `rows`.

        Columns: key, used and carried columns, `_key` (text), `_part` (of the older result, or null), `_in_errors`,
        `_row_fingerprint`; with `rescued` also FAILED_STEP and FAILED_CLASS. `retried`: error classes whose rows are
        requested again.
        """
        again = f"{self._has_class('_class', retried)} or {self._is_rescued_sql}"
        wanted = f"_status in ('new', 'changed') or (_status = 'failed' and ({again}))"
        columns = self._columns()
        # Join with the smaller table: for 100,000 unfinished rows of a million it takes 10 MB instead of 50; if no row
        # is unfinished, the source is not read again.
        source = (
            self._with_status_sql(columns)
            if self._unfinished is None or self._unfinished > self._sink_rows
            else self._unfinished_sql(columns)
        )
        yield from self._read(self._with_kept(f"{self._with_part} from {source} where {wanted}"), rows)

    def lookup(self, key: str) -> pa.Table | None:
        """Return the row with this key (as text) with the columns of `batches`; None if there is none."""
        query = f"{self._with_part} from {self._with_status_sql(self._columns())} where _key = {literal(key)}"
        found = list(self._read(query, 2))
        return pa.Table.from_batches(found[:1]) if found else None

    def deleted_keys(self) -> pa.Table:
        """Return the keys in the sink's results or errors that no selected row has."""
        names = identifier_list(self.key_schema.names)
        there = " union ".join(f"select {names}, _key from {self._stored_table_sql(table)}" for table in _TABLES)
        return self._keys(f"select {names} from ({there}) anti join {self._with_key_sql([])} using (_key)")

    def count_deleted(self) -> int:
        """Count the rows of the sink's results whose key no selected row has."""
        query = f"select count(*) from {self._stored_table_sql('seen')} anti join {self._with_key_sql([])} using (_key)"
        ((count,),) = self.reader.cursor().execute(query).fetchall()
        return int(count)

    def resolved_errors(self) -> pa.Table:
        """Return the keys in the errors table whose row has a result."""
        if not self._failed_rows:
            return self.key_schema.empty_table()
        names = identifier_list(self.key_schema.names)
        done = f"select _key from {self._with_status_sql([])} where _status = 'done'"
        return self._keys(f"select {names} from {self._stored_table_sql('failed')} semi join ({done}) using (_key)")

    @property
    def is_table_rewritten(self) -> bool:
        """Whether every row is written again, whatever the sink has."""
        return not self._is_sink_loaded

    def _keys(self, query: str) -> pa.Table:
        if not self._is_sink_loaded:
            return self.key_schema.empty_table()
        return self.reader.cursor().sql(query).to_arrow_table().cast(self.key_schema)

    def _columns(self) -> list[str]:
        return list(dict.fromkeys([*self.reader.key, *self.read, *self.carried]))

    def _read(self, query: str, rows: int) -> Iterator[pa.RecordBatch]:
        try:
            fitting = max(1, int(CHUNK_BYTES / max(1.0, self.reader.row_bytes)) // self._kept_per_row)
            found = self.reader.stream(query, min(rows, fitting))
            fields = {field.name: field for field in self.reader.schema}
            schema = pa.schema([fields.get(field.name, field) for field in found.schema])
            for batch in found:
                whole = pa.Table.from_batches([batch])
                if whole.schema != schema:
                    whole = whole.cast(schema)
                pieces = max(1, -(-whole.nbytes // CHUNK_BYTES))
                step = max(1, -(-whole.num_rows // pieces))
                for start in range(0, whole.num_rows, step):
                    yield from whole.slice(start, step).combine_chunks().to_batches()
        except duckdb.Error as exc:
            raise DataError(("source",), first_line(exc), "fix the data, or exclude the row with `where`") from exc

    def _with_key_sql(self, columns: Sequence[str], among: str | None = None) -> str:
        """SQL of the rows with `_key`, `_row_join` (see `_join_value_sql`), `_row_fingerprint` and the given columns.

        `_row_earlier_0` and further ones: fingerprints of earlier versions as numbers, if the sink has such. `among`:
        only the rows whose `_row_join` is in this stored table.
        """
        reader = self.reader
        made = "".join(f"{reader.column(name)} as {identifier(name)}, " for name in columns)
        if columns:
            texts = (identifier(TEXT_PREFIX + name) for name in self.read if reader.has_text(name))
            made += "".join(f"{text}, " for text in texts)
            if (problem := reader.problem(self.carried)) is not None:
                made += f"{problem} as {ROW_PROBLEM}, "
        if not reader.key:
            made = f"_row_identity as {identifier(ROW_KEY)}, {made}"
        for number, texts_by_name in enumerate(self._earlier_texts):
            earlier = self.fingerprints.request_sql(partial(_text_of, texts_by_name, reader.text))
            made += f"{fingerprint_number(earlier)} as _row_earlier_{number}, "
        keys = f"{self._key_sql} as _key, {self._join_value_sql} as _row_join"
        made += f"{keys}, {self.fingerprints.sql()} as _row_fingerprint"
        return f"(select {made} from {self._keyed_source_sql(among)})"

    @property
    def _key_sql(self) -> str:
        """SQL of a row's key as text, with the types of the tables, whose keys have the same text."""
        return key_text(self.reader.key, self.reader.column) if self.reader.key else "_row_identity"

    @property
    def _join_value_sql(self) -> str:
        """SQL of the value by which a row finds its results: its key, as text unless it is a whole number."""
        return self.reader.column(self.reader.key[0]) if self._has_whole_number_key else self._key_sql

    def _keyed_source_sql(self, among: str | None = None, condition: str = "true") -> str:
        """SQL of the rows with the columns of keys and fingerprints; `among`: see `_with_key_sql`.

        `condition`: one of `_key_ranges`.
        """
        reader = self.reader
        if reader.key:
            source = reader.chosen([*reader.key, *self.read, *self.carried])
        else:
            source = self._with_content_key_sql()
        if condition != "true":
            source = f"(select * from {source} where {condition})"
        if among is not None:
            # Before fingerprints are computed.
            stored = f"(select _row_join as _row_stored_join from {self._stored_table_sql(among)})"
            source = f"(select * from {source} semi join {stored} on _row_stored_join = {self._join_value_sql})"
        return source + self.fingerprints.mark_joins()

    def _with_content_key_sql(self) -> str:
        """SQL of the rows with `_row_identity`: a digest of their content, and which of the equal rows it is.

        The order of columns is no part of it, nor are values in the names of folders. Rows that the sink has under the
        digest of an earlier version keep that.
        """
        names, text = self.reader.schema.names, self.reader.text
        content = sorted({*names} - self.reader.path_columns)
        digests = f"{content_digest(map(text, content))} as _row_content"
        earlier: list[str] = []
        if self._has_old_content_keys:
            # Earlier versions had values in the names of folders for Parquet only.
            orders = [names, [name for name in names if name in content]]
            for texts in self._earlier_texts or ({},):
                earlier += (content_digest(map(partial(_text_of, texts, text), order)) for order in orders)
            earlier = list(dict.fromkeys(earlier))
        digests += "".join(f", {digest} as _row_old_{number}" for number, digest in enumerate(earlier))
        rows = f"(select *, {digests} from {self.reader.chosen(names)})"
        identity = f"{literal(CONTENT_KEY_PREFIX)} || {_numbered('_row_content')}"
        if not earlier:
            return f"(select *, {identity} as _row_identity from {rows})"
        old = ", ".join(f"{_numbered(f'_row_old_{number}')} as _row_old_key_{number}" for number in range(len(earlier)))
        rows = f"(select *, {identity} as _row_new, {old} from {rows})"
        stored = " union ".join(f"select _key from {self._stored_table_sql(table)}" for table in _TABLES)
        aliases = [f"_row_stored_{number}" for number in range(len(earlier))]
        joins = " ".join(
            f"left join (select _key as {alias} from ({stored})) on {alias} = _row_old_key_{number}"
            for number, alias in enumerate(aliases)
        )
        return f"(select *, coalesce({', '.join(aliases)}, _row_new) as _row_identity from {rows} {joins})"

    def _restricted(self, rows: str) -> str:
        """SQL of those of the rows that `restrict` has named."""
        return f"(select * from {rows} semi join {self._stored_table_sql('restricted')} using (_key))"

    def _with_status_sql(self, columns: Sequence[str], among: str | None = None) -> str:
        """SQL of the rows with `_status`, `_class`, `_part` (its position) and `_in_errors`; `among`: see
        `_with_key_sql`."""
        keyed = self._with_key_sql(columns, among)
        if self.is_restricted:
            keyed = self._restricted(keyed)
        if not self._is_sink_loaded:
            text = f"cast(null as VARCHAR{'' if self.child_index is None else '[]'})"
            none = f"cast(null as INTEGER) as _part, false as _in_errors, {text} as _class, {text} as _row_step"
            return f"(select *, {none}, 'new' as _status from {keyed})"
        done = "s._key is not null" if self.appending else self._is_same_sql("s")
        seen = self._stored_table_sql("seen")
        if self.child_index is None:
            own_error = _is_one_of("f._class", ROW_ERROR_CLASSES)
        else:
            # Of a row that fails again, only those errors may be its own that all are.
            own_error = f"list_has_all({literal_list(sorted(ROW_ERROR_CLASSES))}, f._class)"
            seen = self._with_childless_sql(seen)
        return (
            "(select r.*, s._part as _part, f._key is not null as _in_errors, f._class as _class, "
            "f._row_step as _row_step, "
            f"case when {done} then 'done' "
            f"when {self._is_same_sql('f')} and {own_error} then 'failed' "
            "when s._key is null then 'new' else 'changed' end as _status "
            f"from {keyed} r left join {seen} s on {self._is_same_key_sql('s')} "
            f"left join {self._stored_table_sql('failed')} f on f._key = r._key)"
        )

    def _with_childless_sql(self, seen: str) -> str:
        """SQL of the stored rows of the sink and of those that are done without any result."""
        columns = "_key, _fp, _quality, _is_earlier"
        stored = stored_fingerprint("_row_fingerprint", self.fingerprints.is_versioned)
        childless = f"select _key, {stored} from {self._stored_table_sql('childless')}"
        return (
            f"(select {columns}, _part from {seen} union all select {columns}, null from ({childless}) "
            f"anti join {seen} using (_key))"
        )

    def _has_class(self, column: str, classes: Iterable[str]) -> str:
        """SQL of whether a failed row, or one of its children, has one of the error classes."""
        if self.child_index is None:
            return _is_one_of(column, classes)
        listed = sorted(classes)
        return f"coalesce(list_has_any({column}, {literal_list(listed)}), false)" if listed else "false"

    def _is_same_key_sql(self, seen: str) -> str:
        """SQL of whether a row `r` has the key of a stored result."""
        column = identifier(self.reader.key[0]) if self._has_whole_number_key else "_key"
        return f"{seen}.{column} = r._row_join"

    def _is_same_sql(self, stored: str) -> str:
        """SQL of whether a row `r` has the stored fingerprint."""
        return f"({self._has_same_request_sql(stored)} and {stored}._quality = {quality_number('r._row_fingerprint')})"

    def _has_same_request_sql(self, stored: str) -> str:
        """SQL of whether a row `r` has the stored fingerprint, but for its checks and evidence."""
        same = f"{stored}._fp = {fingerprint_number('r._row_fingerprint')}"
        if not self._earlier_texts:
            return same
        earlier = ", ".join(f"r._row_earlier_{number}" for number in range(len(self._earlier_texts)))
        return f"({same} or ({stored}._is_earlier and {stored}._fp in ({earlier})))"

    def _unfinished_sql(self, columns: Sequence[str]) -> str:
        """SQL of the unfinished rows that `counts` has stored."""
        rows, unfinished = self._with_key_sql(columns, "unfinished"), self._stored_table_sql("unfinished")
        return f"(select * from {rows} r join (select * exclude (_row_join) from {unfinished}) using (_key))"

    @property
    def _with_part(self) -> str:
        earlier = "".join(f", _row_earlier_{number}" for number in range(len(self._earlier_texts)))
        # Of a row that has changed since it failed, the steps are requested from the first.
        failed = "".join(
            f", if(_status = 'failed', {column}, null) as {name}"
            for name, column in ((FAILED_STEP, "_row_step"), (FAILED_CLASS, "_class"))
            if self.rescued and self.child_index is None
        )
        return (
            f"select * exclude (_status, _class, _row_step, _row_join{earlier}) "
            f"replace ({literal_list(self._parts or [''])}[_part] as _part){failed}"
        )

    @property
    def _is_rescued_sql(self) -> str:
        """SQL of whether a rung may request a failed row again."""
        has_class = self._has_class
        steps = [
            f"({has_class('_row_step', [step])} and {has_class('_class', classes)})"
            for step, classes in self.rescued.items()
        ]
        return f"({' or '.join(steps)})" if steps else "false"

    def _stored_table_sql(self, name: str) -> str:
        stored = f"read_parquet({literal(self._stored_path(name))})"
        if name == "seen" and self._has_whole_number_key:
            return f"(select *, {key_text(self.reader.key)} as _key from {stored})"
        return stored

    def _copy_target_sql(self, name: str) -> str:
        # Small row groups, since a reader holds a whole one in memory.
        return f"{literal(self._stored_path(name))} (format parquet, row_group_size {SCRATCH_ROW_GROUP_ROWS})"

    def _stored_path(self, name: str) -> Path:
        return self.reader.scratch / f"{name}.parquet"


def _by_source_row(rows: str, names: Sequence[str], target: str) -> str:
    """SQL of one row for each source row: of the children in the results, or of the errors, whose classes and steps
    become lists."""
    key = f"{identifier_list(names)}, _key"
    if target == "seen":
        return f"select distinct {key}, _fp, _quality, _is_earlier, _part from ({rows})"
    return (
        f"select {key}, any_value(_fp) as _fp, any_value(_quality) as _quality, any_value(_is_earlier) as _is_earlier, "
        f"list(distinct _class) as _class, list(distinct _row_step) as _row_step from ({rows}) group by {key}"
    )


def _is_one_of(column: str, values: Iterable[str]) -> str:
    listed = ", ".join(literal(value) for value in sorted(values))
    return f"{column} in ({listed})" if listed else "false"


def _text_of(texts: Mapping[str, str], otherwise: Callable[[str], str], name: str) -> str:
    return texts.get(name) or otherwise(name)


def _numbered(digest: str) -> str:
    """SQL of a digest and the number of the row among those with the same."""
    return f"{digest} || '-' || row_number() over (partition by {digest})"
