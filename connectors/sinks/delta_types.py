"""Delta Lake types of Arrow types."""

import pyarrow as pa

from connectors.errors import JobError

MAX_EXACT_DIGITS = 15
"""deltalake writes the least and the greatest decimal of a data file as floating-point numbers."""

# Delta has no unsigned numbers.
_UNSIGNED = {
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.decimal128(20, 0),
}
_UNCHANGED = (
    pa.types.is_signed_integer,
    pa.types.is_boolean,
    pa.types.is_float32,
    pa.types.is_float64,
    pa.types.is_date32,
    pa.types.is_decimal128,
)

_EXACT = (
    pa.types.is_signed_integer,
    pa.types.is_boolean,
    pa.types.is_string,
)


def delta_schema(schema: pa.Schema) -> pa.Schema:
    """Return the columns as a Delta table has them; JobError for one whose type Delta does not have."""
    fields = []
    for field in schema:
        kind = _delta_type(field.type)
        if kind is None:
            raise JobError(
                ("sink", "delta"),
                f"the column {field.name} is {field.type}, a type that Delta Lake does not have",
                "cast it by a `sql:` source, or leave it out of `columns`",
            )
        fields.append(pa.field(field.name, kind))
    return pa.schema(fields)


def same_columns(one: pa.Schema, other: pa.Schema) -> bool:
    """Whether both have the same columns; the names of list elements do not matter."""
    return one.names == other.names and all(
        _unnamed(field.type) == _unnamed(counterpart.type) for field, counterpart in zip(one, other, strict=True)
    )


def columns_with_statistics(schema: pa.Schema) -> frozenset[str]:
    """Return the columns whose least and greatest value deltalake writes exactly, whatever the values are.

    It leaves out NaN, rounds decimals, and aborts at dates and timestamps far from now, such as 'infinity'.
    """
    return frozenset(field.name for field in schema if _has_exact_statistics(field.type))


def _has_exact_statistics(kind: pa.DataType) -> bool:
    if pa.types.is_decimal128(kind):
        return bool(kind.precision <= MAX_EXACT_DIGITS)
    return any(is_one(kind) for is_one in _EXACT)


def _delta_type(kind: pa.DataType) -> pa.DataType | None:
    """Return the type as Delta has it; None if it has no such type."""
    if kind in _UNSIGNED:
        return _UNSIGNED[kind]
    if any(is_one(kind) for is_one in _UNCHANGED):
        return kind
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return pa.binary()
    if pa.types.is_timestamp(kind):
        return None if kind.unit == "ns" else pa.timestamp("us", None if kind.tz is None else "UTC")
    if pa.types.is_struct(kind):
        inner = [(field.name, _delta_type(field.type)) for field in kind]
        return None if any(one is None for _, one in inner) else pa.struct(inner)
    if pa.types.is_map(kind):
        key, value = _delta_type(kind.key_type), _delta_type(kind.item_type)
        return None if key is None or value is None else pa.map_(key, value)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        element = _delta_type(kind.value_type)
        return None if element is None else pa.list_(element)
    return None


def _unnamed(kind: pa.DataType) -> pa.DataType:
    """Return the type with default names of list elements and default nullability."""
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _unnamed(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_unnamed(kind.key_type), _unnamed(kind.item_type))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_unnamed(kind.value_type))
    return kind
