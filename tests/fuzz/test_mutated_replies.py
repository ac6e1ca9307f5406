"""Mutated replies: each becomes an answer, a RowError or a MalformedReply, and never another exception."""

import base64
import hashlib
import io
import json
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from connectors.contracts import Endpoint, MalformedReply, StepContext
from connectors.records import Media, Reply, Request, RowError, Usage
from connectors.registry import ENDPOINTS
from connectors.transport.error_replies import is_error_body, parse_rate_headers, row_error
from connectors.transport.retry_after import retry_after_seconds

REPLIES = Path(__file__).parents[1] / "replies"
QUICK = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
PICTURE = io.BytesIO()
Image.new("RGB", (8, 8)).save(PICTURE, "PNG")
PNG = PICTURE.getvalue()

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["stop", "length", "content_filter", "assistant", "function", "output_text", "message", "{}", "[]", ""]
    ),
    st.sampled_from([base64.b64encode(PNG).decode(), base64.b64encode(b"\0" * 8).decode(), "AAAA", "9" * 400, "1e999"]),
)
WORDS = (
    "id object model choices message content role index finish_reason logprobs usage prompt_tokens completion_tokens "
    "total_tokens input_tokens output_tokens prompt_tokens_details cached_tokens data embedding error code type param "
    "output response text tool_calls function name arguments url b64_json revised_prompt duration language segments "
    "words start end status incomplete_details reason delta refusal metadata details seconds"
)
NAMES = st.sampled_from(WORDS.split(" "))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)

TYPED = {
    "label": {"type": "string", "enum": ["a", "b"]},
    "score": {"type": "number"},
    "count": {"type": "integer", "minimum": 1},
    "tags": {"type": "array", "items": {"type": "string"}},
    "flag": {"type": "boolean"},
}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
TURNS = [{"user": "{{ title }}"}]
CASES: dict[str, dict[str, Any]] = {
    "chat": {"endpoint": "chat", "messages": TURNS},
    "chat typed": {"endpoint": "chat", "messages": TURNS, "output": TYPED},
    "chat tools": {"endpoint": "chat", "messages": TURNS, "tools": TOOLS, "detail": True, "params": {"logprobs": True}},
    "chat many": {"endpoint": "chat", "messages": TURNS, "params": {"n": 2}},
    "chat streamed": {"endpoint": "chat", "messages": TURNS, "stream": True},
    "responses": {"endpoint": "responses", "input": "{{ title }}", "detail": True},
    "responses typed": {"endpoint": "responses", "input": "{{ title }}", "output": TYPED},
    "responses streamed": {"endpoint": "responses", "input": "{{ title }}", "stream": True},
    "reference": {"endpoint": "responses", "messages": TURNS, "dialect": "reference"},
    "embeddings": {"endpoint": "embeddings", "input": "{{ title }}", "dimensions": 2},
    "speech": {"endpoint": "speech", "input": "{{ title }}", "voice": "alloy"},
    "transcription": {"endpoint": "transcription", "file": "sound"},
    "transcription verbose": {"endpoint": "transcription", "file": "sound", "response_format": "verbose_json"},
    "transcription text": {"endpoint": "transcription", "file": "sound", "response_format": "srt"},
    "translation": {"endpoint": "translation", "file": "sound"},
    "image_generation": {"endpoint": "image_generation", "prompt": "{{ title }}", "detail": True},
    "images": {"endpoint": "image_generation", "prompt": "{{ title }}", "n": 2},
    "image_edit": {"endpoint": "image_edit", "prompt": "{{ title }}", "image": "photo"},
    "image_variation": {"endpoint": "image_variation", "image": "photo"},
}


def media(content: bytes, kind: str, suffix: str, **more: Any) -> Media:
    return Media(hashlib.sha256(content).hexdigest(), len(content), kind, suffix, data=content, **more)


ROW = {
    "title": "a title",
    "photo": media(PNG, "image/png", "png", pixels=(8, 8)),
    "sound": media(b"sound", "audio/mpeg", "mp3", seconds=3.0),
}
MODELS = {"embeddings": "e", "speech": "tts-1", "transcription": "whisper-1", "translation": "whisper-1"}


@cache
def endpoint_and_request(case: str) -> tuple[Endpoint, Request]:
    """Return the endpoint of a case and its request for ROW."""
    keys = CASES[case]
    columns = {"title": pa.string(), "photo": pa.binary(), "sound": pa.binary()}
    model = MODELS.get(keys["endpoint"], "dall-e-2" if "image" in keys["endpoint"] else "m")
    step = ENDPOINTS[keys["endpoint"]].model_validate({"name": "a", "model": model, "provider": "p", **keys})
    endpoint = step.build(StepContext("p@there", columns, Path("/"), (), (), files_prefix="files/"))
    request = endpoint.request(ROW, "1")
    assert isinstance(request, Request), request
    return endpoint, request


def process_reply(case: str, body: bytes, headers: dict[str, str] | None = None) -> None:
    """Do all that a run does with a reply."""
    endpoint, request = endpoint_and_request(case)
    reply = Reply(200, {"content-type": "application/json", **(headers or {})}, body, 1.0)
    try:
        answers = endpoint.answers([request], reply)
    except MalformedReply:
        return
    try:
        usage = endpoint.usage([request], reply)
    except MalformedReply:
        return
    assert isinstance(usage, Usage)
    for name in ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "images", "characters"):
        value = getattr(usage, name)
        assert value is None or (type(value) is int and 0 <= value < 2**63), (name, value)
    assert usage.audio_seconds is None or 0 <= usage.audio_seconds < 1e9
    assert usage.model_version is None or isinstance(usage.model_version, str)
    assert usage.finish_reason is None or isinstance(usage.finish_reason, str)
    assert len(answers) == 1
    (answer,) = answers
    if isinstance(answer, RowError):
        json.dumps(answer.message)
        return
    for link in endpoint.expiring_urls(answer):
        assert isinstance(link, str)
    if endpoint.expiring_urls(answer):
        return
    values = endpoint.values(answer)
    if isinstance(values, RowError):
        endpoint.repair(request, answer, values)
        endpoint.fallback_mode(values)
        return
    arrays = endpoint.arrays([values, None])
    assert [array.type for array in arrays] == [field.type for field in endpoint.fields]
    for array in arrays:
        array.validate(full=True)
    endpoint.files(answer)


@pytest.mark.parametrize("case", CASES)
@QUICK
@given(st.binary(max_size=40) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_random_bytes_are_a_malformed_reply(case: str, body: bytes) -> None:
    process_reply(case, body)


def paths_of(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, below in inner for deeper in paths_of(below, (*path, key)))]


SEEDS = [orjson.loads(path.read_bytes()) for path in sorted(REPLIES.glob("*.json"))]
SEEDS += [
    {"created": 1, "data": [{"b64_json": base64.b64encode(PNG).decode(), "revised_prompt": "x"}]},
    {
        "object": "list",
        "model": "e",
        "data": [{"index": 0, "embedding": "AACAPwAAgD8="}],
        "usage": {"prompt_tokens": 3},
    },
    {"object": "list", "data": [{"index": 0, "embedding": [1.0, 2.0]}], "usage": {"total_tokens": 3}},
    {"choices": [{"message": {"content": '{"label":"a","score":1,"count":2,"tags":["x"],"flag":true}'}}], "usage": {}},
]
STREAMS = [path.read_bytes() for path in sorted(REPLIES.glob("*.sse"))]


def mutated(data: st.DataObject, value: Any) -> Any:
    value = deepcopy(value)
    for _ in range(data.draw(st.integers(1, 3))):
        paths = paths_of(value)[1:]
        if not paths:
            return value
        path = data.draw(st.sampled_from(paths))
        outer: Any = value
        for key in path[:-1]:
            outer = outer[key]
        if data.draw(st.booleans()):
            outer[path[-1]] = data.draw(VALUES)
        else:
            del outer[path[-1]]
    return value


@pytest.mark.parametrize("case", CASES)
@QUICK
@given(data=st.data())
def test_a_reply_with_any_value_anywhere_is_an_answer_or_malformed(case: str, data: st.DataObject) -> None:
    if "streamed" in case and data.draw(st.booleans()):
        stream = data.draw(st.sampled_from(STREAMS))
        lines = stream.split(b"\n")
        place = data.draw(st.integers(0, len(lines) - 1))
        prefix, _, rest = lines[place].partition(b": ")
        try:
            changed = mutated(data, orjson.loads(rest))
            lines[place] = prefix + b": " + json.dumps(changed).encode()
        except orjson.JSONDecodeError:
            lines[place] = data.draw(st.binary(max_size=20))
        process_reply(case, b"\n".join(lines), {"content-type": "text/event-stream"})
        return
    process_reply(case, json.dumps(mutated(data, data.draw(st.sampled_from(SEEDS)))).encode())


HEADERS = st.dictionaries(
    st.sampled_from(
        [
            f"x-ratelimit-{what}-{of}"
            for what in ("limit", "remaining", "reset")
            for of in ("requests", "tokens", "project-requests")
        ]
        + ["retry-after", "retry-after-ms", "x-should-retry", "x-request-id"]
    ),
    st.one_of(
        st.text(max_size=12),
        st.floats().map(str),
        st.integers().map(str),
        st.sampled_from(
            ["Wed, 21 Oct 2099 07:28:00 GMT", "Wed, 99 Oct 0000 99:99:99", "1h1m1s", "6m0s", "-1", "1e400", "٣"]
        ),
    ),
)


@settings(max_examples=120, deadline=None)
@given(HEADERS, st.floats(0, 4e9))
def test_headers_are_parsed_as_numbers_or_ignored(headers: dict[str, str], now: float) -> None:
    pause = retry_after_seconds(headers, now)
    assert pause is None or 0 <= pause < float("inf")
    limits = parse_rate_headers(headers)
    for value in (limits.limit_requests, limits.limit_tokens):
        assert value is None or value >= 1
    for value in (limits.remaining_requests, limits.remaining_tokens):
        assert value is None or value >= 0
    for seconds in (limits.reset_requests_s, limits.reset_tokens_s):
        assert seconds is None or 0 <= seconds < float("inf")


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from([200, 201, 301, 400, 401, 404, 429, 500, 503, 599]),
    st.binary(max_size=40)
    | VALUES.map(lambda value: json.dumps({"error": value}).encode())
    | VALUES.map(lambda v: json.dumps(v).encode()),
    HEADERS,
)
def test_an_error_of_any_shape_has_a_message(status: int, body: bytes, headers: dict[str, str]) -> None:
    error = row_error(Reply(status, headers, body, 1.0))
    assert isinstance(error.message, str)
    assert error.message
    for text in (error.type, error.param, error.code, error.details, error.request_id):
        assert text is None or isinstance(text, str)
    msgspec.json.encode(error)


@settings(max_examples=80, deadline=None)
@given(VALUES)
def test_any_body_is_recognised_as_an_error_or_not(body: Any) -> None:
    assert is_error_body(body) in (True, False)
