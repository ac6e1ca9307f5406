"""Rows of an Arrow table as Python values; a date that Python lacks becomes its text."""

from typing import Any

import numpy as np
import pyarrow as pa


def row_values(table: pa.Table | pa.RecordBatch) -> list[dict[str, Any]]:
    """Return the rows by column name, as `to_pylist` does; dates and times that Python lacks as ISO 8601 text."""
    try:
        rows: list[dict[str, Any]] = table.to_pylist()
    except (ValueError, OverflowError):
        columns = [column_values(column) for column in table.columns]
        return [dict(zip(table.schema.names, values, strict=True)) for values in zip(*columns, strict=True)]
    return rows


def column_values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Return the values of one column, likewise."""
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError):
        return [_value(scalar) for scalar in column]
    return values


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        kind = scalar.type
    if pa.types.is_struct(kind):
        return {field.name: _value(scalar[index]) for index, field in enumerate(kind)}
    if pa.types.is_map(kind):
        return [(_value(entry[0]), _value(entry[1])) for entry in scalar.values]
    if pa.types.is_nested(kind):
        return [_value(element) for element in scalar.values]
    if pa.types.is_date(kind):
        days = scalar.value if pa.types.is_date32(kind) else scalar.value // 86_400_000
        return str(np.datetime64(days, "D"))
    if pa.types.is_timestamp(kind):
        return _moment(scalar.value, kind.unit) + ("" if kind.tz is None else "+00:00")
    if pa.types.is_time(kind):
        return _moment(scalar.value, kind.unit).partition("T")[2]
    return str(scalar.cast(pa.string()))


def _moment(count: int, unit: str) -> str:
    """Return the moment so many units after 1970 as ISO 8601 text, with no, six or nine digits of a second."""
    whole, _, fraction = str(np.array(count, f"datetime64[{unit}]")).partition(".")
    if len(whole.rpartition("T")[2]) == 5:
        whole += ":00"
    digits = fraction.ljust(6, "0")
    return whole if not digits.strip("0") else f"{whole}.{digits}"
