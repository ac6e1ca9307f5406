"""Audio files: samples and a spoken text to the API's formats, and any file to samples and text."""

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import orjson
from msgspec import Struct

from connectors.emulator.audio.synthesis import RATE
from connectors.media.audio_splitter import metadata_options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


TEXT_PREFIX = "rowmill-local speech: "
"""How the comment of a file begins whose text is known; the text follows as a JSON string."""


class Format(Struct, frozen=True):
    """How one `response_format` is written."""

    media_type: str
    container: str
    codec: str
    bit_rate: int | None = None
    codec_options: tuple[tuple[str, str], ...] = ()
    container_options: tuple[tuple[str, str], ...] = ()


FORMATS = {
    # Quality 7 of lame takes half the time of its default.
    "mp3": Format("audio/mpeg", "mp3", "libmp3lame", bit_rate=64_000, codec_options=(("compression_level", "7"),)),
    # Without its offset an Ogg file gets a random serial number.
    "opus": Format("audio/ogg", "ogg", "libopus", bit_rate=64_000, container_options=(("serial_offset", "1"),)),
    "aac": Format("audio/aac", "adts", "aac", bit_rate=64_000, container_options=(("write_id3v2", "1"),)),
    "flac": Format("audio/flac", "flac", "flac"),
    "wav": Format("audio/wav", "wav", "pcm_s16le"),
}
"""All but pcm, which is the samples themselves."""


def encode(blocks: Iterable["NDArray[np.int16]"], name: str, text: str | None = None) -> bytes:
    """A file with these samples at `RATE` and a text in its comment; equal arguments give equal bytes."""
    import av

    if name == "pcm":
        return b"".join(block.astype("<i2").tobytes() for block in blocks)
    chosen = FORMATS[name]
    out = io.BytesIO()
    options = {"fflags": "+bitexact", **dict(chosen.container_options)}
    with av.open(out, "w", format=chosen.container, options=options) as container:
        stream: Any = container.add_stream(chosen.codec, rate=RATE, options=dict(chosen.codec_options))
        stream.layout = "mono"
        if chosen.bit_rate:
            stream.bit_rate = chosen.bit_rate
        if text is not None:
            # Ogg keeps comments by stream, every other container by file.
            container.metadata["comment"] = stream.metadata["comment"] = TEXT_PREFIX + orjson.dumps(text).decode()
        resampler = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=RATE)
        for block in blocks:
            frame = av.AudioFrame.from_ndarray(block[None, :], format="s16", layout="mono")
            frame.sample_rate = RATE
            for part in resampler.resample(frame):
                container.mux(stream.encode(part))
        for part in resampler.resample(None):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return out.getvalue()


def text_in(content: bytes) -> str | None:
    """The text that `encode` wrote into a file; None if there is none."""
    import av

    with av.open(io.BytesIO(content), "r", **metadata_options(av.__version__)) as container:
        comments = {**container.metadata, **container.streams.audio[0].metadata}
    # Matroska spells its tags in capitals.
    comment = comments.get("comment") or comments.get("COMMENT") or ""
    if not comment.startswith(TEXT_PREFIX):
        return None
    text: str = orjson.loads(comment.removeprefix(TEXT_PREFIX))
    return text


def decode(content: bytes) -> "NDArray[np.int16]":
    """The samples of a file, mono at `RATE`; ValueError if it holds no sound."""
    import av
    import numpy as np

    parts: list[NDArray[np.int16]] = []
    try:
        with av.open(io.BytesIO(content), "r", **metadata_options(av.__version__)) as container:
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
