"""SQL expressions of local steps: checked, typed, and evaluated over many rows at a time."""

import threading
from collections.abc import Mapping
from typing import Any

import duckdb
import pyarrow as pa

from connectors.contracts import is_reserved_name
from connectors.errors import JobError, KeyPath
from connectors.sources.columns.column_types import HUGE_AS, HUGE_TYPES, arrow_type, mapped_type, plain_type
from connectors.sql import first_line, identifier, parse_sql, parser_connection
from pipelines.config.sql_predicate import called_nodes, evaluation_connection, expression_nodes, predicate_columns

ROW_INDEX = "_row_index"
"""The column with the position of a row among those that are evaluated together."""
SAMPLING_FUNCTIONS = frozenset({"reservoir_quantile"})
"""Aggregates of some of the values, chosen at random."""
LIST_AGGREGATES = frozenset({"list_aggregate", "list_aggr", "array_aggregate", "array_aggr", "aggregate"})
"""Functions of a list and the name of an aggregate."""
EXPANDING_FUNCTIONS = frozenset({"unnest", "generate_subscripts"})
"""Functions that make several rows of one."""


class SqlExpressions:
    """Named SQL expressions over the columns of one table, or aggregates over groups of its rows."""

    def __init__(
        self,
        expressions: Mapping[str, str],
        schema: pa.Schema,
        where: KeyPath,
        group_by: str | None = None,
        memory_limit: str = "128MB",
        has_keys: bool = True,
    ) -> None:
        """Raise JobError below `where` for an expression that these columns do not allow.

        `group_by`: the int64 column by which rows are aggregated; None: each expression is about one row. `has_keys`:
        the names are keys below `where`; false: the only expression is the value at `where`.
        """
        paths: dict[str, KeyPath] = {name: (*where, name) if has_keys else where for name in expressions}
        names: set[str] = set()
        for name, sql in expressions.items():
            if is_reserved_name(name):
                raise JobError(paths[name], "this name is reserved for Rowmill", "choose another")
            names |= predicate_columns(sql, dict.fromkeys(schema.names), paths[name])
            _check_functions(sql, paths[name])
        self.columns = frozenset(names)
        """The columns that the expressions read."""
        self._names = sorted(names)
        self._where = where
        self._group_by = group_by
        self._first = group_by or ROW_INDEX
        self._db = evaluation_connection(memory_limit)
        # The chunks of a worker are in threads of their own.
        self._turn = threading.Lock()
        self._nothing = pa.schema([pa.field(self._first, pa.int64()), *map(schema.field, self._names)]).empty_table()
        self._columns = [self._typed(name, f"(\n{sql}\n)", paths[name]) for name, sql in expressions.items()]
        self._query = f"select {identifier(self._first)}, {', '.join(self._columns)} from evaluated_rows"
        if group_by is not None:
            self._query += f" group by {identifier(group_by)}"
        self.fields: tuple[pa.Field, ...] = tuple(self._run(self._query, self._nothing, None).schema)[1:]
        """The columns that they make, typed as DuckDB types them."""

    def close(self) -> None:
        """Close the database that evaluates the expressions."""
        self._db.close()

    def evaluate(self, table: pa.Table) -> pa.Table:
        """Return a column for each expression, one row for each of the table; duckdb.Error if a value breaks one."""
        rows = table.select(self._names).append_column(ROW_INDEX, row_indexes(table))
        return self._run(self._query, rows, self.fields).drop_columns([ROW_INDEX])

    def aggregate(self, table: pa.Table | pa.RecordBatchReader) -> pa.Table:
        """Return the group and a column for each expression, one row for each group; see `evaluate`."""
        return self._run(self._query, table, self.fields)

    def aggregate_nothing(self) -> pa.Table:
        """Return one row: what the expressions are over no rows."""
        # The count makes it one row, also if no expression is an aggregate, such as a constant.
        query = f"select count(*) as {identifier(self._first)}, {', '.join(self._columns)} from evaluated_rows"
        return self._run(query, self._nothing, self.fields).drop_columns([self._first])

    def _typed(self, name: str, sql: str, where: KeyPath) -> str:
        """Return the SQL of a column with a type that every table has."""
        grouped = "" if self._group_by is None else f" group by {identifier(self._first)}"
        query = f"select {identifier(self._first)}, {sql} from evaluated_rows{grouped}"
        self._db.register("evaluated_rows", self._nothing)
        try:
            kind = self._db.sql(query).types[1]
        except duckdb.Error as exc:
            words = first_line(exc)
            if self._group_by is None and "GROUP BY" in words:
                raise JobError(where, "aggregates rows, and it sees one row", "aggregate in a fold: step") from exc
            raise JobError(where, words, "fix the expression") from exc
        finally:
            self._db.unregister("evaluated_rows")
        plain = mapped_type(kind, lambda leaf, text: HUGE_AS[0] if leaf in HUGE_TYPES else text)
        stored = arrow_type(duckdb.sqltype(plain))
        cast = sql if stored == str(kind) else f"cast({sql} as {stored})"
        return f"{cast} as {identifier(name)}"

    def _run(self, query: str, rows: Any, fields: tuple[pa.Field, ...] | None) -> pa.Table:
        with self._turn:
            self._db.register("evaluated_rows", rows)
            try:
                found = self._db.sql(query).to_arrow_table()
            finally:
                self._db.unregister("evaluated_rows")
        kinds = [pa.field(field.name, _with_item_names(plain_type(field.type))) for field in found.schema]
        if fields is not None:
            kinds = [*kinds[: len(kinds) - len(fields)], *fields]
        return found.cast(pa.schema(kinds))


def row_indexes(table: pa.Table) -> pa.Array:
    """Return the position of each row."""
    return pa.array(range(table.num_rows), pa.int64())


def _with_item_names(kind: pa.DataType) -> pa.DataType:
    """Return the type with Arrow's own name for the elements of lists, at any depth."""
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_with_item_names(kind.value_type), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(_with_item_names(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _with_item_names(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_with_item_names(kind.key_type), _with_item_names(kind.item_type))
    return kind


def _check_functions(sql: str, where: KeyPath) -> None:
    """Raise JobError for a function that needs other rows, or makes several."""
    with parser_connection() as db:
        parsed = parse_sql(db, f"select\n{sql}", where, "write one SQL expression")
    selected = parsed["statements"][0]["node"]["select_list"]
    if len(selected) > 1:
        # In parentheses, DuckDB would make a struct of them.
        raise JobError(where, f"has {len(selected)} expressions", "write one; a list is in brackets: [a, b]")
    for called, node in called_nodes(selected):
        name = str(node.get("function_name", "")).lower()
        if node.get("class") == "WINDOW":
            raise JobError(where, "has a window function, and rows have no neighbours here", "use a `sql:` source")
        if name in EXPANDING_FUNCTIONS:
            raise JobError(where, f"{called} makes several rows of one", "use each: {list: ...}")
        if name in SAMPLING_FUNCTIONS or (name in LIST_AGGREGATES and _literals(node) & SAMPLING_FUNCTIONS):
            raise JobError(where, f"{called} takes values at random", "write quantile_cont or approx_quantile")


def _literals(call: Mapping[str, Any]) -> frozenset[str]:
    """Return the texts among the constants of a function call, in small letters."""
    values = (node.get("literal") for node in expression_nodes(call.get("arguments", ())))
    return frozenset(str(value.get("text")).lower() for value in values if isinstance(value, Mapping))
