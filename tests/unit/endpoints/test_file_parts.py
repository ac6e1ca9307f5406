"""Documents and audio in messages, as OpenAI's description has them in chat and in responses."""

import hashlib
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest

from connectors.contracts import Endpoint, MediaColumn, StepContext
from connectors.endpoints.chat import ChatStep
from connectors.endpoints.responses import ResponsesStep
from connectors.errors import JobError
from connectors.records import Media, Request, RowError
from connectors.tokens import file_tokens

COLUMNS = {"text": pa.string(), "doc": pa.string(), "docs": pa.list_(pa.string()), "clip": pa.binary()}


def media(kind: str, suffix: str, content: bytes, seconds: float | None = None) -> Media:
    digest = hashlib.sha256(content).hexdigest()
    return Media(digest, len(content), kind, suffix, data=content, seconds=seconds)


PDF = media("application/pdf", "pdf", b"pdf")
NOTE = media("text/plain", "txt", b"note")
WAV = media("audio/wav", "wav", b"wav", seconds=2.0)
FLAC = media("audio/flac", "flac", b"flac", seconds=2.0)


def chat(*parts: Any) -> Endpoint:
    step = {"name": "ask", "endpoint": "chat", "model": "gpt-4o", "messages": [{"user": list(parts)}]}
    return ChatStep.model_validate(step).build(StepContext("t@here", COLUMNS, Path("/w"), (), ()))


def responses(*parts: Any, dialect: str = "openai") -> Endpoint:
    step = {"name": "ask", "endpoint": "responses", "model": "gpt-4o", "dialect": dialect, "input": [{"user": parts}]}
    return ResponsesStep.model_validate(step).build(StepContext("t@here", COLUMNS, Path("/w"), (), ()))


def sent(endpoint: Endpoint, key: str, **row: Any) -> Any:
    request = endpoint.request({"text": "Hi", **row}, "1")
    assert isinstance(request, Request), request
    body = endpoint.call([request]).body
    assert body is not None
    return orjson.loads(body)[key][0]["content"]


def test_documents_and_audio_of_chat_are_sent_as_the_description_says() -> None:
    endpoint = chat({"text": "{{ text }}"}, {"file": "docs"}, {"audio": "clip"})
    assert endpoint.media == {"clip": MediaColumn("audio", 25 << 20), "docs": MediaColumn("document", 50 << 20)}
    assert sent(endpoint, "messages", docs=[PDF, None, NOTE], clip=WAV) == [
        {"type": "text", "text": "Hi"},
        {"type": "file", "file": {"filename": "document.pdf", "file_data": "data:application/pdf;base64,cGRm"}},
        {"type": "file", "file": {"filename": "document.txt", "file_data": "data:text/plain;base64,bm90ZQ=="}},
        {"type": "input_audio", "input_audio": {"data": "d2F2", "format": "wav"}},
    ]
    assert sent(endpoint, "messages", docs=None, clip=None) == [{"type": "text", "text": "Hi"}]


def test_documents_of_responses_are_sent_as_the_description_says_and_their_urls_passed_on() -> None:
    endpoint = responses({"text": "{{ text }}"}, {"file": "doc"})
    assert endpoint.media == {"doc": MediaColumn("document", 50 << 20, passes_urls=True)}
    text = {"type": "input_text", "text": "Hi"}
    data = {"filename": "document.pdf", "file_data": "data:application/pdf;base64,cGRm"}
    assert sent(endpoint, "input", doc=PDF) == [text, {"type": "input_file", **data}]
    url = "https://example.test/a.pdf"
    assert sent(endpoint, "input", doc=url) == [text, {"type": "input_file", "file_url": url}]


def test_the_content_and_not_the_name_of_a_document_identifies_its_request() -> None:
    endpoint = chat({"text": "a"}, {"file": "doc"})
    moved = Media(PDF.digest, PDF.size, PDF.kind, PDF.suffix, path=Path("/elsewhere/b.pdf"))
    first, second, other = (endpoint.request({"doc": file}, "1") for file in (PDF, moved, NOTE))
    assert isinstance(first, Request) and isinstance(second, Request) and isinstance(other, Request)
    assert first.fingerprint == second.fingerprint != other.fingerprint


def test_a_document_counts_by_its_size_and_audio_by_its_seconds() -> None:
    text = chat({"text": "a"}).request({}, "1")
    whole = chat({"text": "a"}, {"file": "doc"}, {"audio": "clip"}).request({"doc": PDF, "clip": WAV}, "1")
    assert isinstance(text, Request) and isinstance(whole, Request)
    assert whole.input_tokens - text.input_tokens == file_tokens(3) + 20


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"clip": FLAC}, "audio is flac; expected wav or mp3, convert it"),
        ({"clip": None}, "a message has no content: its file is null, and it has no text"),
    ],
    ids=["flac", "null"],
)
def test_a_row_without_usable_audio_is_an_error_row(row: dict[str, Any], message: str) -> None:
    error = chat({"audio": "clip"}).request(row, "1")
    assert isinstance(error, RowError)
    assert (error.error_class, error.message) == ("input", message)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: responses({"audio": "clip"}), "audio: this endpoint takes no audio; use endpoint: chat"),
        (lambda: responses({"file": "doc"}, dialect="reference"), "file: this endpoint takes no files; use endpoint"),
        (lambda: chat({"file": "dok"}), "file: no column dok; did you mean doc?"),
        (lambda: chat({"file": "doc", "detail": "low"}), "detail: no such part"),
        (lambda: chat({"image": "doc"}, {"file": "doc"}), "doc is used for two kinds of files; name it twice"),
        (lambda: chat({"text": "{{ doc }}"}, {"file": "doc"}), "doc is both a file and a part of a text"),
    ],
    ids=["audio in responses", "file in the reference's format", "no column", "detail", "two kinds", "text"],
)
def test_a_part_that_cannot_be_sent_is_an_error_of_the_job(build: Any, message: str) -> None:
    with pytest.raises(JobError) as caught:
        build()
    assert message in str(caught.value)
