"""Cases for every endpoint: steps, recorded replies, and the expected columns."""

import base64
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq

from connectors.contracts import Endpoint, StepContext
from connectors.media.file_types import HEAD_BYTES, detect_type
from connectors.records import Media, Reply, Request
from connectors.registry import ENDPOINTS
from tests.behaviour.api.recorder import PICTURE, REPLIES, ROOT
from tests.behaviour.api.row import files, write_row

TEXT = "string"
TEXTS = "list<item: string>"
CALLS = "list<item: struct<id: string, name: string, arguments: string>>"
LOGPROBS = (
    "list<item: struct<token: string, logprob: double, bytes: list<item: int64>, "
    "top_logprobs: list<item: struct<token: string, logprob: double>>>>"
)
METADATA = (
    "struct<confidence_score: double, content_type: string, word_count: int64, reading_time: string, language: string, "
    "structure_compliance: bool, validation_passed: bool, schema_version: string, field_completeness: double, "
    "data_sources: list<item: string>, accuracy_level: string, last_updated: string, tool_execution_time: string, "
    "template_version: string, auto_generated: bool, customization_level: string, template_compliance: double, "
    "other: string>"
)
SPOKEN = (
    "struct<text: string, language: string, duration: double, segments: list<item: struct<id: int64, seek: int64, "
    "start: double, end: double, text: string, tokens: list<item: int64>, temperature: double, "
    "avg_logprob: double, compression_ratio: double, no_speech_prob: double>>, "
    "words: list<item: struct<word: string, start: double, end: double>>>"
)
SPEAKERS = (
    "struct<text: string, duration: double, segments: list<item: struct<id: string, start: double, end: double, "
    "text: string, speaker: string>>>"
)

TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
CHAT = {"endpoint": "chat", "model": "gpt-4o", "messages": [{"user": "{{ text }}"}]}
RESPONSES = {"endpoint": "responses", "model": "gpt-4o", "input": "{{ text }}"}
REFERENCE = {"endpoint": "responses", "model": "gpt-4", "dialect": "reference", "messages": [{"user": "{{ text }}"}]}
HEARD = {"endpoint": "transcription", "model": "whisper-1", "file": "mp3"}
VERBOSE = {**HEARD, "response_format": "verbose_json"}
PICTURES = {"prompt": "{{ text }}", "model": "gpt-image-1"}
SHAPE = {"a": {"type": "object", "properties": {}, "additionalProperties": True}}


@dataclass(frozen=True, slots=True)
class Case:
    """A step, a reply, and the expected result."""

    reply: str
    """A file of tests/replies, or a path below the checkout."""
    step: Mapping[str, Any]
    columns: Mapping[str, str]
    """Name -> Arrow type as text, in order."""
    begins: str
    """Prefix of the first column's value as JSON text."""
    usage: Mapping[str, Any] = field(default_factory=dict)
    """The expected usage."""

    @property
    def name(self) -> str:
        return f"{self.step['endpoint']}-{Path(self.reply).name}"


def tokens(given: int, made: int, **more: Any) -> dict[str, Any]:
    """A usage."""
    return {"input_tokens": given, "output_tokens": made, **more}


STEP = {"it": TEXT}
CASES: tuple[Case, ...] = (
    Case("chat-default.json", CHAT, STEP, '"Hello! How can I assist you',
         tokens(19, 10, cached_tokens=0, reasoning_tokens=0, model_version="gpt-5.4", finish_reason="stop")),
    Case("chat-image-input.json", CHAT, STEP, '"The image shows a wooden bo',
         tokens(1117, 46, cached_tokens=0, reasoning_tokens=0, model_version="gpt-5.4", finish_reason="stop")),
    Case("chat-1-5-1.json", {**CHAT, "detail": True}, {**STEP, "it_finish_reason": TEXT},
         '"Hello! How can I assist you',
         tokens(56, 31, model_version="gpt-3.5-turbo-0613", finish_reason="stop")),
    Case("chat-functions.json", {**CHAT, "tools": [TOOL]}, {**STEP, "it_tool_calls": CALLS}, 'null',
         tokens(82, 17, reasoning_tokens=0, model_version="gpt-4o-mini", finish_reason="tool_calls")),
    Case("chat-1-5-2.json", {**CHAT, "tools": [TOOL]}, {**STEP, "it_tool_calls": CALLS}, 'null',
         tokens(82, 17, model_version="gpt-3.5-turbo-0613", finish_reason="tool_calls")),
    Case("chat-logprobs.json", {**CHAT, "params": {"logprobs": True}}, {**STEP, "it_logprobs": LOGPROBS},
         '"Hello! How can I assist you',
         tokens(9, 9, reasoning_tokens=0, model_version="gpt-4o-mini", finish_reason="stop")),
    Case("chat-streaming.sse", {**CHAT, "stream": True}, STEP, '"Hello"',
         {"model_version": "gpt-4o-mini", "finish_reason": "stop"}),
    Case("chat-1-6.sse", {**CHAT, "stream": True}, STEP, '"Hello"',
         {"model_version": "gpt-3.5-turbo-0613", "finish_reason": "stop"}),
    Case("responses-text-input.json", RESPONSES, STEP, '"In a peaceful grove beneath',
         tokens(36, 87, cached_tokens=0, reasoning_tokens=0, model_version="gpt-5.4", finish_reason="stop")),
    Case("responses-image-input.json", RESPONSES, STEP, '"The image depicts a scenic ',
         tokens(328, 52, cached_tokens=0, reasoning_tokens=0, model_version="gpt-5.4", finish_reason="stop")),
    Case("responses-file-input.json", RESPONSES, STEP, '"The file seems to contain e',
         tokens(8438, 398, cached_tokens=0, reasoning_tokens=0, model_version="gpt-5.4", finish_reason="stop")),
    Case("responses-file-search.json", RESPONSES, STEP, '"The attributes of an ancien',
         tokens(18307, 348, cached_tokens=0, reasoning_tokens=0, model_version="gpt-5.4", finish_reason="stop")),
    Case("responses-web-search.json", RESPONSES, STEP, '"As of today, March 9, 2025,',
         tokens(328, 356, cached_tokens=0, reasoning_tokens=0, model_version="gpt-5.4", finish_reason="stop")),
    Case("responses-reasoning.json", RESPONSES, STEP, '"The classic tongue twister.',
         tokens(81, 1035, cached_tokens=0, reasoning_tokens=832, model_version="o1-2024-12-17", finish_reason="stop")),
    Case("responses-functions.json", {**RESPONSES, "tools": [TOOL]}, {**STEP, "it_tool_calls": CALLS}, 'null',
         tokens(291, 23, reasoning_tokens=0, model_version="gpt-5.4", finish_reason="tool_calls")),
    Case("responses-streaming.sse", {**RESPONSES, "stream": True}, STEP, '"Hi there! How can I assist ',
         tokens(37, 11, reasoning_tokens=0, model_version="gpt-5.4", finish_reason="stop")),
    Case("reference-basic.json", REFERENCE, {**STEP, "it_metadata": METADATA}, '"Artificial Intelligence (AI',
         tokens(45, 245, model_version="gpt-4", finish_reason="stop")),
    Case("reference-structured.json", REFERENCE, {**STEP, "it_metadata": METADATA}, '"{\\"summary\\":\\"The data sho',
         tokens(120, 180, model_version="gpt-4", finish_reason="stop")),
    Case("reference-json-schema.json", REFERENCE, {**STEP, "it_metadata": METADATA}, '"{\\"executive_summary\\":\\"Q4',
         tokens(150, 280, model_version="gpt-4", finish_reason="stop")),
    Case("reference-template.json", REFERENCE, {**STEP, "it_metadata": METADATA}, '"{\\"template_name\\":\\"projec',
         tokens(95, 350, model_version="gpt-4", finish_reason="stop")),
    Case("reference-tools.json", {**REFERENCE, "tools": [TOOL]},
         {**STEP, "it_tool_calls": CALLS, "it_metadata": METADATA}, '"Based on the current weathe',
         tokens(85, 320, model_version="gpt-4", finish_reason="stop")),
    Case("reference-streaming.sse", {**REFERENCE, "stream": True}, {**STEP, "it_metadata": METADATA},
         '"Based on the analysis, the ',
         {"model_version": "gpt-4", "finish_reason": "stop"}),
    Case("embeddings.json", {"endpoint": "embeddings", "model": "m", "input": "{{ text }}", "dimensions": 3},
         {"it": "fixed_size_list<item: float>[3]"}, '[0.002306425478309393, -0.00',
         tokens(8, 0, model_version="text-embedding-ada-002")),
    Case("jobs/data/audio/austen_0880.mp3",
         {"endpoint": "speech", "model": "tts-1", "input": "{{ text }}", "voice": "alloy"}, STEP, '"files/',
         {"characters": 32}),
    Case("transcription.json", HEARD, STEP, '"Imagine the wildest idea th',
         tokens(14, 45, audio_seconds=0.25)),
    Case("transcription-segments.json", VERBOSE, {"it": SPOKEN}, '{"text": "The beach was a po',
         {"audio_seconds": 9.0}),
    Case("transcription-words.json", VERBOSE, {"it": SPOKEN}, '{"text": "The beach was a po',
         {"audio_seconds": 9.0}),
    Case("transcription-diarized.json", {**HEARD, "response_format": "diarized_json"}, {"it": SPEAKERS},
         '{"text": "Agent: Thanks for ',
         {"audio_seconds": 27.0}),
    Case("transcription-logprobs.json", {**HEARD, "params": {"include": ["logprobs"]}},
         {**STEP, "it_logprobs": "list<item: struct<token: string, logprob: double, bytes: list<item: int64>>>"},
         '"Hey, my knee is hurting and',
         tokens(14, 45, audio_seconds=0.25)),
    Case("transcription-streaming.sse", {**HEARD, "params": {"stream": True}}, STEP, '"I see skies of blue and clo',
         tokens(14, 45, audio_seconds=0.25)),
    Case("translation.json", {**HEARD, "endpoint": "translation"}, STEP, '"Hello, my name is Wolfgang ',
         {"audio_seconds": 0.25}),
    Case("image-generation.json", {**PICTURES, "endpoint": "image_generation"}, STEP, '"files/',
         tokens(50, 50, images=1)),
    Case("image-edit-streaming.sse", {**PICTURES, "endpoint": "image_edit", "image": "png", "params": {"stream": True}},
         STEP, '"files/',
         tokens(50, 50, images=1)),
    Case("image-variation.json", {"endpoint": "image_variation", "model": "dall-e-2", "image": "png", "n": 2},
         {"it": TEXTS}, '["files/',
         {"images": 2}),
)  # fmt: skip


@cache
def row() -> Mapping[str, Any]:
    """The one row of data."""
    with TemporaryDirectory() as folder:
        (one,) = pq.read_table(write_row(Path(folder))).to_pylist()
        return dict(one)


@cache
def facts() -> StepContext:
    """Its columns."""
    with TemporaryDirectory() as folder:
        schema = pq.read_schema(write_row(Path(folder)))
    return StepContext("p@there", {each.name: each.type for each in schema}, Path("/"), (), ())


def built(step: Mapping[str, Any]) -> Endpoint:
    """A step's endpoint."""
    kind: Any = ENDPOINTS[step["endpoint"]]
    endpoint: Endpoint = kind.model_validate({"name": "it", **step}).build(facts())
    return endpoint


def request_of(endpoint: Endpoint, key: str = "1") -> Request:
    """The request of the row, with its files resolved."""
    values = dict(row())
    for column, use in endpoint.media.items():
        if not (use.passes_urls and str(values[column]).startswith(("http", "data:"))):
            values[column] = found(values["photo"] if column == "photo" else files()[column])
    request = endpoint.request(values, key)
    assert isinstance(request, Request), request
    return request


def found(content: bytes) -> Media:
    """A file as measured before its request is built."""
    kind = detect_type(content[:HEAD_BYTES])
    assert kind is not None
    measured: Any = {"pixels": (64, 64)} if kind.group == "image" else {"seconds": 0.25}
    digest = hashlib.sha256(content).hexdigest()
    return Media(digest, len(content), kind.type, kind.suffix, data=content, **measured)


def reply_of(case: Case) -> Reply:
    """The recorded bytes, with a picture in place of the description's ellipsis."""
    path = REPLIES / case.reply
    body = (path if path.exists() else ROOT / case.reply).read_bytes()
    body = body.replace(b'"b64_json":"..."', b'"b64_json": "..."').replace(
        b'"b64_json": "..."', b'"b64_json": "' + base64.b64encode(PICTURE) + b'"'
    )
    kinds = {".json": "application/json", ".sse": "text/event-stream", ".mp3": "audio/mpeg"}
    return Reply(200, {"content-type": kinds[path.suffix]}, body, 1.0)


def answer_of(case: Case) -> tuple[Endpoint, Request, bytes]:
    """(endpoint, request, stored answer), with links followed."""
    endpoint = built(case.step)
    request = request_of(endpoint)
    (answer,) = endpoint.answers([request], reply_of(case))
    assert isinstance(answer, bytes), answer
    links = endpoint.expiring_urls(answer)
    return endpoint, request, endpoint.with_contents(answer, [PICTURE] * len(links)) if links else answer


def fingerprints() -> dict[str, list[str]]:
    """Case -> request fingerprint and declared bytes, in hex."""
    made = {case.name: built(case.step) for case in CASES}
    return {name: [request_of(it).fingerprint.hex(), it.config_bytes().hex()] for name, it in made.items()}


if __name__ == "__main__":
    json.dump(fingerprints(), sys.stdout)
