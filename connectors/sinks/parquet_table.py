"""`parquet:` a folder with results/, usage/ and errors/, each a table of parts that readers see only when complete."""

import contextlib
import io
import secrets
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from connectors.contracts import Commit, SinkModel, TableShape, UsageMark
from connectors.sql import literal_list, literal_path, no_rows
from connectors.storage.local_part_store import LocalPartStore
from connectors.storage.part_store import BUILD, EMPTY_PART, Part, PartStore, PartTransaction
from connectors.tables.compaction import (
    MARKS,
    is_piece,
    is_recorded,
    marks_of,
    merge_groups,
    parts_of_like_size,
    usage_part_name,
    write_merged_part,
    write_pieces,
)
from connectors.tables.parquet_parts import (
    add_null_columns,
    drop_rows,
    find_rows,
    matching_rows,
    read_footer,
    replaced_errors,
    rewrite_part,
    write_part,
)
from connectors.tables.schema_checks import (
    check_column_names,
    column_types,
    foreign_table,
    is_foreign,
    schema_mismatch,
)
from connectors.tables.schemas import failure_names, missing_usage_columns, usage_schema
from connectors.tables.table_folder import FILES, TABLES, TableFolder, folder_identity, folder_location

MAX_CONCURRENT_READS = 8
"""Footers that a check reads from an object store at a time."""
MAX_SMALL_PARTS = 20
"""More small parts than these are merged."""
SMALL_PART_BYTES = 16 << 20
MAX_UNMERGED_PARTS = 100
"""More parts than these below MIN_PART_BYTES are merged: those of large rows are not small, and cost more to merge."""
MIN_PART_BYTES = 128 << 20
"""Larger parts are not merged any more."""
MAX_PART_BYTES = 256 << 20
"""Of merged parts; one may be larger by less than MIN_PART_BYTES."""
MAX_MERGED_BYTES = 4 << 30
"""About so many bytes are merged in one transaction: the disk needs room for them."""
MAX_REWRITTEN_BYTES = 32 << 20
"""A larger part is divided before a run rewrites it for the second time."""
PIECE_BYTES = 8 << 20
"""Of a part that is divided."""


class ParquetSink(SinkModel):
    """The job's tables as folders of Parquet parts, on this machine or on an object store (extra `rowmill[cloud]`)."""

    parquet: str = Field(min_length=1, description="Folder of the tables, or s3://, gs://, az://; created if missing.")

    @property
    def identity(self) -> str:
        return folder_identity(self.parquet)

    def location(self, workspace: Path) -> str:
        return folder_location(self.parquet, workspace)

    @property
    def files_prefix(self) -> str:
        return FILES

    def open(self, shape: TableShape, workspace: Path, longest_hold: float) -> "ParquetTables":
        check_column_names(shape)
        return ParquetTables(TableFolder(self.parquet, workspace, "parquet"), shape)


class ParquetTables:
    """The tables of one job. The part store makes each method's changes visible together, and recovers from kills."""

    def __init__(self, folder: TableFolder, shape: TableShape) -> None:
        self._folder = folder
        self._store = _part_store(folder)
        self._key = list(shape.source_key)
        self._details = failure_names(shape.key)["details"]
        self._schemas = {"results": shape.results, "usage": usage_schema(), "errors": shape.errors}
        self._marks: dict[str, list[UsageMark]] = {}
        """By usage part; a name is never used again."""
        self._old_usage_parts: list[str] = []
        self._build = ""
        """Prefix of the folders `results` and `errors` while they are rebuilt."""
        self._rewritten: set[str] = set()
        """The parts of the results in which commits have replaced rows."""
        self._pieces: dict[str, list[str]] = {}
        """Those that were divided, with the names of their pieces; first the one in which rows were last replaced."""

    @property
    def files_folder(self) -> Path:
        return self._folder.files_folder

    @property
    def files_prefix(self) -> str:
        return FILES

    def exists(self) -> bool:
        names = [part.name for part in self._store.parts("results")]
        if any(name != EMPTY_PART for name in names) or self._store.is_replacing:
            return True
        # An interrupted first build leaves the empty table that it was to replace.
        return bool(names) and not any(self._store.parts(f"{BUILD}{table}") for table in ("results", "errors"))

    def check(self, fresh: bool) -> None:
        self._folder.check()
        self._old_usage_parts = []
        if not self._store.is_replacing:
            for table in TABLES:
                self._check_schema(table, may_differ=fresh and table != "usage")

    def prepare(self, fresh: bool) -> None:
        self._store.recover()
        self.check(fresh)
        self._folder.create()
        self._add_usage_columns()
        self._build = BUILD if fresh else ""
        # The rebuilt tables first: with them, empty results do not count as existing.
        rebuilt = [(table, f"{BUILD}{table}") for table in ("results", "errors") if fresh]
        for table, folder in [*rebuilt, *zip(TABLES, TABLES, strict=True)]:
            if not self._store.has_part(f"{folder}/{EMPTY_PART}"):
                with self._store.transaction() as transaction:
                    schema = self._existing_schema(table, folder)
                    write_part(transaction.add(f"{folder}/{EMPTY_PART}"), schema.empty_table())

    def results_sql(self) -> str:
        parts = self._parts_sql("results")
        if not parts:
            return no_rows(pa.schema([*self._schemas["results"], ("_part", pa.string())]))
        return f"(select * replace (parse_filename(_part) as _part) from read_parquet({parts}, filename = '_part'))"

    def results_files(self) -> Mapping[str, str]:
        return self._store.versions("results")

    def errors_sql(self) -> str:
        parts = self._parts_sql("errors")
        return f"(select * from read_parquet({parts}))" if parts else no_rows(self._schemas["errors"])

    def usage_sql(self) -> str:
        return f"(select * from read_parquet({self._parts_sql('usage')}))"

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._folder.attach(connection)

    def detach(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._folder.detach(connection)

    def paths(self) -> Sequence[Path | str]:
        if self._folder.is_remote:
            return tuple(str(part.source) for table in TABLES for part in self._store.parts(table))
        return tuple(Path(self._folder.root, table) for table in TABLES)

    def tables(self) -> Mapping[str, str]:
        return {table: f"{self._folder.root}/{table}/*.parquet" for table in TABLES}

    def commit(self, commit: Commit, name: str) -> None:
        self._folder.upload_files()
        replaced = {**commit.rows_by_part, **commit.emptied_by_part}
        self._divide_large_parts(replaced)
        with self._store.transaction() as transaction:
            replacing: set[int] = set()
            for part in replaced:
                rows = commit.rows_by_part.get(part, ())
                added = commit.results.take(pa.array(rows, pa.int64()))
                keys = added.select(self._key)
                if (emptied := commit.emptied_by_part.get(part)) is not None:
                    keys = pa.concat_tables([keys, emptied.select(self._key).cast(keys.schema)])
                self._replace_rows(transaction, part, keys, added)
                replacing.update(rows)
            new = drop_rows(commit.results, replacing)
            if new.num_rows:
                write_part(transaction.add(self._unused_place(f"{self._build}results", name)), new)
            self._commit_errors(transaction, commit, name)

    def add_usage(self, usage: pa.Table, mark: UsageMark) -> None:
        if is_recorded(mark, self.usage_marks()):
            return
        with self._store.transaction() as transaction:
            write_part(transaction.add(f"usage/{usage_part_name(mark)}"), usage)

    def usage_marks(self) -> Sequence[UsageMark]:
        return [mark for part in self._store.parts("usage") for mark in self._marks_of(part)]

    def remove(self, keys: pa.Table, errors_too: bool) -> int:
        removed = 0
        with self._store.transaction() as transaction:
            for table in ("results", "errors") if errors_too else ("results",):
                for part in self._store.parts(table):
                    dropped, _ = self._find(part.source, keys.select(self._key))
                    self._drop_rows(transaction, table, f"{table}/{part.name}", dropped)
                    removed += dropped.true_count if table == "results" else 0
        return removed

    def finish(self) -> None:
        if self._build:
            with self._store.transaction() as transaction:
                transaction.rebuilt += ["results", "errors"]
            self._build = ""
            self._store.recover()
        for table in TABLES:
            self._merge_parts(table)
        self._rewritten.clear()
        self._pieces.clear()

    def _parts_sql(self, table: str) -> str:
        """The parts as a list; empty text if there is none."""
        parts = [str(part.source) for part in self._store.parts(table)]
        return literal_list(map(literal_path, parts)) if parts else ""

    def _check_schema(self, table: str, may_differ: bool) -> None:
        """Raise unless every part of a table has the job's columns, or is one of Rowmill's if they may differ."""
        expected = self._schemas[table]
        parts = self._store.parts(table)
        with ThreadPoolExecutor(MAX_CONCURRENT_READS, "footers") as pool:
            schemas = list((pool.map if self._folder.is_remote else map)(_schema_of, parts))
        for part, schema in zip(parts, schemas, strict=True):
            missing = missing_usage_columns(schema.names) if table == "usage" else ()
            if missing:
                self._old_usage_parts.append(part.name)
            found, wanted = column_types(schema), column_types(expected)
            if is_foreign(table, schema.names):
                raise foreign_table(self._folder.name, f"its {table} ({part.name}) have", found)
            if not may_differ and pa.schema([*schema, *missing]) != expected:
                raise schema_mismatch(self._folder.name, f"its {table} have", found, wanted, table == "usage")

    def _add_usage_columns(self) -> None:
        """Write the usage parts of an older version again, with the columns that they lack."""
        with self._store.transaction() as transaction:
            for name in self._old_usage_parts:
                with self._store.local_copy(f"usage/{name}") as path:
                    add_null_columns(path, transaction.add(f"usage/{name}"), self._schemas["usage"], MARKS)

    def _existing_schema(self, table: str, folder: str) -> pa.Schema:
        """The columns of the parts in a folder: the job's, except for an old table that a rebuilt one will replace."""
        parts = self._store.parts(folder)
        return _schema_of(parts[0]) if parts else self._schemas[table]

    def _marks_of(self, part: Part) -> list[UsageMark]:
        if part.name not in self._marks:
            self._marks[part.name] = marks_of(part.name, part.source)
        return self._marks[part.name]

    def _unused_place(self, folder: str, name: str) -> str:
        """The place of a new part; its name was never used, unless an older state of the ledger was restored."""
        place = f"{folder}/{name}.parquet"
        while self._store.has_part(place):
            place = f"{folder}/{name}-{secrets.token_hex(4)}.parquet"
        return place

    def _find(self, part: Path | io.RawIOBase, keys: pa.Table) -> tuple[pa.BooleanArray, pa.Table]:
        """Return which rows of a part have one of these source keys, and the source keys of those."""
        return find_rows(part, self._key, lambda rows: matching_rows(rows, keys.cast(rows.schema)))

    def _divide_large_parts(self, names: Iterable[str]) -> None:
        """Divide those of the results' parts that are large and were rewritten before: each further commit then
        rewrites only the pieces that it changes. The compaction merges them again."""
        again = self._rewritten.intersection(names).difference(self._pieces)
        self._rewritten.update(names)
        if self._build or not again:
            return
        parts = [part for part in self._store.parts("results") if part.name in again]
        large = [part for part in parts if self._store.size(part) > MAX_REWRITTEN_BYTES]
        if not large:
            return
        schema, pieces = self._schemas["results"], dict[str, list[str]]()
        with self._store.transaction() as transaction:
            folder = transaction.merge("results", large)
            write_part(folder / EMPTY_PART, schema.empty_table())
            for part in large:
                with self._store.local_copy(f"results/{part.name}") as path:
                    pieces[part.name] = write_pieces(path, folder, schema, self._key, PIECE_BYTES)
        self._pieces |= pieces

    def _replace_rows(self, transaction: PartTransaction, part: str, keys: pa.Table, added: pa.Table) -> None:
        """Write a part of the results again, or those of its pieces that have such rows: without the rows of these
        source keys, and with rows added in their place."""
        pieces = self._pieces.get(part, [part])
        changed = 0
        for number, piece in enumerate(pieces):
            here = added
            place = f"{self._build}results/{piece}"
            with self._store.local_copy(place) as path:
                dropped, found = self._find(path, keys)
                if number + 1 < len(pieces):
                    # A key is in one piece; new rows replace the old ones there, so that no reader sees neither or
                    # both.
                    is_here = self._among(added, found)
                    here, added = added.filter(is_here), added.filter(pc.invert(is_here))
                if dropped.true_count or here.num_rows:
                    changed = number
                    rewrite_part(path, transaction.add(place), self._schemas["results"], dropped, here)
            keys = keys.filter(pc.invert(self._among(keys, found)))
            if not keys.num_rows:
                break
        # Rows come in the order of the source: the next ones are probably in the same piece.
        pieces[:] = pieces[changed:] + pieces[:changed]

    def _among(self, rows: pa.Table, keys: pa.Table) -> pa.BooleanArray:
        """Return which rows have one of these source keys."""
        wanted = rows.select(self._key)
        return matching_rows(wanted, keys.cast(wanted.schema))

    def _drop_rows(self, transaction: PartTransaction, table: str, place: str, dropped: pa.BooleanArray) -> None:
        """Write a part again without some rows. Emptied parts stay until they are merged: readers may have listed
        them."""
        if dropped.true_count:
            schema = self._schemas[table]
            with self._store.local_copy(place) as path:
                rewrite_part(path, transaction.add(place), schema, dropped, schema.empty_table())

    def _commit_errors(self, transaction: PartTransaction, commit: Commit, name: str) -> None:
        if not commit.errors.num_rows and not commit.resolved_keys.num_rows:
            return
        folder = f"{self._build}errors"
        replaced = partial(replaced_errors, commit=commit, key=self._key, details=self._details)
        for part in self._store.parts(folder):
            dropped, _ = find_rows(part.source, [*self._key, self._details], replaced)
            self._drop_rows(transaction, "errors", f"{folder}/{part.name}", dropped)
        if commit.errors.num_rows:
            write_part(transaction.add(self._unused_place(folder, name)), commit.errors)

    def _merge_parts(self, table: str) -> None:
        """Merge parts if there are too many of them; pieces always."""
        parts = {part.name: part for part in self._store.parts(table) if part.name != EMPTY_PART}
        sizes = {name: self._store.size(part) for name, part in parts.items()}
        sizes = {name: size for name, size in sizes.items() if size < MIN_PART_BYTES}
        small = [size for size in sizes.values() if size < SMALL_PART_BYTES]
        if any(map(is_piece, sizes)):
            names = list(sizes)
        elif len(small) > MAX_SMALL_PARTS or len(sizes) > MAX_UNMERGED_PARTS:
            names = parts_of_like_size(sizes)
        else:
            return
        chosen = [parts[name] for name in sorted(names)]
        groups = merge_groups([(part, sizes[part.name]) for part in chosen], MIN_PART_BYTES, MAX_PART_BYTES)
        kept = {part.name for group in groups for part in group}
        emptied = [part for part in chosen if part.name not in kept]
        batches: list[list[list[Part]]] = [[]]
        for group in groups:
            batches[-1].append(group)
            if sum(sizes[part.name] for one in batches[-1] for part in one) >= MAX_MERGED_BYTES:
                batches.append([])
        for batch in batches:
            if batch or emptied:
                self._merge_groups(table, batch, emptied)
            emptied = []

    def _merge_groups(self, table: str, groups: Sequence[Sequence[Part]], emptied: Sequence[Part]) -> None:
        """Merge each group of parts into one part, and remove emptied parts, in one transaction."""
        schema = self._schemas[table]
        with self._store.transaction() as transaction:
            folder = transaction.merge(table, [*emptied, *chain(*groups)])
            write_part(folder / EMPTY_PART, schema.empty_table())
            for group in groups:
                with contextlib.ExitStack() as copies:
                    paths = [copies.enter_context(self._store.local_copy(f"{table}/{part.name}")) for part in group]
                    write_merged_part(paths, folder, schema, with_marks=table == "usage")


def _part_store(folder: TableFolder) -> PartStore:
    if not folder.is_remote:
        return LocalPartStore(Path(folder.root))
    from connectors.storage.object_part_store import ObjectPartStore

    return ObjectPartStore(folder.root)


def _schema_of(part: Part) -> pa.Schema:
    return read_footer(part.source)[1]
