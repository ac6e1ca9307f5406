"""`parquet:` one or more Parquet files, read in place, in the order of their names."""

from pathlib import Path

import duckdb
from pydantic import Field

from connectors.contracts import Columns, OpenedSource, SourceContext, SourceModel
from connectors.errors import DataError
from connectors.sql import first_line, literal, literal_list
from connectors.storage.input_files import input_files, input_objects

SUFFIXES = (".parquet",)


class ParquetSource(SourceModel):
    """Columns are matched by name; if a file lacks one, its values are null. From an object
    store, only the columns and row groups that the job needs are read."""

    parquet: str | Columns = Field(
        description="Path, folder, glob or list of them, also at s3://, gs://, az:// (extra `rowmill[cloud]`)."
    )

    def paths(self, facts: SourceContext) -> tuple[Path, ...]:
        return input_files(self.parquet, facts.workspace, SUFFIXES)

    def connect(self, connection: duckdb.DuckDBPyConnection, facts: SourceContext) -> OpenedSource:
        objects = input_objects(self.parquet, ("source", "parquet"), SUFFIXES)
        if objects:
            from connectors.storage.duckdb_filesystem import register

            register(connection)
        urls = tuple(one.url for one in objects)
        files = [*(str(path) for path in self.paths(facts)), *urls]
        relation = f"read_parquet({literal_list(files)}, union_by_name = true)"
        try:
            _describe(connection, relation)
        except duckdb.Error as exc:
            for file in files:
                _check_file(connection, file)
            raise DataError(files[0], first_line(exc), "make the files' columns agree") from exc
        self._check_key(connection, relation, files)
        return OpenedSource(relation, urls=urls, nbytes=sum(one.size for one in objects))

    def _check_key(self, connection: duckdb.DuckDBPyConnection, relation: str, files: list[str]) -> None:
        """DataError for a key of decimals that DuckDB rounds."""
        key = (self.key,) if isinstance(self.key, str) else tuple(self.key or ())
        described = connection.execute(f"select * from {relation} limit 0").description or ()
        doubles = [str(column[0]) for column in described if str(column[1]) == "DOUBLE" and column[0] in key]
        if doubles:
            schema = f"parquet_schema({literal_list(files)})"
            rounded = connection.execute(
                f"select name, file_name, precision from {schema} where list_contains({literal_list(doubles)}, name) "
                "and precision > 38 limit 1"
            ).fetchone()
            if rounded is not None:
                raise DataError(
                    ("source", "key"),
                    f"{rounded[0]} has decimals of {rounded[2]} digits in {rounded[1]}, of which 17 would be read",
                    "write the column as text",
                )


def _describe(connection: duckdb.DuckDBPyConnection, relation: str) -> None:
    query = f"select * from {relation} limit 0"
    try:
        connection.execute(query)
    except duckdb.OutOfMemoryException:
        # Thousands of columns: each takes a buffer.
        connection.execute("set memory_limit = '1GB'")
        connection.execute(query)


def _check_file(connection: duckdb.DuckDBPyConnection, file: str) -> None:
    try:
        connection.execute(f"select * from read_parquet({literal(file)}) limit 0")
    except duckdb.Error as exc:
        raise DataError(
            file, f"cannot be read as Parquet ({first_line(exc)})", "write it again or leave it out"
        ) from exc
