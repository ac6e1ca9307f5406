"""Emulated speech: a tone a word, silence between words, longer between sentences.

The sound carries no text; the file does, in its comment (`codec.py`). Raw pcm has no place for a comment, so its text
cannot be recognised again.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RATE = 24_000
"""Samples a second, mono, 16 bits each."""

CHARACTERS_PER_SECOND = 14
"""At speed 1."""

VOICE_HZ = {
    "alloy": 185,
    "ash": 120,
    "ballad": 140,
    "cedar": 105,
    "coral": 210,
    "echo": 115,
    "fable": 130,
    "marin": 195,
    "nova": 225,
    "onyx": 90,
    "sage": 170,
    "shimmer": 240,
    "verse": 150,
}
"""The built-in voices of the official API and their pitch."""

SENTENCE_ENDS = ".!?…。！？"

_PAUSE_BEATS = 3
"""Added silence between sentences; a beat is the time of one character."""

_FADE_SAMPLES = 36
"""Samples over which a tone swells and fades, 1.5 ms, so that it does not click."""


def speech(text: str, voice: str, speed: float) -> Iterator["NDArray[np.int16]"]:
    """The samples of a text, a word at a time; the pitch of a custom voice depends on its id."""
    import numpy as np

    beat = round(RATE / (CHARACTERS_PER_SECOND * speed))
    pitch = VOICE_HZ.get(voice) or 90 + sum(voice.encode()) % 150
    for word, beats in beats_of(text):
        samples = np.zeros(beats * beat, dtype=np.float32)
        if word:
            hz = pitch * (1 + sum(word.encode()) % 12 / 48)
            samples += 8000 * np.sin(2 * np.pi * hz / RATE * np.arange(len(samples), dtype=np.float32))
            fade = np.linspace(0, 1, _FADE_SAMPLES, dtype=np.float32)
            samples[:_FADE_SAMPLES] *= fade
            samples[-_FADE_SAMPLES:] *= fade[::-1]
        yield samples.astype(np.int16)


def beats_of(text: str) -> Iterator[tuple[str, int]]:
    """(word, or "" for silence; beats) from the first to the last; one beat of silence at both ends."""
    yield "", 1
    before = ""
    for part in re.findall(r"\s+|\S+", text):
        if part.isspace():
            yield "", len(part) + (_PAUSE_BEATS if before and before in SENTENCE_ENDS else 0)
        else:
            yield part, len(part)
        before = part[-1]
    yield "", 1
