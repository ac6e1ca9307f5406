"""`delta:` three Delta Lake tables in a folder or on an object store; a commit is one MERGE a table."""

import contextlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from connectors.contracts import Commit, SinkModel, TableShape, UsageMark
from connectors.errors import DataError, JobError
from connectors.sinks import delta_log, delta_types
from connectors.sql import literal_list, quoted
from connectors.storage import object_store
from connectors.storage.media_upload import MediaUpload
from connectors.tables.parquet_parts import matching_rows, rows_without_key
from connectors.tables.schema_checks import check_column_names, column_types, path_occupied, schema_mismatch
from connectors.tables.schemas import failure_names, usage_schema

if TYPE_CHECKING:
    from deltalake import DeltaTable, Transaction

TABLES = ("results", "usage", "errors")
FILES = "files/"
FRESH = ".fresh/"
"""Where results and errors are built anew, beside those that they will replace."""
SMALL_FILES = 20
"""More small files than these are compacted."""
SMALL_BYTES = 16 << 20
TOLD = "_told"
"""In the rows of a MERGE into errors: `cleared`, `failed`, or `added` for a row that replaces none."""
REFUSED = frozenset({"deletionVectors", "columnMapping"})
"""Features of Delta tables under which a row of a data file is no row of the table."""

# Found by trial with deltalake 1.6, which ends the process' thread, or looks elsewhere, at these.
_NOT_IN_PATHS = re.compile(r"[\[\]\\^|\x00-\x1f]|%[0-9A-Fa-f]{2}")


class DeltaSink(SinkModel):
    """The job's tables for Delta Lake (extra `rowmill[delta]`). Delta has no lists of fixed size: vectors are stored as
    array<float>; unsigned numbers become signed ones, wider where they must."""

    delta: str = Field(min_length=1, description="Folder of the tables, or s3://, gs://, az://; made if not there.")

    @property
    def identity(self) -> str:
        return object_store.normal(self.delta) if object_store.is_url(self.delta) else os.path.normpath(self.delta)

    def location(self, workspace: Path) -> str:
        return self.identity if object_store.is_url(self.delta) else os.path.realpath(workspace / self.delta)

    @property
    def files_prefix(self) -> str:
        return FILES

    def open(self, shape: TableShape, workspace: Path, longest_hold: float) -> "DeltaTables":
        check_column_names(shape)
        try:
            import deltalake  # noqa: F401
        except ImportError as exc:
            raise JobError(("sink", "delta"), "needs the package deltalake", "pip install 'rowmill[delta]'") from exc
        if object_store.is_url(self.delta):
            object_store.check_installed(("sink", "delta"))
            root = object_store.normal(self.delta)
        else:
            root = os.path.abspath(workspace / self.delta)  # noqa: PTH100 - Path.resolve would follow links
        if odd := _NOT_IN_PATHS.search(root):
            raise DataError(root, f"Delta Lake cannot keep tables at a path with {odd[0]}", "choose another path")
        return DeltaTables(self.delta, root, shape)


class DeltaTables:
    """The tables of one job. Delta's log makes each MERGE whole or not at all."""

    def __init__(self, name: str, root: str, shape: TableShape) -> None:
        self._name = name
        self._root = root
        self._remote = object_store.is_url(root)
        self._key = list(shape.key)
        self._details = failure_names(shape.key)["details"]
        made = {"results": shape.results, "usage": usage_schema(), "errors": shape.errors}
        self._schemas = {table: delta_types.stored(schema) for table, schema in made.items()}
        self._files = MediaUpload(f"{root}/{FILES}") if self._remote else None
        self._building = ""
        """What stands before `results` and `errors` while they are built anew."""

    @property
    def files_folder(self) -> Path:
        return Path(self._root, FILES) if self._files is None else self._files.folder

    @property
    def files_prefix(self) -> str:
        return FILES

    def exists(self) -> bool:
        with self._told():
            results = self._opened("results")
            # A first build that was cut off leaves the empty table that it was to replace.
            return results is not None and (bool(results.file_uris()) or self._opened(f"{FRESH}results") is None)

    def check(self, fresh: bool) -> None:
        if not self._remote:
            for path in (Path(self._root), *Path(self._root).parents):
                if path.exists():
                    if not path.is_dir():
                        raise path_occupied(self._name, path, "a file")
                    break
        with self._told():
            for table in TABLES:
                found = self._opened(table)
                if found is not None:
                    self._check(table, found, columns=not (fresh and table != "usage"))

    def prepare(self, fresh: bool) -> None:
        self.check(fresh)
        if not self._remote:
            self.files_folder.mkdir(parents=True, exist_ok=True)
        self._forget_fresh()
        self._building = FRESH if fresh else ""
        with self._told():
            # The fresh ones first: with them, empty results count as not there.
            for place in (f"{FRESH}results", f"{FRESH}errors") if fresh else ():
                self._create(place)
            for table in TABLES:
                if self._opened(table) is None:
                    self._create(table)

    def results_sql(self) -> str:
        return f"(select *, 'results' as _part from {self._relation('results')})"

    def errors_sql(self) -> str:
        return self._relation("errors")

    def usage_sql(self) -> str:
        return self._relation("usage")

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        if self._remote:
            from connectors.storage.duckdb_filesystem import register

            register(connection)

    def detach(self, connection: duckdb.DuckDBPyConnection) -> None:
        if self._remote:
            from connectors.storage.duckdb_filesystem import unregister

            unregister(connection)

    def paths(self) -> Sequence[Path | str]:
        if not self._remote:
            return tuple(Path(self._root, table) for table in TABLES)
        with self._told():
            return tuple(file for table in TABLES for file in self._data_files(table, self._there(table)))

    def tables(self) -> Mapping[str, str]:
        return {table: f"{self._root}/{table}" for table in TABLES}

    def commit(self, commit: Commit, name: str) -> None:
        if self._files is not None:
            self._files.upload()
        with self._told():
            if commit.rows_by_part:
                same = self._same_key("=")
                merge = self._merge(f"{self._building}results", commit.results, same)
                merge.when_matched_update_all().when_not_matched_insert_all().execute()
            elif commit.results.num_rows:
                # Nothing to match: what is there need not be read.
                self._append(f"{self._building}results", commit.results)
            self._commit_errors(commit)

    def add_usage(self, usage: pa.Table, mark: UsageMark) -> None:
        with self._told():
            transactions = delta_log.transactions(self._there("usage"), mark)
            if transactions:
                self._append("usage", usage, transactions)

    def usage_marks(self) -> Sequence[UsageMark]:
        with self._told():
            return delta_log.marks(self._there("usage"))

    def remove(self, keys: pa.Table, errors_too: bool) -> int:
        keys = keys.select(self._key)
        if not keys.num_rows:
            return 0
        with self._told():
            same = self._same_key("=")
            gone = self._merge("results", keys, same, ()).when_matched_delete().execute()
            if errors_too:
                self._merge("errors", keys, same, ()).when_matched_delete().execute()
            return int(gone["num_target_rows_deleted"])

    def finish(self) -> None:
        with self._told():
            if self._building:
                self._building = ""
                for table in ("errors", "results"):
                    self._swap(table)
            for table in TABLES:
                found = self._there(table)
                sizes = pa.table(found.get_add_actions(flatten=True)).column("size_bytes").to_pylist()
                if sum(size < SMALL_BYTES for size in sizes) > SMALL_FILES:
                    found.optimize.compact(writer_properties=delta_log.properties(self._schemas[table]))
                    # Files that no version of the last week needs (or as long as the table's own property says).
                    found.vacuum(dry_run=False)
        self._forget_fresh()

    def _told(self) -> contextlib.AbstractContextManager[None]:
        return delta_log.told(self._name, self._root)

    def _opened(self, place: str) -> "DeltaTable | None":
        return delta_log.opened(f"{self._root}/{place}")

    def _there(self, place: str) -> "DeltaTable":
        found = self._opened(place)
        if found is None:
            raise DataError(self._name, f"its table {place} is gone", "run again: answers are in the ledger")
        return found

    def _create(self, place: str) -> None:
        delta_log.create(f"{self._root}/{place}", self._schemas[place.removeprefix(FRESH)])

    def _check(self, table: str, found: "DeltaTable", columns: bool) -> None:
        features = REFUSED.intersection(found.protocol().reader_features or ())
        if features:
            raise DataError(
                self._name,
                f"its table {table} has {', '.join(sorted(features))}, which Rowmill cannot read",
                "take the feature off the table, or write to another sink (--sink PATH)",
            )
        there, made = delta_log.schema_of(found), self._schemas[table]
        if columns and not delta_types.same(there, made):
            raise schema_mismatch(
                self._name, f"its {table} have", column_types(there), column_types(made), table == "usage"
            )

    def _relation(self, table: str) -> str:
        """The rows of a table's files; for a table without any, the columns alone."""
        with self._told():
            found = self._there(table)
            files = self._data_files(table, found)
        if files:
            return f"(select * from read_parquet({literal_list(files)}))"
        with duckdb.connect() as db:
            db.register("made", delta_log.schema_of(found).empty_table())
            described = db.execute("describe made").fetchall()
        nulls = ", ".join(f"cast(null as {kind}) as {quoted(name)}" for name, kind, *_ in described)
        return f"(select {nulls} where false)"

    def _data_files(self, table: str, found: "DeltaTable") -> list[str]:
        """Paths or URLs. Delta tells them percent-encoded; a table without partitions has all of them side by side."""
        return [f"{self._root}/{table}/{uri.rpartition('/')[2]}" for uri in found.file_uris()]

    def _append(self, place: str, rows: pa.Table, transactions: Sequence["Transaction"] = ()) -> None:
        from deltalake import CommitProperties, write_deltalake

        schema = self._schemas[place.removeprefix(FRESH)]
        write_deltalake(
            self._there(place),
            rows.cast(schema),
            mode="append",
            writer_properties=delta_log.properties(schema),
            commit_properties=CommitProperties(app_transactions=list(transactions)),
        )

    def _merge(self, place: str, rows: pa.Table, same: str, extra: Sequence[str] | None = None) -> Any:
        """A MERGE of rows with the table's columns; `extra`: other columns than those, besides the key."""
        table = place.removeprefix(FRESH)
        schema = self._schemas[table]
        kept = schema.names if extra is None else [*self._key, *extra]
        rows = rows.cast(
            pa.schema([schema.field(name) if name in schema.names else (name, pa.string()) for name in kept])
        )
        return self._there(place).merge(
            rows,
            same,
            source_alias="told",
            target_alias="there",
            # With the whole of the told rows at hand, files whose keys lie elsewhere are not read.
            streamed_exec=False,
            writer_properties=delta_log.properties(self._schemas[table]),
        )

    def _same_key(self, equal: Literal["=", "is not distinct from"]) -> str:
        return " and ".join(f"(there.{quoted(name)} {equal} told.{quoted(name)})" for name in self._key)

    def _commit_errors(self, commit: Commit) -> None:
        cleared = commit.resolved_keys.select(self._key).cast(commit.errors.select(self._key).schema)
        if not commit.errors.num_rows and not cleared.num_rows:
            return
        new = commit.errors.select(self._key)
        # A line that is no row has no key: all of them are cleared at once, and one makes way for an equal one.
        all_lines = pc.any(rows_without_key(cleared)).as_py() or False
        cleared = cleared.filter(pc.invert(matching_rows(cleared, new.filter(pc.invert(rows_without_key(new))))))
        cleared = cleared.group_by(self._key).aggregate([]).select(self._key)
        kinds = pc.if_else(rows_without_key(new), "added" if all_lines else "failed", "failed")
        told = commit.errors.append_column(TOLD, kinds)
        gone = pa.table(
            [
                cleared.column(field.name) if field.name in self._key else pa.nulls(cleared.num_rows, field.type)
                for field in commit.errors.schema
            ],
            schema=commit.errors.schema,
        ).append_column(TOLD, pa.repeat(pa.scalar("cleared"), cleared.num_rows))
        rows = pa.concat_tables([told, gone])
        same = self._same_key("=")
        if rows_without_key(rows.select(self._key)).true_count:
            no_key = " and ".join(f"there.{quoted(name)} is null" for name in self._key)
            details = quoted(self._details)
            same = (
                f"{self._same_key('is not distinct from')} and told.{TOLD} <> 'added' and (told.{TOLD} = 'cleared' or "
                f"not ({no_key}) or (there.{details} is not distinct from told.{details}))"
            )
        (
            self._merge(f"{self._building}errors", rows, same, [*commit.errors.column_names[len(self._key) :], TOLD])
            .when_matched_delete(f"told.{TOLD} = 'cleared'")
            .when_matched_update_all(f"told.{TOLD} <> 'cleared'", except_cols=[TOLD])
            .when_not_matched_insert_all(f"told.{TOLD} <> 'cleared'", except_cols=[TOLD])
            .execute()
        )

    def _swap(self, table: str) -> None:
        """Let the table that was built anew stand in the place of the old one, by one commit of the old one's log."""
        from deltalake import write_deltalake

        fresh = self._there(f"{FRESH}{table}")
        batches = fresh.to_pyarrow_dataset().scanner(batch_size=1024, batch_readahead=1, fragment_readahead=1)
        write_deltalake(
            self._there(table),
            batches.to_reader(),
            mode="overwrite",
            schema_mode="overwrite",
            writer_properties=delta_log.properties(self._schemas[table]),
        )

    def _forget_fresh(self) -> None:
        """Drop tables that were not built to their end, or are in place by now."""
        if self._remote:
            object_store.delete([one.url for one in object_store.listed(f"{self._root}/{FRESH}".rstrip("/"))])
        elif (fresh := Path(self._root, FRESH)).exists():
            shutil.rmtree(fresh)
