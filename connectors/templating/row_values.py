"""Rows of an Arrow table as Python values; a date or time that Python lacks becomes its text."""

import contextlib
from datetime import date, timedelta
from typing import Any

import pyarrow as pa

DAY_UNITS = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}
"""The time 24:00 in each unit."""


def row_values(table: pa.Table | pa.RecordBatch) -> list[dict[str, Any]]:
    """Return the rows by column name, as `to_pylist` does; dates and times that Python lacks as ISO 8601 text."""
    if not any(_is_inexact(kind) for kind in table.schema.types):
        with contextlib.suppress(ValueError, OverflowError):
            rows: list[dict[str, Any]] = table.to_pylist()
            return rows
    columns = [column_values(column) for column in table.columns]
    return [dict(zip(table.schema.names, values, strict=True)) for values in zip(*columns, strict=True)]


def column_values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Return the values of one column, likewise."""
    if not _is_inexact(column.type):
        with contextlib.suppress(ValueError, OverflowError):
            values: list[Any] = column.to_pylist()
            return values
    return [_value(scalar) for scalar in column]


def _is_inexact(kind: pa.DataType) -> bool:
    """Whether a type is or contains one whose values `to_pylist` changes without an error.

    Times of day lose nanoseconds and 24:00. What nanoseconds of a timestamp or a duration become depends on whether
    pandas is installed, and a prompt must not.
    """
    if pa.types.is_nested(kind):
        return any(_is_inexact(kind.field(index).type) for index in range(kind.num_fields))
    has_nanoseconds = (pa.types.is_timestamp(kind) or pa.types.is_duration(kind)) and kind.unit == "ns"
    return bool(pa.types.is_time(kind) or has_nanoseconds)


def _value(scalar: pa.Scalar) -> Any:
    kind = scalar.type
    if not _is_inexact(kind) or not scalar.is_valid:
        with contextlib.suppress(ValueError, OverflowError):
            return scalar.as_py()
    elif not pa.types.is_nested(kind) and not pa.types.is_time(kind) and scalar.value % 1000 == 0:
        coarser = pa.timestamp("us", kind.tz) if pa.types.is_timestamp(kind) else pa.duration("us")
        return pa.scalar(scalar.value // 1000, coarser).as_py()
    if pa.types.is_struct(kind):
        return {field.name: _value(scalar[index]) for index, field in enumerate(kind)}
    if pa.types.is_map(kind):
        return [(_value(entry[0]), _value(entry[1])) for entry in scalar.values]
    if pa.types.is_nested(kind):
        return [_value(element) for element in scalar.values]
    if pa.types.is_date(kind):
        days = scalar.value if pa.types.is_date32(kind) else scalar.value // 86_400_000
        return _day(days)
    if pa.types.is_timestamp(kind):
        return _moment(scalar.value, kind.unit) + ("" if kind.tz is None else "+00:00")
    if pa.types.is_time(kind):
        if scalar.value == DAY_UNITS[kind.unit]:
            return "24:00:00"
        has_nanoseconds = kind.unit == "ns" and scalar.value % 1000
        return _moment(scalar.value, kind.unit).partition("T")[2] if has_nanoseconds else scalar.as_py()
    return str(scalar.cast(pa.string()))


def _moment(count: int, unit: str) -> str:
    """Return the moment so many units after 1970 as ISO 8601 text, with no, six or nine digits of a second."""
    days, rest = divmod(count, DAY_UNITS[unit])
    seconds, fraction = divmod(rest, DAY_UNITS[unit] // 86_400)
    whole = f"{_day(days)}T{seconds // 3_600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    if not fraction:
        return whole
    digits = len(str(DAY_UNITS[unit] // 86_400)) - 1
    return f"{whole}.{fraction:0{digits}}".ljust(len(whole) + 7, "0")


def _day(days: int) -> str:
    """Return the day so many days after 1970-01-01 as ISO 8601 text, in any year."""
    # The calendar repeats itself every 400 years.
    cycles, rest = divmod(days, 146_097)
    day = date(1970, 1, 1) + timedelta(rest)
    year = day.year + 400 * cycles
    return f"{year:04}-{day:%m-%d}"
