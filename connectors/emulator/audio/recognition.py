"""Emulated transcription: own speech by its file's comment, the shipped clips by digest, others by their duration."""

import hashlib
from itertools import accumulate

from msgspec import Struct

from connectors.emulator.audio.codec import decode, text_in
from connectors.emulator.audio.synthesis import RATE, SENTENCE_ENDS, beats_of

CLIPS = {
    "b0557cf95c974d930577e58e46b7f068c432a6e3afcc286563d88922b2a5315c": (
        "and mister john dashwood had then leisure to consider how much there might be prudently in his power to do "
        "for them"
    ),
    "2daa5cfa2242bc58109ede95c2bc80bb00f994a36dd3aac288002a16b55f3e56": "he was not an ill disposed young man",
    "999a5781f6cb1fa644c4e5c624441afd802659605ccf916580bb145d0f64f187": "he might even have been made amiable himself",
    "f99275bcdda57c3efb93fbf40e9becbc7139b053615a1349e051cff72249cf5f": (
        "And so, my fellow Americans: ask not what your country can do for you — ask what you can do for your country."
    ),
}
"""SHA-256 of the clips in jobs/data/audio -> their text, from transcripts.csv there."""

_MAX_SEGMENT_SECONDS = 30.0
"""The window of whisper."""


class Span(Struct, frozen=True):
    """A word or a segment with its start and end in seconds."""

    text: str
    start: float
    end: float


class Transcript(Struct, frozen=True):
    """The text of a recording with the times of its words."""

    text: str
    duration: float
    """In seconds."""
    words: tuple[Span, ...]

    def segments(self) -> tuple[Span, ...]:
        """The sentences, each split at the maximum segment length."""
        segments: list[Span] = []
        current: list[Span] = []
        for word in self.words:
            if current and word.end - current[0].start > _MAX_SEGMENT_SECONDS:
                segments.append(_joined_words(current))
                current = []
            current.append(word)
            if word.text[-1] in SENTENCE_ENDS:
                segments.append(_joined_words(current))
                current = []
        return (*segments, *([_joined_words(current)] if current else []))


def recognise(content: bytes) -> Transcript:
    """The transcript of an audio file; ValueError if it cannot be read."""
    duration = len(decode(content)) / RATE
    own_text = text_in(content)
    if own_text is not None:
        return Transcript(own_text.strip(), duration, _word_times(own_text, duration))
    text = CLIPS.get(hashlib.sha256(content).hexdigest(), f"[local] {duration:.1f} s of audio")
    return Transcript(text, duration, spread_words(text, 0.0, duration))


def spread_words(text: str, start: float, end: float) -> tuple[Span, ...]:
    """The words of a text between two times, with durations by their number of letters."""
    words = text.split()
    letters = sum(len(word) + 1 for word in words)
    spans: list[Span] = []
    letters_so_far = 0
    for word in words:
        first = start + (end - start) * letters_so_far / letters
        letters_so_far += len(word) + 1
        spans.append(Span(word, first, start + (end - start) * (letters_so_far - 0.5) / letters))
    return tuple(spans)


def _word_times(text: str, duration: float) -> tuple[Span, ...]:
    """The words of an emulated speech, at the times at which `speech` sounds them."""
    parts = list(beats_of(text))
    ends = [beats * duration / sum(beats for _, beats in parts) for beats in accumulate(beats for _, beats in parts)]
    starts = [0.0, *ends]
    return tuple(Span(word, start, end) for (word, _), start, end in zip(parts, starts, ends, strict=False) if word)


def _joined_words(words: list[Span]) -> Span:
    return Span(" ".join(word.text for word in words), words[0].start, words[-1].end)
