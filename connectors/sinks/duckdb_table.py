"""`duckdb:` three tables in a DuckDB file that is open only during a commit, each commit one transaction."""

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
from connectors.sql import MEMORY_LIMIT, first_line, literal, quoted, quoted_list
from connectors.tables.schema_checks import check_column_names, path_occupied, schema_mismatch
from connectors.tables.schemas import failure_names, usage_schema

FIRST_WAIT = 0.05
"""Seconds until a file that another program holds is tried again; doubled each time, at most LONGEST_WAIT."""
LONGEST_WAIT = 1.0
LAYOUT = 1
"""What is in the schema `rowmill` of the file: another number is another version's."""

_HELD = ("Could not set lock", "file handle conflict", "different configuration")
"""What DuckDB says of a file that another program, or another connection of this one, has open."""

T = TypeVar("T")


class DuckdbSink(SinkModel):
    """The job's tables in a DuckDB file."""

    duckdb: str = Field(min_length=1, description="Path of the file; made where it is not there.")
    table: str = Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Name of the results table; usage and errors stand beside it in `<table>_usage`, `<table>_errors`.",
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
            # DuckDB takes what follows for options, and puts the write-ahead log elsewhere.
            raise DataError(path, "DuckDB cannot keep a file at a path with a question mark", "choose another path")
        return DuckdbTables(self.duckdb, path, self.table, shape, longest_hold, self.files_prefix)


class DuckdbTables:
    """The tables of one job. In the schema `rowmill`: what usage holds, and tables that are being built anew."""

    def __init__(
        self, name: str, path: Path, table: str, shape: TableShape, longest_hold: float, files_prefix: str
    ) -> None:
        self._name = name
        self._path = path
        self._table = table
        self._key = list(shape.key)
        self._details = failure_names(shape.key)["details"]
        self._schemas = {table: shape.results, f"{table}_usage": usage_schema(), f"{table}_errors": shape.errors}
        self._rebuilt = (table, f"{table}_errors")
        self._longest_hold = longest_hold
        self._alias = f"sink_{hashlib.blake2b(os.fsencode(path), digest_size=6).hexdigest()}"
        self._building = False
        self.files_prefix = files_prefix

    @property
    def files_folder(self) -> Path:
        return self._path.parent / self.files_prefix

    def exists(self) -> bool:
        if not self._path.exists():
            return False
        with duckdb.connect() as db:
            self.attach(db)
            there = _tables(db, self._alias)
            found = ("main", self._table.lower()) in there
            if found and ("rowmill", f"new_{self._table}".lower()) in there:
                # A first build that was cut off leaves the empty table that it was to replace.
                found = db.execute(f"select 1 from {self._alias}.main.{quoted(self._table)} limit 1").fetchall() != []
            self.detach(db)
            return found

    def check(self, fresh: bool) -> None:
        if self._path.is_dir():
            raise path_occupied(self._name, self._path, "a folder")
        for parent in self._path.parents:
            if parent.exists():
                if not parent.is_dir():
                    raise path_occupied(self._name, parent, "a file")
                break
        if not self._path.exists():
            return
        with duckdb.connect() as db:
            self.attach(db)
            with self._told():
                there = _tables(db, self._alias)
                if ("rowmill", "layout") in there:
                    self._check_layout(db)
                for table, schema in self._schemas.items():
                    if ("main", table.lower()) in there and not (fresh and table in self._rebuilt):
                        self._check(db, table, schema)
                self.detach(db)

    def prepare(self, fresh: bool) -> None:
        self.check(fresh)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._transaction() as db:
            self._prepare_layout(db)
            there = _tables(db, None)
            if ("main", f"{self._table}_usage".lower()) not in there:
                db.execute("delete from rowmill.marks where table_name = ?", [self._table.lower()])
            for table, schema in self._schemas.items():
                if ("main", table.lower()) not in there:
                    _create(db, f"main.{quoted(table)}", schema)
            for table in self._rebuilt:
                db.execute(f"drop table if exists {self._new(table)}")
                if fresh:
                    _create(db, self._new(table), self._schemas[table])
        self._building = fresh

    def results_sql(self) -> str:
        return f"(select *, {literal(self._table)} as _part from {self._alias}.main.{quoted(self._table)})"

    def errors_sql(self) -> str:
        return f"(select * from {self._alias}.main.{quoted(f'{self._table}_errors')})"

    def usage_sql(self) -> str:
        return f"(select * from {self._alias}.main.{quoted(f'{self._table}_usage')})"

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        attach = f"attach if not exists {literal(self._path)} as {self._alias} (read_only, type duckdb)"
        with self._told():
            self._waited(lambda: connection.execute(attach))

    def detach(self, connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute(f"detach database if exists {self._alias}")

    def paths(self) -> Sequence[Path]:
        return (self._path,)

    def tables(self) -> Mapping[str, str]:
        return {"results": self._table, "usage": f"{self._table}_usage", "errors": f"{self._table}_errors"}

    def commit(self, commit: Commit, name: str) -> None:
        results, errors = (self._new(table) if self._building else f"main.{quoted(table)}" for table in self._rebuilt)
        old = sorted(row for rows in commit.rows_by_part.values() for row in rows)
        with self._transaction() as db:
            if old:
                self._delete(db, results, commit.results.select(self._key).take(pa.array(old, pa.int64())))
            _insert(db, results, commit.results)
            self._delete(db, errors, commit.resolved_keys.select(self._key))
            # Lines that are no rows have no key: there the details tell which is which.
            no_key = " and ".join(f"there.{quoted(name)} is null" for name in self._key)
            details = quoted(self._details)
            alike = f"(not ({no_key}) or there.{details} is not distinct from told.{details})"
            self._delete(db, errors, commit.errors.select([*self._key, self._details]), alike)
            _insert(db, errors, commit.errors)

    def add_usage(self, usage: pa.Table, mark: UsageMark) -> None:
        with self._transaction() as db:
            covered = db.execute(
                "select 1 from rowmill.marks where table_name = ? and ledger = ? and writer = ? and last >= ?",
                [self._table.lower(), mark.ledger, mark.writer, mark.last],
            ).fetchall()
            if not covered:
                _insert(db, f"main.{quoted(f'{self._table}_usage')}", usage)
                db.execute(
                    "insert into rowmill.marks values (?, ?, ?, ?, ?)",
                    [self._table.lower(), mark.ledger, mark.writer, mark.first, mark.last],
                )

    def usage_marks(self) -> Sequence[UsageMark]:
        with self._transaction() as db:
            found = db.execute(
                "select ledger, writer, min(first), max(last) from rowmill.marks where table_name = ? group by all "
                "order by all",
                [self._table.lower()],
            ).fetchall()
        return [UsageMark(*mark) for mark in found]

    def remove(self, keys: pa.Table, errors_too: bool) -> int:
        with self._transaction() as db:
            removed = self._delete(db, f"main.{quoted(self._table)}", keys.select(self._key))
            if errors_too:
                self._delete(db, f"main.{quoted(f'{self._table}_errors')}", keys.select(self._key))
            return removed

    def finish(self) -> None:
        if not self._building:
            return
        with self._transaction() as db:
            for table in self._rebuilt:
                db.execute(f"create or replace table main.{quoted(table)} as from {self._new(table)}")
                db.execute(f"drop table {self._new(table)}")
        self._building = False

    def _new(self, table: str) -> str:
        return f"rowmill.{quoted(f'new_{table}')}"

    def _prepare_layout(self, db: duckdb.DuckDBPyConnection) -> None:
        db.execute("create schema if not exists rowmill")
        db.execute("create table if not exists rowmill.layout (version integer)")
        if not db.execute("select version from rowmill.layout").fetchall():
            db.execute("insert into rowmill.layout values (?)", [LAYOUT])
        db.execute(
            "create table if not exists rowmill.marks "
            "(table_name varchar, ledger varchar, writer bigint, first bigint, last bigint)"
        )

    def _check_layout(self, db: duckdb.DuckDBPyConnection) -> None:
        found = db.execute(f"select version from {self._alias}.rowmill.layout").fetchall()
        if found and found != [(LAYOUT,)]:
            raise DataError(
                self._name,
                f"was written by another version of Rowmill (layout {found[0][0]}, this one knows {LAYOUT})",
                "use that version, or write to another sink (--sink PATH)",
            )

    def _check(self, db: duckdb.DuckDBPyConnection, table: str, schema: pa.Schema) -> None:
        db.register("made", schema.empty_table())
        there, made = (_described(db, f"{self._alias}.main.{quoted(table)}"), _described(db, "made"))
        db.unregister("made")
        if list(there.items()) != list(made.items()):
            raise schema_mismatch(self._name, f"its table {table} has", there, made, table not in self._rebuilt)

    def _delete(self, db: duckdb.DuckDBPyConnection, table: str, told: pa.Table, further: str = "true") -> int:
        """Delete the rows with these keys; null equals null."""
        if not told.num_rows:
            return 0
        same = " and ".join(f"there.{quoted(name)} is not distinct from told.{quoted(name)}" for name in self._key)
        db.register("told_rows", told)
        (count,) = db.execute(
            f"delete from {table} as there using (select distinct {quoted_list(told.column_names)} from told_rows) "
            f"as told where {same} and {further}"
        ).fetchall()
        db.unregister("told_rows")
        return int(count[0])

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """The file, open for one transaction."""
        with self._told(), contextlib.closing(self._waited(lambda: duckdb.connect(self._path))) as db:
            db.execute(f"set memory_limit = {literal(MEMORY_LIMIT)}")
            db.execute("begin")
            yield db
            db.execute("commit")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """DuckDB's errors as ours."""
        try:
            yield
        except duckdb.Error as exc:
            if "No space left" in str(exc):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path)) from exc
            raise DataError(
                self._name, f"{first_line(exc)}", "mend the file, or write to another sink (--sink PATH)"
            ) from exc

    def _waited(self, attempt: Callable[[], T]) -> T:
        """The attempt's outcome, once no other program has the file open."""
        began, wait = time.monotonic(), FIRST_WAIT
        while True:
            try:
                return attempt()
            except duckdb.Error as exc:
                if not any(text in str(exc) for text in _HELD):
                    raise
                left = began + self._longest_hold - time.monotonic()
                if left <= 0:
                    raise Stopped(
                        f"{self._name}: held open by another program for {self._longest_hold:g} s; close it and run "
                        "again: the answers are in the ledger"
                    ) from exc
            time.sleep(min(wait, left))
            wait = min(2 * wait, LONGEST_WAIT)


def _tables(db: duckdb.DuckDBPyConnection, alias: str | None) -> set[tuple[str, str]]:
    """(schema, table in lower case) of all tables of the connection's own database, or of an attached one."""
    own = "current_database()" if alias is None else literal(alias)
    found = db.execute(f"select schema_name, lower(table_name) from duckdb_tables() where database_name = {own}")
    return set(found.fetchall())


def _described(db: duckdb.DuckDBPyConnection, table: str) -> dict[str, str]:
    """Column -> type."""
    return {str(row[0]): str(row[1]) for row in db.execute(f"describe select * from {table}").fetchall()}


def _create(db: duckdb.DuckDBPyConnection, table: str, schema: pa.Schema) -> None:
    db.register("made", schema.empty_table())
    db.execute(f"create table {table} as from made")
    db.unregister("made")


def _insert(db: duckdb.DuckDBPyConnection, table: str, rows: pa.Table) -> None:
    if rows.num_rows:
        db.register("new_rows", rows)
        db.execute(f"insert into {table} from new_rows")
        db.unregister("new_rows")
