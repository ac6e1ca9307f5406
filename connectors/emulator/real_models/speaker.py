"""Speech synthesis by eSpeak NG: a synthetic voice that people and speech recognition understand."""

import ctypes
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from connectors.emulator.audio.synthesis import RATE
from connectors.emulator.validation import refuse

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VOICES: Mapping[str, str] = {
    "alloy": "en-us",
    "ash": "en-us+m1",
    "ballad": "en+m2",
    "cedar": "en-us+m7",
    "coral": "en-us+f3",
    "echo": "en-us+m4",
    "fable": "en",
    "marin": "en+f2",
    "nova": "en-us+f2",
    "onyx": "en-us+m3",
    "sage": "en-us+f4",
    "shimmer": "en-us+f1",
    "verse": "en-us+m5",
}
"""Built-in voice of the API -> eSpeak language and variant; `voice: {id: de+f2}` selects any other."""

WORDS_PER_MINUTE = 175
"""Words per minute at speed 1; eSpeak's minimum is 80, which is speed 0.46."""

_VOICE = re.compile(r"[A-Za-z0-9-]+(\+[A-Za-z0-9-]+)?")

# Constants of speak_lib.h, eSpeak NG 1.52.
_UTF8, _CHARACTERS, _RATE = 1, 1, 1
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def speak_with_espeak(text: str, voice: str, speed: float) -> Iterator["NDArray[np.int16]"]:
    """The samples of a text at `RATE`; ApiError 400 for an unknown voice."""
    import av
    import numpy as np

    with _library() as (library, rate):
        name = VOICES.get(voice, voice)
        if not _VOICE.fullmatch(name) or library.espeak_SetVoiceByName(name.encode()) != 0:
            message = f"Invalid value: '{voice}'. eSpeak NG has no such voice; try 'de' or 'en+f2'."
            raise refuse("voice", message, "invalid_value")
        library.espeak_SetParameter(_RATE, round(WORDS_PER_MINUTE * speed), 0)
        blocks: list[NDArray[np.int16]] = []

        def collect(samples: Any, count: int, events: Any) -> int:
            if samples and count:
                blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
            return 0

        callback = _Callback(collect)
        library.espeak_SetSynthCallback(callback)
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        written = text.replace("\0", " ").encode()
        library.espeak_Synth(written, ctypes.c_size_t(len(written) + 1), 0, _CHARACTERS, 0, _UTF8, None, None)
    # A tenth of a second of silence: a text of punctuation makes no sound, but a file needs samples.
    samples = np.concatenate([*blocks, np.zeros(rate // 10, np.int16)])
    frame = av.AudioFrame.from_ndarray(samples[None, :], format="s16", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
    return iter([part.to_ndarray()[0] for part in [*resampler.resample(frame), *resampler.resample(None)]])


@contextmanager
def _library() -> Iterator[tuple[Any, int]]:
    """(eSpeak library with its data, sample rate), freshly loaded.

    Its oscillators continue from the end of the previous text, whatever is reset: only a fresh copy of the library
    gives equal bytes for equal texts.
    """
    import _ctypes

    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    # 2: return the samples instead of playing them.
    rate = library.espeak_Initialize(2, 0, espeakng_loader.get_data_path().encode(), 0)
    try:
        yield library, rate
    finally:
        library.espeak_Terminate()
        if sys.platform != "win32":
            _ctypes.dlclose(library._handle)
