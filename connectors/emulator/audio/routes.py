"""POST /audio/speech, /audio/transcriptions and /audio/translations."""

import asyncio
import base64
from collections.abc import Iterator
from math import ceil
from typing import Any

from aiohttp import web

from connectors.emulator.api import ApiError, ApiRequest, ApiRoute, json_answer
from connectors.emulator.audio.codec import FORMATS, encode
from connectors.emulator.audio.recognition import Transcript, recognise
from connectors.emulator.audio.request_checks import TRANSCRIPTION, TRANSLATION, check_speech, check_transcription
from connectors.emulator.audio.synthesis import CHARACTERS_PER_SECOND, speech
from connectors.emulator.audio.transcript_formats import (
    TOKENIZER,
    diarized_json,
    diarized_segments,
    duration_usage,
    subtitles,
    token_logprobs,
    token_usage,
    verbose_json,
)
from connectors.emulator.chat.languages import NAMES, check_language, language_of
from connectors.emulator.parameters import file_too_large, form_values, uploaded_files
from connectors.emulator.rate_limits import USED_TOKENS
from connectors.emulator.real_models.catalogue import run_in_model_thread
from connectors.emulator.real_models.speaker import speak_with_espeak
from connectors.emulator.real_models.transcriber import transcribe_with_moonshine
from connectors.emulator.sse_stream import event, event_stream
from connectors.emulator.validation import check_body, check_media_packages, check_model, refuse
from connectors.tokens import count_tokens

MAX_AUDIO_BYTES = 25 * 1024 * 1024
"""Maximum size of an audio file."""

SPEECH_TOKENS_PER_SECOND = 20
"""Output rate of the gpt-4o-mini-tts family."""

EVENT_AUDIO_BYTES = 8192
"""Bytes of audio per event of a streamed speech."""

_REAL_SPEAKERS = {"espeak-ng": speak_with_espeak}
_REAL_TRANSCRIBERS = {"moonshine-tiny-en": transcribe_with_moonshine}
"""Real models; the emulator handles every other name."""


async def synthesize(api_request: ApiRequest) -> web.StreamResponse:
    """Answer with the text as an audio file, or as events with parts of that file."""
    check_media_packages()
    body = {name: value for name, value in api_request.body.items() if value is not None}
    check_speech(body)
    text, speed, response_format = body["input"], body.get("speed", 1.0), body.get("response_format", "mp3")
    voice = body["voice"] if isinstance(body["voice"], str) else body["voice"]["id"]
    synthesizer = _REAL_SPEAKERS.get(body["model"])
    if synthesizer is None:
        sound = await asyncio.to_thread(lambda: encode(speech(text, voice, speed), response_format, text))
    else:
        sound = await run_in_model_thread(
            body["model"], lambda: encode(synthesizer(text, voice, speed), response_format)
        )
    input_tokens = count_tokens(text, TOKENIZER)
    output_tokens = ceil(len(text) / (CHARACTERS_PER_SECOND * speed) * SPEECH_TOKENS_PER_SECOND)
    api_request.http_request[USED_TOKENS] = input_tokens + output_tokens
    if body.get("stream_format") == "sse":
        usage = {
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "total_tokens": input_tokens + output_tokens,
        }
        return await event_stream(api_request, _speech_events(sound, usage))
    media_type = FORMATS[response_format].media_type if response_format in FORMATS else "audio/pcm"
    response = web.Response(body=sound, content_type=media_type)
    response.enable_chunked_encoding()
    return response


async def transcribe(api_request: ApiRequest) -> web.StreamResponse:
    """Transcribe a file in its own language."""
    sound = _uploaded_sound(api_request)
    body = form_values(api_request, TRANSCRIPTION)
    rules = check_transcription(body)
    language = check_language(body["language"], "language") if body.get("language") else None
    codes = [check_language(code, "languages") for code in body.get("languages", ())]
    transcript = await _transcript(sound, body["model"])
    max_seconds = rules.max_unchunked_seconds
    if max_seconds is not None and transcript.duration > max_seconds and body.get("chunking_strategy") is None:
        message = f"'chunking_strategy' is required for inputs longer than {max_seconds:g} seconds."
        raise refuse("chunking_strategy", message, "missing_required_parameter")
    response_format, prompt = body.get("response_format", "json"), body.get("prompt", "")
    code = language or (codes[0] if codes else language_of(transcript.text))
    speaker = (body.get("known_speaker_names") or ["A"])[0]
    usage = token_usage(transcript, prompt) if rules.is_billed_by_tokens else duration_usage(transcript)
    api_request.http_request[USED_TOKENS] = token_usage(transcript, prompt)["total_tokens"]
    extra_fields: dict[str, Any] = {}
    if body.get("model") == "gpt-transcribe":
        extra_fields["languages"] = [{"code": code}]
    if "logprobs" in body.get("include", ()):
        extra_fields["logprobs"] = token_logprobs(transcript.text)
    if body.get("stream") and rules.can_stream:
        return await event_stream(
            api_request,
            _transcript_events(transcript, response_format, speaker, extra_fields, token_usage(transcript, prompt)),
        )
    if response_format == "json":
        return json_answer({"text": transcript.text, **extra_fields, "usage": usage})
    if response_format == "diarized_json":
        return json_answer(diarized_json(transcript, speaker))
    granularities = body.get("timestamp_granularities") or ["segment"]
    return _text_response(
        transcript, response_format, "transcribe", NAMES[code], body.get("temperature", 0.0), granularities
    )


async def translate(api_request: ApiRequest) -> web.StreamResponse:
    """Transcribe a file as English."""
    sound = _uploaded_sound(api_request)
    body = form_values(api_request, TRANSLATION)
    check_body(body, TRANSLATION)
    check_model(body, "transcription")
    transcript = await _transcript(sound, body["model"])
    api_request.http_request[USED_TOKENS] = token_usage(transcript, body.get("prompt", ""))["total_tokens"]
    response_format = body.get("response_format", "json")
    if response_format == "json":
        return json_answer({"text": transcript.text})
    return _text_response(
        transcript, response_format, "translate", "english", body.get("temperature", 0.0), ["segment"]
    )


def _uploaded_sound(api_request: ApiRequest) -> bytes:
    """The uploaded file; ApiError 413 if it is too large."""
    ((_, content),) = uploaded_files(api_request, {"file": 1}, "file")["file"]
    if len(content) > MAX_AUDIO_BYTES:
        raise file_too_large(MAX_AUDIO_BYTES, len(content))
    return content


async def _transcript(sound: bytes, model: str) -> Transcript:
    check_media_packages()
    transcriber = _REAL_TRANSCRIBERS.get(model, recognise)
    try:
        return await run_in_model_thread(model, lambda: transcriber(sound))
    except ValueError as exc:
        raise ApiError(
            400,
            "Invalid file format. Supported formats: ['flac', 'm4a', 'mp3', 'mp4', 'mpeg', 'mpga', 'oga', 'ogg', "
            f"'wav', 'webm']: {exc}",
            param="file",
            code="invalid_file_format",
        ) from exc


def _text_response(
    transcript: Transcript, response_format: str, task: str, language: str, temperature: float, granularities: list[str]
) -> web.Response:
    if response_format == "verbose_json":
        return json_answer(verbose_json(transcript, task, language, temperature, granularities))
    text = f"{transcript.text}\n" if response_format == "text" else subtitles(transcript, response_format)
    return web.Response(text=text, content_type="text/plain")


def _speech_events(sound: bytes, usage: dict[str, int]) -> Iterator[bytes]:
    for start in range(0, len(sound), EVENT_AUDIO_BYTES):
        piece = base64.b64encode(sound[start : start + EVENT_AUDIO_BYTES]).decode()
        yield event({"type": "speech.audio.delta", "audio": piece})
    yield event({"type": "speech.audio.done", "usage": usage})


def _transcript_events(
    transcript: Transcript, response_format: str, speaker: str, extra_fields: dict[str, Any], usage: dict[str, Any]
) -> Iterator[bytes]:
    if response_format == "diarized_json":
        for segment in diarized_segments(transcript, speaker):
            yield event({"type": "transcript.text.delta", "delta": segment["text"], "segment_id": segment["id"]})
            yield event(segment)
    else:
        for entry in token_logprobs(transcript.text):
            logprobs = {"logprobs": [entry]} if "logprobs" in extra_fields else {}
            yield event({"type": "transcript.text.delta", "delta": entry["token"], **logprobs})
    yield event({"type": "transcript.text.done", "text": transcript.text, **extra_fields, "usage": usage})


ROUTES: tuple[ApiRoute, ...] = (
    ApiRoute("POST", "/audio/speech", synthesize),
    ApiRoute("POST", "/audio/transcriptions", transcribe),
    ApiRoute("POST", "/audio/translations", translate),
)
