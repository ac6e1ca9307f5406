"""JSON lines: the types of columns, numbers with all their digits, and lines that cannot be read."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from connectors.errors import DataError
from tests.unit.sources.conftest import ReadSourceFixture

LINES: dict[str, tuple[str, list[Any], list[str | None]]] = {
    '{"a":{}}|{"a":{"x":1}}': ("struct<x: int64>", [{"x": None}, {"x": 1}], ["{}", '{"x":1}']),
    '{"a":{}}|{"a":1}': ("string", ["{}", "1"], ["{}", "1"]),
    '{}|{"a":1}': ("int64", [None, 1], [None, "1"]),
    '{"a":[1.5,9007199254740993]}': (
        "list<l: string>",
        [["1.5", "9007199254740993"]],
        ["[1.5,9007199254740993]"],
    ),
    '{"a":{"x":0.1234567890123456789,"y":12345678901234567890123}}': (
        "struct<x: string, y: decimal128(38, 0)>",
        [{"x": "0.1234567890123456789", "y": Decimal("12345678901234567890123")}],
        ['{"x":0.1234567890123456789,"y":12345678901234567890123}'],
    ),
    '{"a":9223372036854775808}|{"a":1}': (
        "decimal128(38, 0)",
        [Decimal(9223372036854775808), Decimal(1)],
        ["9223372036854775808", "1"],
    ),
    '{"a":1.50}|{"a":2}': ("double", [1.5, 2.0], ["1.50", "2"]),
    '{"a":2.5}|{"a":2}': ("double", [2.5, 2.0], ["2.5", "2"]),
    '{"a":1e400}|{"a":1}': ("string", ["1e400", "1"], ["1e400", "1"]),
    '{"a":true}|{"a":"x"}|{"a":[1.50,{"k":1e5}]}': (
        "string",
        ["true", "x", '[1.50,{"k":1e5}]'],
        ["true", "x", '[1.50,{"k":1e5}]'],
    ),
    '{"a":[]}': ("list<l: string>", [[]], ["[]"]),
    '{"a":[1,2]}|{"a":[2.5]}': ("list<l: double>", [[1.0, 2.0], [2.5]], ["[1,2]", "[2.5]"]),
    '{"a":"{} 1.50, 1e5"}': ("string", ["{} 1.50, 1e5"], ["{} 1.50, 1e5"]),
    '{"a":[12345678901234567890,1]}': (
        "list<l: decimal128(38, 0)>",
        [[Decimal(12345678901234567890), Decimal(1)]],
        ["[12345678901234567890,1]"],
    ),
}


@pytest.mark.parametrize("lines", LINES)
def test_a_column_has_a_type_that_holds_all_of_its_values(
    tmp_path: Path, read_source: ReadSourceFixture, lines: str
) -> None:
    kind, values, texts = LINES[lines]
    (tmp_path / "rows.jsonl").write_text(lines.replace("|", "\n"))
    found = read_source("jsonl", "rows.jsonl")
    assert (found.types["a"], [row[0] for row in found.rows], found.texts["a"]) == (kind, values, texts)


def test_deep_values_keep_their_text(tmp_path: Path, read_source: ReadSourceFixture) -> None:
    deep = "[" * 59 + "1" + "]" * 59
    (tmp_path / "rows.jsonl").write_text(f'{{"a":{deep}}}')
    assert read_source("jsonl", "rows.jsonl").texts["a"] == [deep]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'\xef\xbb\xbf{"a":1}\n{"a\n', "rows.jsonl:2: is not JSON"),
        (b'{"a":1}\n[1]\n', "rows.jsonl:2: is JSON but not an object"),
        (
            b'{"a":1}\n{"a":' + b"[" * 600 + b"]" * 600 + b"}\n",
            "rows.jsonl:2: has more than 60 levels of lists and objects; fix the line",
        ),
        (b'{"a":1,"":2}\n', 'rows.jsonl: has an empty key \\(""\\); give it a name'),
        (b'{"a":1,"A":2}\n', "rows.jsonl: has the keys a and A, which are one column in SQL; rename one"),
        (b'{"a":1}\n{"a":"' + b"x" * (17 << 20) + b'"}\n', "rows.jsonl:2: the line has 17.8 MB, more than 16.8 MB"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(
    tmp_path: Path, read_source: ReadSourceFixture, content: bytes, message: str
) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=f"^{tmp_path}/{message}"):
        read_source("jsonl", "rows.jsonl")


def test_many_lines_of_different_keys_are_read_with_little_memory(
    tmp_path: Path, read_source: ReadSourceFixture
) -> None:
    lines = [json.dumps({"id": n, f"k{n % 7}": n / 3, "deep": {"n": [n]}}) for n in range(60_000)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    found = read_source("jsonl", "rows.jsonl")
    assert list(found.types) == ["id", "k0", "deep", "k1", "k2", "k3", "k4", "k5", "k6"]
    assert found.rows[-1][0] == 59_999
