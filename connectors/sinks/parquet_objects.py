"""A Parquet sink on an object store: the tables of `parquet_folder`, where a part can be put whole but not renamed."""

import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pyarrow as pa

from connectors.contracts import Commit, TableShape, UsageMark
from connectors.sql import literal_list
from connectors.storage import object_store
from connectors.storage.object_store import Object
from connectors.storage.object_transaction import Changes, ObjectStaging
from connectors.tables.compaction import EMPTY, covered, groups, named_mark, noted_marks, usage_part, write_merged
from connectors.tables.media_upload import MediaObjects
from connectors.tables.parquet_parts import (
    among,
    columns_of,
    facts_of,
    replaced_errors,
    without_rows,
    write_part,
    write_without,
)
from connectors.tables.schema_checks import kinds, mismatch
from connectors.tables.schemas import failure_names, usage_schema

TABLES = ("results", "usage", "errors")
FILES = "files/"
SMALL_PARTS = 20
"""More small parts than these are merged."""
SMALL_BYTES = 16 << 20
PART_BYTES = 256 << 20
PART_ROWS = 1_000_000
AT_A_TIME = 8


class ParquetObjects:
    """The tables of one job; see `connectors.storage.object_transaction` for how a kill is recovered from."""

    def __init__(self, name: str, root: str, shape: TableShape) -> None:
        self._name = name
        self._root = root
        self._key = list(shape.key)
        self._details = failure_names(shape.key)["details"]
        self._schemas = {"results": shape.results, "usage": usage_schema(), "errors": shape.errors}
        self._staging = ObjectStaging(root)
        self._files = MediaObjects(f"{root}/{FILES}")
        self._marks: dict[str, list[UsageMark]] = {}
        """By merged usage part: its name is never used again."""
        self._building = ""
        """What stands before `results` and `errors` while they are built anew."""

    @property
    def files_folder(self) -> Path:
        return self._files.folder

    @property
    def files_prefix(self) -> str:
        return FILES

    def present(self) -> bool:
        parts = [part.name for part in self._parts("results")]
        if any(part != EMPTY for part in parts) or self._staging.swapping:
            return True
        # A first build that was cut off leaves the empty table that it was to replace.
        return bool(parts) and not self._staging.fresh_there()

    def check(self, fresh: bool) -> None:
        if not self._staging.swapping:
            for table in ("usage",) if fresh else TABLES:
                self._check(table)

    def prepare(self, fresh: bool) -> None:
        self._staging.recover()
        self._staging.forget_fresh()
        self.check(fresh)
        self._building = f"{self._staging.fresh}/" if fresh else ""
        # The fresh ones first: with them, empty results count as not there.
        places = [(table, f"{self._building}{table}") for table in ("results", "errors") if fresh]
        for table, place in [*places, *zip(TABLES, TABLES, strict=True)]:
            if object_store.head(f"{self._root}/{place}/{EMPTY}") is None:
                with self._staging.together() as changes:
                    write_part(changes.file(f"{place}/{EMPTY}"), self._schema_there(table, place).empty_table())

    def results_sql(self) -> str:
        files = literal_list(part.url for part in self._parts("results"))
        return f"(select * replace (parse_filename(_part) as _part) from read_parquet({files}, filename = '_part'))"

    def errors_sql(self) -> str:
        return f"(select * from read_parquet({literal_list(part.url for part in self._parts('errors'))}))"

    def usage_sql(self) -> str:
        return f"(select * from read_parquet({literal_list(part.url for part in self._parts('usage'))}))"

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        from connectors.storage.duckdb_filesystem import register

        register(connection)

    def detach(self, connection: duckdb.DuckDBPyConnection) -> None:
        from connectors.storage.duckdb_filesystem import unregister

        unregister(connection)

    def paths(self) -> Sequence[str]:
        return tuple(part.url for table in TABLES for part in self._parts(table))

    def tables(self) -> Mapping[str, str]:
        return {table: f"{self._root}/{table}/*.parquet" for table in TABLES}

    def commit(self, commit: Commit, name: str) -> None:
        self._files.upload()
        with self._staging.together() as changes:
            results = commit.results
            old: set[int] = set()
            for part, rows in commit.replaced.items():
                added = results.take(pa.array(rows, pa.int64()))
                place = f"{self._building}results/{part}"
                here = self._fetched(place, changes)
                gone = among(columns_of(here, self._key), added.select(self._key))
                write_without(here, changes.file(place), self._schemas["results"], gone, added)
                here.unlink()
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
        return [mark for part in self._parts("usage") for mark in self._marks_of(part)]

    def remove(self, keys: pa.Table, errors_too: bool) -> int:
        removed = 0
        with self._staging.together() as changes:
            for table in ("results", "errors") if errors_too else ("results",):
                for part in self._parts(table):
                    rows = self._columns(part, self._key)
                    gone = among(rows, keys.select(self._key).cast(rows.schema.remove_metadata()))
                    if gone.true_count:
                        # Emptied parts stay until they are merged: a reader may have listed them already.
                        self._write_without(changes, table, f"{table}/{part.name}", gone)
                        removed += gone.true_count if table == "results" else 0
        return removed

    def finish(self) -> None:
        if self._building:
            with self._staging.together() as changes:
                for table in ("results", "errors"):
                    changes.guard(f"{table}/{EMPTY}")
                    changes.gone += [f"{table}/{part.name}" for part in self._parts(table) if part.name != EMPTY]
                    there = [part.name for part in self._parts(f"{self._building}{table}")]
                    changes.copies += [(f"{self._building}{table}/{name}", f"{table}/{name}") for name in there]
            self._building = ""
            self._staging.forget_fresh()
        for table in TABLES:
            self._merge(table)

    def _parts(self, place: str) -> list[Object]:
        found = object_store.listed(f"{self._root}/{place}")
        depth = f"{self._root}/{place}".count("/") + 1
        return [one for one in found if one.name.endswith(".parquet") and one.url.count("/") == depth]

    def _check(self, table: str) -> None:
        """Every part of a table has the job's columns."""
        made = self._schemas[table]
        with ThreadPoolExecutor(AT_A_TIME, "look") as pool:
            for there in pool.map(lambda part: self._facts(part)[1], self._parts(table)):
                if there != made:
                    raise mismatch(self._name, f"its {table} have", kinds(there), kinds(made), table == "usage")

    def _schema_there(self, table: str, place: str) -> pa.Schema:
        """The columns that a table's parts have: the job's, but for an old table that a fresh one will replace."""
        parts = self._parts(place)
        return self._facts(parts[0])[1] if parts else self._schemas[table]

    def _facts(self, part: Object) -> tuple[int, pa.Schema, dict[bytes, bytes]]:
        from connectors.storage.duckdb_filesystem import ObjectFile

        return facts_of(ObjectFile(part.url, part.size))

    def _columns(self, part: Object, names: Sequence[str]) -> pa.Table:
        from connectors.storage.duckdb_filesystem import ObjectFile

        return columns_of(ObjectFile(part.url, part.size), names)

    def _marks_of(self, part: Object) -> list[UsageMark]:
        named = named_mark(part.name)
        if named is not None or part.name == EMPTY:
            return [] if named is None else [named]
        if part.name not in self._marks:
            self._marks[part.name] = noted_marks(self._facts(part)[2])
        return self._marks[part.name]

    def _unused(self, folder: str, name: str) -> str:
        """A part's place; its name was never used, unless the ledger was put back to an older state."""
        place = f"{folder}/{name}.parquet"
        while object_store.head(f"{self._root}/{place}") is not None:
            place = f"{folder}/{name}-{secrets.token_hex(4)}.parquet"
        return place

    def _fetched(self, place: str, changes: Changes) -> Path:
        """A part, on this machine."""
        here = changes.folder / place.rpartition("/")[2]
        object_store.fetch(f"{self._root}/{place}", here)
        return here

    def _write_without(self, changes: Changes, table: str, place: str, gone: pa.BooleanArray) -> None:
        schema = self._schemas[table]
        here = self._fetched(place, changes)
        write_without(here, changes.file(place), schema, gone, schema.empty_table())
        here.unlink()

    def _commit_errors(self, changes: Changes, commit: Commit, name: str) -> None:
        if not commit.errors.num_rows and not commit.cleared.num_rows:
            return
        folder = f"{self._building}errors"
        for part in self._parts(folder):
            rows = self._columns(part, [*self._key, self._details])
            gone = replaced_errors(rows, commit, self._key, self._details)
            if gone.true_count:
                self._write_without(changes, "errors", f"{folder}/{part.name}", gone)
        if commit.errors.num_rows:
            write_part(changes.file(self._unused(folder, name)), commit.errors)

    def _merge(self, table: str) -> None:
        """Many small parts become few."""
        small = [part for part in self._parts(table) if part.name != EMPTY and part.size < SMALL_BYTES]
        if len(small) <= SMALL_PARTS:
            return
        schema = self._schemas[table]
        with self._staging.together() as changes:
            changes.guard(f"{table}/{EMPTY}")
            changes.gone += [f"{table}/{part.name}" for part in small]
            here = [self._fetched(f"{table}/{part.name}", changes) for part in small]
            for group in groups(here, PART_ROWS, PART_BYTES):
                merged = write_merged(group, changes.folder, schema, note=table == "usage")
                changes.files.append((merged, f"{table}/{merged.name}"))
            write_part(changes.file(f"{table}/{EMPTY}"), schema.empty_table())
