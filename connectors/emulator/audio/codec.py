"""Audio files: encoding samples into the API's formats, and reading any file back into samples."""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from connectors.emulator.audio.synthetic_speech import RATE
from connectors.media.audio_splitter import lenient

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Format:
    """How one `response_format` is written."""

    media_type: str
    container: str
    codec: str
    rate: int = RATE
    bit_rate: int | None = None
    codec_options: tuple[tuple[str, str], ...] = ()
    container_options: tuple[tuple[str, str], ...] = (("fflags", "+bitexact"),)


FORMATS = {
    # lame's quality 7 takes half the time of its default.
    "mp3": Format("audio/mpeg", "mp3", "libmp3lame", bit_rate=64_000, codec_options=(("compression_level", "7"),)),
    # Without its offset an Ogg file gets a random serial number.
    "opus": Format(
        "audio/ogg",
        "ogg",
        "libopus",
        bit_rate=64_000,
        container_options=(("fflags", "+bitexact"), ("serial_offset", "1")),
    ),
    # At 24,000 Hz a frame of AAC is longer than two characters of fast speech, and smears them.
    "aac": Format("audio/aac", "adts", "aac", rate=48_000, bit_rate=160_000),
    "flac": Format("audio/flac", "flac", "flac"),
    "wav": Format("audio/wav", "wav", "pcm_s16le"),
}
"""All but pcm, which is the samples themselves."""


def encoded(blocks: Iterable["NDArray[np.int16]"], name: str) -> bytes:
    """A file with these samples at `RATE`; the same samples give the same bytes."""
    import av

    if name == "pcm":
        return b"".join(block.astype("<i2").tobytes() for block in blocks)
    chosen = FORMATS[name]
    out = io.BytesIO()
    with av.open(out, "w", format=chosen.container, options=dict(chosen.container_options)) as container:
        stream: Any = container.add_stream(chosen.codec, rate=chosen.rate, options=dict(chosen.codec_options))
        stream.layout = "mono"
        if chosen.bit_rate:
            stream.bit_rate = chosen.bit_rate
        resampler = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=chosen.rate)
        for block in blocks:
            frame = av.AudioFrame.from_ndarray(block[None, :], format="s16", layout="mono")
            frame.sample_rate = RATE
            for part in resampler.resample(frame):
                container.mux(stream.encode(part))
        for part in resampler.resample(None):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return out.getvalue()


def decoded(content: bytes) -> "NDArray[np.int16]":
    """The samples of a file, mono at `RATE`; ValueError if it holds no sound."""
    import av
    import numpy as np

    parts: list[NDArray[np.int16]] = []
    try:
        with av.open(io.BytesIO(content), "r", **lenient(av.__version__)) as container:
            resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
            for frame in container.decode(audio=0):
                parts += [part.to_ndarray()[0] for part in resampler.resample(frame)]
            if parts:
                parts += [part.to_ndarray()[0] for part in resampler.resample(None)]
    except (av.error.FFmpegError, IndexError) as exc:
        raise ValueError(f"this is no sound that can be read ({exc})") from exc
    if not parts:
        raise ValueError("there is no sound in it")
    return np.concatenate(parts)
