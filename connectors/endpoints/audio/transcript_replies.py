"""Replies of transcription and translation: text, subtitles or JSON; parsed, shifted in time and merged."""

import re
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

import orjson
import pyarrow as pa
from msgspec.structs import replace

from connectors.contracts import MalformedReply
from connectors.records import Reply, RowError, Usage
from connectors.transport.bounded_json import parse_json
from connectors.transport.error_replies import is_error_body
from connectors.transport.reply_body import error_in_body, excerpt, parse_json_events, parse_object
from connectors.transport.sse import is_event_stream
from connectors.transport.token_usage import token_usage, usage_counts

TEXT_FORMATS = frozenset({"text", "srt", "vtt"})
"""The formats whose replies are not JSON."""

MAX_AUDIO_SECONDS = 10_000_000
"""No file has as much audio."""

_SEGMENT = (
    ("id", pa.int64()),
    ("seek", pa.int64()),
    ("start", pa.float64()),
    ("end", pa.float64()),
    ("text", pa.string()),
    ("tokens", pa.list_(pa.int64())),
    ("temperature", pa.float64()),
    ("avg_logprob", pa.float64()),
    ("compression_ratio", pa.float64()),
    ("no_speech_prob", pa.float64()),
)
_WORD = (("word", pa.string()), ("start", pa.float64()), ("end", pa.float64()))
_SPEAKER_SEGMENT = (
    ("id", pa.string()),
    ("start", pa.float64()),
    ("end", pa.float64()),
    ("text", pa.string()),
    ("speaker", pa.string()),
)
_TOKEN = (("token", pa.string()), ("logprob", pa.float64()), ("bytes", pa.list_(pa.int64())))

COLUMNS: Mapping[str, pa.DataType] = {
    "verbose_json": pa.struct(
        [
            ("text", pa.string()),
            ("language", pa.string()),
            ("duration", pa.float64()),
            ("segments", pa.list_(pa.struct(_SEGMENT))),
            ("words", pa.list_(pa.struct(_WORD))),
        ]
    ),
    "diarized_json": pa.struct(
        [("text", pa.string()), ("duration", pa.float64()), ("segments", pa.list_(pa.struct(_SPEAKER_SEGMENT)))]
    ),
}
"""The column type of a format; a string for all others."""

LOGPROBS = pa.list_(pa.struct(_TOKEN))


def stored_answer(reply: Reply, response_format: str) -> bytes | RowError:
    """Return the answer of a 2xx reply for the ledger: the text itself, or a JSON object with `text`."""
    value = _parsed_body(reply, response_format)
    if isinstance(value, dict):
        problem = error_in_body(reply, value)
        if problem is not None:
            return problem
        text = _text_in(value)
        if response_format not in TEXT_FORMATS:
            is_complete = value.get("text") == text and not is_event_stream(reply.body)
            return reply.body if is_complete else orjson.dumps({**value, "text": text})
    elif value is not None:
        text = value
    elif response_format in TEXT_FORMATS:
        return _decode(reply.body).encode()
    if response_format in ("srt", "vtt") and "-->" not in text and text.strip() not in ("", "WEBVTT"):
        raise MalformedReply(f"the reply is JSON, not {response_format}: {excerpt(reply.body)}")
    return text.encode() if response_format in TEXT_FORMATS else orjson.dumps({"text": text})


def _parsed_body(reply: Reply, response_format: str) -> dict[str, Any] | str | None:
    """Return the JSON object of a reply or its events, or the text in a reply of another form than was requested.

    None: a text, as it was requested. Some servers send a text as a JSON string or in an object, others send plain
    text although JSON was requested.
    """
    body = reply.body
    if is_event_stream(body):
        return _from_events(body)
    is_text_format, first = response_format in TEXT_FORMATS, body.lstrip()[:1]
    # Without an escape, the quotes of plain text may be those of a speaker.
    is_json_string = first == b'"' and ("json" in reply.headers.get("content-type", "") or b"\\" in body)
    if (is_json_string and response_format in (*TEXT_FORMATS, "json")) or (first == b"{" and is_text_format):
        try:
            value = parse_json(body)
        except orjson.JSONDecodeError:
            value = None
        if isinstance(value, str) or (isinstance(value, dict) and ("text" in value or is_error_body(value))):
            return value
    if is_text_format:
        return None
    is_plain = "text/plain" in reply.headers.get("content-type", "")
    if response_format == "json" and is_plain and first not in (b"", b"{", b"[", b"<"):
        return _decode(body).strip()
    return parse_object(body)


def transcript_usage(reply: Reply, response_format: str, seconds: float | None) -> Usage:
    """Return the reported usage; `seconds`, measured before sending, if it has no length."""
    body = _parsed_body(reply, response_format)
    if not isinstance(body, dict):
        return Usage(audio_seconds=seconds)
    billed, duration = _length(usage_counts(body).get("seconds")), _length(body.get("duration"))
    length = next((each for each in (billed, duration, seconds) if each is not None), None)
    return replace(token_usage(body, None), audio_seconds=length)


def transcript_text(answer: bytes, response_format: str) -> str:
    """Return the text of a stored answer in a format without a struct."""
    if response_format in TEXT_FORMATS:
        text = answer.decode()
        return text.strip() if response_format == "text" else text
    return str(orjson.loads(answer)["text"])


def transcript_struct(answer: bytes, response_format: str) -> dict[str, Any]:
    """Return the struct of a stored answer; missing values are null."""
    return _convert(orjson.loads(answer), COLUMNS[response_format])  # type: ignore[no-any-return]


def transcript_logprobs(answer: bytes) -> Any:
    """Return the log probabilities of a stored answer, of type LOGPROBS."""
    return _convert(orjson.loads(answer).get("logprobs"), LOGPROBS)


def merge_transcripts(answers: Sequence[bytes], starts: Sequence[float], response_format: str) -> bytes:
    """Merge the answers of the pieces of audio; `starts`: the beginning of each piece in seconds."""
    if response_format == "text":
        return " ".join(text for text in (answer.decode().strip() for answer in answers) if text).encode()
    if response_format == "srt":
        return _merge_srt(answers, starts).encode()
    if response_format == "vtt":
        return _merge_vtt(answers, starts).encode()
    parts = [orjson.loads(answer) for answer in answers]
    merged: dict[str, Any] = {**parts[0]}
    separator = "\n" if response_format == "diarized_json" else " "
    merged["text"] = separator.join(text for text in (str(part["text"]).strip() for part in parts) if text)
    merged.pop("usage", None)
    durations = [_number(part.get("duration")) for part in parts]
    if durations[-1] is not None:
        merged["duration"] = starts[-1] + durations[-1]
    if any(isinstance(part.get("logprobs"), list) for part in parts):
        merged["logprobs"] = [entry for part in parts for entry in _dicts(part.get("logprobs"))]
    for name in ("segments", "words"):
        if any(isinstance(part.get(name), list) for part in parts) or merged.get(name) is not None:
            merged[name] = [
                _shift_entry(entry, start)
                for part, start in zip(parts, starts, strict=True)
                for entry in _dicts(part.get(name))
            ]
    for number, segment in enumerate(merged.get("segments") or ()):
        segment["id"] = f"seg_{number + 1:03d}" if response_format == "diarized_json" else number
    return orjson.dumps(merged)


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _shift_entry(entry: Mapping[str, Any], start: float) -> dict[str, Any]:
    shifted = dict(entry)
    for name, unit in (("start", 1.0), ("end", 1.0), ("seek", 100.0)):
        time = _number(shifted.get(name))
        if time is not None and abs(time) <= MAX_AUDIO_SECONDS * unit:
            # Seeks are counted in frames of 10 ms.
            shifted[name] = round(time + start * unit) if name == "seek" else round(time + start * unit, 6)
    return shifted


_TIME = re.compile(r"(?:(\d+):)?(\d{2}):(\d{2})([.,])(\d{3})")


def _shift_times(line: str, start: float) -> str:
    """Return a line of times, such as `00:00:01,000 --> 00:00:02,500`, later by `start` seconds."""

    def shift(match: re.Match[str]) -> str:
        hours, minutes, seconds, point, thousandths = match.groups()
        time = ((int(hours or 0) * 60 + int(minutes)) * 60 + int(seconds)) * 1000 + int(thousandths)
        time += round(start * 1000)
        clock = f"{time // 60_000 % 60:02d}:{time // 1000 % 60:02d}{point}{time % 1000:03d}"
        return f"{time // 3_600_000:02d}:{clock}" if hours is not None or time >= 3_600_000 else clock

    return _TIME.sub(shift, line)


def _blocks(answer: bytes) -> Iterable[list[str]]:
    text = answer.decode().removeprefix("\ufeff").replace("\r\n", "\n").strip("\n")
    return (block.split("\n") for block in re.split(r"\n{2,}", text) if block)


def _times_index(block: Sequence[str]) -> int | None:
    """Return the index of the line with the times of a block."""
    return next((index for index, line in enumerate(block[:2]) if "-->" in line), None)


def _merge_srt(answers: Sequence[bytes], starts: Sequence[float]) -> str:
    cues: list[str] = []
    for answer, start in zip(answers, starts, strict=True):
        for block in _blocks(answer):
            index = _times_index(block)
            if index is not None:
                cues.append("\n".join([str(len(cues) + 1), _shift_times(block[index], start), *block[index + 1 :]]))
    return "".join(f"{cue}\n\n" for cue in cues)


def _merge_vtt(answers: Sequence[bytes], starts: Sequence[float]) -> str:
    blocks: list[str] = []
    for answer, start in zip(answers, starts, strict=True):
        for block in _blocks(answer):
            index = _times_index(block)
            if index is not None:
                blocks.append("\n".join([*block[:index], _shift_times(block[index], start), *block[index + 1 :]]))
            elif not blocks:
                blocks.append("\n".join(block))
    return "".join(f"{block}\n\n" for block in blocks)


def _from_events(body: bytes) -> dict[str, Any]:
    """Return the JSON of a stream of transcript events."""
    segments: list[Any] = []
    for event in parse_json_events(body):
        if event.get("type") == "transcript.text.segment":
            segments.append(event)
        elif event.get("type") == "transcript.text.done":
            return event | ({"segments": segments} if segments else {})
    raise MalformedReply("the stream of the transcript ended before its last event")


def _text_in(value: Mapping[str, Any]) -> str:
    text = value.get("text")
    if text is None:
        # WhisperX has the text in its segments alone.
        pieces = [segment.get("text") for segment in _dicts(value.get("segments"))]
        text = "".join(map(str, pieces)).strip() if pieces and None not in pieces else None
    if not isinstance(text, str):
        raise MalformedReply(f"the reply has no text: {orjson.dumps(value).decode()[:200]}")
    return text


def _decode(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as exc:
        raise MalformedReply(f"the reply is not UTF-8 text: {exc}") from exc


def _number(value: Any) -> float | None:
    """Return a number, also from a text: whisper-1 once sent its duration as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if isfinite(number) else None


def _length(value: Any) -> float | None:
    """Return a length in seconds; None if it is invalid or so large that its price would fit no table."""
    seconds = _number(value)
    return seconds if seconds is not None and 0 <= seconds <= MAX_AUDIO_SECONDS else None


def _convert(value: Any, kind: pa.DataType) -> Any:
    """Convert a JSON value to the Arrow type; None if it does not fit."""
    if pa.types.is_struct(kind):
        return {f.name: _convert(value.get(f.name), f.type) for f in kind} if isinstance(value, dict) else None
    if pa.types.is_list(kind):
        return [_convert(inner, kind.value_type) for inner in value] if isinstance(value, list) else None
    if pa.types.is_string(kind):
        return value if isinstance(value, str) else None if value is None else str(value)
    number = _number(value)
    if number is None or pa.types.is_float64(kind):
        return number
    return int(number) if abs(number) < 2**63 else None
