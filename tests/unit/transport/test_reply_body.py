"""Bodies of 2xx replies: parsed objects, events, and errors with a 2xx status."""

import orjson
import pytest

from connectors.contracts import MalformedReply
from connectors.records import Reply
from connectors.transport.reply_body import error_in_body, excerpt, parse_json_events, parse_object


def reply(body: bytes) -> Reply:
    return Reply(200, {}, body, 1.0)


def test_an_object_is_parsed_and_anything_else_is_malformed() -> None:
    assert parse_object(b'{"a": 1}') == {"a": 1}
    with pytest.raises(MalformedReply, match=r"^the reply is not JSON \(.*\): <html>"):
        parse_object(b"<html>")
    with pytest.raises(MalformedReply, match=r"^the reply is not a JSON object: \[1\]"):
        parse_object(b"[1]")
    with pytest.raises(MalformedReply, match=r"^the reply is empty$"):
        parse_object(b" \n")
    with pytest.raises(MalformedReply, match=r"^the reply is not JSON \(.*\): 1,200 bytes of binary data$"):
        parse_object(b"\x00\xff" * 600)


def test_an_error_of_the_row_is_returned_and_a_transient_one_is_malformed() -> None:
    body = orjson.dumps({"error": {"message": "too long", "code": "context_length_exceeded"}})
    error = error_in_body(reply(body), orjson.loads(body))
    assert error is not None
    assert (error.error_class, error.message) == ("bad_request", "too long")
    body = orjson.dumps({"error": {"message": "overloaded"}})
    with pytest.raises(MalformedReply, match=r"^status 200 with an error in it: overloaded$") as raised:
        error_in_body(reply(body), orjson.loads(body))
    assert raised.value.error is not None
    assert raised.value.error.error_class == "server"
    assert error_in_body(reply(b"{}"), {"text": "an answer"}) is None


def test_json_events_end_at_done() -> None:
    assert list(parse_json_events(b'data: {"a": 1}\n\ndata: {"b": 2}\n\ndata: [DONE]\n\ndata: ignored\n\n')) == [
        {"a": 1},
        {"b": 2},
    ]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'data: {"a": 1}\n\nevent: error\ndata: {"message": "m"}\n\n', "the stream ended with an error"),
        (b'data: {"a": 1}\n\ndata: {"type": "error"}\n\n', "the stream ended with an error"),
        (b'data: {"a": 1}\n\ndata: {"error": {"message": "m"}}\n\n', "the stream ended with an error"),
        (b'data: {"a": 1}\n\ndata: cut {\n\n', "the reply is not JSON"),
    ],
)
def test_an_error_in_a_stream_of_json_events_is_malformed(body: bytes, message: str) -> None:
    events = parse_json_events(body)
    assert next(events) == {"a": 1}
    with pytest.raises(MalformedReply, match=message):
        next(events)


def test_an_excerpt_has_at_most_200_bytes_of_the_body() -> None:
    assert excerpt(b"x" * 200) == "x" * 200
    assert excerpt(b"x" * 201) == "x" * 200 + "…"
    assert excerpt(b"\xff") == "\ufffd"
