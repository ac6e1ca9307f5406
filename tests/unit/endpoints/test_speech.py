"""Speech: a text up, an audio file down, named by its content."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest

from connectors.contracts import Endpoint, MalformedReply, StepContext
from connectors.endpoints.speech import SpeechStep
from connectors.errors import JobError
from connectors.records import Reply, Request, RowError, Usage

FACTS = StepContext("p@there", {"body": pa.string()}, Path("/"), (), (), files_prefix="files/")
AUDIO = Path(__file__).parents[3] / "jobs" / "data" / "audio"


def endpoint(**keys: Any) -> Endpoint:
    given = {"name": "speech", "endpoint": "speech", "model": "tts-1", "input": "{{ body }}", "voice": "alloy", **keys}
    return SpeechStep.model_validate(given).build(FACTS)


def request_of(it: Endpoint, body: str | None = "Hello.") -> Request:
    request = it.request({"body": body}, "1")
    assert isinstance(request, Request)
    return request


def reply(body: bytes, kind: str = "audio/mpeg") -> Reply:
    return Reply(200, {"content-type": kind}, body, 1.0)


def test_every_key_is_in_the_body() -> None:
    it = endpoint(
        response_format="opus",
        speed=0.5,
        params={"instructions": "Slowly."},
        extra_body={"seed": 1},
        voice={"id": "v_1"},
    )
    assert orjson.loads(request_of(it).body) == {
        "input": "Hello.",
        "instructions": "Slowly.",
        "model": "tts-1",
        "response_format": "opus",
        "seed": 1,
        "speed": 0.5,
        "voice": {"id": "v_1"},
    }
    call = it.call([request_of(it)])
    assert (call.method, call.path, call.body, call.stream) == ("POST", "/audio/speech", request_of(it).body, False)
    assert it.input_columns == {"body"}


def test_stream_is_not_a_parameter_of_the_api() -> None:
    it = endpoint(stream=True)
    assert it.call([request_of(it)]).stream
    assert request_of(it).body == request_of(endpoint()).body
    assert endpoint(params={"stream_format": "sse"}).call([request_of(it)]).stream


def test_characters_are_checked_before_sending() -> None:
    it = endpoint()
    assert request_of(it, "ü" * 4096).characters == 4096
    assert it.request({"body": "ü" * 4097}, "1") == RowError(
        "input", "input: 4,097 characters, more than the maximum of 4,096"
    )
    assert it.request({"body": None}, "1") == RowError("input", "input: the text is empty; there is nothing to speak")
    assert isinstance(it.request({"body": "\ud800"}, "1"), RowError)


def test_the_maximum_cost_of_a_request_depends_on_the_model() -> None:
    request = request_of(endpoint())
    assert (request.input_tokens, request.output_bound, request.characters) == (0, 0, 6)
    request = request_of(endpoint(model="gpt-4o-mini-tts", speed=0.5))
    assert request.input_tokens == 2 and request.output_bound == 6 * 12 * 2
    assert request_of(endpoint(model="kokoro")).output_bound is None


@pytest.mark.parametrize(
    ("content", "form", "suffix"),
    [
        ((AUDIO / "austen_0870.wav").read_bytes(), "mp3", "wav"),
        ((AUDIO / "austen_0880.mp3").read_bytes(), "mp3", "mp3"),
        ((AUDIO / "jfk.flac").read_bytes(), "flac", "flac"),
        (b"OggS" + bytes(24) + b"OpusHead" + bytes(40), "opus", "opus"),
        (b"OggS" + bytes(24) + b"\x01vorbis" + bytes(40), "opus", "ogg"),
        (b"\xff\xf1\x50\x80" + bytes(40), "aac", "aac"),
        (b"\x01\x00" * 100, "pcm", "pcm"),
        (b"{\x00" * 100, "pcm", "pcm"),
        (b":\x00" * 100, "pcm", "pcm"),
    ],
)
def test_the_file_is_named_by_its_content(content: bytes, form: str, suffix: str) -> None:
    it = endpoint(response_format=form)
    (answer,) = it.answers([request_of(it)], reply(content))
    assert answer == content
    name = f"{hashlib.sha256(content).hexdigest()[:32]}.{suffix}"
    assert it.values(content) == (f"files/{name}",)
    assert it.files(content) == ((name, content),)
    assert it.arrays([(f"files/{name}",), None])[0].to_pylist() == [f"files/{name}", None]
    assert it.usage([request_of(it)], reply(content)) == Usage(characters=6)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "audio/mpeg"),
        (b"<html>busy</html>", "text/html"),
        (b'{"ok": true}', "application/json"),
        (b'{"error": {"message": "overloaded", "code": 503}}', "audio/mpeg"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "audio/mpeg"),
    ],
)
def test_a_reply_without_audio_is_malformed(body: bytes, kind: str) -> None:
    with pytest.raises(MalformedReply):
        endpoint().answers([request_of(endpoint())], reply(body, kind))


def test_a_refusal_with_status_200_is_an_error_of_the_row() -> None:
    body = b'{"error": {"message": "no", "code": "content_filter"}}'
    (refused,) = endpoint().answers([request_of(endpoint())], reply(body, "application/json"))
    assert isinstance(refused, RowError) and (refused.error_class, refused.message) == ("content_filter", "no")


def test_a_stream_of_events_is_assembled_with_its_usage() -> None:
    it = endpoint(model="gpt-4o-mini-tts", params={"stream_format": "sse"})
    content = (AUDIO / "austen_0880.mp3").read_bytes()
    halves = [base64.b64encode(part) for part in (content[:5000], content[5000:])]
    events = [b'data: {"type":"speech.audio.delta","audio":"' + half + b'"}\n\n' for half in halves]
    done = b'data: {"type":"speech.audio.done","usage":{"input_tokens":5,"output_tokens":60,"total_tokens":65}}\n\n'
    received = reply(b"".join([*events, done]), "text/event-stream")
    assert it.answers([request_of(it)], received) == (content,)
    assert it.usage([request_of(it)], received) == Usage(input_tokens=5, output_tokens=60, characters=6)
    for broken in (b"".join(events), events[0] + b'data: {"error": {"message": "x"}}\n\n', events[0][:200]):
        with pytest.raises(MalformedReply):
            it.answers([request_of(it)], reply(broken, "text/event-stream"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"input": "{{ bod }}"}, "steps.speech.input: no column bod here; did you mean body?"),
        (
            {"params": {"input": "x"}},
            "steps.speech.params.input: is a key of the step; write it on the step, not in params",
        ),
        ({"speed": 1, "params": {"speed": 1}}, "steps.speech.speed: is also in params; write it in one place"),
        ({"params": {"speed": 5}}, "steps.speech.params.speed: found 5, expected a number from 0.25 to 4; correct it"),
        ({"params": {"voize": "x"}}, "steps.speech.params.voize: no such parameter; did you mean voice?"),
    ],
)
def test_an_invalid_key_is_an_error_before_anything_is_sent(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError) as caught:
        endpoint(**keys)
    assert str(caught.value) == message
