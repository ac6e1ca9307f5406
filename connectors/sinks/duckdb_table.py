"""`duckdb:` three tables in a DuckDB file, open only during a commit; each commit is one transaction."""

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import duckdb
import pyarrow as pa
from pydantic import Field

from connectors.contracts import Commit, SinkModel, TableShape, UsageMark
from connectors.errors import DataError, Stopped
from connectors.sql import (
    QUERY_MEMORY_LIMIT,
    first_line,
    identifier,
    identifier_list,
    literal,
    no_rows,
    reused_connection,
)
from connectors.tables.schema_checks import (
    check_column_names,
    check_folder,
    foreign_table,
    is_foreign,
    path_occupied,
    schema_mismatch,
)
from connectors.tables.schemas import failure_names, missing_usage_columns, usage_schema

FIRST_WAIT_SECONDS = 0.05
"""Before a file that another program holds is tried again; doubled each time."""
MAX_WAIT_SECONDS = 1.0
WHERE = ("sink", "duckdb")
"""The sink's key in the job file."""
LAYOUT = 1
"""Version of the schema `rowmill` in the file."""
MARKS = {"table_name": "varchar", "ledger": "varchar", "writer": "bigint", "first": "bigint", "last": "bigint"}
"""Columns of its table of usage marks."""

_HELD_BY_THIS_PROCESS = "file handle conflict"
_HELD_MESSAGES = ("Could not set lock", _HELD_BY_THIS_PROCESS, "different configuration")
"""DuckDB's errors for a file that another program, or another connection of this one, has open."""

T = TypeVar("T")


class DuckdbSink(SinkModel):
    """The job's tables in a DuckDB file."""

    duckdb: str = Field(min_length=1, description="Path of the file; created if missing.")
    table: str = Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Name of the results table; usage and errors are in `<table>_usage` and `<table>_errors`.",
    )

    @property
    def identity(self) -> str:
        return f"{os.path.normpath(self.duckdb)}:{self.table}"

    def location(self, workspace: Path) -> str:
        return f"{os.path.realpath(workspace / self.duckdb)}:{self.table.lower()}"

    @property
    def files_prefix(self) -> str:
        return f"{Path(self.duckdb).stem}_{self.table}_files/"

    def open(self, shape: TableShape, workspace: Path, longest_hold: float) -> "DuckdbTables":
        check_column_names(shape)
        path = Path(os.path.abspath(workspace / self.duckdb))  # noqa: PTH100 - Path.resolve would follow links
        if "?" in str(path):
            # DuckDB takes the rest for options, and puts the write-ahead log elsewhere.
            found = f"DuckDB cannot keep a file at a path with a question mark, as {path} is"
            raise DataError(WHERE, found, "choose another path")
        return DuckdbTables(self.duckdb, path, self.table, shape, longest_hold, self.files_prefix)


class DuckdbTables:
    """The tables of one job. The schema `rowmill` has the marks of the usage table, and tables that are rebuilt."""

    def __init__(
        self, name: str, path: Path, table: str, shape: TableShape, longest_hold: float, files_prefix: str
    ) -> None:
        self._name = name
        self._path = path
        self._table = table
        self._key = list(shape.source_key)
        self._details = failure_names(shape.key)["details"]
        self._schemas = {table: shape.results, f"{table}_usage": usage_schema(), f"{table}_errors": shape.errors}
        self._rebuilt_tables = (table, f"{table}_errors")
        self._longest_hold = longest_hold
        self._alias = f"sink_{hashlib.blake2b(os.fsencode(path), digest_size=6).hexdigest()}"
        self._is_building = False
        self._missing_tables: set[str] = set()
        """In the file as it was last attached."""
        self.files_prefix = files_prefix

    @property
    def files_folder(self) -> Path:
        return self._path.parent / self.files_prefix

    def exists(self) -> bool:
        if not self._path.is_file():
            return False
        with self._connection() as db:
            self.attach(db)
            tables = _tables(db, self._alias)
            exists = ("main", self._table.lower()) in tables
            if exists and ("rowmill", f"new_{self._table}".lower()) in tables:
                # An interrupted first build leaves the empty table that it was to replace.
                results = f"{self._alias}.main.{identifier(self._table)}"
                exists = db.execute(f"select 1 from {results} limit 1").fetchall() != []
            self.detach(db)
            return exists

    def check(self, fresh: bool) -> None:
        if self._path.is_dir():
            raise path_occupied(WHERE, self._path, "a folder")
        check_folder(WHERE, self._path.parent)
        if not self._path.exists():
            return
        with self._connection() as db:
            self.attach(db)
            with self._translated_errors():
                tables = _tables(db, self._alias)
                if ("rowmill", "layout") in tables:
                    self._check_layout(db)
                if ("rowmill", "marks") in tables:
                    db.execute(f"select {', '.join(MARKS)} from {self._alias}.rowmill.marks limit 0")
                self._check_views(db)
                for table, schema in self._schemas.items():
                    if ("main", table.lower()) in tables:
                        self._check_columns(db, table, schema, fresh and table in self._rebuilt_tables)
                self.detach(db)

    def prepare(self, fresh: bool) -> None:
        self.check(fresh)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._transaction() as db:
            self._prepare_layout(db)
            tables = _tables(db, None)
            if ("main", f"{self._table}_usage".lower()) not in tables:
                db.execute("delete from rowmill.marks where table_name = ?", [self._table.lower()])
            for table, schema in self._schemas.items():
                if ("main", table.lower()) not in tables:
                    _create(db, f"main.{identifier(table)}", schema)
            self._add_usage_columns(db)
            for table in self._rebuilt_tables:
                db.execute(f"drop table if exists {self._build_table(table)}")
                if fresh:
                    _create(db, self._build_table(table), self._schemas[table])
        self._is_building = fresh

    def results_sql(self) -> str:
        return f"(select *, {literal(self._table)} as _part from {self._relation(self._table)})"

    def results_files(self) -> Mapping[str, str]:
        # No other process writes to the file while it is attached.
        return {}

    def errors_sql(self) -> str:
        return f"(select * from {self._relation(f'{self._table}_errors')})"

    def usage_sql(self) -> str:
        return f"(select * from {self._relation(f'{self._table}_usage')})"

    def _relation(self, table: str) -> str:
        """A table of the attached file; for a missing one, the columns alone."""
        if table in self._missing_tables:
            return no_rows(self._schemas[table])
        return f"{self._alias}.main.{identifier(table)}"

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        attach = f"attach if not exists {literal(self._path)} as {self._alias} (read_only, type duckdb)"
        with self._translated_errors():
            self._wait_for_file(lambda: connection.execute(attach))
            there = _tables(connection, self._alias)
            self._missing_tables = {name for name in self._schemas if ("main", name.lower()) not in there}

    def detach(self, connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute(f"detach database if exists {self._alias}")

    def paths(self) -> Sequence[Path]:
        return (self._path,)

    def tables(self) -> Mapping[str, str]:
        return {"results": self._table, "usage": f"{self._table}_usage", "errors": f"{self._table}_errors"}

    def commit(self, commit: Commit, name: str) -> None:
        results, errors = (
            self._build_table(table) if self._is_building else f"main.{identifier(table)}"
            for table in self._rebuilt_tables
        )
        replacing = sorted(row for rows in commit.rows_by_part.values() for row in rows)
        with self._transaction() as db:
            replaced = commit.results.select(self._key).take(pa.array(replacing, pa.int64()))
            for keys in (replaced, *commit.emptied_by_part.values()):
                self._delete(db, results, keys.select(self._key))
            _insert(db, results, commit.results)
            self._delete(db, errors, commit.resolved_keys.select(self._key))
            # Unreadable lines have no key: their details identify them.
            no_key = " and ".join(f"old.{identifier(name)} is null" for name in self._key)
            details = identifier(self._details)
            same_line = f"(not ({no_key}) or old.{details} is not distinct from new.{details})"
            self._delete(db, errors, commit.errors.select([*self._key, self._details]), same_line)
            _insert(db, errors, commit.errors)

    def add_usage(self, usage: pa.Table, mark: UsageMark) -> None:
        with self._transaction() as db:
            recorded = db.execute(
                "select 1 from rowmill.marks where table_name = ? and ledger = ? and writer = ? and last >= ?",
                [self._table.lower(), mark.ledger, mark.writer, mark.last],
            ).fetchall()
            if not recorded:
                _insert(db, f"main.{identifier(f'{self._table}_usage')}", usage)
                db.execute(
                    "insert into rowmill.marks values (?, ?, ?, ?, ?)",
                    [self._table.lower(), mark.ledger, mark.writer, mark.first, mark.last],
                )

    def usage_marks(self) -> Sequence[UsageMark]:
        with self._transaction() as db:
            rows = db.execute(
                "select ledger, writer, min(first), max(last) from rowmill.marks where table_name = ? group by all "
                "order by all",
                [self._table.lower()],
            ).fetchall()
        return [UsageMark(*mark) for mark in rows]

    def remove(self, keys: pa.Table, errors_too: bool) -> int:
        with self._transaction() as db:
            removed = self._delete(db, f"main.{identifier(self._table)}", keys.select(self._key))
            if errors_too:
                self._delete(db, f"main.{identifier(f'{self._table}_errors')}", keys.select(self._key))
            return removed

    def finish(self) -> None:
        if not self._is_building:
            return
        with self._transaction() as db:
            for table in self._rebuilt_tables:
                db.execute(f"create or replace table main.{identifier(table)} as from {self._build_table(table)}")
                db.execute(f"drop table {self._build_table(table)}")
        self._is_building = False

    def _build_table(self, table: str) -> str:
        return f"rowmill.{identifier(f'new_{table}')}"

    def _prepare_layout(self, db: duckdb.DuckDBPyConnection) -> None:
        db.execute("create schema if not exists rowmill")
        db.execute("create table if not exists rowmill.layout (version integer)")
        if not db.execute("select version from rowmill.layout").fetchall():
            db.execute("insert into rowmill.layout values (?)", [LAYOUT])
        db.execute(
            f"create table if not exists rowmill.marks ({', '.join(f'{name} {kind}' for name, kind in MARKS.items())})"
        )

    def _check_layout(self, db: duckdb.DuckDBPyConnection) -> None:
        versions = db.execute(f"select version from {self._alias}.rowmill.layout").fetchall()
        if versions and versions != [(LAYOUT,)]:
            raise DataError(
                self._name,
                f"was written by another version of Rowmill (layout {versions[0][0]}, this one reads {LAYOUT})",
                "use that version, or write to another sink (--sink PATH)",
            )

    def _add_usage_columns(self, db: duckdb.DuckDBPyConnection) -> None:
        """Add the columns that the usage table of an older version lacks."""
        usage = f"main.{identifier(f'{self._table}_usage')}"
        columns = pa.schema(missing_usage_columns(_column_types(db, usage))).empty_table()
        if columns.num_columns:
            db.register("missing", columns)
            for name, kind in _column_types(db, "missing").items():
                db.execute(f"alter table {usage} add column {identifier(name)} {kind}")
            db.unregister("missing")

    def _check_views(self, db: duckdb.DuckDBPyConnection) -> None:
        query = "select lower(view_name) from duckdb_views() where database_name = ? and schema_name = 'main'"
        views = {str(view) for (view,) in db.execute(query, [self._alias]).fetchall()}
        for table in self._schemas:
            if table.lower() in views:
                raise DataError(self._name, f"its {table} is a view", "write to another table, or drop the view")

    def _check_columns(self, db: duckdb.DuckDBPyConnection, table: str, schema: pa.Schema, may_differ: bool) -> None:
        """Raise unless a table has the job's columns, or is one of Rowmill's if they may differ."""
        existing = _column_types(db, f"{self._alias}.main.{identifier(table)}")
        is_usage = table not in self._rebuilt_tables
        later = {field.name for field in missing_usage_columns(existing)} if is_usage else set()
        db.register("expected", schema.empty_table())
        expected = {name: kind for name, kind in _column_types(db, "expected").items() if name not in later}
        db.unregister("expected")
        kind = {self._table: "results", f"{self._table}_errors": "errors"}.get(table, "usage")
        if is_foreign(kind, existing):
            raise foreign_table(self._name, f"its table {table} has", existing)
        if not may_differ and list(existing.items()) != list(expected.items()):
            raise schema_mismatch(self._name, f"its table {table} has", existing, expected, is_usage)

    def _delete(self, db: duckdb.DuckDBPyConnection, table: str, keys: pa.Table, condition: str = "true") -> int:
        """Delete the rows with these keys that meet the condition; null equals null."""
        if not keys.num_rows:
            return 0
        names = [identifier(name) for name in self._key]
        same = " and ".join(f"old.{name} is not distinct from new.{name}" for name in names)
        db.register("new_keys", keys)
        (count,) = db.execute(
            f"delete from {table} as old using (select distinct {identifier_list(keys.column_names)} from new_keys) "
            f"as new where {same} and {condition}"
        ).fetchall()
        db.unregister("new_keys")
        return int(count[0])

    def _connection(self) -> contextlib.AbstractContextManager[duckdb.DuckDBPyConnection]:
        """Open a connection to which the file can be attached."""
        return reused_connection(Path(f"{self._path}.tmp"))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open the file for one transaction."""
        with self._translated_errors(), self._connection() as own:
            with self._wait_for_file(lambda: self._open(own)) as db:
                db.execute("begin")
                yield db
                db.execute("commit")
            self.detach(own)

    def _open(self, own: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
        """Open the file for writing: attached to `own`, or shared with another connection of this process to it."""
        try:
            own.execute(f"attach {literal(self._path)} as {self._alias} (type duckdb)")
        except duckdb.Error as exc:
            if _HELD_BY_THIS_PROCESS not in str(exc):
                raise
            db = duckdb.connect(self._path)
            db.execute(f"set memory_limit = {literal(QUERY_MEMORY_LIMIT)}")
            return db
        db = own.cursor()
        db.execute(f"use {self._alias}")
        return db

    @contextlib.contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Raise DuckDB's errors as OSError or DataError."""
        try:
            yield
        except duckdb.Error as exc:
            if "No space left" in str(exc):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path)) from exc
            remedy = "check that it can be written" if "Cannot open file" in str(exc) else "repair the file"
            raise DataError(self._name, first_line(exc), f"{remedy}, or write to another sink (--sink PATH)") from exc

    def _wait_for_file(self, attempt: Callable[[], T]) -> T:
        """Return the attempt's outcome, as soon as no other program has the file open."""
        deadline, wait = time.monotonic() + self._longest_hold, FIRST_WAIT_SECONDS
        while True:
            try:
                return attempt()
            except duckdb.Error as exc:
                if not any(text in str(exc) for text in _HELD_MESSAGES):
                    raise
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise Stopped(
                        f"{self._name}: held open by another program for {self._longest_hold:g} s; close it and run "
                        "again: the answers are in the ledger"
                    ) from exc
            time.sleep(min(wait, remaining))
            wait = min(2 * wait, MAX_WAIT_SECONDS)


def _tables(db: duckdb.DuckDBPyConnection, alias: str | None) -> set[tuple[str, str]]:
    """Return (schema, table in lower case) of all tables of the connection's own database, or of an attached one."""
    database = "current_database()" if alias is None else literal(alias)
    result = db.execute(f"select schema_name, lower(table_name) from duckdb_tables() where database_name = {database}")
    return set(result.fetchall())


def _column_types(db: duckdb.DuckDBPyConnection, table: str) -> dict[str, str]:
    """Return column -> type."""
    return {str(row[0]): str(row[1]) for row in db.execute(f"describe select * from {table}").fetchall()}


def _create(db: duckdb.DuckDBPyConnection, table: str, schema: pa.Schema) -> None:
    db.register("empty", schema.empty_table())
    db.execute(f"create table {table} as from empty")
    db.unregister("empty")


def _insert(db: duckdb.DuckDBPyConnection, table: str, rows: pa.Table) -> None:
    if rows.num_rows:
        db.register("new_rows", rows)
        db.execute(f"insert into {table} from new_rows")
        db.unregister("new_rows")
