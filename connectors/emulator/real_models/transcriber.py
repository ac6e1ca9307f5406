"""Speech recognition by Moonshine (tiny, English) for any decodable recording."""

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from connectors.emulator.audio.codec import decode
from connectors.emulator.audio.recognition import Span, Transcript, spread_words
from connectors.emulator.audio.synthesis import RATE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Samples = NDArray[np.int16]

_PIECE_SAMPLES = 60 * RATE
"""Samples per call: the library takes a Python number for each."""
_CUT_SEARCH_SAMPLES = 10 * RATE
"""Samples at the end of a piece in which the quietest position is searched for the cut."""
_LOUDNESS_SAMPLES = RATE // 10


def transcribe_with_moonshine(content: bytes) -> Transcript:
    """The transcript of an audio file, with words spread over the recognised lines; ValueError if unreadable."""
    import numpy as np

    samples = decode(content)
    words: list[Span] = []
    for start_sample, piece in _pieces(samples):
        recognised = _transcriber().transcribe_without_streaming((piece / np.float32(32768)).tolist(), RATE)
        for line in recognised.lines:
            start = start_sample / RATE + line.start_time
            words += spread_words(line.text, start, start + line.duration)
    return Transcript(" ".join(word.text for word in words), len(samples) / RATE, tuple(words))


def _pieces(samples: "Samples") -> Iterator[tuple[int, "Samples"]]:
    """(start, samples) of the pieces, cut at the quietest positions."""
    import numpy as np

    start = 0
    while len(samples) - start > _PIECE_SAMPLES:
        first = start + _PIECE_SAMPLES - _CUT_SEARCH_SAMPLES
        windows = samples[first : start + _PIECE_SAMPLES].reshape(-1, _LOUDNESS_SAMPLES).astype(np.float32)
        quietest = int(np.argmin((windows**2).sum(axis=1)))
        end = first + quietest * _LOUDNESS_SAMPLES + _LOUDNESS_SAMPLES // 2
        yield start, samples[start:end]
        start = end
    yield start, samples[start:]


@cache
def _transcriber() -> Any:
    """The model, loaded once and never freed: the library crashes if one of two instances is freed."""
    from moonshine_voice import ModelArch, Transcriber, get_model_path

    return Transcriber(str(get_model_path("tiny-en")), ModelArch.TINY)
