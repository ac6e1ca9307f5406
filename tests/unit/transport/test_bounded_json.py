"""JSON of other servers: read up to a depth that can be written again."""

import orjson
import pytest

from connectors.transport.bounded_json import LARGE_BYTES, MAX_DEPTH, parse_json


def nested(levels: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return opening * levels + b"1" + closing * levels


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")], ids=["lists", "objects"])
def test_json_is_read_up_to_the_maximum_depth(opening: bytes, closing: bytes) -> None:
    value = parse_json(nested(MAX_DEPTH, opening, closing))
    assert orjson.loads(orjson.dumps({"in": [value]})) == {"in": [value]}
    with pytest.raises(orjson.JSONDecodeError, match="nested deeper than 200 levels"):
        parse_json(nested(MAX_DEPTH + 1, opening, closing))


def test_large_json_is_read_up_to_the_same_depth() -> None:
    text = b'"' + b"x" * LARGE_BYTES + b'"'
    assert len(parse_json(b"[%b,%b]" % (text, nested(MAX_DEPTH - 1)))) == 2
    assert len(parse_json(b"[%b,%b]" % (text, b",".join([b"[{}]"] * 1000)))) == 1001
    with pytest.raises(orjson.JSONDecodeError, match="nested deeper than 200 levels"):
        parse_json(b"[%b,%b]" % (text, nested(MAX_DEPTH)))


def test_many_brackets_without_depth_are_read() -> None:
    assert parse_json(b"[" + b",".join([b"[]"] * 1000) + b"]") == [[]] * 1000
    assert parse_json('"' + "[" * 1000 + '"') == "[" * 1000


def test_invalid_json_is_an_error() -> None:
    for text in (b"", b"{", "NaNs", "[NaN", b"\xff"):
        with pytest.raises(orjson.JSONDecodeError):
            parse_json(text)


def test_what_is_no_unicode_is_replaced() -> None:
    assert parse_json(rb'["\ud83d", "\uDE00\ud83d", "\ud83d\ude00", "\\ud83d", "\ud83dx"]') == [
        "\ufffd", "\ufffd\ufffd", "\U0001f600", "\\ud83d", "\ufffdx",
    ]  # fmt: skip
    assert parse_json(b'["a\xff"]') == ["a\ufffd"]


def test_numbers_that_json_cannot_hold_are_null() -> None:
    assert parse_json(rb'{"NaN": [1.5, NaN, -Infinity, "\\", "NaN \"Infinity\"", Infinity]}') == {
        "NaN": [1.5, None, None, "\\", 'NaN "Infinity"', None]
    }


def test_half_a_pair_stays_if_the_other_half_may_follow() -> None:
    assert parse_json(r'["\ud83d"]', keeps_halves=True) == ["\ud83d"]
    with pytest.raises(orjson.JSONDecodeError):
        parse_json(r'["\ud83d"', keeps_halves=True)
