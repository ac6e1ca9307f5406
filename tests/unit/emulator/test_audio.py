"""Speech and transcripts of the emulator, through the official SDK."""

import base64
import csv
import hashlib
import io
import json
import re
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import av
import httpx2 as httpx
import numpy as np
import openai
import pytest
from PIL import Image

from connectors.emulator.audio.codec import FORMATS, decode, encode
from connectors.emulator.audio.recognition import CLIPS
from connectors.emulator.audio.synthesis import RATE, VOICE_HZ, speech

CLIP_FOLDER = Path(__file__).parents[3] / "jobs" / "data" / "audio"
TEXT = "Good morning! Rows 1, 2 and 3 are done: naïve café, 早上好。 Really?  Yes — 🎉"

pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")


def synthesized(client: openai.OpenAI, text: str = TEXT, audio_format: Any = "wav", **more: Any) -> bytes:
    return client.audio.speech.create(
        **{"model": "tts-1", "voice": "alloy", "input": text, "response_format": audio_format, **more}
    ).read()


def transcribed(client: openai.OpenAI, sound: bytes, **more: Any) -> Any:
    return client.audio.transcriptions.create(**{"model": "whisper-1", "file": ("a.wav", sound), **more})


def encoded_picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG")
    return out.getvalue()


def clips() -> list[dict[str, str]]:
    with (CLIP_FOLDER / "transcripts.csv").open() as lines:
        return list(csv.DictReader(lines))


@pytest.mark.parametrize("speed", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("audio_format", FORMATS)
def test_emulated_speech_is_transcribed_to_its_text_in_every_format_and_speed(
    client: openai.OpenAI, audio_format: str, speed: float
) -> None:
    sound = synthesized(client, audio_format=audio_format, speed=speed)
    assert transcribed(client, sound).text == TEXT
    # 14 characters per second, plus silence between sentences and at both ends.
    assert len(decode(sound)) / RATE == pytest.approx((len(TEXT) + 11) / 14 / speed, abs=0.3 / speed + 0.1)


@pytest.mark.parametrize(
    ("audio_format", "container", "codec", "media_type"),
    [
        ("mp3", "mp3", "mp3float", "audio/mpeg"),
        ("opus", "ogg", "opus", "audio/ogg"),
        ("aac", "aac", "aac", "audio/aac"),
        ("flac", "flac", "flac", "audio/flac"),
        ("wav", "wav", "pcm_s16le", "audio/wav"),
    ],
)
def test_each_format_is_a_file_of_that_format(
    client: openai.OpenAI, audio_format: Any, container: str, codec: str, media_type: str
) -> None:
    answer = client.audio.speech.create(model="tts-1", voice="nova", input="One two.", response_format=audio_format)
    assert answer.response.headers["content-type"] == media_type
    with av.open(io.BytesIO(answer.read())) as file:
        assert (file.format.name, file.streams.audio[0].codec_context.name) == (container, codec)
        assert file.streams.audio[0].codec_context.layout.nb_channels == 1


def test_pcm_is_the_samples_of_the_wav_file(client: openai.OpenAI) -> None:
    samples = np.frombuffer(synthesized(client, audio_format="pcm"), dtype="<i2")
    assert np.array_equal(samples, decode(synthesized(client)))


@pytest.mark.parametrize("audio_format", [*FORMATS, "pcm"])
def test_equal_requests_give_equal_bytes_and_each_voice_gives_its_own(client: openai.OpenAI, audio_format: str) -> None:
    assert synthesized(client, audio_format=audio_format) == synthesized(client, audio_format=audio_format)
    voices = {voice: synthesized(client, "Hi.", audio_format, voice=voice) for voice in VOICE_HZ}
    assert len(set(voices.values())) == 13
    assert synthesized(client, "Hi.", audio_format, voice={"id": "voice_1"}) not in voices.values()


@pytest.mark.parametrize("text", ["a", " a  b ", "two\nlines\t.", "\U0010ffff\x00", "x" * 4096])
def test_any_text_up_to_4096_characters_is_transcribed_exactly(client: openai.OpenAI, text: str) -> None:
    assert transcribed(client, synthesized(client, text, "flac", speed=4)).text == text.strip()


@pytest.mark.parametrize(
    ("container", "codec", "rate", "bit_rate"),
    [("webm", "libopus", 48_000, 48_000), ("mp4", "aac", 44_100, 96_000), ("mp3", "libmp3lame", 16_000, 64_000)],
)
def test_a_recoded_file_is_transcribed_if_it_keeps_the_comment(
    client: openai.OpenAI, container: str, codec: str, rate: int, bit_rate: int
) -> None:
    original = synthesized(client, audio_format="mp3")

    def recoded(keeps_comment: bool) -> bytes:
        out = io.BytesIO()
        with av.open(io.BytesIO(original)) as source, av.open(out, "w", format=container) as file:
            if keeps_comment:
                file.metadata.update(source.metadata)
            stream: Any = file.add_stream(codec, rate=rate)
            stream.layout, stream.bit_rate = "mono", bit_rate
            resampler = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=rate)
            for frame in [*source.decode(audio=0), None]:
                for part in resampler.resample(frame):
                    file.mux(stream.encode(part))
            file.mux(stream.encode(None))
        return out.getvalue()

    assert transcribed(client, recoded(True)).text == TEXT
    assert re.fullmatch(r"\[local] \d\.\d s of audio", transcribed(client, recoded(False)).text)


def test_silence_separates_words_and_is_longer_between_sentences() -> None:
    samples = decode(encode(speech("First sentence. Second one here.", "alloy", 1.0), "wav"))
    beat = RATE // 14
    is_silent = [not samples[at + beat // 4 : at + beat // 2].any() for at in range(0, len(samples) - beat // 2, beat)]
    lengths = [(silent, len(list(group))) for silent, group in groupby(is_silent)]
    assert [length for silent, length in lengths if silent] == [1, 1, 4, 1, 1, 1]
    assert [length for silent, length in lengths if not silent] == [5, 9, 6, 3, 5]


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"input": "x" * 4097}, "input"),
        ({"input": ""}, "input"),
        ({"input": 3}, "input"),
        ({"voice": "bob"}, "voice"),
        ({"speed": 0.2}, "speed"),
        ({"speed": 4.1}, "speed"),
        ({"speed": "fast"}, "speed"),
        ({"response_format": "ogg"}, "response_format"),
        ({"instructions": "whisper"}, "instructions"),
        ({"stream_format": "sse"}, "stream_format"),
        ({"voice": None}, "voice"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_an_invalid_parameter_of_speech_is_a_400_that_names_it(
    base_url: str, http: httpx.Client, wrong: dict[str, Any], param: str
) -> None:
    body = {"model": "tts-1", "input": "Hello.", "voice": "alloy", **wrong}
    reply = http.post(f"{base_url}/audio/speech", json=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_streamed_speech_is_the_file_in_parts_and_its_usage(client: openai.OpenAI) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="gpt-4o-mini-tts", voice="coral", input=TEXT, response_format="flac", stream_format="sse"
    ) as answer:
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line]
    *deltas, done = events
    assert b"".join(base64.b64decode(entry["audio"]) for entry in deltas) == synthesized(
        client, audio_format="flac", voice="coral"
    )
    assert len(deltas) > 1
    assert {entry["type"] for entry in deltas} == {"speech.audio.delta"}
    assert done["type"] == "speech.audio.done"
    assert done["usage"]["total_tokens"] == done["usage"]["input_tokens"] + done["usage"]["output_tokens"]


@pytest.mark.parametrize("clip", clips(), ids=lambda clip: clip["file"])
def test_the_shipped_clips_are_recognised_by_their_content(client: openai.OpenAI, clip: dict[str, str]) -> None:
    sound = (CLIP_FOLDER / clip["file"]).read_bytes()
    assert CLIPS[hashlib.sha256(sound).hexdigest()] == clip["text"]
    assert transcribed(client, sound, file=("some name", sound)).text == clip["text"]
    assert client.audio.translations.create(model="whisper-1", file=("x", sound)).text == clip["text"]


def test_any_other_sound_is_transcribed_to_its_duration(client: openai.OpenAI) -> None:
    tone = (8000 * np.sin(np.arange(RATE * 3) / 9)).astype(np.int16)
    answer = transcribed(client, encode([tone], "flac"), response_format="verbose_json")
    assert (answer.text, answer.duration) == ("[local] 3.0 s of audio", 3.0)


def test_verbose_json_has_the_times_of_each_word_and_sentence(client: openai.OpenAI) -> None:
    sound = synthesized(client, "Good morning. How are you?")
    answer = transcribed(
        client, sound, response_format="verbose_json", timestamp_granularities=["word", "segment"], temperature=0.5
    )
    assert answer.duration == len(decode(sound)) / RATE
    assert answer.language == "english"
    assert [word.word for word in answer.words] == ["Good", "morning.", "How", "are", "you?"]
    assert [segment.text for segment in answer.segments] == [" Good morning.", " How are you?"]
    assert [segment.temperature for segment in answer.segments] == [0.5, 0.5]
    # 28 beats: one of silence, four letters, a space, eight letters …
    assert [(word.start, word.end) for word in answer.words][:2] == [
        (pytest.approx(1 / 14, abs=0.02), pytest.approx(5 / 14, abs=0.02)),
        (pytest.approx(6 / 14, abs=0.02), pytest.approx(14 / 14, abs=0.02)),
    ]
    ends = [time for segment in answer.segments for time in (segment.start, segment.end)]
    assert ends == sorted(ends)
    assert (answer.usage.type, answer.usage.seconds) == ("duration", 3)
    only_words = transcribed(client, sound, response_format="verbose_json", timestamp_granularities=["word"])
    assert (len(only_words.words), only_words.segments) == (5, None)


@pytest.mark.parametrize(
    ("text", "language"), [("Hello there", "english"), ("早上好，世界", "chinese"), ("おはよう世界", "japanese")]
)
def test_the_language_is_guessed_from_the_script_unless_it_is_given(
    client: openai.OpenAI, text: str, language: str
) -> None:
    sound = synthesized(client, text)
    assert transcribed(client, sound, response_format="verbose_json").language == language
    assert transcribed(client, sound, response_format="verbose_json", language="de").language == "german"


@pytest.mark.parametrize(("audio_format", "head", "mark"), [("srt", "1\n", ","), ("vtt", "WEBVTT\n\n", ".")])
def test_subtitles_are_well_formed(client: openai.OpenAI, audio_format: str, head: str, mark: str) -> None:
    text = transcribed(client, synthesized(client, "Good morning. How are you?"), response_format=audio_format)
    assert text.startswith(head)
    assert re.findall(r"\n([A-Z].*)\n", text.removeprefix(head)) == ["Good morning.", "How are you?"]
    times = re.findall(rf"(00:00:\d\d\{mark}\d\d\d) --> (00:00:\d\d\{mark}\d\d\d)\n", text)
    assert len(times) == 2
    assert all(first < second for first, second in pairwise([time for cue in times for time in cue]))


def test_the_text_format_is_the_bare_transcript(client: openai.OpenAI) -> None:
    assert transcribed(client, synthesized(client), response_format="text") == f"{TEXT}\n"


def test_models_billed_by_tokens_return_token_usage_and_log_probabilities(client: openai.OpenAI) -> None:
    sound = synthesized(client)
    answer = transcribed(client, sound, model="gpt-4o-transcribe", include=["logprobs"], prompt="Rows and more rows.")
    assert "".join(entry.token for entry in answer.logprobs) == TEXT
    assert answer.usage.type == "tokens"
    assert answer.usage.input_token_details.text_tokens == 5
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


def test_a_streamed_transcript_comes_token_by_token(client: openai.OpenAI) -> None:
    *deltas, done = transcribed(client, synthesized(client), model="gpt-4o-transcribe", stream=True)
    assert "".join(entry.delta for entry in deltas) == TEXT
    assert (done.type, done.text) == ("transcript.text.done", TEXT)
    assert done.usage.total_tokens > 0
    assert len(deltas) > 10


def test_diarized_segments_have_a_speaker_whole_and_streamed(client: openai.OpenAI) -> None:
    sound = synthesized(client, "Good morning. How are you?")
    options = {
        "model": "gpt-4o-transcribe-diarize",
        "response_format": "diarized_json",
        "chunking_strategy": {"type": "server_vad", "threshold": 0.4},
        "known_speaker_names": ["agent"],
        "known_speaker_references": ["data:audio/wav;base64,AAAA"],
    }
    whole = transcribed(client, sound, **options)
    assert [(entry.speaker, entry.text) for entry in whole.segments] == [
        ("agent", "Good morning."),
        ("agent", "How are you?"),
    ]
    events = list(transcribed(client, sound, **options, stream=True))
    assert [entry.text for entry in events if entry.type == "transcript.text.segment"] == [
        "Good morning.",
        "How are you?",
    ]
    assert events[-1].type == "transcript.text.done"


def test_the_language_of_a_translation_is_english(client: openai.OpenAI) -> None:
    answer: Any = client.audio.translations.create(
        model="whisper-1", file=("x", synthesized(client)), response_format="verbose_json"
    )
    assert (answer.language, answer.text) == ("english", TEXT)


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"response_format": "xml"}, "response_format"),
        ({"response_format": "diarized_json"}, "response_format"),
        ({"model": "gpt-4o-transcribe", "response_format": "srt"}, "response_format"),
        ({"model": "gpt-4o-transcribe", "timestamp_granularities[]": "word"}, "timestamp_granularities"),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities"),
        ({"timestamp_granularities[]": "letter", "response_format": "verbose_json"}, "timestamp_granularities[0]"),
        ({"include[]": "logprobs"}, "include"),
        ({"temperature": "1.5"}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"language": "english"}, "language"),
        ({"model": "gpt-4o-transcribe-diarize", "prompt": "x"}, "prompt"),
        ({"chunking_strategy": "never"}, "chunking_strategy"),
        ({"chunking_strategy[type]": "server_vad", "chunking_strategy[threshold]": "2"}, "chunking_strategy.threshold"),
        ({"model": None}, "model"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_an_invalid_parameter_of_a_transcription_is_a_400_that_names_it(
    base_url: str, http: httpx.Client, wrong: dict[str, str | None], param: str
) -> None:
    fields = {name: value for name, value in {"model": "whisper-1", **wrong}.items() if value is not None}
    sound = encode(speech("Hello.", "alloy", 1.0), "wav")
    reply = http.post(f"{base_url}/audio/transcriptions", data=fields, files={"file": ("a.wav", sound)})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


def test_a_file_without_sound_is_rejected(client: openai.OpenAI) -> None:
    png = encoded_picture()
    for content in (b"", b"no sound", png, b"RIFF\x24\0\0\0WAVEfmt "):
        with pytest.raises(openai.BadRequestError) as refused:
            transcribed(client, content)
        assert (refused.value.param, refused.value.code) == ("file", "invalid_file_format")


def test_more_than_25_mb_is_a_413(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        transcribed(client, bytes(25 * 1024 * 1024 + 1))
    assert refused.value.status_code == 413


def test_long_audio_for_the_diarizing_model_needs_a_chunking_strategy(client: openai.OpenAI) -> None:
    sound = encode([np.zeros(RATE * 31, dtype=np.int16)], "flac")
    with pytest.raises(openai.BadRequestError) as refused:
        transcribed(client, sound, model="gpt-4o-transcribe-diarize")
    assert refused.value.param == "chunking_strategy"
