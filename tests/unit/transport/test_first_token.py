"""The first token of a stream: which parts of which streams bring it."""

import orjson
import pytest

from connectors.transport.first_token import FirstToken

KEEP_ALIVES = (b": ping\n\n", b"data: : keepalive\n\n", b"event: ping\ndata: {}\n\n", b"\n\n", b"\r\n")


def event(value: object) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


CHUNKS: dict[str, tuple[bytes, bytes]] = {
    "chat": (
        event({"choices": [{"delta": {"role": "assistant", "content": ""}}]}),
        event({"choices": [{"delta": {"content": "a"}}]}),
    ),
    "reasoning": (
        event({"choices": [{"delta": {"role": "assistant", "content": None}, "finish_reason": None}]}),
        event({"choices": [{"delta": {"reasoning_content": "a", "content": None}}]}),
    ),
    "tool call": (event({"choices": []}), event({"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]})),
    "completion": (event({"choices": [{"text": ""}]}), event({"choices": [{"text": "a"}]})),
    "reference": (event({"delta": {"role": "assistant"}}), event({"delta": {"content": "a"}})),
    "responses": (
        event({"type": "response.created", "response": {}}) + event({"type": "response.output_item.added"}),
        event({"type": "response.output_text.delta", "delta": "a"}),
    ),
    "speech": (b"", event({"type": "speech.audio.delta", "audio": "aaaa"})),
    "other line ends": (b": hi\r\n\r\n", b'data: {"choices":[{"delta":{"content":"a"}}]}\r\n\r\n'),
    "JSON": (b" \n", b'{"choices": []}'),
    "audio": (b"", b"\xff\xfb\x90\x00\x00\x00\x00\x00"),
}


@pytest.mark.parametrize(("opening", "token"), CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_keep_alives_and_opening_events_bring_no_token(opening: bytes, token: bytes, size: int) -> None:
    first = FirstToken()
    before = opening if opening and not opening.startswith(b"data") else b"".join(KEEP_ALIVES) * bool(opening) + opening
    assert not any(first.feed(before[start : start + size]) for start in range(0, len(before), size))
    for start in range(0, len(token), size):
        first.feed(token[start : start + size])
    assert first.has_arrived
