"""Column types that Arrow and Parquet have, for the types of DuckDB that they lack; and rows copied with such types."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from duckdb import DuckDBPyConnection
from duckdb.sqltypes import DuckDBPyType

from connectors.sql import SCRATCH_ROW_GROUP_ROWS, identifier, literal, literal_path

TEXT_TYPES = frozenset(
    {
        "enum",
        "bit",
        "interval",
        "union",
        "time with time zone",
        "null",
        "bignum",
        "variant",
        "geometry",
        "tuple",
        "type",
    }
)
"""They are read as text."""
HUGE_TYPES = frozenset({"hugeint", "uhugeint"})
"""They would become floating-point numbers."""
HUGE_AS = ("DECIMAL(38, 0)", "VARCHAR")
"""The first that holds all values is used."""


def mapped_type(kind: DuckDBPyType, leaf: Callable[[str, str], str]) -> str:
    """Return a type with its leaves replaced at any depth. `leaf`: (id, SQL type) -> SQL type."""
    if kind.id in ("list", "array"):
        inner: dict[str, Any] = dict(kind.children)
        size = f"[{inner['size']}]" if kind.id == "array" else "[]"
        return f"{mapped_type(inner['child'], leaf)}{size}"
    if kind.id == "struct":
        children: dict[str, Any] = dict(kind.children)
        fields = ", ".join(f"{identifier(name)} {mapped_type(child, leaf)}" for name, child in children.items())
        return f"STRUCT({fields})"
    if kind.id == "map":
        inner = dict(kind.children)
        return f"MAP({mapped_type(inner['key'], leaf)}, {mapped_type(inner['value'], leaf)})"
    return leaf(kind.id, str(kind))


def arrow_type(kind: DuckDBPyType) -> str:
    """Return the type with text for all that Arrow and Parquet lack."""
    return mapped_type(kind, lambda name, text: "VARCHAR" if name in TEXT_TYPES else text)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the Arrow type of the tables: values instead of a dictionary, and times in UTC."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return pa.timestamp(kind.unit, "UTC")
    return kind


def shape(kind: DuckDBPyType) -> str:
    """Return the lists, structs and maps of a type without the types of their values."""
    return mapped_type(kind, lambda name, text: "INTEGER")


def has_value(kind: DuckDBPyType, value: str) -> str:
    """SQL of whether a value is or contains anything but nulls and empty lists."""
    if kind.id in ("list", "array"):
        inner: dict[str, Any] = dict(kind.children)
        element = f"e{len(value)}"
        return f"coalesce(len(list_filter({value}, lambda {element}: {has_value(inner['child'], element)})) > 0, false)"
    if kind.id == "struct":
        children: dict[str, Any] = dict(kind.children)
        fields = [has_value(child, f"struct_extract({value}, {literal(name)})") for name, child in children.items()]
        return f"({' or '.join(fields)})"
    if kind.id == "map":
        return f"coalesce(cardinality({value}) > 0, false)"
    return f"{value} is not null"


def materialize(connection: DuckDBPyConnection, query: str, limit: int | None, scratch: Path) -> str:
    """Write the query's first `limit` rows to a file; return a SQL table expression for any connection."""
    described = connection.sql(f"select * from ({query}\n)")
    kinds = dict(zip(described.columns, described.types, strict=True))
    for attempt, huge in enumerate(HUGE_AS):
        # DuckDB may remove the file of a query that failed after the next query has begun.
        target = scratch / f"rows-{attempt}.parquet"
        exact = {name: mapped_type(kind, partial(_exact_leaf, huge)) for name, kind in kinds.items()}
        replaced = ", ".join(
            f"cast({identifier(name)} as {exact[name]}) as {identifier(name)}"
            for name, kind in kinds.items()
            if any(inexact in str(kind) for inexact in ("HUGEINT", "INTERVAL")) and exact[name] != str(kind)
        )
        columns = f"* replace ({replaced})" if replaced else "*"
        try:
            connection.execute(
                f"copy (select {columns} from ({query}\n) {'' if limit is None else f'limit {limit}'}) "
                f"to {literal(target)} (format parquet, compression zstd, compression_level 1, "
                f"row_group_size {SCRATCH_ROW_GROUP_ROWS})"
            )
            break
        except duckdb.ConversionException:
            if not replaced or huge == HUGE_AS[-1]:
                raise
    return f"read_parquet({literal(literal_path(target))})"


def _exact_leaf(huge: str, kind: str, text: str) -> str:
    """Return the type that the file has in place of a scalar type; Parquet's intervals have no microseconds."""
    return huge if kind in HUGE_TYPES else "VARCHAR" if kind == "interval" else text
