"""`parquet:` one or more Parquet files, read in place in the order of their names."""

from pathlib import Path

import duckdb
from pydantic import Field

from connectors.contracts import Columns, Opened, SourceFacts, SourceModel
from connectors.errors import DataError
from connectors.input_files import input_files
from connectors.sql_text import first_line, literal, literal_list


class ParquetSource(SourceModel):
    """Columns are matched by name across files; a file that lacks one gives nulls."""

    parquet: str | Columns = Field(description="Path, folder, glob or list of them.")

    def paths(self, facts: SourceFacts) -> tuple[Path, ...]:
        return input_files(self.parquet, facts.workspace, (".parquet",))

    def connect(self, connection: duckdb.DuckDBPyConnection, facts: SourceFacts) -> Opened:
        files = self.paths(facts)
        relation = f"read_parquet({literal_list(files)}, union_by_name = true)"
        try:
            connection.execute(f"select * from {relation} limit 0")
        except duckdb.Error as exc:
            for file in files:
                _check(connection, file)
            raise DataError(f"{files[0]}: {first_line(exc)}; make the files' columns agree") from exc
        return Opened(relation)


def _check(connection: duckdb.DuckDBPyConnection, file: Path) -> None:
    try:
        connection.execute(f"select * from read_parquet({literal(file)}) limit 0")
    except duckdb.Error as exc:
        raise DataError(
            f"{file}: cannot be read as Parquet ({first_line(exc)}); write it again or leave it out"
        ) from exc
