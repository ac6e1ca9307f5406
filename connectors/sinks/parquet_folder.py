"""`parquet:` a folder with results/, usage/ and errors/, each a table in parts that readers see only when whole."""

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from connectors.contracts import Commit, SinkModel, TableShape, UsageMark
from connectors.errors import DataError
from connectors.parts import PartWriter, among, columns_of, facts_of, tables_of, write_part, write_without
from connectors.shapes import check_names, in_the_way, mismatch
from connectors.sql_text import literal_list
from connectors.staging import Changes, Staging
from connectors.tables import failure_names, usage_schema

TABLES = ("results", "usage", "errors")
EMPTY = "0-empty.parquet"
"""A part without rows that each table has: its schema, whatever becomes of the others."""
FILES = "files/"
MARKS = "rowmill.marks"
"""The note in a merged usage part's footer: a JSON list of the marks that it covers."""
SMALL_PARTS = 20
"""More small parts than these are merged."""
SMALL_BYTES = 32 << 20
PART_BYTES = 256 << 20
PART_ROWS = 1_000_000

_USAGE_NAME = re.compile(r"([0-9a-f]{8})-(\d+)-(\d+)-(\d+)\.parquet")


class ParquetSink(SinkModel):
    """The job's tables as folders of Parquet parts."""

    parquet: str = Field(min_length=1, description="Folder of the tables; made where it is not there.")

    @field_validator("parquet")
    @classmethod
    def _on_this_machine(cls, path: str) -> str:
        if "://" in path:
            raise ValueError("object stores are not available in this version; write the path of a folder")
        return path

    @property
    def identity(self) -> str:
        return os.path.normpath(self.parquet)

    @property
    def files_prefix(self) -> str:
        return FILES

    def open(self, shape: TableShape, workspace: Path, longest_hold: float) -> "ParquetFolder":
        check_names(shape)
        folder = Path(os.path.abspath(workspace / self.parquet))  # noqa: PTH100 - Path.resolve would follow links
        return ParquetFolder(self.parquet, folder, shape)


class ParquetFolder:
    """The tables of one job; see `connectors.staging` for how a kill is recovered from."""

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

    def prepare(self, fresh: bool) -> None:
        for path in (self._folder, *self._folder.parents):
            if path.exists():
                if not path.is_dir():
                    raise in_the_way(self._name, path, "a file")
                break
        self._staging.recover()
        self._staging.forget_fresh()
        for table in ("usage",) if fresh else TABLES:
            self._check(table)
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
            # Where nothing is replaced, nothing is copied.
            new = results if not old else results.take(pa.array(sorted(set(range(results.num_rows)) - old), pa.int64()))
            if new.num_rows:
                write_part(changes.file(self._unused(f"{self._building}results", name)), new)
            self._commit_errors(changes, commit, name)

    def add_usage(self, usage: pa.Table, mark: UsageMark) -> None:
        if any(
            (one.ledger, one.writer) == (mark.ledger, mark.writer) and one.last >= mark.last
            for one in self.usage_marks()
        ):
            return
        name = f"{mark.ledger}-{mark.writer:06d}-{mark.first:012d}-{mark.last:012d}.parquet"
        with self._staging.together() as changes:
            write_part(changes.file(f"usage/{name}"), usage)

    def usage_marks(self) -> Sequence[UsageMark]:
        return [mark for part in self._parts("usage") for mark in _marks(part)]

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
                raise mismatch(self._name, table, _columns(there), _columns(made))

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
            gone = self._replaced_errors(columns_of(part, [*self._key, self._details]), commit)
            if gone.true_count:
                write_without(part, changes.file(f"{folder}/{part.name}"), schema, gone, schema.empty_table())
        if commit.errors.num_rows:
            write_part(changes.file(self._unused(folder, name)), commit.errors)

    def _replaced_errors(self, rows: pa.Table, commit: Commit) -> pa.BooleanArray:
        """Which rows make way: their key is cleared or failed again; without a key, those with equal details."""
        keys, new = rows.select(self._key), commit.errors.select(self._key)
        gone = among(keys, new.filter(pc.invert(_without_key(new))))
        alike = among(rows.select([self._details]), commit.errors.filter(_without_key(new)).select([self._details]))
        gone = pc.or_(gone, pc.and_(_without_key(keys), alike))
        return pc.or_(gone, among(keys, commit.cleared.select(self._key).cast(new.schema)))

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
            for group in _groups(small):
                _write_merged(group, folder, self._schemas[table], note=table == "usage")


def _columns(schema: pa.Schema) -> dict[str, str]:
    return {field.name: str(field.type) for field in schema}


def _without_key(keys: pa.Table) -> pa.BooleanArray:
    """Which rows have null in every column of the key: lines of the source that are no rows."""
    nulls = [column.is_null() for column in keys.columns]
    found = nulls[0]
    for one in nulls[1:]:
        found = pc.and_(found, one)
    return found.combine_chunks()


def _marks(part: Path) -> list[UsageMark]:
    named = _USAGE_NAME.fullmatch(part.name)
    if named is not None:
        return [UsageMark(named[1], int(named[2]), int(named[3]), int(named[4]))]
    if part.name == EMPTY:
        return []
    return [UsageMark(*mark) for mark in json.loads(facts_of(part)[2].get(MARKS.encode(), b"[]"))]


def _groups(parts: Iterable[Path]) -> list[list[tuple[Path, int]]]:
    """Parts with their rows, in groups each of which makes one part; empty ones are left out."""
    groups: list[list[tuple[Path, int]]] = []
    rows = nbytes = 0
    for part in parts:
        held = facts_of(part)[0]
        if not held:
            continue
        if not groups or rows >= PART_ROWS or nbytes >= PART_BYTES:
            groups.append([])
            rows = nbytes = 0
        groups[-1].append((part, held))
        rows += held
        nbytes += part.stat().st_size
    return groups


def _write_merged(group: Sequence[tuple[Path, int]], folder: Path, schema: pa.Schema, note: bool) -> None:
    name = f"merged-{secrets.token_hex(8)}"
    count = 0
    with PartWriter(folder / name, schema) as out:
        spans: dict[tuple[str, int], tuple[int, int]] = {}
        for part, rows in group:
            count += rows
            for table in tables_of(part):
                out.write(table)
            for mark in _marks(part) if note else ():
                first, last = spans.get((mark.ledger, mark.writer), (mark.first, mark.last))
                spans[mark.ledger, mark.writer] = (min(first, mark.first), max(last, mark.last))
        if note:
            out.note(MARKS, json.dumps([[*whose, *span] for whose, span in spans.items()]))
    if facts_of(folder / name)[0] != count:
        raise DataError(f"{folder}: parts changed while they were being merged; run again when nothing else writes")
    (folder / name).replace(folder / f"{name}.parquet")


def _link(part: Path, target: Path) -> None:
    try:
        target.hardlink_to(part)
    except OSError:
        # The file system knows no links.
        shutil.copyfile(part, target)
