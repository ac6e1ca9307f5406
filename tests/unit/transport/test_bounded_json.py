"""JSON of other servers: read up to a depth that can be written again."""

import orjson
import pytest

from connectors.transport.bounded_json import MAX_DEPTH, parse_json


def nested(levels: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return opening * levels + b"1" + closing * levels


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")], ids=["lists", "objects"])
def test_json_is_read_up_to_the_maximum_depth(opening: bytes, closing: bytes) -> None:
    value = parse_json(nested(MAX_DEPTH, opening, closing))
    assert orjson.loads(orjson.dumps({"in": [value]})) == {"in": [value]}
    with pytest.raises(orjson.JSONDecodeError, match="nested deeper than 200 levels"):
        parse_json(nested(MAX_DEPTH + 1, opening, closing))


def test_many_brackets_without_depth_are_read() -> None:
    assert parse_json(b"[" + b",".join([b"[]"] * 1000) + b"]") == [[]] * 1000
    assert parse_json('"' + "[" * 1000 + '"') == "[" * 1000


def test_invalid_json_is_an_error() -> None:
    for text in (b"", b"{", "NaN", b"\xff"):
        with pytest.raises(orjson.JSONDecodeError):
            parse_json(text)
