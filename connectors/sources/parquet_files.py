"""`parquet:` one or more Parquet files, read in place, in the order of their names."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import duckdb
from pydantic import Field

from connectors.contracts import Columns, OpenedSource, SourceColumn, SourceContext
from connectors.errors import DataError
from connectors.sources.columns.hive_columns import FilesModel, hive_columns, hive_values, value_of_file_name
from connectors.sources.columns.saved_columns import empty_source, no_bytes_warning
from connectors.sources.delta_files import check_no_delta_table, live_files
from connectors.sql import first_line, identifier, literal, literal_list, literal_path
from connectors.storage.input_files import input_files, input_folders, input_objects, other_files_warning

SUFFIXES = (".parquet",)
MAX_DECIMAL_DIGITS = 38
"""DuckDB reads longer decimals as DOUBLE."""
FILE_NAME = "_rowmill_file"
"""Column of the relation with the file of a row."""


class ParquetSource(FilesModel):
    """Columns are matched by name; if a file lacks one, its values are null. From an object
    store, only the columns and row groups that the job needs are read."""

    parquet: str | Columns = Field(
        description="Path, folder, glob or list of them, also at s3://, gs://, az:// (extra `rowmill[cloud]`)."
    )

    def paths(self, facts: SourceContext) -> tuple[Path, ...]:
        return tuple(file for file in self._files(facts) if file.stat().st_size)

    def _files(self, facts: SourceContext) -> tuple[Path, ...]:
        folders = input_folders(self.parquet, facts.workspace)
        return live_files(input_files(self.parquet, facts.workspace, SUFFIXES, ("source", "parquet")), folders)

    def connect(self, connection: duckdb.DuckDBPyConnection, facts: SourceContext) -> OpenedSource:
        others: list[str] = []
        objects = input_objects(self.parquet, ("source", "parquet"), SUFFIXES, others)
        if objects:
            from connectors.storage.duckdb_filesystem import register

            check_no_delta_table(self.parquet)
            register(connection)
        urls = tuple(one.url for one in objects if one.size)
        local = self._files(facts)
        files: list[Path | str] = [*(file for file in local if file.stat().st_size), *urls]
        empty = [
            *(str(file) for file in local if not file.stat().st_size),
            *(one.url for one in objects if not one.size),
        ]
        warnings = other_files_warning(self.parquet, facts.workspace, SUFFIXES, others)
        warnings += tuple(map(no_bytes_warning, empty))
        if not files:
            return empty_source(Path([*empty, str(self.parquet)][0]), facts.columns_file, warnings)
        relation, columns = self._columns(connection, files, facts)
        nbytes = sum(one.size for one in objects)
        return OpenedSource(relation, columns, urls=urls, nbytes=nbytes, warnings=warnings, has_empty_files=bool(empty))

    def _columns(
        self, connection: duckdb.DuckDBPyConnection, files: Sequence[Path | str], facts: SourceContext
    ) -> tuple[str, Mapping[str, SourceColumn]]:
        """Return the relation, and how its columns are read."""
        # The file system of object stores takes every URL as a name.
        names = [literal_path(file) for file in files]
        options = "union_by_name = true, hive_partitioning = false"
        relation = f"read_parquet({literal_list(names)}, {options})"
        try:
            described = connection.sql(f"select * from {relation}")
        except duckdb.Error as exc:
            for name in names:
                _check_file(connection, name)
            raise DataError(str(files[0]), first_line(exc), "make the files' columns agree") from exc
        kinds = dict(zip(described.columns, map(str, described.types), strict=True))
        refusals = _refusals(connection, names, kinds)
        columns = {
            name: SourceColumn(identifier(name), kind, refusal=refusals.get(name)) for name, kind in kinds.items()
        }
        values = hive_values(files, facts.workspace, columns) if self.hive else {}
        if values:
            relation = f"read_parquet({literal_list(names)}, {options}, filename = {literal(FILE_NAME)})"
            text = {name: value_of_file_name(identifier(FILE_NAME), name) for name in values}
            columns |= hive_columns(values, text, facts.known_types)
        return relation, columns


Refusals = dict[str, tuple[str, str]]
"""Column -> (what was found, what to do)."""


def _refusals(connection: duckdb.DuckDBPyConnection, names: Sequence[str], kinds: Mapping[str, str]) -> Refusals:
    """Return the columns with values that DuckDB would change or cannot read. `kinds`: their types in the relation."""
    floats = [name for name, kind in kinds.items() if kind in ("FLOAT", "DOUBLE")] if len(names) > 1 else []
    suspicious = f"coalesce(precision > {MAX_DECIMAL_DIGITS} or type = 'INT96', false)"
    # In one query: it reads the footer of every file.
    found = connection.execute(
        f"select name, duckdb_type, {suspicious} as suspicious, list(file_name order by file_name) "
        f"from parquet_schema({literal_list(names)}) "
        f"where suspicious or (list_contains({literal_list(floats)}, name) and num_children is null) "
        "group by all order by all"
    ).fetchall()
    files = sorted({file for _, _, is_suspicious, files in found if is_suspicious for file in files})
    refusals = _unreadable_columns(connection, files)
    for name, kind, _, files in found:
        if name in floats and kind != kinds[name]:
            refusals |= _rounded_column(connection, name, kind, kinds[name], files)
    return refusals


def _unreadable_columns(connection: duckdb.DuckDBPyConnection, files: Sequence[str]) -> Refusals:
    """Return the columns of these files with too many digits, or with moments that no timestamp holds."""
    refusals: Refusals = {}
    for file in (literal(literal_path(file)) for file in files):
        for column, precision, kind in _leaves(connection, file):
            if (precision or 0) > MAX_DECIMAL_DIGITS:
                refusals[column] = (
                    f"{column} has decimals of {precision} digits in {file}, of which 17 would be read",
                    "write the column as text",
                )
            elif kind == "INT96" and column not in refusals:
                try:
                    connection.execute(f"select max({identifier(column)}) from read_parquet({file})").fetchall()
                except duckdb.Error as exc:
                    refusals[column] = (
                        f"{column} has a moment in {file} that no timestamp holds ({first_line(exc)})",
                        "write the column as text",
                    )
    return refusals


def _rounded_column(
    connection: duckdb.DuckDBPyConnection, name: str, kind: str, wider: str, files: Sequence[str]
) -> Refusals:
    """Return a column of whole numbers or decimals in these files, if FLOAT or DOUBLE, as in others, rounds some."""
    relation = connection.sql(f"from read_parquet({literal_list(map(literal_path, files))}, union_by_name = true)")
    types = dict(zip(relation.columns, map(str, relation.types), strict=True))
    # Else it is a part of a struct.
    if types.get(name) != kind:
        return {}
    column = identifier(name)
    rounded = f"try_cast(cast({column} as {wider}) as {kind})"
    if not relation.filter(f"{rounded} is distinct from {column}").limit(1).fetchall():
        return {}
    what = f"{name} is {kind} in {files[0]} and {wider} in others, which has not all of its digits"
    return {name: (what, "write the column with one type, or as text")}


def _leaves(connection: duckdb.DuckDBPyConnection, file: str) -> Iterator[tuple[str, int | None, str | None]]:
    """Yield (top-level column, precision, physical type) of each node of a file's schema."""
    schema = f"select name, num_children, precision, type from parquet_schema({file})"
    (_, columns, _, _), *nodes = connection.execute(schema).fetchall()
    # The number of nodes still to come at each level.
    remaining = [columns]
    column = ""
    for name, children, precision, kind in nodes:
        while not remaining[-1]:
            remaining.pop()
        remaining[-1] -= 1
        column = name if len(remaining) == 1 else column
        yield column, precision, kind
        if children:
            remaining.append(children)


def _check_file(connection: duckdb.DuckDBPyConnection, file: str) -> None:
    try:
        connection.sql(f"select * from read_parquet({literal(file)})").types  # noqa: B018 - reads the footer
    except duckdb.Error as exc:
        raise DataError(
            file, f"cannot be read as Parquet ({first_line(exc)})", "write it again or leave it out"
        ) from exc
