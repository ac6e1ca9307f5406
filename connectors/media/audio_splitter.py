"""Sound by PyAV: how long it is, and long sound cut at its quietest moments into pieces that an API takes."""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from av.container import InputContainer

RATE = 16_000
"""Samples a second of the pieces: what Whisper itself listens to. One channel of 16 bits."""

LONGEST = 720.0
"""Seconds of a piece at most; it is cut between two thirds of that and all of it."""

QUIET = 0.5
"""Seconds over which loudness is measured for a cut in their middle."""

_BLOCK = RATE // 50
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
"""Suffix by content -> FFmpeg's name. It is named, never guessed: playlists could make FFmpeg open other files."""


class SoundProblem(Exception):
    """The content cannot be read as sound."""


@contextmanager
def _opened(file: BinaryIO, suffix: str) -> "Iterator[InputContainer]":
    import av

    file.seek(0)
    try:
        with av.open(file, "r", format=_FORMATS[suffix], **lenient(av.__version__)) as container:
            if not container.streams.audio:
                raise SoundProblem("it has no sound track")
            yield container
    except av.FFmpegError as exc:
        if exc.errno == errno.ENOSPC:
            raise OSError(exc.errno, exc.strerror) from exc
        raise SoundProblem(f"it cannot be read as {suffix} ({exc.strerror or exc})") from exc


def lenient(version: str) -> dict[str, Any]:
    """What makes PyAV read titles that are no UTF-8; from 19 on it always does."""
    return {"metadata_errors": "ignore"} if int(version.partition(".")[0]) < 19 else {}


def seconds_of(file: BinaryIO, suffix: str) -> float:
    """How long the sound is; SoundProblem where it is none."""
    with _opened(file, suffix) as container:
        if container.duration is not None and container.duration > 0:
            return container.duration / 1_000_000
        # Written as a stream, without its length: the last packet tells.
        end = 0.0
        for packet in container.demux(container.streams.audio[0]):
            if packet.pts is not None and packet.time_base is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if end <= 0:
            raise SoundProblem("it holds no sound")
        return end


def cut(file: BinaryIO, suffix: str, largest: int, folder: Path) -> Iterator[tuple[float, float, Path]]:
    """(start, length in seconds, FLAC file in `folder`) of pieces of less than `largest` bytes, in their order.

    The same sound gives the same pieces. Memory: at most a third of a piece.
    """
    # FLAC may need a little more than the samples themselves take.
    longest = round(min(LONGEST, largest * 0.95 / (2 * RATE)) * RATE)
    earliest = longest * 2 // 3
    done = 0
    held = bytearray()
    number = 0
    piece: _Piece | None = None
    with _opened(file, suffix) as container:
        for sound in _samples(container):
            held += sound
            while True:
                if piece is None:
                    piece = _Piece(folder / f"piece-{number}.flac")
                    number += 1
                if piece.samples < earliest:
                    piece.write(held, earliest - piece.samples)
                if piece.samples + len(held) // 2 < longest:
                    break
                piece.write(held, _quietest(held, longest - piece.samples))
                yield piece.finished(done)
                done += piece.samples
                piece = None
    if piece is not None:
        piece.write(held, len(held) // 2)
        yield piece.finished(done)


def _samples(container: "InputContainer") -> Iterator[bytes]:
    import av

    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
    for frame in container.decode(audio=0):
        for part in resampler.resample(frame):
            yield bytes(part.planes[0])[: 2 * part.samples]
    for part in resampler.resample(None):
        yield bytes(part.planes[0])[: 2 * part.samples]


def _quietest(held: bytearray, samples: int) -> int:
    """After how many of these samples it is quietest; the first such moment."""
    import numpy as np

    blocks = samples // _BLOCK
    width = min(blocks, round(QUIET * RATE / _BLOCK))
    if width < 1:
        return samples
    # A copy: numpy's view would forbid the buffer to shrink.
    sound = np.frombuffer(bytes(held[: 2 * blocks * _BLOCK]), "<i2").astype(np.float64)
    loudness = np.square(sound).reshape(blocks, _BLOCK).sum(axis=1)
    summed = np.concatenate(([0.0], np.cumsum(loudness)))
    first = int(np.argmin(summed[width:] - summed[:-width]))
    return (first + width // 2 + width % 2) * _BLOCK


class _Piece:
    """One FLAC file in the making."""

    def __init__(self, path: Path) -> None:
        import av

        self.path = path
        self.samples = 0
        self._waiting = bytearray()
        # Without the encoder's version in it, so that the same sound has the same bytes tomorrow.
        self._container = av.open(str(path), "w", format="flac", options={"fflags": "+bitexact"})
        self._stream: Any = self._container.add_stream("flac", rate=RATE, layout="mono", format="s16")
        self._stream.codec_context.flags |= av.codec.context.Flags.bitexact
        self._stream.codec_context.open()
        self._written = 0

    def write(self, held: bytearray, samples: int) -> None:
        """Take at most so many samples off the front of `held`."""
        size = min(2 * samples, len(held))
        self._waiting += held[:size]
        del held[:size]
        self.samples += size // 2
        frame = 2 * self._stream.codec_context.frame_size
        at = 0
        while len(self._waiting) - at >= frame:
            self._encode(bytes(self._waiting[at : at + frame]))
            at += frame
        del self._waiting[:at]

    def _encode(self, sound: bytes) -> None:
        import av

        frame = av.AudioFrame(format="s16", layout="mono", samples=len(sound) // 2, align=1)
        frame.planes[0].update(sound)
        frame.sample_rate = RATE
        frame.pts = self._written
        self._written += frame.samples
        self._container.mux(self._stream.encode(frame))

    def finished(self, start: int) -> tuple[float, float, Path]:
        """Close the file; what `cut` yields."""
        if self._waiting:
            self._encode(bytes(self._waiting))
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return start / RATE, self.samples / RATE, self.path
