"""Transcription and translation: forms up; texts, subtitles and structs down; pieces merged."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from aiohttp import web
from msgspec.structs import replace

from connectors.contracts import Endpoint, MalformedReply, Provider, StepContext
from connectors.endpoints.transcription import TranscriptionStep
from connectors.endpoints.translation import TranslationStep
from connectors.errors import JobError
from connectors.records import Media, Reply, Request, RowError, Usage
from connectors.transport.client import HttpTransport, RequestTimeouts

REPLIES = Path(__file__).parents[2] / "replies"
FACTS = StepContext(
    "p@there",
    {"sound": pa.string(), "lang": pa.string(), "hint": pa.string(), "n": pa.int64(), "many": pa.list_(pa.binary())},
    Path("/"),
    (),
    (),
)


def endpoint(**keys: Any) -> Endpoint:
    given = {"name": "transcript", "endpoint": "transcription", "model": "whisper-1", "file": "sound", **keys}
    kind = TranslationStep if given["endpoint"] == "translation" else TranscriptionStep
    return kind.model_validate(given).build(FACTS)


def media(content: bytes = b"sound", seconds: float = 3.0, **more: Any) -> Media:
    digest = hashlib.sha256(content).hexdigest()
    return Media(digest, len(content), "audio/mpeg", "mp3", data=content, seconds=seconds, **more)


def request_of(it: Endpoint, **row: Any) -> Request:
    request = it.request({"sound": media(), "lang": "en", "hint": "", **row}, "1")
    assert isinstance(request, Request)
    return request


def reply(body: bytes | str, kind: str = "application/json") -> Reply:
    return Reply(200, {"content-type": kind}, body.encode() if isinstance(body, str) else body, 1.0)


def read(it: Endpoint, name: str, kind: str = "application/json") -> tuple[Any, Usage]:
    """(values, usage) of a recorded reply."""
    request = request_of(it)
    came = reply((REPLIES / name).read_bytes(), kind)
    (answer,) = it.answers([request], came)
    assert isinstance(answer, bytes)
    values = it.values(answer)
    assert not isinstance(values, RowError)
    arrays = it.arrays([values, None])
    assert [array.type for array in arrays] == [field.type for field in it.fields]
    assert all(array[1].as_py() is None for array in arrays)
    return tuple(array[0].as_py() for array in arrays), it.usage([request], came)


def test_the_text_of_a_recorded_reply_becomes_a_string_with_its_usage() -> None:
    (text,), usage = read(endpoint(model="gpt-4o-transcribe"), "transcription.json")
    assert text.startswith("Imagine the wildest idea")
    assert usage == Usage(input_tokens=14, output_tokens=45, audio_seconds=3.0)
    (text,), usage = read(endpoint(endpoint="translation"), "translation.json")
    assert text.startswith("Hello, my name is Wolfgang")
    assert usage == Usage(audio_seconds=3.0)


def test_verbose_json_becomes_a_struct_of_segments_and_words() -> None:
    it = endpoint(response_format="verbose_json")
    (transcript,), usage = read(it, "transcription-segments.json")
    assert (transcript["language"], transcript["duration"], transcript["words"]) == ("english", 8.470000267028809, None)
    (segment,) = transcript["segments"]
    assert segment["id"] == 0 and segment["tokens"][:2] == [50364, 440] and segment["avg_logprob"] < -0.28
    assert usage == Usage(audio_seconds=9.0)
    (transcript,), _ = read(it, "transcription-words.json")
    assert transcript["words"][0] == {"word": "The", "start": 0.0, "end": 0.23999999463558197}
    assert transcript["segments"] is None


def test_speakers_and_logprobs_become_columns() -> None:
    it = endpoint(model="gpt-4o-transcribe-diarize", response_format="diarized_json")
    (transcript,), usage = read(it, "transcription-diarized.json")
    assert [segment["speaker"] for segment in transcript["segments"]] == ["agent", "A", "agent"]
    assert usage.audio_seconds == 27.0
    it = endpoint(model="gpt-4o-transcribe", params={"include": ["logprobs"]})
    assert [field.name for field in it.fields] == ["transcript", "transcript_logprobs"]
    (_, logprobs), _ = read(it, "transcription-logprobs.json")
    assert logprobs[0] == {"token": "Hey", "logprob": -1.0415299, "bytes": [72, 101, 121]}


def test_a_stream_of_events_is_read_to_its_last() -> None:
    it = endpoint(model="gpt-4o-mini-transcribe", params={"stream": True})
    assert it.call([request_of(it)]).stream
    (text,), usage = read(it, "transcription-streaming.sse", "text/event-stream")
    assert text.startswith("I see skies of blue and clouds of white")
    assert (usage.input_tokens, usage.output_tokens) == (14, 45)
    whole = (REPLIES / "transcription-streaming.sse").read_bytes()
    with pytest.raises(MalformedReply, match="before its last event"):
        it.answers([request_of(it)], reply(whole[: whole.rindex(b"\n\n", 0, whole.index(b"transcript.text.done"))]))


@pytest.mark.parametrize("form", ["text", "srt", "vtt"])
def test_texts_and_subtitles_are_stored_unchanged(form: str) -> None:
    it = endpoint(response_format=form)
    body = {
        "text": "Hé\n",
        "srt": "1\n00:00:00,000 --> 00:00:01,000\nHé\n\n",
        "vtt": "WEBVTT\n\n00:00.000 --> 00:01.000\nHé\n\n",
    }
    (answer,) = it.answers([request_of(it)], reply(body[form], "text/plain"))
    assert isinstance(answer, bytes)
    assert it.values(answer) == (body[form].strip() if form == "text" else body[form],)
    assert it.usage([request_of(it)], reply(body[form], "text/plain")) == Usage(audio_seconds=3.0)


def test_an_invalid_reply_is_malformed_and_a_refusal_is_an_error_of_the_row() -> None:
    it = endpoint()
    error = '{"error": {"message": "m", "code": 500}}'
    for body in ("", '{"text": "cut', "<html>down</html>", "[]", "{}", '{"text": 5}', error):
        with pytest.raises(MalformedReply):
            it.answers([request_of(it)], reply(body))
    (refused,) = it.answers([request_of(it)], reply('{"error": {"message": "m", "code": "content_policy_violation"}}'))
    assert isinstance(refused, RowError) and refused.error_class == "content_filter"
    with pytest.raises(MalformedReply, match="the reply is JSON, not"):
        endpoint(response_format="srt").answers([request_of(it)], reply('{"text": "x"}'))
    assert endpoint(response_format="text").answers([request_of(it)], reply('{"text": "x"}')) == (b"x",)


SPOKEN = 'She said "yes".\nThen she left.'
SUBTITLES = "1\n00:00:00,000 --> 00:00:01,000\nYes.\n"


@pytest.mark.parametrize(
    ("response_format", "body", "kind", "expected"),
    [
        ("text", orjson.dumps(SPOKEN), "application/json", SPOKEN),
        ("text", orjson.dumps(SPOKEN), "text/plain", SPOKEN),
        ("text", b'"Yes."', "application/json", "Yes."),
        ("text", b'"Yes."', "text/plain", '"Yes."'),
        ("text", b'"Yes," she said. "No," he said.', "application/json", '"Yes," she said. "No," he said.'),
        ("text", orjson.dumps({"text": SPOKEN}), "text/plain", SPOKEN),
        ("text", b"{curly} words", "text/plain", "{curly} words"),
        ("srt", orjson.dumps(SUBTITLES), "application/json", SUBTITLES),
        ("srt", orjson.dumps({"text": SUBTITLES}), "application/json", SUBTITLES),
        ("vtt", orjson.dumps("WEBVTT\n\n"), "application/json", "WEBVTT\n\n"),
        ("json", orjson.dumps(SPOKEN), "application/json", SPOKEN),
        ("json", SPOKEN.encode() + b"\n", "text/plain", SPOKEN),
        ("json", b"\n " + orjson.dumps({"text": SPOKEN}), "application/json", SPOKEN),
        ("json", orjson.dumps({"segments": [{"text": " Yes."}, {"text": " No."}]}), "application/json", "Yes. No."),
    ],
)
def test_a_transcript_in_another_form_than_requested_is_unwrapped(
    response_format: str, body: bytes, kind: str, expected: str
) -> None:
    it = endpoint(response_format=response_format)
    (answer,) = it.answers([request_of(it)], reply(body, kind))
    assert isinstance(answer, bytes)
    assert it.values(answer) == (expected,)
    assert it.usage([request_of(it)], reply(body, kind)).audio_seconds == 3.0


def test_a_transcript_in_segments_alone_has_their_text() -> None:
    it = endpoint(response_format="verbose_json")
    body = {"segments": [{"start": 0, "end": 1, "text": " Yes."}, {"start": 1, "end": 2, "text": " No."}]}
    (answer,) = it.answers([request_of(it)], reply(orjson.dumps(body)))
    assert isinstance(answer, bytes)
    values = it.values(answer)
    assert not isinstance(values, RowError)
    assert (values[0]["text"], [segment["end"] for segment in values[0]["segments"]]) == ("Yes. No.", [1.0, 2.0])


@pytest.mark.parametrize("body", [b"plain words", b'"a JSON string\\n"', b"{}"])
def test_a_text_in_place_of_verbose_json_is_malformed(body: bytes) -> None:
    it = endpoint(response_format="verbose_json")
    with pytest.raises(MalformedReply):
        it.answers([request_of(it)], reply(body))


def test_language_and_prompt_are_templates_and_left_out_if_empty() -> None:
    it = endpoint(language="{{ lang }}", prompt="{{ hint }}", params={"temperature": 0}, response_format="json")
    assert it.input_columns == {"sound", "lang", "hint"}
    assert orjson.loads(request_of(it).body) == {
        "file": media().name,
        "language": "en",
        "model": "whisper-1",
        "response_format": "json",
        "temperature": 0,
    }
    assert request_of(it).fingerprint != request_of(it, lang="de").fingerprint
    assert request_of(it).fingerprint != request_of(it, sound=media(b"other")).fingerprint
    assert (request_of(it).audio_seconds, request_of(it).input_tokens, request_of(it).output_bound) == (3.0, 0, 0)
    by_token = request_of(endpoint(model="gpt-4o-transcribe"), sound=media(seconds=60))
    assert (by_token.input_tokens, by_token.output_bound) == (1000, 2000)


def test_a_row_without_audio_or_with_several_files_is_an_error() -> None:
    missing = endpoint().request({"sound": None}, "1")
    assert missing == RowError("input", "file: column sound is null: there is no file")
    several = endpoint(file="many").request({"many": [media(), media(b"x")]}, "1")
    assert several == RowError("input", "file: column many names 2 files, expected one")
    bad = RowError("input", "no sound")
    assert endpoint().request({"sound": bad}, "1") is bad


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"file": "soun"}, "steps.transcript.file: no column soun; did you mean sound?"),
        ({"file": "n"}, "steps.transcript.file: column n contains int64; name a column of paths, URLs or bytes"),
        ({"language": "{{ langu }}"}, "steps.transcript.language: no column langu here; did you mean lang?"),
        (
            {"params": {"prompt": "x"}},
            "steps.transcript.params.prompt: is a key of the step; write it on the step, not in params",
        ),
        (
            {"response_format": "srt", "params": {"response_format": "srt"}},
            "steps.transcript.response_format: is also in params; write it in one place",
        ),
        (
            {"params": {"temperature": 2}},
            "steps.transcript.params.temperature: found 2, expected a number from 0 to 1; correct it",
        ),
        (
            {"params": {"timestamp_granularities": ["letter"]}},
            "steps.transcript.params.timestamp_granularities: "
            'found ["letter"], expected a list of word or segment; correct it',
        ),
        (
            {"params": {"timestamp_granularities": ["word"]}},
            "steps.transcript.params.timestamp_granularities: times come with verbose_json only; "
            "add response_format: verbose_json",
        ),
        (
            {"response_format": "srt", "params": {"include": ["logprobs"]}},
            "steps.transcript.params.include: logprobs come with response_format json only",
        ),
    ],
)
def test_an_invalid_key_is_an_error_before_anything_is_sent(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError) as caught:
        endpoint(**keys)
    assert str(caught.value) == message


def split_audio() -> Media:
    pieces = ((0.0, media(b"one", 100.25)), (100.25, media(b"two", 3600.0)), (3700.25, media(b"three", 10.0)))
    return media(b"whole", 3710.25, pieces=pieces)


def merged(it: Endpoint, *bodies: Any) -> Any:
    """Return the value of audio in three pieces with these replies."""
    request = request_of(it, sound=split_audio())
    assert [orjson.loads(part.body)["file"] for part in request.parts] == [
        media(content).name for content in (b"one", b"two", b"three")
    ]
    kinds = [
        ("application/json", orjson.dumps(body)) if isinstance(body, dict) else ("text/plain", body) for body in bodies
    ]
    answers = []
    for part, (kind, body) in zip(request.parts, kinds, strict=True):
        (answer,) = it.answers([part], reply(body, kind))
        assert isinstance(answer, bytes)
        answers.append(answer)
    values = it.values(it.merge_parts(request, answers))
    assert not isinstance(values, RowError)
    return it.arrays([values])[0][0].as_py()


def test_the_texts_of_pieces_are_merged() -> None:
    assert endpoint(split=True).media["sound"].split
    assert merged(endpoint(), {"text": " One."}, {"text": ""}, {"text": "Three. "}) == "One. Three."
    assert merged(endpoint(response_format="text"), "One.\n", "Two.\n", "\n") == "One. Two."


def test_the_times_of_subtitles_are_shifted() -> None:
    srt = "1\n00:00:01,500 --> 00:00:02,000\nHello\nyou\n\n2\n00:00:03,000 --> 00:00:04,000\n12\n\n"
    assert merged(endpoint(response_format="srt"), srt, "", srt) == (
        "1\n00:00:01,500 --> 00:00:02,000\nHello\nyou\n\n2\n00:00:03,000 --> 00:00:04,000\n12\n\n"
        "3\n01:01:41,750 --> 01:01:42,250\nHello\nyou\n\n4\n01:01:43,250 --> 01:01:44,250\n12\n\n"
    )
    vtt = "WEBVTT\n\n00:01.500 --> 00:02.000\nHello\n\n"
    assert merged(endpoint(response_format="vtt"), vtt, vtt, vtt) == (
        "WEBVTT\n\n00:01.500 --> 00:02.000\nHello\n\n01:41.750 --> 01:42.250\nHello\n\n"
        "01:01:41.750 --> 01:01:42.250\nHello\n\n"
    )


def test_segments_and_words_are_shifted_and_renumbered() -> None:
    body = {
        "text": "Hi.",
        "language": "english",
        "duration": 10.0,
        "segments": [{"id": 0, "seek": 50, "start": 0.5, "end": 2, "text": "Hi.", "tokens": [1]}],
        "words": [{"word": "Hi", "start": 0.5, "end": 1.0}],
    }
    transcript = merged(endpoint(response_format="verbose_json"), body, body, body)
    assert (transcript["text"], transcript["duration"], transcript["language"]) == ("Hi. Hi. Hi.", 3710.25, "english")
    assert [(each["id"], each["seek"], each["start"], each["end"]) for each in transcript["segments"]] == [
        (0, 50, 0.5, 2.0),
        (1, 10075, 100.75, 102.25),
        (2, 370075, 3700.75, 3702.25),
    ]
    assert [word["start"] for word in transcript["words"]] == [0.5, 100.75, 3700.75]
    spoken = {
        "text": "A: Hi",
        "duration": 5,
        "segments": [{"id": "seg_001", "start": 1, "end": 2, "speaker": "A", "text": "Hi"}],
    }
    it = endpoint(model="gpt-4o-transcribe-diarize", response_format="diarized_json")
    transcript = merged(it, spoken, spoken, spoken)
    assert [each["id"] for each in transcript["segments"]] == ["seg_001", "seg_002", "seg_003"]
    assert transcript["text"] == "A: Hi\nA: Hi\nA: Hi"


@pytest.fixture
async def seen() -> AsyncIterator[tuple[str, list[Any]]]:
    """(address, received parts): a server with aiohttp's parser that records each part of a form."""
    came: list[Any] = []

    async def record(request: web.Request) -> web.Response:
        reader = await request.multipart()
        while (part := await reader.next()) is not None:
            came.append((part.name, part.filename, part.headers.get("Content-Type"), bytes(await part.read())))  # type: ignore[union-attr]
        return web.json_response({"text": "x"})

    app = web.Application()
    app.router.add_post("/v1/{path:.*}", record)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1", came
    await runner.cleanup()


async def test_a_server_receives_the_form(seen: tuple[str, list[Any]], tmp_path: Path) -> None:
    address, came = seen
    it = endpoint(
        prompt='Zoë "quoted"\r\n--x',
        response_format="verbose_json",
        params={
            "timestamp_granularities": ["word", "segment"],
            "chunking_strategy": {"type": "server_vad", "threshold": 0.5},
            "stream": False,
        },
        extra_body={"vad": True},
    )
    path = tmp_path / "x.bin"
    path.write_bytes(b"\0\xff" * 50_000)
    content = path.read_bytes()
    sound = Media(hashlib.sha256(content).hexdigest(), len(content), "audio/mpeg", "mp3", path=path, seconds=1.0)
    transport = HttpTransport(RequestTimeouts(), 1)
    try:
        await transport.send(Provider("p", address), it.call([request_of(it, sound=sound)]))
    finally:
        await transport.close()
    text = "text/plain; charset=utf-8"
    assert sorted(came) == sorted(
        [
            ("chunking_strategy[threshold]", None, text, b"0.5"),
            ("chunking_strategy[type]", None, text, b"server_vad"),
            ("file", "file.mp3", "audio/mpeg", content),
            ("model", None, text, b"whisper-1"),
            ("prompt", None, text, 'Zoë "quoted"\r\n--x'.encode()),
            ("response_format", None, text, b"verbose_json"),
            ("stream", None, text, b"false"),
            ("timestamp_granularities[]", None, text, b"segment"),
            ("timestamp_granularities[]", None, text, b"word"),
            ("vad", None, text, b"true"),
        ],
        key=lambda part: part,
    )
    path.write_bytes(b"other")
    with pytest.raises(OSError, match="has changed since") as raised:
        it.call([request_of(it, sound=sound)])
    # The row's error contains this text.
    assert raised.value.strerror == "it has changed since the run read it; run again"


def test_a_text_that_equals_a_media_name_stays_text() -> None:
    it = endpoint(prompt="{{ hint }}")
    call = it.call([request_of(it, hint=media().name)])
    assert call.form is not None
    assert ("prompt", media().name, None) in call.form


def test_config_bytes_contain_all_that_can_change_an_answer() -> None:
    plain = endpoint()
    assert plain.config_bytes() == endpoint(name="other", provider="local").config_bytes()
    assert plain.config_bytes() != endpoint(response_format="srt").config_bytes()
    assert replace(request_of(endpoint(reuse=False)), body=b"").fingerprint != request_of(plain).fingerprint
