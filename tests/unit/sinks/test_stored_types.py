"""Values of every type that a source or an answer can have, in each kind of sink."""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from connectors.contracts import Commit
from connectors.errors import JobError
from connectors.sinks import delta_table
from tests.unit.sinks.conftest import Tables

Values = Mapping[str, tuple[pa.DataType, list[Any]]]


def whole(bits: int, signed: bool) -> list[int]:
    """Return the least, the greatest and a middle number of so many bits."""
    return [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, -1] if signed else [0, 2**bits - 1, 2 ** (bits - 1)]


LEAVES: Values = {
    **{f"int{bits}": (pa.type_for_alias(f"int{bits}"), whole(bits, True)) for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": (pa.type_for_alias(f"uint{bits}"), whole(bits, False)) for bits in (8, 16, 32, 64)},
    "bool": (pa.bool_(), [True, False, None]),
    "float": (pa.float32(), [-3.4028234663852886e38, 1.401298464324817e-45, float("inf")]),
    "double": (pa.float64(), [-1.7976931348623157e308, 5e-324, float("-inf")]),
    "decimal(5, 2)": (pa.decimal128(5, 2), [Decimal("-999.99"), Decimal("0.01"), Decimal("0.00")]),
    "decimal(18, 18)": (pa.decimal128(18, 18), [Decimal("-0.999999999999999999"), Decimal("1e-18"), None]),
    "decimal(38, 0)": (pa.decimal128(38, 0), [Decimal(10**38 - 1), Decimal(1 - 10**38), Decimal(2**64 + 1)]),
    "decimal(38, 38)": (pa.decimal128(38, 38), [Decimal("0." + "9" * 38), Decimal("1e-38"), None]),
    "string": (pa.string(), ["", "a\0b 😀 \u2028", "x" * 40_000]),
    "binary": (pa.binary(), [b"", b"\0\xff", bytes(range(256))]),
    "date": (pa.date32(), [-719_162, 2_932_896, 0]),  # the years 1 and 9999
    "far date": (pa.date32(), [2**31 - 1, 1 - 2**31, -719_528]),  # 'infinity', '-infinity', the year 0
    "time": (pa.time64("us"), [0, 86_399_999_999, 1]),
    "time of nanoseconds": (pa.time64("ns"), [0, 86_399_999_999_999, 1]),
    "timestamp": (pa.timestamp("us"), [-62_135_596_800_000_000, 253_402_300_799_999_999, -1]),
    "timestamp of nanoseconds": (pa.timestamp("ns"), [-(2**62), 2**62 + 1, -1]),
    "far timestamp": (pa.timestamp("us"), [2**63 - 1, 1 - 2**63, -62_167_219_200_000_000]),
    "far moment": (pa.timestamp("us", "UTC"), [2**63 - 1, 1 - 2**63, 3_093_496_444_800_000_000]),
    "moment": (pa.timestamp("us", "UTC"), [-62_135_596_800_000_000, 253_402_300_799_999_999, -1]),
    "moment of nanoseconds": (pa.timestamp("ns", "UTC"), [-(2**62), 2**62 + 1, -1]),
}
"""Type -> values: numbers for dates and times."""

NESTED: Values = {
    name: made
    for leaf, (kind, (first, second, third)) in LEAVES.items()
    for name, made in {
        f"list of {leaf}": (pa.list_(kind), [[first, None, second], [], None]),
        f"array of {leaf}": (pa.list_(kind, 2), [[first, second], [None, third], None]),
        f"struct of {leaf}": (
            pa.struct([("a b", kind), ("c", pa.list_(kind))]),
            [{"a b": first, "c": [second]}, {"a b": None, "c": None}, None],
        ),
        f"map of {leaf}": (pa.map_(pa.string(), kind), [[("k", first), ("", None)], [], None]),
        f"list of structs of {leaf}": (
            pa.list_(pa.struct([("x.y", kind)])),
            [[{"x.y": third}, None], [{"x.y": None}], []],
        ),
    }.items()
}
REFUSED = {"delta": ("time", "nanoseconds")}
"""Words in the names of types that a sink does not have."""


def is_refused(sink: str, name: str) -> bool:
    leaf = name.rpartition(" of ")[2] if not name.endswith("nanoseconds") else "nanoseconds"
    return leaf in REFUSED.get(sink, ())


def plain(values: pa.ChunkedArray) -> list[Any]:
    """Return the values as Python objects, dates and times as numbers."""
    return [_value(value) for value in values]


def _value(scalar: pa.Scalar) -> Any:
    if not scalar.is_valid:
        return None
    if isinstance(scalar, pa.MapScalar):
        return [(_value(entry["key"]), _value(entry["value"])) for entry in scalar.values]
    if isinstance(scalar, pa.ListScalar | pa.FixedSizeListScalar):
        return [_value(one) for one in scalar.values]
    if isinstance(scalar, pa.StructScalar):
        return {name: _value(scalar[name]) for name in scalar.type.names}
    if isinstance(scalar, pa.TimestampScalar | pa.Time64Scalar | pa.Date32Scalar):
        return scalar.value
    return scalar.as_py()


@pytest.fixture(params=["parquet", "duckdb", "delta"])
def local(request: pytest.FixtureRequest, tmp_path: Path) -> Tables:
    """A job's tables in each kind of sink on this machine."""
    return Tables(request.param, tmp_path)


@pytest.mark.parametrize("values", [LEAVES, NESTED], ids=["single", "nested"])
def test_every_value_is_read_as_it_was_written(
    local: Tables, low_compaction_limits: None, monkeypatch: pytest.MonkeyPatch, values: Values
) -> None:
    monkeypatch.setattr(delta_table, "MAX_SMALL_FILES", 1)
    stored = {name: made for name, made in values.items() if not is_refused(local.kind, name)}
    local.outputs = [pa.field(name, kind) for name, (kind, _) in stored.items()]
    columns = [pa.array(column, kind) for kind, column in stored.values()]
    same = pa.array(["r"] * 3)
    results = pa.table([pa.array([1, 2, 3]), *columns, same, same], schema=local.shape.results)
    sink = local.ready()
    sink.commit(Commit(results, {}, local.errors([]), local.keys([])), "first")
    (part,) = {part for _, part in local.parts(sink)}
    sink.commit(Commit(results.slice(0, 2), {part: [0, 1]}, local.errors([]), local.keys([])), "second")
    sink = local.ready()
    written = {name: column for name, (_, column) in stored.items()}
    assert read_values(local, stored) == written
    for row in range(3):
        sink.remove(results.slice(row, 1).select(["id"]), errors_too=False)
        sink.commit(Commit(results.slice(row, 1), {}, local.errors([]), local.keys([])), f"row {row}")
    sink.finish()
    assert read_values(local, stored) == written
    sink = local.ready(fresh=True)
    sink.commit(Commit(results, {}, local.errors([]), local.keys([])), "rebuilt")
    sink.finish()
    assert read_values(local, stored) == written


def read_values(tables: Tables, columns: Iterable[str]) -> dict[str, list[Any]]:
    """Return the values of these columns of the results, in the order of their ids."""
    read = tables.read("results").sort_by("id")
    return {name: plain(read.column(name)) for name in columns}


@pytest.mark.parametrize("name", [name for name in {**LEAVES, **NESTED} if is_refused("delta", name)])
def test_a_type_that_delta_lacks_is_refused_when_the_sink_is_opened(in_delta: Tables, name: str) -> None:
    in_delta.outputs = [pa.field("x", {**LEAVES, **NESTED}[name][0])]
    with pytest.raises(
        JobError, match=r"^sink\.delta: the column x is .*, a type that Delta Lake does not have; cast it"
    ):
        in_delta.open()
