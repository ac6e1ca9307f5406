"""SQL predicates of a job file (`where`, `when`): one expression over the columns of a row that opens no file."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import duckdb
import pyarrow as pa

from connectors.errors import JobError, KeyPath, did_you_mean, dotted
from connectors.records import RowError
from connectors.sql import first_line, parse_sql, parser_connection

_FAILING_FUNCTIONS = frozenset({"error"})
"""Functions that DuckDB does not fold, although they always do the same."""
_SETTING_FUNCTIONS = frozenset({"getenv", "getvariable", "current_setting"})
"""Functions whose value depends on more than their arguments."""
_CLOCK_NAMES = frozenset({"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"})
"""Functions that are written like columns."""


def predicate_columns(
    sql: str, columns: Mapping[str, Any], where: KeyPath, allows_clock: bool = False
) -> frozenset[str]:
    """Return the columns in the predicate; JobError at `where` if it is not a single expression over `columns`.

    A function that gives another value each time is refused. `allows_clock`: not if it is the same for all rows of one
    query, such as `now()`.
    """
    with parser_connection() as db:
        # On a separate line: a comment at its end must not hide the bracket.
        remedy = "write one SQL expression, e.g. length(body) > 20"
        parsed = parse_sql(db, f"select (\n{sql}\n)", where, remedy)
    node = parsed["statements"][0]["node"]
    if len(parsed["statements"]) != 1 or node["type"] != "SELECT_NODE" or len(node["select_list"]) != 1:
        raise JobError(where, "is more than one expression", "write one, e.g. length(body) > 20")
    by_lower_name = {name.lower(): name for name in columns}
    used: set[str] = set()
    for words in _column_references(node["select_list"][0], where, frozenset()):
        name = by_lower_name.get(words[0].lower())
        if name is None and words[0].lower() in _CLOCK_NAMES:
            if not allows_clock:
                raise _changing_function(words[0].lower(), where)
            continue
        if name is None:
            raise JobError(where, f"no column {'.'.join(words)} here", did_you_mean(words[0], columns))
        used.add(name)
    _check_functions(node["select_list"], where, allows_clock)
    return frozenset(used)


def evaluation_connection(memory_limit: str = "128MB") -> duckdb.DuckDBPyConnection:
    """Return a connection for the expressions of a job file: it opens no file."""
    db = duckdb.connect(config={"threads": 1, "memory_limit": memory_limit})
    db.execute("set TimeZone = 'UTC'")
    db.execute("set enable_external_access = false")
    db.execute("set lock_configuration = true")
    return db


def bisect_rows(
    table: pa.Table, evaluate: Callable[[pa.Table, int], None], refuse: Callable[[int, str], None], first: int = 0
) -> None:
    """Call `evaluate(rows, number of the first)`; call `refuse(number, DuckDB's words)` for rows whose values break it.

    They are found by bisection. `evaluate` must have no effect if it raises.
    """
    try:
        evaluate(table, first)
    except (duckdb.FatalException, duckdb.InternalException):
        # Not the fault of a value.
        raise
    except duckdb.Error as exc:
        if table.num_rows == 1:
            refuse(first, first_line(exc))
            return
        middle = table.num_rows // 2
        bisect_rows(table.slice(0, middle), evaluate, refuse, first)
        bisect_rows(table.slice(middle), evaluate, refuse, first + middle)


def expression_nodes(tree: Any) -> Iterator[Mapping[str, Any]]:
    """Yield all nodes of a parsed expression or query."""
    if isinstance(tree, list):
        for inner in tree:
            yield from expression_nodes(inner)
    elif isinstance(tree, Mapping):
        yield tree
        yield from expression_nodes(list(tree.values()))


def called_nodes(tree: Any, within: frozenset[str] = frozenset()) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield all nodes of a parsed expression and of the macros that it calls, each with the function called there.

    The function is that of the expression itself. `within`: macros around it; some call a function of the same name.
    """
    for node in expression_nodes(tree):
        name = str(node.get("function_name", "")).lower()
        yield name, node
        for body in () if name in within else _macro_bodies(name):
            yield from ((name, inner) for _, inner in called_nodes(body, within | {name}))


@cache
def _macro_bodies(name: str) -> Sequence[Any]:
    """Return the parsed expressions of a function that DuckDB defines in SQL, one for each number of arguments."""
    if name not in (macros := _macros()):
        return ()
    with parser_connection() as db:
        parsed = [parse_sql(db, f"select {body}", "", "") for body in macros[name]]
    return [each["statements"][0]["node"]["select_list"] for each in parsed]


@cache
def _macros() -> Mapping[str, Sequence[str]]:
    with parser_connection() as db:
        found = db.execute(
            "select lower(function_name), list(macro_definition) from duckdb_functions() "
            "where function_type = 'macro' group by 1"
        ).fetchall()
    return dict(found)


class _TableInTurn:
    """A table of DuckDB whose rows are replaced before each query."""

    table: pa.Table

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.table.__arrow_c_stream__(requested_schema)


class RowQueries:
    """Queries over `chunk_rows`: the rows of one table after another, with their places as `_row_index`.

    Each query is parsed once, and no table is registered: for some hundred rows both take longer than the evaluation.
    """

    def __init__(self, db: duckdb.DuckDBPyConnection) -> None:
        """`db`: used by one thread at a time, and for nothing else while a query runs."""
        self._db = db
        self._rows = _TableInTurn()
        self._places = pa.array([], pa.int64())
        self._statements: dict[str, str] = {}
        """Query -> how it is run."""

    def fetch(self, query: str, table: pa.Table) -> list[tuple[Any, ...]]:
        """Return what the query finds in these rows; duckdb.Error if their values break it."""
        if len(self._places) < table.num_rows:
            self._places = pa.array(range(table.num_rows), pa.int64())
        self._rows.table = table.append_column("_row_index", self._places.slice(0, table.num_rows))
        try:
            return self._db.execute(self._statements.get(query) or self._prepared(query)).fetchall()
        finally:
            self._rows.table = table.schema.empty_table()

    def _prepared(self, query: str) -> str:
        if not self._statements:
            self._db.register("chunk_rows", self._rows)
        name = f"query_{len(self._statements)}"
        self._db.execute(f"prepare {name} as {query}")
        self._statements[query] = f"execute {name}"
        return self._statements[query]


class Predicate:
    """A step's `when`, evaluated on the rows of a chunk; NULL counts as false."""

    def __init__(self, sql: str, schema: pa.Schema, where: KeyPath) -> None:
        """Raise JobError at `where` if the SQL is not a predicate over these columns."""
        self.columns = predicate_columns(sql, dict.fromkeys(schema.names), where, allows_clock=True)
        self._where = where
        self._names = sorted(self.columns)
        self._db = evaluation_connection()
        self._queries = RowQueries(self._db)
        self._query = f"select _row_index from chunk_rows where (\n{sql}\n)"
        try:
            self._passing_rows(pa.schema([schema.field(name) for name in self._names]).empty_table())
        except duckdb.Error as exc:
            raise JobError(where, first_line(exc), "fix the expression") from exc

    def close(self) -> None:
        """Close the database that evaluates the predicate."""
        self._db.close()

    def mask(self, table: pa.Table) -> list[bool]:
        """Return whether each row passes; a row whose values make the expression fail does not."""
        return self.evaluate(table)[0]

    def evaluate(self, table: pa.Table) -> tuple[list[bool], dict[int, RowError]]:
        """Return whether each row passes, and the rows whose values make the expression fail."""
        mask = [False] * table.num_rows
        errors: dict[int, RowError] = {}

        def evaluate(rows: pa.Table, first: int) -> None:
            for row in self._passing_rows(rows):
                mask[first + row] = True

        def refuse(row: int, words: str) -> None:
            errors[row] = RowError("input", f"{dotted(self._where)}: {words}")

        bisect_rows(table.select(self._names), evaluate, refuse)
        return mask, errors

    def _passing_rows(self, table: pa.Table) -> list[int]:
        return [row for (row,) in self._queries.fetch(self._query, table)]


def _column_references(node: Any, where: KeyPath, parameters: frozenset[str]) -> Iterator[list[str]]:
    """Yield the column names in a parsed expression as lists of words; `parameters`: those of the lambdas around it."""
    if isinstance(node, list):
        for inner in node:
            yield from _column_references(inner, where, parameters)
        return
    if not isinstance(node, Mapping):
        return
    match node.get("class"):
        case "SUBQUERY":
            raise JobError(where, "contains a query", "an expression is about one row; use `sql:` as the source")
        case "STAR":
            raise JobError(where, "contains *", "name the columns")
        case "COLUMN_REF":
            words = [str(word) for word in node["column_names"]]
            if words[0].lower() not in parameters:
                yield words
        case "LAMBDA":
            own = {words[0].lower() for words in _column_references(node["lhs"], where, frozenset())}
            yield from _column_references(node["expr"], where, parameters | own)
        case _:
            for inner in node.values():
                yield from _column_references(inner, where, parameters)


@cache
def _changing_functions() -> tuple[frozenset[str], frozenset[str]]:
    """Return the functions with another value in each row, and those with another one in each query."""
    with parser_connection() as db:
        found = db.execute(
            "select distinct lower(function_name), stability = 'VOLATILE' from duckdb_functions() "
            "where stability = 'VOLATILE' or (stability = 'CONSISTENT_WITHIN_QUERY' and len(parameters) = 0)"
        ).fetchall()
    in_rows = frozenset(name for name, is_volatile in found if is_volatile) - _FAILING_FUNCTIONS
    return in_rows, frozenset(name for name, is_volatile in found if not is_volatile) | _SETTING_FUNCTIONS


def _check_functions(tree: Any, where: KeyPath, allows_clock: bool) -> None:
    in_rows, in_queries = _changing_functions()
    for called, node in called_nodes(tree):
        name = str(node.get("function_name", "")).lower()
        is_clock = name in in_queries or (name == "age" and len(node.get("arguments", ())) == 1)
        # Columns of the expression itself are checked by name.
        is_clock |= bool(called) and name == "" and _is_clock_name(node)
        if name in in_rows or (is_clock and not allows_clock):
            raise _changing_function(called, where)
        if node.get("class") == "SUBQUERY":
            raise JobError(
                where, f"{called} contains a query", "an expression is about one row; use `sql:` as the source"
            )


def _is_clock_name(node: Mapping[str, Any]) -> bool:
    names = node.get("column_names", ())
    return node.get("class") == "COLUMN_REF" and len(names) == 1 and str(names[0]).lower() in _CLOCK_NAMES


def _changing_function(name: str, where: KeyPath) -> JobError:
    return JobError(where, f"{name} gives another value each time", "take it from a column of the source")
