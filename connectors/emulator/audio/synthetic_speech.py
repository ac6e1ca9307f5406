"""Speech as sound: each character a chord, each word a burst, so that the text can be heard back from a recording.

A character's code point is written in base 16, one tone a digit, each digit in a band of sixteen frequencies of its
own, with a check digit in one band more. Two pilot tones take turns from character to character, which tells where one
ends; a space is silence, longer after a sentence, so that a recording may be cut there. A hum below is the voice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Samples = NDArray[np.float32]

RATE = 24_000
"""Samples a second, mono, 16 bits each."""

CHARACTERS_A_SECOND = 14

HUM_HZ = {
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
"""The built-in voices of the official API, and how deep each one is."""

_PILOTS = (500.0, 900.0)
_FIRST, _STEP = 1400.0, 60.0
"""The lowest tone and the distance between tones, in Hz: 98 of them end at 7,220 Hz, below half of 16,000."""

_DIGITS = 5
"""Base-16 digits of a code point below U+100000; what is above has its own tone, next to none in a band of two."""

_BANDS = (16,) * (_DIGITS + 1) + (2,)
_STARTS = tuple(sum(_BANDS[:band]) for band in range(len(_BANDS)))
_EDGE = 36
"""Samples over which a chord swells and fades, 1.5 ms, so that it does not click."""

_HOP, _WIDTH = 24, 8
"""The ear looks once a millisecond, at eight milliseconds each time."""

_LONGEST = RATE // 2
"""Samples: no character at any speed lasts half a second."""

_PAUSE = 4
"""Characters' worth of silence between sentences."""

_SENTENCE_ENDS = ".!?…。！？"


@dataclass(frozen=True, slots=True)
class Heard:
    """One character and when it was heard, in seconds; a space has no time of its own and takes that of the silence."""

    character: str
    start: float
    end: float


def speech(text: str, voice: str, speed: float) -> Iterator["NDArray[np.int16]"]:
    """The samples of a text, some hundred characters at a time; a voice that is not built in hums by its name."""
    import numpy as np

    length = max(round(RATE / (CHARACTERS_A_SECOND * speed)), 4 * _EDGE)
    tones, pilots = _chords(length)
    time = np.arange(length, dtype=np.float32) / RATE
    hum = 0.08 * np.sin(2 * np.pi * _hum_hz(voice) * time).astype(np.float32)
    shape = np.ones(length, dtype=np.float32)
    shape[:_EDGE] = 0.5 - 0.5 * np.cos(np.pi * np.arange(_EDGE) / _EDGE)
    shape[-_EDGE:] = shape[:_EDGE][::-1]
    silence = np.zeros(length, dtype=np.int16)
    yield silence
    turn = 0
    block: list[NDArray[np.int16]] = []
    for index, character in enumerate(text):
        before, after = text[max(index - 1, 0) : index], text[index + 1 : index + 2]
        if character == " " and before not in ("", " ") and after:
            block.append(np.tile(silence, _PAUSE if before in _SENTENCE_ENDS else 1))
        else:
            chord = (tones[list(_places(ord(character)))].sum(axis=0) + pilots[turn] + hum) * shape
            block.append((chord * 32767).astype(np.int16))
            turn = 1 - turn
        if len(block) == 256:
            yield np.concatenate(block)
            block = []
    yield np.concatenate([*block, silence])


def hear(samples: "NDArray[np.int16]") -> tuple[Heard, ...] | None:
    """The characters of a recording at `RATE`, or None if it is not `speech`; one that was garbled comes as U+FFFD."""
    heard: list[Heard] = []
    clear = garbled = 0
    for start, end in _runs(samples):
        character, was_clear = _character(samples[start:end])
        clear += was_clear
        garbled += not was_clear
        if heard and start / RATE - heard[-1].end > (end - start) / RATE * 0.6:
            heard.append(Heard(" ", heard[-1].end, start / RATE))
        heard.append(Heard(character, start / RATE, end / RATE))
    return tuple(heard) if clear > 4 * garbled else None


def _places(code: int) -> tuple[int, ...]:
    """Which tones make a code point."""
    digits = [(code >> 4 * digit) & 15 for digit in range(_DIGITS)]
    digits += [_check(digits), code >> 4 * _DIGITS]
    return tuple(start + digit for start, digit in zip(_STARTS, digits, strict=True))


def _check(digits: list[int]) -> int:
    """The check digit: changes with any one digit and with two that change places."""
    return (5 + sum((3, 5, 7, 11, 13)[place] * digit for place, digit in enumerate(digits[:_DIGITS]))) % 16


@lru_cache(maxsize=8)
def _chords(length: int) -> tuple["Samples", "Samples"]:
    """The tones and the pilots over one character, their phases spread so that they seldom add up."""
    import numpy as np

    time = np.arange(length) / RATE
    count = sum(_BANDS)
    tones = _FIRST + _STEP * np.arange(count)
    phases = np.pi * np.arange(count) ** 2 / count
    sines = 0.055 * np.sin(2 * np.pi * tones[:, None] * time + phases[:, None])
    pilots = 0.12 * np.sin(2 * np.pi * np.array(_PILOTS)[:, None] * time)
    return sines.astype(np.float32), pilots.astype(np.float32)


def _hum_hz(voice: str) -> int:
    return HUM_HZ.get(voice) or 90 + sum(voice.encode()) % 150


def _runs(samples: "NDArray[np.int16]") -> list[tuple[int, int]]:
    """First and last sample of each stretch in which one pilot is the louder one: the characters."""
    import numpy as np

    if len(samples) < _HOP * _WIDTH * 2:
        return []
    first, second = (_loudness(samples, pilot) for pilot in _PILOTS)
    loud = np.maximum(first, second)
    # 20 of 32,767: below it is what a codec makes of silence.
    threshold = max(0.25 * float(np.percentile(loud, 90)), 20.0)
    state = np.where(loud < threshold, 0, np.where(first > second, 1, 2))
    bounds = np.concatenate(([0], np.flatnonzero(np.diff(state)) + 1, [len(state)]))
    shift = _HOP * _WIDTH // 2
    return [
        (int(start) * _HOP + shift, int(end) * _HOP + shift)
        for start, end in pairwise(bounds)
        if state[start] and 4 * _EDGE < (end - start) * _HOP < _LONGEST
    ]


def _loudness(samples: "NDArray[np.int16]", pilot: float) -> "NDArray[np.float64]":
    """How loud a pilot is in each window of `_WIDTH` hops, one hop apart."""
    import numpy as np

    turn = np.exp(-2j * np.pi * pilot / RATE * np.arange(_HOP)).astype(np.complex64)
    hops = samples[: len(samples) // _HOP * _HOP].reshape(-1, _HOP)
    # In pieces: a complex copy of twenty minutes would be a quarter of a gigabyte.
    parts = np.concatenate([hops[at : at + 65_536] @ turn for at in range(0, len(hops), 65_536)])
    parts = parts * np.exp(-2j * np.pi * pilot * _HOP / RATE * np.arange(len(parts)))
    total = np.concatenate(([0], np.cumsum(parts)))
    levels: NDArray[np.float64] = np.abs(total[_WIDTH:] - total[:-_WIDTH]) / (_HOP * _WIDTH)
    return levels


def _character(slot: "NDArray[np.int16]") -> tuple[str, bool]:
    """What one stretch says, and whether its check digit was right at once.

    A wrong one is mended by the digit that was nearest to being another; where none will do, the character is U+FFFD.
    """
    import numpy as np

    margin = len(slot) // 8
    middle = slot[margin : len(slot) - margin].astype(np.float32)
    # Folding to 1,200 samples samples the spectrum every 20 Hz, of which every tone is a multiple.
    folded = np.pad(middle, (0, -len(middle) % 1200)).reshape(-1, 1200).sum(axis=0)
    spectrum = np.abs(np.fft.rfft(folded))
    levels = spectrum[int(_FIRST) // 20 :: int(_STEP) // 20]
    digits: list[int] = []
    others: list[tuple[float, int, int]] = []
    for band, (start, size) in enumerate(zip(_STARTS, _BANDS, strict=True)):
        order = np.argsort(levels[start : start + size])
        best, other = int(order[-1]), int(order[-2])
        digits.append(best)
        others.append((float(levels[start + other] / (levels[start + best] + 1e-9)), band, other))
    if _holds(digits):
        return chr(_code(digits)), True
    for _, band, other in sorted(others, reverse=True)[:3]:
        mended = [*digits[:band], other, *digits[band + 1 :]]
        if _holds(mended):
            return chr(_code(mended)), False
    return "\ufffd", False


def _holds(digits: list[int]) -> bool:
    return digits[_DIGITS] == _check(digits[:_DIGITS]) and _code(digits) <= 0x10FFFF


def _code(digits: list[int]) -> int:
    low = sum(digit << 4 * place for place, digit in enumerate(digits[:_DIGITS]))
    return low | digits[-1] << 4 * _DIGITS
