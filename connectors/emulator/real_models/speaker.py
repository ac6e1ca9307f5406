"""eSpeak NG as a speaker: the text in a synthetic voice that people and speech recognition understand."""

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
"""The API's built-in voices -> a language and a variant of eSpeak's; `voice: {id: de+f2}` asks for others."""

WORDS_PER_MINUTE = 175
"""At speed 1; below 80, which is speed 0.46, eSpeak does not become slower."""

_VOICE = re.compile(r"[A-Za-z0-9-]+(\+[A-Za-z0-9-]+)?")

# After speak_lib.h of eSpeak NG 1.52.
_UTF8, _CHARACTERS, _RATE = 1, 1, 1
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def speak_with_espeak(text: str, voice: str, speed: float) -> Iterator["NDArray[np.int16]"]:
    """The samples of a text at `RATE`; ApiError 400 for a voice that eSpeak does not have."""
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
    # A tenth of a second of silence: a text of nothing but signs makes no sound, and a file needs some.
    samples = np.concatenate([*blocks, np.zeros(rate // 10, np.int16)])
    frame = av.AudioFrame.from_ndarray(samples[None, :], format="s16", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
    return iter([part.to_ndarray()[0] for part in [*resampler.resample(frame), *resampler.resample(None)]])


@contextmanager
def _library() -> Iterator[tuple[Any, int]]:
    """(eSpeak with its data, the rate at which it speaks), loaded anew.

    Its oscillators and its flutter go on from where the last text ended, whatever is reset: only a fresh copy says the
    same text in the same bytes.
    """
    import _ctypes

    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    # 2: samples are handed back and not played.
    rate = library.espeak_Initialize(2, 0, espeakng_loader.get_data_path().encode(), 0)
    try:
        yield library, rate
    finally:
        library.espeak_Terminate()
        if sys.platform != "win32":
            _ctypes.dlclose(library._handle)
