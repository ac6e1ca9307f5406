"""Response formats of transcription and translation."""

import zlib
from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any

from connectors.emulator.api import digest_of
from connectors.emulator.audio.recognition import Span, Transcript
from connectors.tokens import count_tokens, token_pieces

TOKENIZER = "gpt-4o"

AUDIO_TOKENS_PER_SECOND = 10
"""Input rate of the gpt-4o-transcribe family."""


def subtitles(transcript: Transcript, response_format: str) -> str:
    """SubRip (`srt`) or WebVTT (`vtt`), with one cue per segment."""
    decimal_mark = "," if response_format == "srt" else "."
    cues = [
        (f"{number}\n" if response_format == "srt" else "")
        + f"{_timestamp(segment.start, decimal_mark)} --> {_timestamp(segment.end, decimal_mark)}\n{segment.text}\n\n"
        for number, segment in enumerate(transcript.segments(), 1)
    ]
    return ("" if response_format == "srt" else "WEBVTT\n\n") + "".join(cues)


def verbose_json(
    transcript: Transcript, task: str, language: str, temperature: float, granularities: Sequence[str]
) -> dict[str, Any]:
    """`verbose_json`; `granularities`: segment, word or both; `language`: English name."""
    answer: dict[str, Any] = {
        "task": task,
        "language": language,
        "duration": transcript.duration,
        "text": transcript.text,
    }
    if "word" in granularities:
        answer["words"] = [
            {"word": word.text, "start": round(word.start, 2), "end": round(word.end, 2)} for word in transcript.words
        ]
    if "segment" in granularities:
        answer["segments"] = [
            _segment(number, segment, temperature) for number, segment in enumerate(transcript.segments())
        ]
    if task == "transcribe":
        answer["usage"] = duration_usage(transcript)
    return answer


def diarized_json(transcript: Transcript, speaker: str) -> dict[str, Any]:
    """`diarized_json` with a single speaker."""
    return {
        "task": "transcribe",
        "duration": transcript.duration,
        "text": transcript.text,
        "segments": list(diarized_segments(transcript, speaker)),
        "usage": duration_usage(transcript),
    }


def diarized_segments(transcript: Transcript, speaker: str) -> Iterator[dict[str, Any]]:
    """The segments with their speaker, as answers and events contain them."""
    for number, segment in enumerate(transcript.segments(), 1):
        yield {
            "type": "transcript.text.segment",
            "id": f"seg_{number:03d}",
            "start": round(segment.start, 2),
            "end": round(segment.end, 2),
            "text": segment.text,
            "speaker": speaker,
        }


def duration_usage(transcript: Transcript) -> dict[str, Any]:
    """Usage of models billed by time: seconds, rounded up."""
    return {"type": "duration", "seconds": ceil(transcript.duration)}


def token_usage(transcript: Transcript, prompt: str) -> dict[str, Any]:
    """Usage of models billed by tokens."""
    audio = ceil(transcript.duration * AUDIO_TOKENS_PER_SECOND)
    text = count_tokens(prompt, TOKENIZER) if prompt else 0
    output = count_tokens(transcript.text, TOKENIZER)
    return {
        "type": "tokens",
        "input_tokens": audio + text,
        "input_token_details": {"text_tokens": text, "audio_tokens": audio},
        "output_tokens": output,
        "total_tokens": audio + text + output,
    }


def token_logprobs(text: str) -> list[dict[str, Any]]:
    """The tokens of a text with synthetic log probabilities that depend on token and position."""
    return [
        {"token": piece, "logprob": -digest_of(position, piece)[0] / 1000, "bytes": list(piece.encode())}
        for position, (piece, _) in enumerate(token_pieces(text, TOKENIZER))
    ]


def _segment(number: int, segment: Span, temperature: float) -> dict[str, Any]:
    text_bytes = segment.text.encode()
    digest = digest_of("segment", segment.text)
    # Like whisper: time tokens in steps of 20 ms from 50,364 on, word tokens below.
    first, last = (50_364 + min(round(at % 30 * 50), 1500) for at in (segment.start, segment.end))
    ids = [int.from_bytes(digest_of(piece)[:4]) % 50_257 for piece, _ in token_pieces(segment.text, TOKENIZER)]
    return {
        "id": number,
        "seek": int(segment.start // 30) * 3000,
        "start": round(segment.start, 2),
        "end": round(segment.end, 2),
        "text": f" {segment.text}",
        "tokens": [first, *ids, last],
        "temperature": temperature,
        "avg_logprob": -0.1 - digest[0] / 1000,
        "compression_ratio": len(text_bytes) / len(zlib.compress(text_bytes)),
        "no_speech_prob": digest[1] / 10_000,
    }


def _timestamp(seconds: float, decimal_mark: str) -> str:
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}{decimal_mark}{milliseconds % 1000:03d}"
