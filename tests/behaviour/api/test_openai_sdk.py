"""The official SDK reaches every route of `rowmill serve`, started as a command."""

import io
import json
import re
import signal
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import httpx2 as httpx
import openai
import pytest

from connectors.emulator.server import ROUTES
from connectors.media.file_types import MP3, detect_type
from tests.behaviour.api.recorder import SOUND
from tests.behaviour.api.row import MASK, PICTURES
from tests.support.documents import pdf

# Deprecated by the SDK: translations and variations.
pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")

SAID: Any = [{"role": "user", "content": "Hello there."}]
MODEL = "gpt-4o-mini"
Seen = list[tuple[str, str]]


@pytest.fixture(scope="module")
def command() -> Iterator[Callable[..., str]]:
    """Start `rowmill serve` with these options; its base_url."""

    def start(*options: str) -> str:
        words = [sys.executable, "-W", "error", "-c", "from pipelines.cli import main; main()", "serve", "--port", "0"]
        served = stack.enter_context(subprocess.Popen([*words, *options], stderr=subprocess.PIPE, text=True))
        stack.callback(served.send_signal, signal.SIGTERM)
        assert served.stderr is not None
        (base_url,) = re.findall(r"http://127\.0\.0\.1:\d+/v1", served.stderr.readline())
        return str(base_url)

    with ExitStack() as stack:
        yield start


@pytest.fixture(scope="module")
def base_url(command: Callable[..., str]) -> str:
    """The URL of an emulator without limits."""
    return command()


@pytest.fixture
def seen() -> Seen:
    """(method, path below /v1) of every request that the SDK sends."""
    return []


@pytest.fixture
def sdk(base_url: str, seen: Seen) -> Iterator[openai.OpenAI]:
    """The SDK, which validates every answer against its types."""

    def note(request: httpx.Request) -> None:
        seen.append((request.method, request.url.path.removeprefix("/v1")))

    http = openai.DefaultHttpxClient(event_hooks={"request": [note]})
    with openai.OpenAI(
        base_url=base_url, api_key="any", max_retries=0, _strict_response_validation=True, http_client=http
    ) as client:
        yield client


def stored(sdk: openai.OpenAI) -> str:
    """The id of a stored chat completion."""
    return sdk.chat.completions.create(model=MODEL, messages=SAID, store=True).id


def uploaded(sdk: openai.OpenAI) -> str:
    """The id of a file with one line for a batch."""
    line = {
        "custom_id": "1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": MODEL, "messages": SAID},
    }
    return sdk.files.create(file=("in.jsonl", json.dumps(line).encode() + b"\n"), purpose="batch").id


def batch(sdk: openai.OpenAI) -> Any:
    """A delayed batch of that line."""
    return sdk.batches.create(
        input_file_id=uploaded(sdk), endpoint="/v1/chat/completions", completion_window="24h",
        metadata={"rowmill_delay_s": "600"},
    )  # fmt: skip


def messages(sdk: openai.OpenAI) -> bool:
    """Read without the SDK's types, which expect the assistant's message in place of the user's."""
    reply = sdk.chat.completions.messages.with_raw_response.list(stored(sdk))
    return [one["content"] for one in json.loads(reply.http_response.content)["data"]] == ["Hello there."]


def embedded(sdk: openai.OpenAI) -> bool:
    """As floats: the SDK's types reject the base64 that it requests by default."""
    made = sdk.embeddings.create(model="text-embedding-3-small", input=["a", "b"], encoding_format="float")
    return [len(one.embedding) for one in made.data] == [1536, 1536]


def streamed_chat(sdk: openai.OpenAI) -> bool:
    whole = sdk.chat.completions.create(model=MODEL, messages=SAID).choices[0].message.content
    with sdk.chat.completions.stream(model=MODEL, messages=SAID) as stream:
        joined = "".join(event.delta for event in stream if event.type == "content.delta")
    return bool(whole) and joined == whole


def streamed_response(sdk: openai.OpenAI) -> bool:
    whole = sdk.responses.create(model=MODEL, input="Hello there.").output_text
    with sdk.responses.stream(model=MODEL, input="Hello there.") as stream:
        joined = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    return bool(whole) and joined == whole


def in_background(sdk: openai.OpenAI) -> str:
    """The id of a background response that was not looked up yet."""
    return sdk.responses.create(model=MODEL, input="Later.", background=True).id


def gone(sdk: openai.OpenAI, response_id: str) -> bool:
    """Whether a response is not found after its deletion."""
    sdk.responses.delete(response_id)
    try:
        sdk.responses.with_raw_response.delete(response_id)
    except openai.NotFoundError:
        return True
    return False


def spoken(sdk: openai.OpenAI) -> bytes:
    return sdk.audio.speech.create(model="tts-1", voice="alloy", input="Good morning.").content


def drawn(sdk: openai.OpenAI) -> bytes:
    """A picture, fetched from the URL in the answer."""
    (one,) = sdk.images.generate(model="dall-e-2", prompt="A cat", size="256x256").data or []
    assert one.url is not None
    return sdk.get(one.url, cast_to=httpx.Response).content


def edited(sdk: openai.OpenAI) -> Any:
    return sdk.images.edit(
        model="dall-e-2", prompt="A hat", size="256x256", response_format="b64_json",
        image=("a.png", PICTURES["png"], "image/png"), mask=("m.png", MASK, "image/png"),
    )  # fmt: skip


CALLS: Mapping[str, Callable[[openai.OpenAI], object]] = {
    "GET /models": lambda sdk: MODEL in {model.id for model in sdk.models.list()},
    "GET /models/{model:.+}": lambda sdk: sdk.models.retrieve(MODEL).id == MODEL,
    "DELETE /models/{model:.+}": lambda sdk: sdk.models.delete("ft:gpt-4o:me::x").deleted,
    "POST /chat/completions": streamed_chat,
    "GET /chat/completions": lambda sdk: stored(sdk) in {one.id for one in sdk.chat.completions.list()},
    "GET /chat/completions/{completion_id}": lambda sdk: sdk.chat.completions.retrieve(stored(sdk)).choices,
    "POST /chat/completions/{completion_id}": lambda sdk: (
        sdk.chat.completions.update(stored(sdk), metadata={"a": "b"}).metadata == {"a": "b"}
    ),
    "DELETE /chat/completions/{completion_id}": lambda sdk: sdk.chat.completions.delete(stored(sdk)).deleted,
    "GET /chat/completions/{completion_id}/messages": messages,
    "POST /responses": streamed_response,
    "POST /responses/input_tokens": lambda sdk: sdk.responses.input_tokens.count(model=MODEL, input="Hi").input_tokens,
    "GET /responses/{response_id}": lambda sdk: sdk.responses.retrieve(in_background(sdk)).status == "completed",
    "DELETE /responses/{response_id}": lambda sdk: gone(sdk, in_background(sdk)),
    "POST /responses/{response_id}/cancel": lambda sdk: sdk.responses.cancel(in_background(sdk)).status == "cancelled",
    "GET /responses/{response_id}/input_items": lambda sdk: list(sdk.responses.input_items.list(in_background(sdk))),
    "POST /embeddings": embedded,
    "POST /audio/speech": lambda sdk: detect_type(spoken(sdk)) is MP3,
    "POST /audio/transcriptions": lambda sdk: (
        sdk.audio.transcriptions.create(
            model="whisper-1", file=("speech.mp3", spoken(sdk)), response_format="verbose_json"
        ).text
        == "Good morning."
    ),
    "POST /audio/translations": lambda sdk: (
        sdk.audio.translations.create(model="whisper-1", file=("clip.mp3", io.BytesIO(SOUND))).text
    ),
    "POST /images/generations": lambda sdk: (
        sdk.images.generate(model="gpt-image-1", prompt="A cat", quality="low", n=2).data[1].b64_json  # type: ignore[index]
    ),
    "GET /local/pictures/{picture_id}": lambda sdk: drawn(sdk).startswith(b"\x89PNG"),
    "POST /images/edits": lambda sdk: edited(sdk).data[0].b64_json,
    "POST /images/variations": lambda sdk: (
        sdk.images.create_variation(image=("a.png", PICTURES["png"]), size="256x256").data[0].url  # type: ignore[index]
    ),
    "POST /files": uploaded,
    "GET /files": lambda sdk: uploaded(sdk) in {file.id for file in sdk.files.list()},
    "GET /files/{file_id}": lambda sdk: sdk.files.retrieve(uploaded(sdk)).filename == "in.jsonl",
    "DELETE /files/{file_id}": lambda sdk: sdk.files.delete(uploaded(sdk)).deleted,
    "GET /files/{file_id}/content": lambda sdk: b'"custom_id"' in sdk.files.content(uploaded(sdk)).content,
    "POST /batches": lambda sdk: batch(sdk).status == "validating",
    "GET /batches": lambda sdk: batch(sdk).id in {one.id for one in sdk.batches.list()},
    "GET /batches/{batch_id}": lambda sdk: sdk.batches.retrieve(batch(sdk).id).endpoint == "/v1/chat/completions",
    "POST /batches/{batch_id}/cancel": lambda sdk: (
        sdk.batches.cancel(batch(sdk).id).status in ("cancelling", "cancelled")
    ),
}
"""METHOD ROUTE -> (call of the SDK, check of its result)."""


def test_every_route_has_a_call() -> None:
    assert {f"{route.method} {route.path}" for route in ROUTES} == CALLS.keys()


@pytest.mark.parametrize("route", CALLS)
def test_the_sdk_finds_the_route_and_its_answer_fits_the_sdks_types(route: str, sdk: openai.OpenAI, seen: Seen) -> None:
    assert CALLS[route](sdk)
    method, _, path = route.partition(" ")
    assert seen[-1][0] == method
    assert re.fullmatch(re.sub(r"\{[^}]*\}", "[^/]+", path), seen[-1][1]), seen


def last_event(events: Any) -> str:
    """The type of the last one."""
    return str(list(events)[-1].type)


def speech_events(sdk: openai.OpenAI) -> str:
    stream = sdk.audio.speech.with_streaming_response.create(
        model="gpt-4o-mini-tts", voice="alloy", input="Good morning.", stream_format="sse"
    )
    with stream as reply:
        lines = [line for line in reply.iter_lines() if line.startswith("data: ")]
    return str(json.loads(lines[-1].removeprefix("data: "))["type"])


def heard_events(sdk: openai.OpenAI) -> str:
    sound = ("speech.mp3", spoken(sdk))
    return last_event(sdk.audio.transcriptions.create(model="gpt-4o-transcribe", file=sound, stream=True))


def drawn_events(sdk: openai.OpenAI) -> str:
    return last_event(
        sdk.images.generate(model="gpt-image-1", prompt="A cat", quality="low", stream=True, partial_images=1)
    )


def edited_events(sdk: openai.OpenAI) -> str:
    image = ("a.png", PICTURES["png"], "image/png")
    return last_event(sdk.images.edit(model="gpt-image-1", prompt="A hat", image=image, quality="low", stream=True))


@pytest.mark.parametrize(
    ("stream", "last"),
    [
        (speech_events, "speech.audio.done"),
        (heard_events, "transcript.text.done"),
        (drawn_events, "image_generation.completed"),
        (edited_events, "image_edit.completed"),
    ],
)
def test_audio_and_images_are_streamed_to_the_last_event(
    stream: Callable[[openai.OpenAI], str], last: str, sdk: openai.OpenAI
) -> None:
    assert stream(sdk) == last


def test_a_document_and_a_recording_are_sent_in_chat_and_a_document_in_a_response(sdk: openai.OpenAI) -> None:
    url = "data:application/pdf;base64," + b64encode(pdf(["one"])).decode()
    sound: Any = {"data": b64encode(SOUND).decode(), "format": "mp3"}
    file: Any = {"filename": "a.pdf", "file_data": url}
    parts: Any = [
        {"type": "text", "text": "What is it?"},
        {"type": "file", "file": file},
        {"type": "input_audio", "input_audio": sound},
    ]
    chat = sdk.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": parts}])
    item: Any = {"role": "user", "content": [{"type": "input_text", "text": "What?"}, {"type": "input_file", **file}]}
    response = sdk.responses.create(model=MODEL, input=[item])
    seen = chat.choices[0].message.content or ""
    assert "bytes, a.pdf" in seen and "a mp3 clip of" in seen
    assert "a pdf file of" in response.output_text
    file["file_data"] = "data:application/pdf;base64,AAAA"
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": parts}])
    assert (caught.value.param, caught.value.code) == ("messages[0].content[1].file.file_data", "unsupported_file")


def test_a_wrong_key_is_a_401(command: Callable[..., str]) -> None:
    locked = command("--api-key", "sesame")
    with openai.OpenAI(base_url=locked, api_key="other", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            client.models.list()
        assert (caught.value.status_code, caught.value.code) == (401, "invalid_api_key")
        assert caught.value.request_id
        assert client.with_options(api_key="sesame").models.list().data


def test_a_request_above_the_limit_is_a_429(command: Callable[..., str]) -> None:
    limited = command("--requests-per-minute", "1")
    with openai.OpenAI(base_url=limited, api_key="any", max_retries=0) as client:
        client.chat.completions.create(model=MODEL, messages=SAID)
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model=MODEL, messages=SAID)
    assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "requests")
    assert caught.value.response.headers["x-ratelimit-limit-requests"] == "1"
