"""Checks: SQL conditions that the answers of a step must meet, evaluated over many rows at a time."""

from collections.abc import Sequence

import duckdb
import pyarrow as pa
from msgspec import Struct
from msgspec.structs import replace

from connectors.contracts import Check
from connectors.error_classes import CHECK_FAILED
from connectors.errors import JobError, KeyPath
from connectors.records import RowError
from connectors.sql import first_line
from pipelines.config.sql_predicate import RowQueries, bisect_rows, evaluation_connection, predicate_columns

_CONDITION_TYPES = ("BOOLEAN", '"NULL"')


class CheckFailure(Struct, frozen=True):
    """The checks that one row's answer fails."""

    error: RowError
    """Of the row, if no repair turn corrects the answer."""
    advice: str
    """What a repair turn says about the answer."""

    @property
    def problem(self) -> RowError:
        """What `Endpoint.repair` takes: the error with the advice in place of the conditions."""
        return replace(self.error, message=self.advice)


class Checks:
    """The checks of one step. False fails, true and NULL pass; a condition that a row's values break fails."""

    def __init__(self, checks: Sequence[Check], schema: pa.Schema, where: KeyPath) -> None:
        """Raise JobError below `where` for a check that is no condition over these columns."""
        self._checks = checks
        names: set[str] = set()
        for place, check in enumerate(checks):
            names |= predicate_columns(check.that, dict.fromkeys(schema.names), (*where, place))
        self.columns = frozenset(names)
        self._names = sorted(names)
        self._db = evaluation_connection()
        self._rows = RowQueries(self._db)
        # On separate lines: a comment at its end must not hide the bracket.
        passes = [f"coalesce(cast((\n{check.that}\n) as boolean), true)" for check in checks]
        self._queries = [
            f"select _row_index, [{place}] from chunk_rows where not {sql}" for place, sql in enumerate(passes)
        ]
        failing = ", ".join(f"if({sql}, null, {place})" for place, sql in enumerate(passes))
        self._query = f"select _row_index, [{failing}] from chunk_rows where not ({' and '.join(passes)})"
        # A table without a column cannot be registered.
        nothing = pa.schema([pa.field("_row_index", pa.int64()), *map(schema.field, self._names)]).empty_table()
        self._db.register("nothing", nothing)
        for place, check in enumerate(checks):
            try:
                kind = str(self._db.sql(f"select (\n{check.that}\n) as condition from nothing").types[0])
                # Aggregates and windows, which need other rows, are refused in this place alone.
                self._db.sql(f"from nothing where (\n{check.that}\n)")
            except duckdb.Error as exc:
                raise JobError((*where, place), first_line(exc), "fix the condition") from exc
            if kind not in _CONDITION_TYPES:
                raise JobError(
                    (*where, place), f"its type is {kind}", "write a condition, e.g. urgency between 1 and 5"
                )

    def close(self) -> None:
        """Close the database that evaluates the conditions."""
        self._db.close()

    def failures(self, table: pa.Table) -> dict[int, CheckFailure]:
        """Return the rows of a table that fail a check."""
        failed: dict[int, CheckFailure] = {}
        rows = table.select(self._names)

        def evaluate(part: pa.Table, first: int) -> None:
            for row, places in self._rows.fetch(self._query, part):
                failed[first + row] = self._failure({place: None for place in places if place is not None})

        def refuse(row: int, _: str) -> None:
            causes = self._broken(rows.slice(row, 1))
            if causes:
                failed[row] = self._failure(causes)

        bisect_rows(rows, evaluate, refuse)
        return failed

    def _broken(self, row: pa.Table) -> dict[int, str | None]:
        """Return the checks that a single row fails, with DuckDB's words for those that its values break."""
        causes: dict[int, str | None] = {}
        for place, query in enumerate(self._queries):
            try:
                if self._rows.fetch(query, row):
                    causes[place] = None
            except duckdb.Error as exc:
                causes[place] = first_line(exc)
        return causes

    def _failure(self, causes: dict[int, str | None]) -> CheckFailure:
        described: list[str] = []
        for place, cause in causes.items():
            check = self._checks[place]
            message = "" if check.message is None else f": {check.message}"
            described.append(f"{' '.join(check.that.split())}{'' if cause is None else f' ({cause})'}{message}")
        error = RowError("invalid_answer", f"the answer fails the check {'; '.join(described)}", code=CHECK_FAILED)
        advice = "\n".join(self._checks[place].message or self._checks[place].that for place in causes)
        return CheckFailure(error, advice)
