"""YAML files: values, lines, and the errors of files that cannot be read."""

from pathlib import Path

import pytest

from connectors.errors import JobError
from pipelines.config.yaml_reader import parse_value, parse_yaml, read_yaml


def read_error(data: bytes) -> str:
    path = Path("x.yaml")
    path.write_bytes(data)
    with pytest.raises(JobError) as caught:
        read_yaml(path, "x.yaml")
    return str(caught.value)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_scalars_follow_the_core_schema_of_yaml_1_2() -> None:
    text = "[yes, on, 0x1F, 0o17, 012, 12:30, 1_000, 1e3, -.5, ~, null, '', true, False, 2026-01-02, +7, .inf, -.INF]"
    assert parse_value(text, "x") == [
        *("yes", "on", 31, 15, 12, "12:30", "1_000", 1000.0, -0.5, None, None, "", True, False, "2026-01-02", 7),
        *(float("inf"), float("-inf")),
    ]
    assert parse_value("%YAML 1.1\n---\n[yes, 010]", "x") == ["yes", 10]
    assert parse_value("!!str 5", "x") == "5"
    assert str(parse_value(".nan", "x")) == "nan"


def test_every_key_path_has_its_line() -> None:
    read = parse_yaml("a: 1\nb:\n  - c: |\n      x\n      y\n    d: 2\n  - 3\n\n'e':\n  {f: [4,\n   5]}\n", "x")
    assert read.values == {"a": 1, "b": [{"c": "x\ny\n", "d": 2}, 3], "e": {"f": [4, 5]}}
    assert dict(read.lines) == {
        (): 1,
        ("a",): 1,
        ("b",): 2,
        ("b", 0): 3,
        ("b", 0, "c"): 3,
        ("b", 0, "d"): 6,
        ("b", 1): 7,
        ("e",): 9,
        ("e", "f"): 10,
        ("e", "f", 0): 10,
        ("e", "f", 1): 11,
    }


def test_an_alias_has_the_lines_of_its_anchor_and_own_keys_override_merged_ones() -> None:
    read = parse_yaml("a: &a {x: 1, y: 2}\nb: *a\nc:\n  <<: *a\n  y: 3\nd: {<<: [*a, {z: 4, x: 5}]}\n", "x")
    assert read.values == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 2},
        "c": {"y": 3, "x": 1},
        "d": {"x": 1, "y": 2, "z": 4},
    }
    assert [read.lines[path] for path in (("b",), ("b", "x"), ("c", "x"), ("c", "y"), ("d", "z"))] == [2, 1, 1, 5, 6]


def test_keys_are_text_as_written() -> None:
    assert parse_yaml("1: a\ntrue: b\n~: c\non: d", "x").values == {"1": "a", "true": "b", "null": "c", "on": "d"}


def test_an_empty_file_has_no_keys() -> None:
    assert [parse_yaml(text, "x").values for text in ("", "# nothing\n", "---\n", "~\n", "{}\n")] == [{}] * 5


def test_a_byte_order_mark_and_windows_line_ends_are_accepted() -> None:
    Path("x.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    read = read_yaml(Path("x.yaml"), "x.yaml")
    assert (read.values, dict(read.lines)) == ({"a": 1, "b": 2}, {(): 1, ("a",): 1, ("b",): 2})


def test_a_surrogate_pair_is_one_character() -> None:
    assert parse_value('"\\ud83d\\ude00"', "x") == "😀"


NINE_LINES = b"a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (level, level, b", ".join([b"*a%d" % (level - 1)] * 9)) for level in range(1, 10)
)
CHAIN = b"a0: &a0 [1]\n" + b"".join(b"a%d: &a%d [*a%d]\n" % (level, level, level - 1) for level in range(1, 99))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"- a\n", "x.yaml:1: found a list, expected keys and values; write key: value"),
        (b"\n7\n", "x.yaml:2: found a single value, expected keys and values; write key: value"),
        (b"a: 1\nb: 2\na: 3\n", "x.yaml:3: a: already on line 1; keep one of them"),
        (b"a:\n  b: 1\n  'b': 2\n", "x.yaml:3: a.b: already on line 2; keep one of them"),
        (b"a: 1\nb: \xff\n", "x.yaml:2: not UTF-8 text; save the file as UTF-8"),
        ("a: ü".encode("utf-16"), "x.yaml:1: not UTF-8 text; save the file as UTF-8"),
        (b"a: 1\nb: \x07\n", "x.yaml:2: a control character (code 7); delete it"),
        (b'a: "\\0"\n', "x.yaml:1: a control character (code 0); delete it"),
        (
            b'a: "\\ud800"\n',
            "x.yaml:1: half a character (\\ud800 to \\udfff alone); write the character itself",
        ),
        (b"a:\n\t- b\n", "x.yaml:2: a tab in the indentation; indent with spaces"),
        (b"a: @b\n", "x.yaml:1: a value starts with a character that YAML reserves; put it in quotes"),
        (b"a: b\nc\nd: e\n", "x.yaml:2: a key without a colon; write key: value"),
        (b"a: 'b\nc: d\n", "x.yaml:1: a quoted text is not closed, or holds a wrong escape; check its quotes"),
        (b'a: "\\d"\n', "x.yaml:1: a wrong escape in a quoted text; double its backslashes"),
        (b"a: *b\n", "x.yaml:1: *b names no anchor before it; a text that starts with * needs quotes"),
        (b"a: &a [*a]\n", "x.yaml:1: *a names no anchor before it; a text that starts with * needs quotes"),
        (b"a: !!python/name:os.system x\n", "x.yaml:1: a YAML tag; leave it out, values are read as they are written"),
        (b"<<: 5\n", "x.yaml:1: << takes a mapping; write <<: *NAME of an anchor on one"),
        (b"? [a]\n: b\n", "x.yaml:1: a key that is not text; write a plain word before the colon"),
        (b"a: " + b"9" * 1001, "x.yaml:1: a number of 1001 digits; put it in quotes if it is a text"),
        (b"a: " + b"[" * 5000, "x.yaml:1: nested more than 60 deep; flatten it"),
        (NINE_LINES, "x.yaml:1: aliases make more than 100,000 values of it; use fewer"),
        (CHAIN, "x.yaml:1: nested more than 60 deep; flatten it"),
        (
            b"#" * 1_000_001,
            "x.yaml: larger than 1 MB; data belongs in separate files that the source names",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_reported_in_one_line(data: bytes, message: str) -> None:
    assert read_error(data) == message


def test_a_folder_and_an_unreadable_path_are_errors(tmp_path: Path) -> None:
    for path, message in [
        (tmp_path, "is a folder; name a file in it"),
        (tmp_path / "none.yaml", "no such file; check the path"),
        (tmp_path / ("x" * 300), "cannot be read (File name too long); check the path and its permissions"),
    ]:
        with pytest.raises(JobError) as caught:
            read_yaml(path, "x.yaml")
        assert str(caught.value) == f"x.yaml: {message}"


def test_an_error_in_the_value_of_a_flag_names_the_flag() -> None:
    with pytest.raises(JobError) as caught:
        parse_value("*all", "--set source.where")
    assert str(caught.value) == (
        "--set source.where: *all names no anchor before it; a text that starts with * needs quotes"
    )
