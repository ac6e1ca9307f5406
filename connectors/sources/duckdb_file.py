"""`duckdb:` a table of a DuckDB file, or a query on it, read once so that the file is closed again."""

import os
from pathlib import Path
from typing import Self

from duckdb import DuckDBPyConnection, Error
from pydantic import Field, model_validator

from connectors.contracts import OpenedSource, SourceContext, SourceModel
from connectors.errors import DataError, JobError, did_you_mean
from connectors.sql import AUTHORS_LIMIT, first_line, kept, literal, lock_down, query_connection, quoted


class DuckdbSource(SourceModel):
    """The query sees the file's tables and nothing else."""

    duckdb: str = Field(description="Path of the file.")
    table: str | None = Field(default=None, description="A table or view, `schema.name` where it is not in main.")
    query: str | None = Field(default=None, description="A SELECT over the file's tables.")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.table is None) == (self.query is None):
            raise ValueError("needs one of table and query")
        return self

    def paths(self, facts: SourceContext) -> tuple[Path, ...]:
        path = Path(os.path.abspath(facts.workspace / self.duckdb))  # noqa: PTH100 - Path.resolve would follow links
        if not path.is_file():
            raise DataError(
                self.duckdb, "no file is there", f"check the path, relative ones start at {facts.workspace}"
            )
        return (path,)

    def connect(self, connection: DuckDBPyConnection, facts: SourceContext) -> OpenedSource:
        (path,) = self.paths(facts)
        with query_connection(facts.scratch, AUTHORS_LIMIT) as own:
            try:
                own.execute(f"attach {literal(path)} as {quoted(path.stem)} (read_only, type duckdb)")
            except Error as exc:
                raise DataError(
                    path,
                    f"cannot be opened ({first_line(exc)})",
                    "close the program that writes to it, or check that it is a DuckDB file",
                ) from exc
            own.execute(f"use {quoted(path.stem)}")
            lock_down(own, [facts.scratch])
            query = self.query if self.query is not None else f"from {self._found_table(own)}"
            try:
                return OpenedSource(kept(own, query.strip().rstrip(";"), self._first(), facts.scratch))
            except Error as exc:
                if self.query is None:
                    raise DataError(("source", "table"), f"{first_line(exc)}", "mend it, or use `query:`") from exc
                raise JobError(("source", "query"), f"{first_line(exc)}", "mend the query") from exc

    def _first(self) -> int | None:
        return self.limit if self.where is None else None

    def _found_table(self, own: DuckDBPyConnection) -> str:
        assert self.table is not None
        there = own.execute(
            "select table_schema, table_name from information_schema.tables where table_catalog = current_database()"
        ).fetchall()
        names = {name if schema == "main" else f"{schema}.{name}": (schema, name) for schema, name in there}
        if self.table not in names:
            raise JobError(
                ("source", "table"),
                f"{self.table}: no such table in {self.duckdb}",
                f"{did_you_mean(self.table, names)}",
            )
        schema, name = names[self.table]
        return f"{quoted(schema)}.{quoted(name)}"
