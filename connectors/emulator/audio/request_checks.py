"""Rules of the audio endpoints by model."""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from connectors.emulator.api_schemas import NON_EMPTY, enum, integer, nullable, record, request_schema, text
from connectors.emulator.audio.synthesis import VOICE_HZ
from connectors.emulator.validation import check_body, check_model, refuse

SPEECH = request_schema(
    "CreateSpeechRequest",
    {
        "model": NON_EMPTY,
        "input": text(4096, 1),
        "voice": {"anyOf": [enum(*VOICE_HZ), record("id", id=NON_EMPTY)]},
    },
)

_FROM_0_TO_1 = {"type": "number", "minimum": 0, "maximum": 1}
_VOICE_DETECTION = record(
    "type",
    type=enum("server_vad"),
    prefix_padding_ms=integer(0),
    silence_duration_ms=integer(0),
    threshold=_FROM_0_TO_1,
)
_COMMON = {"model": NON_EMPTY, "temperature": _FROM_0_TO_1}
TRANSCRIPTION = request_schema(
    "CreateTranscriptionRequest",
    {**_COMMON, "chunking_strategy": nullable({"anyOf": [enum("auto"), _VOICE_DETECTION]})},
    without="file",
)
TRANSLATION = request_schema("CreateTranslationRequest", _COMMON, without="file")


class TranscriptionRules(Struct, frozen=True):
    """Restrictions of one transcription model."""

    formats: tuple[str, ...]
    unsupported: tuple[str, ...] = ()
    is_billed_by_tokens: bool = True
    """Whether the usage is in tokens; else it is in seconds."""
    can_stream: bool = True
    max_unchunked_seconds: float | None = None
    """Length of audio without a chunking_strategy; None for no limit."""


_SPEAKERS = ("known_speaker_names", "known_speaker_references")
_HINTS = ("languages", "keywords")
_GPT_4O = TranscriptionRules(("json",), ("timestamp_granularities", *_SPEAKERS, *_HINTS))
_ANY = TranscriptionRules(("json", "text", "srt", "verbose_json", "vtt", "diarized_json"), is_billed_by_tokens=False)

TRANSCRIPTION_RULES: Mapping[str, TranscriptionRules] = {
    "whisper-1": TranscriptionRules(
        ("json", "text", "srt", "verbose_json", "vtt"),
        ("include", *_SPEAKERS, *_HINTS),
        is_billed_by_tokens=False,
        can_stream=False,
    ),
    "gpt-transcribe": TranscriptionRules(("json",), ("timestamp_granularities", "include", *_SPEAKERS)),
    "gpt-4o-transcribe": _GPT_4O,
    "gpt-4o-mini-transcribe": _GPT_4O,
    "gpt-4o-mini-transcribe-2025-12-15": _GPT_4O,
    "gpt-4o-transcribe-diarize": TranscriptionRules(
        ("json", "text", "diarized_json"),
        ("prompt", "include", "timestamp_granularities", *_HINTS),
        max_unchunked_seconds=30.0,
    ),
    # This model takes no hints.
    "moonshine-tiny-en": TranscriptionRules(
        ("json", "text", "srt", "verbose_json", "vtt"),
        ("prompt", "include", *_SPEAKERS, *_HINTS),
        is_billed_by_tokens=False,
    ),
}
"""Rules of the official models, from the descriptions in CreateTranscriptionRequest, and of the real one; any other
name accepts everything."""


def check_speech(body: Mapping[str, Any]) -> None:
    """Raise ApiError for parameters that the model does not accept."""
    check_body(body, SPEECH)
    model = check_model(body, "speech")
    if model in ("tts-1", "tts-1-hd", "espeak-ng"):
        if body.get("stream_format") == "sse" and model != "espeak-ng":
            raise _unsupported("stream_format", "the value 'sse' of 'stream_format'", model)
        if "instructions" in body:
            raise _unsupported("instructions", "the parameter 'instructions'", model)


def check_transcription(body: Mapping[str, Any]) -> TranscriptionRules:
    """The rules of the model; ApiError for parameters that it does not accept."""
    check_body(body, TRANSCRIPTION)
    model = check_model(body, "transcription")
    rules = TRANSCRIPTION_RULES.get(model, _ANY)
    for name in rules.unsupported:
        if name in body:
            raise _unsupported(name, f"the parameter '{name}'", model)
    response_format = body.get("response_format", "json")
    if response_format not in rules.formats:
        raise _unsupported("response_format", f"the value '{response_format}' of 'response_format'", model)
    if "timestamp_granularities" in body and response_format != "verbose_json":
        raise refuse(
            "timestamp_granularities",
            "'timestamp_granularities' is only supported with response_format 'verbose_json'.",
            "unsupported_parameter",
        )
    if "include" in body and response_format != "json":
        raise refuse("include", "'include' is only supported with response_format 'json'.", "unsupported_parameter")
    if len(body.get("known_speaker_names", ())) != len(body.get("known_speaker_references", ())):
        raise refuse(
            "known_speaker_names",
            "'known_speaker_names' and 'known_speaker_references' must be of the same length.",
            "invalid_value",
        )
    return rules


def _unsupported(param: str, what: str, model: str) -> Exception:
    return refuse(param, f"Unsupported: {what} is not supported with the model '{model}'.", "unsupported_parameter")
