"""`delta:` three Delta Lake tables in a folder or on an object store; a commit is one MERGE a table."""

import contextlib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from connectors.contracts import Commit, SinkModel, TableShape, UsageMark
from connectors.errors import DataError, JobError
from connectors.sinks import delta_log, delta_types
from connectors.sql import identifier, literal_list, literal_path, no_rows
from connectors.storage import object_store
from connectors.tables.parquet_parts import matching_rows, replaced_errors, rows_without_key
from connectors.tables.schema_checks import (
    check_column_names,
    column_types,
    foreign_table,
    is_foreign,
    schema_mismatch,
)
from connectors.tables.schemas import failure_names, missing_usage_columns, usage_schema
from connectors.tables.table_folder import FILES, TABLES, TableFolder, folder_identity, folder_location

if TYPE_CHECKING:
    from deltalake import DeltaTable, Transaction

BUILD = ".fresh/"
"""Folder of the tables that are rebuilt."""
MAX_SMALL_FILES = 20
"""More small files than these are compacted."""
SMALL_FILE_BYTES = 16 << 20
ACTION = "_action"
"""Column in the rows of a MERGE: `removed` (results); `resolved`, `failed`, or `added` for a row that replaces none
(errors)."""

# deltalake 1.6 aborts its thread, or reads another path, if a path contains one of these.
_REFUSED_IN_PATHS = re.compile(r"[\[\]\\^|\x00-\x1f]|%[0-9A-Fa-f]{2}")


class DeltaSink(SinkModel):
    """The job's tables for Delta Lake (extra `rowmill[delta]`). Delta has no lists of fixed size: vectors are stored as
    array<float>; unsigned numbers become signed ones, wider if needed."""

    delta: str = Field(min_length=1, description="Folder of the tables, or s3://, gs://, az://; created if missing.")

    @property
    def identity(self) -> str:
        return folder_identity(self.delta)

    def location(self, workspace: Path) -> str:
        return folder_location(self.delta, workspace)

    @property
    def files_prefix(self) -> str:
        return FILES

    def open(self, shape: TableShape, workspace: Path, longest_hold: float) -> "DeltaTables":
        check_column_names(shape)
        try:
            import deltalake  # noqa: F401
        except ImportError as exc:
            raise JobError(("sink", "delta"), "needs the package deltalake", "pip install 'rowmill[delta]'") from exc
        folder = TableFolder(self.delta, workspace, "delta")
        if refused := _REFUSED_IN_PATHS.search(folder.root):
            found = f"Delta Lake cannot keep tables at a path with {refused[0]}, as {folder.root} is"
            raise DataError(("sink", "delta"), found, "choose another path")
        return DeltaTables(folder, shape)


class DeltaTables:
    """The tables of one job. Delta's log makes each MERGE atomic."""

    def __init__(self, folder: TableFolder, shape: TableShape) -> None:
        self._folder = folder
        self._root = folder.root
        self._key = list(shape.key)
        self._source_key = list(shape.source_key)
        self._details = failure_names(shape.key)["details"]
        schemas = {"results": shape.results, "usage": usage_schema(), "errors": shape.errors}
        self._schemas = {table: delta_types.delta_schema(schema) for table, schema in schemas.items()}
        self._build = ""
        """Prefix of the tables `results` and `errors` while they are rebuilt."""

    @property
    def files_folder(self) -> Path:
        return self._folder.files_folder

    @property
    def files_prefix(self) -> str:
        return FILES

    def exists(self) -> bool:
        self._folder.check()
        with self._delta_errors():
            results = self._open("results")
            # An interrupted first build leaves the empty table that it was to replace.
            return results is not None and (bool(results.file_uris()) or self._open(f"{BUILD}results") is None)

    def check(self, fresh: bool) -> None:
        self._folder.check()
        with self._delta_errors():
            for name in TABLES:
                table = self._open(name)
                if table is not None:
                    self._check_table(name, table, columns=not (fresh and name != "usage"))

    def prepare(self, fresh: bool) -> None:
        self.check(fresh)
        self._folder.create()
        self._delete_build()
        self._build = BUILD if fresh else ""
        with self._delta_errors():
            # The rebuilt tables first: with them, empty results do not count as existing.
            for place in (f"{BUILD}results", f"{BUILD}errors") if fresh else ():
                self._create(place)
            for table in TABLES:
                if self._open(table) is None:
                    self._create(table)
            usage = self._table("usage")
            delta_log.add_columns(usage, missing_usage_columns(delta_log.schema_of(usage).names))

    def results_sql(self) -> str:
        return f"(select *, 'results' as _part from {self._relation('results')})"

    def results_files(self) -> Mapping[str, str]:
        # A file is never rewritten, and deleted long after the version that replaces it.
        with self._delta_errors():
            table = self._open("results")
            return {} if table is None else dict.fromkeys(self._data_files("results", table), "")

    def errors_sql(self) -> str:
        return self._relation("errors")

    def usage_sql(self) -> str:
        return self._relation("usage")

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._folder.attach(connection)

    def detach(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._folder.detach(connection)

    def paths(self) -> Sequence[Path | str]:
        if not self._folder.is_remote:
            return tuple(Path(self._root, table) for table in TABLES)
        with self._delta_errors():
            return tuple(file for table in TABLES for file in self._data_files(table, self._table(table)))

    def tables(self) -> Mapping[str, str]:
        return {table: f"{self._root}/{table}" for table in TABLES}

    def commit(self, commit: Commit, name: str) -> None:
        self._folder.upload_files()
        with self._delta_errors():
            if self._has_children and (commit.rows_by_part or commit.emptied_by_part):
                self._replace_children(commit)
            elif commit.rows_by_part:
                merge = self._merge(f"{self._build}results", commit.results, self._same_key("="))
                merge.when_matched_update_all().when_not_matched_insert_all().execute()
            elif commit.results.num_rows:
                # Nothing to match: the existing rows need not be read.
                self._append(f"{self._build}results", commit.results)
            self._commit_errors(commit)

    def add_usage(self, usage: pa.Table, mark: UsageMark) -> None:
        with self._delta_errors():
            transactions = delta_log.transactions(self._table("usage"), mark)
            if transactions:
                self._append("usage", usage, transactions)

    def usage_marks(self) -> Sequence[UsageMark]:
        with self._delta_errors():
            return delta_log.marks(self._table("usage"))

    def remove(self, keys: pa.Table, errors_too: bool) -> int:
        keys = keys.select(self._source_key)
        if not keys.num_rows:
            return 0
        with self._delta_errors():
            same = self._same_key("=", self._source_key)
            metrics = self._merge("results", keys, same).when_matched_delete().execute()
            if errors_too:
                self._merge("errors", keys, same).when_matched_delete().execute()
            return int(metrics["num_target_rows_deleted"])

    def finish(self) -> None:
        with self._delta_errors():
            if self._build:
                self._build = ""
                for name in ("errors", "results"):
                    self._replace_by_build(name)
            for name in TABLES:
                table = self._table(name)
                sizes = pa.table(table.get_add_actions(flatten=True)).column("size_bytes").to_pylist()
                if sum(size < SMALL_FILE_BYTES for size in sizes) > MAX_SMALL_FILES:
                    table.optimize.compact(writer_properties=delta_log.writer_properties(self._schemas[name]))
                    # Deletes files that no version of the last week needs (or of the time in the table's own property).
                    table.vacuum(dry_run=False)
        self._delete_build()

    def _delta_errors(self) -> contextlib.AbstractContextManager[None]:
        return delta_log.translated_errors(self._folder.name, self._root)

    def _open(self, place: str) -> "DeltaTable | None":
        table = delta_log.open_table(f"{self._root}/{place}")
        if table is not None and (features := delta_log.unreadable_features(table)):
            raise DataError(
                self._folder.name,
                f"its table {place} has {', '.join(features)}, which Rowmill cannot read",
                "remove the feature from the table, or write to another sink (--sink PATH)",
            )
        return table

    def _table(self, place: str) -> "DeltaTable":
        table = self._open(place)
        if table is None:
            raise DataError(self._folder.name, f"its table {place} is gone", "run again: answers are in the ledger")
        return table

    def _create(self, place: str) -> None:
        delta_log.create(f"{self._root}/{place}", self._schemas[place.removeprefix(BUILD)])

    def _check_table(self, name: str, table: "DeltaTable", columns: bool) -> None:
        schema, expected = delta_log.schema_of(table), self._schemas[name]
        if name == "usage":
            schema = pa.schema([*schema, *missing_usage_columns(schema.names)])
        found, wanted = column_types(schema), column_types(expected)
        if is_foreign(name, schema.names):
            raise foreign_table(self._folder.name, f"its {name} have", found)
        if columns and not delta_types.same_columns(schema, expected):
            raise schema_mismatch(self._folder.name, f"its {name} have", found, wanted, name == "usage")

    def _relation(self, name: str) -> str:
        """The rows of a table's files; for a table without files or a missing one, the columns alone."""
        with self._delta_errors():
            table = self._open(name)
            files = [] if table is None else self._data_files(name, table)
        if files and name != "usage":
            return f"(select * from read_parquet({literal_list(map(literal_path, files))}))"
        columns = no_rows(self._schemas[name] if table is None else delta_log.schema_of(table))
        if not files:
            return columns
        # Older files of the usage table lack its last columns.
        rows = f"select * from read_parquet({literal_list(map(literal_path, files))}, union_by_name = true)"
        return f"(select * from {columns} union all by name {rows})"

    def _data_files(self, name: str, table: "DeltaTable") -> list[str]:
        """Paths or URLs. Delta returns them percent-encoded; the files of an unpartitioned table are in one folder."""
        return [f"{self._root}/{name}/{uri.rpartition('/')[2]}" for uri in table.file_uris()]

    def _append(self, place: str, rows: pa.Table, transactions: Sequence["Transaction"] = ()) -> None:
        from deltalake import CommitProperties, write_deltalake

        schema = self._schemas[place.removeprefix(BUILD)]
        write_deltalake(
            self._table(place),
            rows.cast(schema),
            mode="append",
            writer_properties=delta_log.writer_properties(schema),
            commit_properties=CommitProperties(app_transactions=list(transactions)),
        )

    def _merge(self, place: str, rows: pa.Table, same: str) -> Any:
        """Return a MERGE of rows with columns of the table, and perhaps ACTION."""
        schema = self._schemas[place.removeprefix(BUILD)]
        fields = [schema.field(name) if name != ACTION else (name, pa.string()) for name in rows.column_names]
        return self._table(place).merge(
            rows.cast(pa.schema(fields)),
            same,
            source_alias="new",
            target_alias="old",
            # With all new rows at hand, files with other keys are not read.
            streamed_exec=False,
            writer_properties=delta_log.writer_properties(schema),
        )

    @property
    def _has_children(self) -> bool:
        return self._source_key != self._key

    def _same_key(self, equal: Literal["=", "is not distinct from"], names: Sequence[str] | None = None) -> str:
        """`names`: columns to compare in place of the key."""
        # By `=` deltalake skips files whose statistics exclude a key, and it cannot print dates far from now.
        exact = delta_types.columns_with_statistics(self._schemas["results"])
        operators = {name: equal if name in exact else "is not distinct from" for name in names or self._key}
        return " and ".join(f"(old.{identifier(name)} {operators[name]} new.{identifier(name)})" for name in operators)

    def _replace_children(self, commit: Commit) -> None:
        """Replace all children of the source rows that are in the results already, in one MERGE."""
        place, results = f"{self._build}results", commit.results.cast(self._schemas["results"])
        replacing = results.take(pa.array(sorted(chain(*commit.rows_by_part.values())), pa.int64()))
        keys = [replacing.select(self._source_key)]
        keys += [one.select(self._source_key).cast(keys[0].schema) for one in commit.emptied_by_part.values()]
        superseded = pa.concat_tables(keys)
        there = self._matching(place, self._key, lambda rows: matching_rows(rows.select(self._source_key), superseded))
        removed = there.filter(pc.invert(matching_rows(there, results.select(self._key))))
        rows = pa.concat_tables(
            [_with_action(results, "added"), _with_action(removed, "removed")], promote_options="default"
        )
        (
            self._merge(place, rows, self._same_key("="))
            .when_matched_delete(f"new.{ACTION} = 'removed'")
            .when_matched_update_all(f"new.{ACTION} <> 'removed'", except_cols=[ACTION])
            .when_not_matched_insert_all(f"new.{ACTION} <> 'removed'", except_cols=[ACTION])
            .execute()
        )

    def _replace_errors_of_children(self, commit: Commit) -> None:
        """Replace all errors of the source rows that failed again or succeeded, in one MERGE."""
        names = [*self._key, self._details]
        replaced = partial(replaced_errors, commit=commit, key=self._source_key, details=self._details)
        removed = self._matching(f"{self._build}errors", names, replaced).group_by(names).aggregate([]).select(names)
        rows = pa.concat_tables(
            [_with_action(commit.errors.cast(self._schemas["errors"]), "added"), _with_action(removed, "resolved")],
            promote_options="default",
        )
        same = f"{self._same_key('is not distinct from', names)} and new.{ACTION} = 'resolved'"
        (
            self._merge(f"{self._build}errors", rows, same)
            .when_matched_delete()
            .when_not_matched_insert_all(f"new.{ACTION} <> 'resolved'", except_cols=[ACTION])
            .execute()
        )

    def _matching(self, place: str, names: Sequence[str], test: Callable[[pa.Table], pa.BooleanArray]) -> pa.Table:
        """Return these columns of the table's rows that meet the test."""
        schema = self._schemas[place.removeprefix(BUILD)]
        found = [pa.schema([schema.field(name) for name in names]).empty_table()]
        dataset = self._table(place).to_pyarrow_dataset()
        for batch in dataset.scanner(columns=list(names), batch_readahead=1, fragment_readahead=1).to_batches():
            rows = pa.Table.from_batches([batch]).cast(found[0].schema)
            found.append(rows.filter(test(rows)))
        return pa.concat_tables(found)

    def _commit_errors(self, commit: Commit) -> None:
        failed_keys = commit.errors.select(self._source_key)
        resolved = commit.resolved_keys.select(self._source_key).cast(failed_keys.schema)
        if not commit.errors.num_rows and not resolved.num_rows:
            return
        if self._has_children:
            self._replace_errors_of_children(commit)
            return
        # Unreadable lines have no key: all of them are resolved at once, and one replaces an equal one.
        all_lines = pc.any(rows_without_key(resolved)).as_py() or False
        failed_again = matching_rows(resolved, failed_keys.filter(pc.invert(rows_without_key(failed_keys))))
        resolved = resolved.filter(pc.invert(failed_again)).group_by(self._key).aggregate([]).select(self._key)
        actions = pc.if_else(rows_without_key(failed_keys), "added" if all_lines else "failed", "failed")
        failed = commit.errors.append_column(ACTION, actions)
        columns = [
            resolved.column(field.name) if field.name in self._key else pa.nulls(resolved.num_rows, field.type)
            for field in commit.errors.schema
        ]
        deleted = pa.table(columns, schema=commit.errors.schema)
        deleted = deleted.append_column(ACTION, pa.repeat(pa.scalar("resolved"), resolved.num_rows))
        rows = pa.concat_tables([failed, deleted])
        same = self._same_key("=")
        if rows_without_key(rows.select(self._key)).true_count:
            no_key = " and ".join(f"old.{identifier(name)} is null" for name in self._key)
            details = identifier(self._details)
            same = (
                f"{self._same_key('is not distinct from')} and new.{ACTION} <> 'added' and (new.{ACTION} = 'resolved' "
                f"or not ({no_key}) or (old.{details} is not distinct from new.{details}))"
            )
        (
            self._merge(f"{self._build}errors", rows, same)
            .when_matched_delete(f"new.{ACTION} = 'resolved'")
            .when_matched_update_all(f"new.{ACTION} <> 'resolved'", except_cols=[ACTION])
            .when_not_matched_insert_all(f"new.{ACTION} <> 'resolved'", except_cols=[ACTION])
            .execute()
        )

    def _replace_by_build(self, name: str) -> None:
        """Replace a table by its rebuilt version, in one commit of its log."""
        from deltalake import write_deltalake

        build = self._table(f"{BUILD}{name}")
        batches = build.to_pyarrow_dataset().scanner(batch_size=1024, batch_readahead=1, fragment_readahead=1)
        write_deltalake(
            self._table(name),
            batches.to_reader(),
            mode="overwrite",
            schema_mode="overwrite",
            writer_properties=delta_log.writer_properties(self._schemas[name]),
        )

    def _delete_build(self) -> None:
        """Delete rebuilt tables that were not finished, or that are in place by now."""
        folder = f"{self._root}/{BUILD}".rstrip("/")
        if self._folder.is_remote:
            object_store.delete([one.url for one in object_store.list_objects(folder)])
        elif Path(folder).exists():
            shutil.rmtree(folder)


def _with_action(rows: pa.Table, action: str) -> pa.Table:
    return rows.append_column(ACTION, pa.repeat(pa.scalar(action), rows.num_rows))
