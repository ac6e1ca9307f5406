"""Generated source files: CSV in any dialect, JSON lines, Parquet of any Arrow type. They are read, or refused in one
line."""

import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors.contracts import SourceContext
from connectors.errors import RowmillError
from connectors.registry import SOURCES
from connectors.templating.row_values import row_values
from connectors.templating.template import template_value
from pipelines.preparation.row_selection import select_rows
from pipelines.preparation.source_reader import SourceReader

few = settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def read(kind: str, content: bytes, **keys: Any) -> list[dict[str, Any]] | None:
    """Return the rows as templates see them; None if the file is refused by a message of one line."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / f"rows.{kind}").write_bytes(content)
        facts = SourceContext(folder, (), folder / ".scratch")
        try:
            with SourceReader(SOURCES[kind](**{kind: f"rows.{kind}"}, **keys), facts) as reader:
                selection = select_rows(reader, reader.schema.names, "all", b"", [], appending=False)
                selection.check_keys()
                rows = [row for batch in selection.batches(100, frozenset()) for row in row_values(batch)]
                assert selection.counts().rows == len(rows)
                for row in rows:
                    for value in row.values():
                        template_value(value)
                return rows
        except RowmillError as exc:
            assert "\n" not in str(exc)
            return None


values = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["", "1", "007", "1.50", "1.5", "1E5", "-0", "true", "2024-01-01", "2024-01-01 10:00", "nan", "1e-05"]
    ),
    st.floats().map(str),
    st.integers().map(str),
)


@few
@given(
    st.lists(st.lists(values, min_size=1, max_size=3), max_size=5),
    st.sampled_from([",", ";", "\t", "|", '"', "é"]),
    st.sampled_from(['"', "'", None]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252", "latin-1"]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.booleans(),
    st.sampled_from(["fail", "keep"]),
)
def test_csv_of_any_dialect_is_read_or_refused(
    lines: list[list[str]], delimiter: str, quote: str | None, encoding: str, end: str, header: bool, rejects: str
) -> None:
    text = end.join(["a", *(delimiter.join(line) for line in lines)])
    content = text.encode(encoding, errors="replace")
    read("csv", content, delimiter=delimiter, quote=quote, encoding=encoding, header=header, rejects=rejects)


@few
@given(st.binary(max_size=60), st.sampled_from(["csv", "jsonl", "parquet"]))
def test_any_bytes_are_read_or_refused(content: bytes, kind: str) -> None:
    read(kind, content)


@few
@given(st.lists(values, min_size=1, max_size=6))
def test_texts_without_special_characters_keep_their_text(texts: list[str]) -> None:
    plain = [
        text
        for text in texts
        if not set(text) & set('",\r\n\0\ufeff') and text.encode(errors="ignore").decode() == text
    ]
    content = "n,t\n" + "".join(f"{number},{text}\n" for number, text in enumerate(plain))
    rows = read("csv", content.encode())
    assert rows is not None
    rows.sort(key=lambda row: row["n"])
    assert [row.get("_row_text_t") or str(row["t"] if row["t"] is not None else "") for row in rows] == plain


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["1.50", "1e400", "12345678901234567890123", "-0", "0.1234567890123456789"]).map(
        lambda text: orjson.Fragment(text)
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab{}", min_size=1, max_size=2), inner, max_size=3)
    ),
    max_leaves=6,
)


@few
@given(
    st.lists(st.dictionaries(st.text("abc", min_size=1, max_size=1), json_values, max_size=3), min_size=1, max_size=5)
)
def test_json_lines_of_any_values_are_read_or_refused(lines: list[dict[str, Any]]) -> None:
    content: list[bytes] = []
    for line in lines:
        try:
            content.append(orjson.dumps(line))
        except orjson.JSONEncodeError:
            # A number of more than 64 bits, or a text with a lone surrogate.
            continue
    read("jsonl", b"\n".join(content))


TYPES = [
    pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.bool_(), pa.string(), pa.large_string(),
    pa.binary(), pa.binary(3), pa.date32(), pa.date64(), pa.time32("ms"), pa.time64("us"), pa.time64("ns"),
    pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("us"), pa.timestamp("ns"), pa.timestamp("us", "Europe/Berlin"),
    pa.timestamp("ns", "UTC"), pa.duration("ns"), pa.decimal128(38, 10), pa.decimal128(5, 2), pa.null(),
]  # fmt: skip
EXTREMES = [0, 1, -1, 2**31 - 1, -(2**31), 2**62, -(2**62), 86_399_999]


def column_of(kind: pa.DataType, numbers: list[int]) -> pa.Array:
    """Return a column with values of the type made of the numbers' bits; null if a number has too many."""
    if pa.types.is_null(kind):
        return pa.nulls(len(numbers))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.array([str(number) for number in numbers], kind)
    if pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return pa.array([number.to_bytes(9, "big", signed=True)[-3:] for number in numbers], kind)
    if pa.types.is_floating(kind):
        return pa.array([float(number) for number in numbers], pa.float64()).cast(kind)
    if pa.types.is_boolean(kind):
        return pa.array([bool(number) for number in numbers])
    if pa.types.is_decimal(kind):
        return pa.array([Decimal(number % 100) for number in numbers], kind)
    bits = kind.bit_width
    low, high = (0, 2**bits - 1) if pa.types.is_unsigned_integer(kind) else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if pa.types.is_time(kind):
        low, high = 0, 86_399_999
    whole = (
        pa.uint64()
        if pa.types.is_unsigned_integer(kind)
        else {8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[bits]
    )
    array = pa.array([number if low <= number <= high else None for number in numbers], whole)
    return array if pa.types.is_integer(kind) else array.view(kind)


@few
@given(
    st.lists(st.sampled_from(TYPES), min_size=1, max_size=4),
    st.lists(st.sampled_from(EXTREMES) | st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4),
    st.sampled_from(["plain", "list", "struct", "map"]),
)
def test_parquet_of_any_arrow_type_is_read_or_refused(kinds: list[pa.DataType], numbers: list[int], form: str) -> None:
    columns: dict[str, pa.Array] = {}
    for index, kind in enumerate(kinds):
        array = column_of(kind, numbers)
        if form == "list":
            array = pa.ListArray.from_arrays(pa.array(range(len(array) + 1), pa.int32()), array)
        elif form == "struct":
            array = pa.StructArray.from_arrays([array], ["x"])
        elif form == "map":
            keys = pa.array([str(number) for number in range(len(array))])
            array = pa.MapArray.from_arrays(pa.array(range(len(array) + 1), pa.int32()), keys, array)
        columns[f"c{index}"] = array
    sink = pa.BufferOutputStream()
    try:
        pq.write_table(pa.table(columns), sink)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return
    read("parquet", bytes(sink.getvalue()))
