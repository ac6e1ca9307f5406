"""`parquet:` a folder with results/, usage/ and errors/, each a table in parts that readers see only when whole."""

import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
from pydantic import Field

from connectors.contracts import Commit, SinkModel, TableShape, UsageMark
from connectors.sinks.parquet_objects import ParquetObjects
from connectors.sql import literal_list
from connectors.storage import object_store
from connectors.storage.file_transaction import Changes, Staging
from connectors.tables.compaction import EMPTY, covered, groups, marks_of, usage_part, write_merged
from connectors.tables.parquet_parts import (
    among,
    columns_of,
    facts_of,
    replaced_errors,
    without_rows,
    write_part,
    write_without,
)
from connectors.tables.schema_checks import check_names, in_the_way, kinds, mismatch
from connectors.tables.schemas import failure_names, usage_schema

TABLES = ("results", "usage", "errors")
FILES = "files/"
SMALL_PARTS = 20
"""More small parts than these are merged."""
SMALL_BYTES = 16 << 20
PART_BYTES = 256 << 20
PART_ROWS = 1_000_000


class ParquetSink(SinkModel):
    """The job's tables as folders of Parquet parts, on this machine or on an object store (extra `rowmill[cloud]`)."""

    parquet: str = Field(min_length=1, description="Folder of the tables, or s3://, gs://, az://; made if not there.")

    @property
    def identity(self) -> str:
        return (
            object_store.normal(self.parquet) if object_store.is_url(self.parquet) else os.path.normpath(self.parquet)
        )

    def place(self, workspace: Path) -> str:
        return self.identity if object_store.is_url(self.parquet) else os.path.realpath(workspace / self.parquet)

    @property
    def files_prefix(self) -> str:
        return FILES

    def open(self, shape: TableShape, workspace: Path, longest_hold: float) -> "ParquetFolder | ParquetObjects":
        check_names(shape)
        if object_store.is_url(self.parquet):
            object_store.check_installed("sink.parquet")
            return ParquetObjects(self.parquet, object_store.normal(self.parquet), shape)
        folder = Path(os.path.abspath(workspace / self.parquet))  # noqa: PTH100 - Path.resolve would follow links
        return ParquetFolder(self.parquet, folder, shape)


class ParquetFolder:
    """The tables of one job; see `connectors.storage.file_transaction` for how a kill is recovered from."""

    def __init__(self, name: str, folder: Path, shape: TableShape) -> None:
        self._name = name
        self._folder = folder
        self._key = list(shape.key)
        self._details = failure_names(shape.key)["details"]
        self._schemas = {"results": shape.results, "usage": usage_schema(), "errors": shape.errors}
        self._staging = Staging(folder)
        self._building = ""
        """What stands before `results` and `errors` while they are built anew."""

    @property
    def files_folder(self) -> Path:
        return self._folder / FILES

    @property
    def files_prefix(self) -> str:
        return FILES

    def present(self) -> bool:
        parts = [part.name for part in self._parts("results")]
        if self._staging.swapping or any(part != EMPTY for part in parts):
            return True
        # A first build that was cut off leaves the empty table that it was to replace.
        return bool(parts) and not self._staging.fresh.exists()

    def check(self, fresh: bool) -> None:
        for path in (self._folder, *self._folder.parents):
            if path.exists():
                if not path.is_dir():
                    raise in_the_way(self._name, path, "a file")
                break
        if not self._staging.swapping:
            for table in ("usage",) if fresh else TABLES:
                self._check(table)

    def prepare(self, fresh: bool) -> None:
        self._staging.recover()
        self._staging.forget_fresh()
        self.check(fresh)
        self.files_folder.mkdir(parents=True, exist_ok=True)
        self._building = f"{self._staging.fresh.relative_to(self._folder)}/" if fresh else ""
        with self._staging.together() as changes:
            # The fresh ones first: with them, empty results count as not there.
            places = [(table, f"{self._building}{table}") for table in ("results", "errors") if fresh]
            for table, place in [*places, *zip(TABLES, TABLES, strict=True)]:
                if not (self._folder / place / EMPTY).exists():
                    write_part(changes.file(f"{place}/{EMPTY}"), self._schema_there(table, place).empty_table())

    def results_sql(self) -> str:
        files = literal_list(self._parts("results"))
        return f"(select * replace (parse_filename(_part) as _part) from read_parquet({files}, filename = '_part'))"

    def errors_sql(self) -> str:
        return f"(select * from read_parquet({literal_list(self._parts('errors'))}))"

    def usage_sql(self) -> str:
        return f"(select * from read_parquet({literal_list(self._parts('usage'))}))"

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Files are read where they lie."""

    def detach(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Nothing was attached."""

    def paths(self) -> Sequence[Path]:
        return tuple(self._folder / table for table in TABLES)

    def tables(self) -> Mapping[str, str]:
        return {table: f"{self._folder}/{table}/*.parquet" for table in TABLES}

    def commit(self, commit: Commit, name: str) -> None:
        with self._staging.together() as changes:
            results = commit.results
            old: set[int] = set()
            for part, rows in commit.replaced.items():
                added = results.take(pa.array(rows, pa.int64()))
                place = f"{self._building}results/{part}"
                gone = among(columns_of(self._folder / place, self._key), added.select(self._key))
                write_without(self._folder / place, changes.file(place), self._schemas["results"], gone, added)
                old.update(rows)
            new = without_rows(results, old)
            if new.num_rows:
                write_part(changes.file(self._unused(f"{self._building}results", name)), new)
            self._commit_errors(changes, commit, name)

    def add_usage(self, usage: pa.Table, mark: UsageMark) -> None:
        if covered(mark, self.usage_marks()):
            return
        with self._staging.together() as changes:
            write_part(changes.file(f"usage/{usage_part(mark)}"), usage)

    def usage_marks(self) -> Sequence[UsageMark]:
        return [mark for part in self._parts("usage") for mark in marks_of(part)]

    def remove(self, keys: pa.Table, errors_too: bool) -> int:
        removed = 0
        with self._staging.together() as changes:
            for table in ("results", "errors") if errors_too else ("results",):
                schema = self._schemas[table]
                for part in self._parts(table):
                    rows = columns_of(part, self._key)
                    gone = among(rows, keys.select(self._key).cast(rows.schema.remove_metadata()))
                    if gone.true_count:
                        # Emptied parts stay until they are merged: a reader may have listed them already.
                        write_without(part, changes.file(f"{table}/{part.name}"), schema, gone, schema.empty_table())
                        removed += gone.true_count if table == "results" else 0
        return removed

    def finish(self) -> None:
        if self._building:
            with self._staging.together() as changes:
                for table in ("results", "errors"):
                    changes.swap(self._folder / f"{self._building}{table}", table)
            self._building = ""
            self._staging.forget_fresh()
        for table in TABLES:
            self._merge(table)
        self._staging.recover()

    def _parts(self, table: str) -> list[Path]:
        return sorted((self._folder / table).glob("*.parquet"))

    def _check(self, table: str) -> None:
        """Every part of a table has the job's columns."""
        made = self._schemas[table]
        for part in self._parts(table):
            there = facts_of(part)[1]
            if there != made:
                raise mismatch(self._name, f"its {table} have", kinds(there), kinds(made), table == "usage")

    def _schema_there(self, table: str, place: str) -> pa.Schema:
        """The columns that a table's parts have: the job's, but for an old table that a fresh one will replace."""
        parts = self._parts(place)
        return facts_of(parts[0])[1] if parts else self._schemas[table]

    def _unused(self, folder: str, name: str) -> str:
        """A part's place; its name was never used, unless the ledger was put back to an older state."""
        place = f"{folder}/{name}.parquet"
        while (self._folder / place).exists():
            place = f"{folder}/{name}-{secrets.token_hex(4)}.parquet"
        return place

    def _commit_errors(self, changes: Changes, commit: Commit, name: str) -> None:
        if not commit.errors.num_rows and not commit.cleared.num_rows:
            return
        schema, folder = self._schemas["errors"], f"{self._building}errors"
        for part in self._parts(folder):
            gone = replaced_errors(columns_of(part, [*self._key, self._details]), commit, self._key, self._details)
            if gone.true_count:
                write_without(part, changes.file(f"{folder}/{part.name}"), schema, gone, schema.empty_table())
        if commit.errors.num_rows:
            write_part(changes.file(self._unused(folder, name)), commit.errors)

    def _merge(self, table: str) -> None:
        """Many small parts become few; the others are linked into the new folder beside them."""
        parts = [part for part in self._parts(table) if part.name != EMPTY]
        small = [part for part in parts if part.stat().st_size < SMALL_BYTES]
        if len(small) <= SMALL_PARTS:
            return
        with self._staging.together() as changes:
            folder = changes.folder(table)
            for part in self._parts(table):
                if part not in small:
                    _link(part, folder / part.name)
            for group in groups(small, PART_ROWS, PART_BYTES):
                write_merged(group, folder, self._schemas[table], note=table == "usage")


def _link(part: Path, target: Path) -> None:
    try:
        target.hardlink_to(part)
    except OSError:
        # The file system knows no links.
        shutil.copyfile(part, target)
