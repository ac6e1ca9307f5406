"""Server-sent events: parsed as the standard says, and recognised by their first word."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.transport.sse import Event, is_event_stream, parse_events


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
    [(b'{"a": 1}', False), (b"", False), (b" \ndata: {}", True), (b": ping\n\n", True), (b"event: e\n", True)],
)
def test_the_first_word_distinguishes_a_stream_from_json(body: bytes, expected: bool) -> None:
    assert is_event_stream(body) is expected
