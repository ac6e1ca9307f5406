"""Rendering of requests and reading of answers, as a plan and a run share them."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest

from connectors.contracts import MediaColumn, Provider
from connectors.records import Call, Request, Row, RowError
from pipelines.dispatch.request_rendering import render_requests, with_sent_model

TABLE = pa.table({"text": ["a", "b", "c"], "picture": ["x", "y", "z"], "unused": [1, 2, 3]})


class TextEndpoint:
    """Renders the columns `text` and `picture`; an answer must be upper case, or it is repaired once."""

    input_columns = frozenset({"text", "picture"})

    def __init__(self, has_media: bool) -> None:
        self.media = {"picture": MediaColumn("image", 1000)} if has_media else {}

    def requests(self, rows: Sequence[Row], keys: Sequence[str]) -> list[Request | RowError]:
        return [self.request(row, key) for row, key in zip(rows, keys, strict=True)]

    def request(self, row: Row, key: str) -> Request | RowError:
        if row["text"] == "b":
            return RowError("input", "b makes no request")
        body = f"{sorted(row)} {row['text']} {row['picture']}".encode()
        return Request(key.encode() * 16, body, 0, None, (key,))

    def values(self, answer: bytes) -> Any:
        return (answer.decode(),) if answer.isupper() else RowError("invalid_answer", "not upper case")

    def repair(self, request: Request, answer: bytes, problem: RowError) -> Request | None:
        return None if request.repair_of else Request(b"r" * 16, answer, 0, None, (), repair_of=request.fingerprint)


class ScriptedReader:
    async def read(self, value: Any, use: MediaColumn, name: str | None = None) -> Any:
        return RowError("input", "not a picture") if value == "z" else f"<{value}>"


@pytest.mark.parametrize("has_media", [False, True])
async def test_only_the_given_rows_are_rendered_and_errors_take_the_place_of_requests(has_media: bool) -> None:
    endpoint: Any = TextEndpoint(has_media)
    requests = await render_requests(endpoint, TABLE, ["1", "2", "3"], [0, 1], ScriptedReader())
    picture = "<x>" if has_media else "x"
    assert requests == {
        0: Request(b"1" * 16, f"['picture', 'text'] a {picture}".encode(), 0, None, ("1",)),
        1: RowError("input", "b makes no request"),
    }


async def test_a_file_that_cannot_be_read_is_the_error_of_its_row() -> None:
    endpoint: Any = TextEndpoint(True)
    requests = await render_requests(endpoint, TABLE, ["1", "2", "3"], [2], ScriptedReader())
    assert requests == {2: RowError("input", "not a picture")}


@pytest.mark.parametrize(
    ("call", "sent"),
    [
        (
            Call("POST", "/c", b'{"model":"m","text":"model m"}'),
            Call("POST", "/c", b'{"model":"v/m2","text":"model m"}'),
        ),
        (Call("POST", "/c", b'{"a":1,"model":"m"}'), Call("POST", "/c", b'{"a":1,"model":"v/m2"}')),
        (Call("POST", "/c", b'{"model":"q\\"\\\\","x":"}"}'), Call("POST", "/c", b'{"model":"odd","x":"}"}')),
        (Call("POST", "/c", b'{"model":"other"}'), Call("POST", "/c", b'{"model":"other"}')),
        (
            Call("POST", "/a", form=(("model", "m", None), ("file", b"m", "m.wav"))),
            Call("POST", "/a", form=(("model", "v/m2", None), ("file", b"m", "m.wav"))),
        ),
    ],
    ids=["first", "elsewhere", "escapes", "another model", "form"],
)
def test_a_call_names_the_model_as_its_provider_does(call: Call, sent: Call) -> None:
    provider = Provider("p", "http://a", models={"m": "v/m2", 'q"\\': "odd"})
    assert with_sent_model(call, provider) == sent
    assert with_sent_model(call, Provider("p", "http://a")) is call
