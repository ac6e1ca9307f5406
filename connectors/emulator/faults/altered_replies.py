"""Whole replies as some servers write them: named faults of framing, usage, vectors and transcripts, one entry each."""

from collections.abc import Callable, Mapping
from typing import Any

import orjson
from aiohttp import web
from msgspec import Struct

Body = dict[str, Any]
KEEP_ALIVE = b"data: : keepalive\n\n"
MAX_TEXTS = 10
"""Of the entry `ten-texts`."""


class AlteredReply(Struct, frozen=True):
    """A change of a reply; a stream is changed event by event."""

    change: Callable[[Body], None] = lambda body: None
    """Changes the JSON in place."""
    before: bytes = b""
    """Written before the JSON, and before every event of a stream."""
    after: bytes = b""
    """Written after the JSON."""
    refusal: Callable[[Body], Body | None] = lambda body: None
    """Returns the body of a reply with status 400 instead; None: the reply stays."""


def _usage(**counts: Any) -> AlteredReply:
    def change(body: Body) -> None:
        if isinstance(body.get("usage"), dict):
            body["usage"] = counts

    return AlteredReply(change)


def _usage_in_choice(body: Body) -> None:
    if isinstance(body.get("usage"), dict) and body.get("choices"):
        body["choices"][0]["usage"] = body.pop("usage")


def _drop_indexes(body: Body) -> None:
    for vector in body.get("data", ()):
        vector.pop("index", None)


def _refuse_base64(body: Body) -> Body | None:
    vectors = body.get("data") or [{}]
    if not isinstance(vectors[0].get("embedding"), str):
        return None
    return {"error": {"message": "encoding_format: only float is available", "param": "encoding_format", "code": None}}


def _refuse_many_texts(body: Body) -> Body | None:
    if len(body.get("data", ())) <= MAX_TEXTS:
        return None
    return {"error": {"message": f"batch size is invalid, it should not be larger than {MAX_TEXTS}.", "code": None}}


ALTERED_REPLIES: Mapping[str, AlteredReply] = {
    # Gateways.
    "keep-alives": AlteredReply(before=KEEP_ALIVE),
    "comments": AlteredReply(before=b": PROCESSING\n\n"),
    "json-then-done": AlteredReply(after=b"\n\ndata: [DONE]\n\n"),
    # Usage: xAI, DeepSeek, Anthropic, Moonshot; OpenRouter states the cost.
    "usage-beside": _usage(
        prompt_tokens=20, completion_tokens=5, total_tokens=125, completion_tokens_details={"reasoning_tokens": 100}
    ),
    "usage-cache-hits": _usage(
        prompt_tokens=20, completion_tokens=5, prompt_cache_hit_tokens=15, prompt_cache_miss_tokens=5
    ),
    "usage-cache-beside": _usage(
        input_tokens=5, cache_read_input_tokens=15, cache_creation_input_tokens=0, output_tokens=5
    ),
    "usage-in-choice": AlteredReply(_usage_in_choice),
    "usage-with-cost": _usage(prompt_tokens=20, completion_tokens=5, total_tokens=25, cost=0.5),
    # Embeddings: Gemini, Infinity, DashScope.
    "no-index": AlteredReply(_drop_indexes),
    "base64-refused": AlteredReply(refusal=_refuse_base64),
    "ten-texts": AlteredReply(refusal=_refuse_many_texts),
}


def altered_reply(kind: str, body: bytes, content_type: str) -> web.Response:
    """Return a reply changed as the entry states; JSON that is no object, and other bodies, stay."""
    entry = ALTERED_REPLIES[kind]
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        return web.Response(body=body, content_type=content_type)
    if (refusal := entry.refusal(value)) is not None:
        return web.Response(body=orjson.dumps(refusal), status=400, content_type=content_type)
    entry.change(value)
    return web.Response(body=entry.before + orjson.dumps(value) + entry.after, content_type=content_type)


def altered_event(kind: str, event: bytes) -> bytes:
    """Return an event of a stream with the usage that the entry states, after its keep-alive."""
    entry = ALTERED_REPLIES[kind]
    data = event.removeprefix(b"data: ").strip()
    if not event.startswith(b"data: {"):
        return entry.before + event
    chunk = orjson.loads(data)
    entry.change(chunk)
    return entry.before + b"data: " + orjson.dumps(chunk) + b"\n\n"
