"""SQL predicates of a job file (`where`, `when`): one expression over the columns of a row, which opens no file."""

from collections.abc import Iterator, Mapping
from typing import Any

import duckdb
import pyarrow as pa

from connectors.errors import JobError, KeyPath, did_you_mean, dotted
from connectors.records import RowError
from connectors.sql import first_line, parsed_sql


def checked_predicate(sql: str, columns: Mapping[str, Any], where: KeyPath) -> frozenset[str]:
    """The columns that the predicate names; JobError, placed by `where`, if it is no single expression over them."""
    with duckdb.connect() as db:
        # On a line of its own: a comment at its end must not swallow the bracket.
        remedy = "write one SQL expression, e.g. length(body) > 20"
        parsed = parsed_sql(db, f"select (\n{sql}\n)", where, remedy)
    node = parsed["statements"][0]["node"]
    if len(parsed["statements"]) != 1 or node["type"] != "SELECT_NODE" or len(node["select_list"]) != 1:
        raise JobError(where, "is more than one expression", "write one, e.g. length(body) > 20")
    by_lower = {name.lower(): name for name in columns}
    named: set[str] = set()
    for words in _references(node["select_list"][0], where, frozenset()):
        known = by_lower.get(words[0].lower())
        if known is None:
            raise JobError(where, f"no column {'.'.join(words)} here", f"{did_you_mean(words[0], columns)}")
        named.add(known)
    return frozenset(named)


class Predicate:
    """A step's `when`, tried on the rows of a chunk; NULL counts as false."""

    def __init__(self, sql: str, schema: pa.Schema, where: KeyPath) -> None:
        """`where`: its key path; JobError where it is no predicate over these columns."""
        self.columns = checked_predicate(sql, dict.fromkeys(schema.names), where)
        self._where = where
        self._names = sorted(self.columns)
        self._db = duckdb.connect(config={"threads": 1, "memory_limit": "128MB"})
        self._db.execute("set TimeZone = 'UTC'")
        self._db.execute("set enable_external_access = false")
        self._db.execute("set lock_configuration = true")
        self._query = f"select _row_place from rows_here where (\n{sql}\n)"
        try:
            self._passing(pa.schema([schema.field(name) for name in self._names]).empty_table())
        except duckdb.Error as exc:
            raise JobError(where, f"{first_line(exc)}", "mend the expression") from exc

    def close(self) -> None:
        """Let go of the database that tries it."""
        self._db.close()

    def mask(self, table: pa.Table) -> list[bool]:
        """Whether each row passes; one whose values make the expression fail does not."""
        return self.tried(table)[0]

    def tried(self, table: pa.Table) -> tuple[list[bool], dict[int, RowError]]:
        """Whether each row passes, and the rows whose values make the expression fail."""
        passing = [False] * table.num_rows
        broken: dict[int, RowError] = {}
        self._try(table.select(self._names), 0, passing, broken)
        return passing, broken

    def _try(self, table: pa.Table, first: int, passing: list[bool], broken: dict[int, RowError]) -> None:
        try:
            for place in self._passing(table):
                passing[first + place] = True
        except (duckdb.FatalException, duckdb.InternalException):
            # No value is at fault.
            raise
        except duckdb.Error as exc:
            if table.num_rows == 1:
                broken[first] = RowError("input", f"{dotted(self._where)}: {first_line(exc)}")
                return
            middle = table.num_rows // 2
            self._try(table.slice(0, middle), first, passing, broken)
            self._try(table.slice(middle), first + middle, passing, broken)

    def _passing(self, table: pa.Table) -> list[int]:
        places = pa.array(range(table.num_rows), pa.int64())
        self._db.register("rows_here", table.append_column("_row_place", places))
        try:
            return [place for (place,) in self._db.execute(self._query).fetchall()]
        finally:
            self._db.unregister("rows_here")


def _references(node: Any, where: KeyPath, bound: frozenset[str]) -> Iterator[list[str]]:
    """The column names in a parsed expression, as lists of words; parameters of lambdas are none."""
    if isinstance(node, list):
        for inner in node:
            yield from _references(inner, where, bound)
        return
    if not isinstance(node, Mapping):
        return
    kind = node.get("class")
    if kind == "SUBQUERY":
        raise JobError(where, "holds a query of its own", "a predicate looks at one row, use `sql:` as the source")
    if kind == "STAR":
        raise JobError(where, "holds a star", "name the columns")
    if kind == "COLUMN_REF":
        words = [str(word) for word in node["column_names"]]
        if words[0].lower() not in bound:
            yield words
        return
    if kind == "LAMBDA":
        taken = {words[0].lower() for words in _references(node["lhs"], where, frozenset())}
        yield from _references(node["expr"], where, bound | taken)
        return
    for inner in node.values():
        yield from _references(inner, where, bound)
