"""Server-sent events: parsed as the standard says, and recognised by their first word."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.transport.sse import Event, is_event_stream, parse_events, whole_json


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"data: a\n\ndata: b\n\n", [Event("a"), Event("b")]),
        (b"data:a\r\n\r\ndata: b\r\r", [Event("a"), Event("b")]),
        (b"\xef\xbb\xbfevent: e\ndata: a\ndata:  b\n\n", [Event("a\n b", "e")]),
        (b": a comment\nid: 7\nretry: 3\ndata\ndata: x\n\n", [Event("\nx")]),
        (b"event: lonely\n\ndata: a\n\n", [Event("a")]),
        (b"data: cut", [Event("cut")]),
        (b"", []),
    ],
    ids=["two", "other line ends", "name and lines", "other fields", "no data", "no blank line", "nothing"],
)
def test_events_are_parsed_as_the_standard_says(body: bytes, expected: list[Event]) -> None:
    assert list(parse_events(body)) == expected


@given(st.binary())
def test_any_body_can_be_parsed(body: bytes) -> None:
    assert all(isinstance(event.data, str) for event in parse_events(body))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"a": 1}', False),
        (b"", False),
        (b" \ndata: {}", True),
        (b": ping\n\n", True),
        (b"event: e\n", True),
        (b"data: : ping\n\ndata: {}\n\n", True),
        (b': working\n\n: working\n\n{"a": 1}', False),
    ],
)
def test_the_first_word_distinguishes_a_stream_from_json(body: bytes, expected: bool) -> None:
    assert is_event_stream(body) is expected


@pytest.mark.parametrize(
    "keep_alive",
    [
        ": comment",
        ":",
        "data: : keepalive",
        "data::keepalive",
        "data:",
        "data",
        "data: ping",
        "event: ping",
        "event: ping\ndata: {}",
        'event: ping\ndata: {"type": "ping"}',
        'data: {"type": "ping"}',
        'data: {"type":"keepalive","at":1}',
        "event: heartbeat\ndata: 7",
        "retry: 3000",
        "",
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_keep_alives_of_every_form_are_left_out(keep_alive: str, end: str) -> None:
    text = f"{keep_alive}\n\ndata: {{}}1\n\n{keep_alive}\n\n{keep_alive}\n\ndata: [DONE]\n\n{keep_alive}\n"
    body = text.replace("\n", end).encode()
    assert [event.data for event in parse_events(body)] == ["{}1", "[DONE]"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'data: {"a": 1}\ndata: {"b": 2}\ndata: [DONE]\n', ['{"a": 1}', '{"b": 2}', "[DONE]"]),
        (b'data: {"a":\ndata: 1}\n\ndata:[DONE]', ['{"a":\n1}', "[DONE]"]),
        (b'data: : keepalive\ndata: {"a": 1}', ['{"a": 1}']),
        (b'data: data: {"a": 1}\n\ndata: data: [DONE]\n\n', ['{"a": 1}', "[DONE]"]),
        (b'data: {"a": 1}\n\ndata: [done]\n\n', ['{"a": 1}', "[DONE]"]),
        (b'data: {"a": 1}\n\ndata: "[DONE]"\n\n', ['{"a": 1}', "[DONE]"]),
    ],
)
def test_events_without_a_blank_line_between_them_are_separated(body: bytes, expected: list[str]) -> None:
    assert [event.data for event in parse_events(body)] == expected


JSON = b'{"a": [1, "data: [DONE]"]}'


@pytest.mark.parametrize(
    "body",
    [
        JSON,
        JSON + b"\n\ndata: [DONE]\n\n",
        JSON + b"data:[DONE]",
        JSON + b"\r\n[DONE]\r\n",
        JSON + b"\n\n: end\n\n",
        b"\n \r\n\t" + JSON + b"\n",
        b": OPENROUTER PROCESSING\n\n: OPENROUTER PROCESSING\n\n" + JSON,
        b"event: ping\ndata: \n\n" + JSON + b"\n\ndata: [DONE]",
        b"data: : keepalive\n\n" + JSON,
        b"\n" * 5000 + JSON,
    ],
)
def test_a_whole_json_value_is_found_between_keep_alives_and_the_end_marker(body: bytes) -> None:
    assert whole_json(body) == JSON
    assert not is_event_stream(body)


@pytest.mark.parametrize("body", [b"", b"data: {}\n\n", b": words", b"\x00\xff[DONE]", b"plain [DONE]", b'{"cut": '])
def test_any_other_body_is_left_as_it_is(body: bytes) -> None:
    assert whole_json(body) == body
