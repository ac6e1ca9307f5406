"""Audio files by PyAV: their duration, and splitting at the quietest moments into pieces that an API accepts."""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from av.container import InputContainer

SAMPLE_RATE = 16_000
"""Samples per second of the pieces, one channel of 16 bits: the input rate of Whisper."""

MAX_PIECE_SECONDS = 720.0
"""A piece ends between two thirds of this and all of it."""

LOUDNESS_WINDOW_SECONDS = 0.5
"""Window over which loudness is measured; the split is in its middle."""

_BLOCK_SAMPLES = SAMPLE_RATE // 50
_FORMATS: Mapping[str, str] = {
    "wav": "wav",
    "mp3": "mp3",
    "mpga": "mp3",
    "flac": "flac",
    "ogg": "ogg",
    "webm": "matroska",
    "mp4": "mov",
    "m4a": "mov",
    "mpeg": "mpeg",
}
"""Suffix by content -> FFmpeg's format. It is never guessed: playlists could make FFmpeg open other files."""


class AudioError(Exception):
    """The content cannot be read as audio."""


@contextmanager
def _open(file: BinaryIO, suffix: str) -> "Iterator[InputContainer]":
    import av

    file.seek(0)
    try:
        with av.open(file, "r", format=_FORMATS[suffix], **metadata_options(av.__version__)) as container:
            if not container.streams.audio:
                raise AudioError("it has no audio track")
            yield container
    except av.FFmpegError as exc:
        if exc.errno == errno.ENOSPC:
            raise OSError(exc.errno, exc.strerror) from exc
        raise AudioError(f"it cannot be read as {suffix} ({exc.strerror or exc})") from exc


def metadata_options(version: str) -> dict[str, Any]:
    """Return the options with which PyAV reads titles that are not UTF-8; from version 19 on it always does."""
    return {"metadata_errors": "ignore"} if int(version.partition(".")[0]) < 19 else {}


def duration_seconds(file: BinaryIO, suffix: str) -> float:
    """Return the duration of an audio file; AudioError if it is not one."""
    with _open(file, suffix) as container:
        if container.duration is not None and container.duration > 0:
            return container.duration / 1_000_000
        # Written as a stream, without its length: the last packet determines it.
        end = 0.0
        for packet in container.demux(container.streams.audio[0]):
            if packet.pts is not None and packet.time_base is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if end <= 0:
            raise AudioError("it contains no audio")
        return end


def split_audio(file: BinaryIO, suffix: str, max_bytes: int, folder: Path) -> Iterator[tuple[float, float, Path]]:
    """Yield (start, length in seconds, FLAC file in `folder`) of pieces of less than `max_bytes`, in order.

    The same audio gives the same pieces. Memory: at most a third of a piece.
    """
    # FLAC may need slightly more space than the samples themselves.
    max_samples = round(min(MAX_PIECE_SECONDS, max_bytes * 0.95 / (2 * SAMPLE_RATE)) * SAMPLE_RATE)
    min_samples = max_samples * 2 // 3
    start = 0
    buffer = bytearray()
    number = 0
    piece: _PieceWriter | None = None
    with _open(file, suffix) as container:
        for samples in _samples(container):
            buffer += samples
            while True:
                if piece is None:
                    piece = _PieceWriter(folder / f"piece-{number}.flac")
                    number += 1
                if piece.samples < min_samples:
                    piece.write(buffer, min_samples - piece.samples)
                if piece.samples + len(buffer) // 2 < max_samples:
                    break
                piece.write(buffer, _quietest(buffer, max_samples - piece.samples))
                yield piece.finish(start)
                start += piece.samples
                piece = None
    if piece is not None:
        piece.write(buffer, len(buffer) // 2)
        yield piece.finish(start)


def _samples(container: "InputContainer") -> Iterator[bytes]:
    import av

    resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
    for frame in container.decode(audio=0):
        for part in resampler.resample(frame):
            yield bytes(part.planes[0])[: 2 * part.samples]
    for part in resampler.resample(None):
        yield bytes(part.planes[0])[: 2 * part.samples]


def _quietest(buffer: bytearray, samples: int) -> int:
    """Return after how many of these samples it is quietest; the first such moment."""
    import numpy as np

    blocks = samples // _BLOCK_SAMPLES
    width = min(blocks, round(LOUDNESS_WINDOW_SECONDS * SAMPLE_RATE / _BLOCK_SAMPLES))
    if width < 1:
        return samples
    # A copy: with a view of numpy, the buffer could not shrink.
    audio = np.frombuffer(bytes(buffer[: 2 * blocks * _BLOCK_SAMPLES]), "<i2").astype(np.float64)
    loudness = np.square(audio).reshape(blocks, _BLOCK_SAMPLES).sum(axis=1)
    summed = np.concatenate(([0.0], np.cumsum(loudness)))
    first = int(np.argmin(summed[width:] - summed[:-width]))
    return (first + width // 2 + width % 2) * _BLOCK_SAMPLES


class _PieceWriter:
    """Writer of one FLAC file."""

    def __init__(self, path: Path) -> None:
        import av

        self.path = path
        self.samples = 0
        self._waiting = bytearray()
        # Without the encoder's version in it, so that the same audio always has the same bytes.
        self._container = av.open(str(path), "w", format="flac", options={"fflags": "+bitexact"})
        self._stream: Any = self._container.add_stream("flac", rate=SAMPLE_RATE, layout="mono", format="s16")
        self._stream.codec_context.flags |= av.codec.context.Flags.bitexact
        self._stream.codec_context.open()
        self._written = 0

    def write(self, buffer: bytearray, samples: int) -> None:
        """Move at most `samples` from the front of the buffer into the file."""
        size = min(2 * samples, len(buffer))
        self._waiting += buffer[:size]
        del buffer[:size]
        self.samples += size // 2
        frame = 2 * self._stream.codec_context.frame_size
        position = 0
        while len(self._waiting) - position >= frame:
            self._encode(bytes(self._waiting[position : position + frame]))
            position += frame
        del self._waiting[:position]

    def _encode(self, samples: bytes) -> None:
        import av

        frame = av.AudioFrame(format="s16", layout="mono", samples=len(samples) // 2, align=1)
        frame.planes[0].update(samples)
        frame.sample_rate = SAMPLE_RATE
        frame.pts = self._written
        self._written += frame.samples
        self._container.mux(self._stream.encode(frame))

    def finish(self, start: int) -> tuple[float, float, Path]:
        """Close the file; return what `split_audio` yields."""
        if self._waiting:
            self._encode(bytes(self._waiting))
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return start / SAMPLE_RATE, self.samples / SAMPLE_RATE, self.path
