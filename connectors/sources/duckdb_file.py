"""`duckdb:` a table of a DuckDB file, or a query on it, read once so that the file can be closed."""

import os
from pathlib import Path
from typing import Self

from duckdb import DuckDBPyConnection, Error
from pydantic import Field, model_validator

from connectors.contracts import OpenedSource, SourceContext, SourceModel
from connectors.errors import DataError, FieldError, JobError, did_you_mean
from connectors.sources.columns.column_types import materialize
from connectors.sql import (
    USER_QUERY_MEMORY_LIMIT,
    first_line,
    identifier,
    literal,
    lock_down,
    query_connection,
)
from connectors.storage.input_files import missing_file

TAKEN_NAMES = frozenset({"main", "temp", "system", "memory", "information_schema", "pg_catalog"})
"""Names of DuckDB's own databases and schemas."""


class DuckdbSource(SourceModel):
    """A query can read the file's tables and nothing else."""

    duckdb: str = Field(description="Path of the file.")
    table: str | None = Field(default=None, description="A table or view, `schema.name` if it is not in main.")
    query: str | None = Field(default=None, description="A SELECT over the file's tables.")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.table is None) == (self.query is None):
            raise FieldError("needs one of table and query", "write table: NAME, or query: SELECT ...")
        return self

    def paths(self, facts: SourceContext) -> tuple[Path, ...]:
        path = Path(os.path.abspath(facts.workspace / self.duckdb))  # noqa: PTH100 - Path.resolve would follow links
        if not path.is_file():
            raise missing_file(("source", "duckdb"), self.duckdb, facts.workspace)
        return (path,)

    def connect(self, connection: DuckDBPyConnection, facts: SourceContext) -> OpenedSource:
        (path,) = self.paths(facts)
        with query_connection(facts.scratch, USER_QUERY_MEMORY_LIMIT) as db:
            # As `duckdb FILE` names it, so that a query may write `catalog.schema.table`.
            catalog = path.stem if path.stem.lower() not in TAKEN_NAMES else f"{path.stem}_file"
            try:
                db.execute(f"attach {literal(path)} as {identifier(catalog)} (read_only, type duckdb)")
            except Error as exc:
                raise DataError(
                    ("source", "duckdb"),
                    f"{self.duckdb} cannot be opened ({first_line(exc)})",
                    "close the program that writes to it, or check that it is a DuckDB file",
                ) from exc
            db.execute(f"use {identifier(catalog)}")
            lock_down(db, [facts.scratch])
            limit = self.limit if self.where is None else None
            query = self.query if self.query is not None else f"from {self._quoted_table(db)}"
            try:
                return OpenedSource(materialize(db, query.strip().rstrip(";"), limit, facts.scratch))
            except Error as exc:
                if self.query is None:
                    raise DataError(("source", "table"), first_line(exc), "fix it, or use `query:`") from exc
                raise JobError(("source", "query"), first_line(exc), "fix the query") from exc

    def _quoted_table(self, db: DuckDBPyConnection) -> str:
        assert self.table is not None
        tables = db.execute(
            "select table_schema, table_name from information_schema.tables where table_catalog = current_database()"
        ).fetchall()
        names = {name if schema == "main" else f"{schema}.{name}": (schema, name) for schema, name in tables}
        if self.table not in names:
            raise JobError(
                ("source", "table"),
                f"{self.table}: no such table in {self.duckdb}",
                did_you_mean(self.table, names),
            )
        schema, name = names[self.table]
        return f"{identifier(schema)}.{identifier(name)}"
