"""Tests of audio durations and splitting."""

import io
import struct
import wave
from pathlib import Path

import pytest

from connectors.emulator.audio.codec import decode
from connectors.emulator.audio.synthesis import RATE as SAMPLES_A_SECOND
from connectors.media.audio_splitter import AudioError, duration_seconds, split_audio
from tests.unit.media.conftest import sound


def test_pieces_together_have_the_samples_of_the_whole(tmp_path: Path) -> None:
    import av

    content = sound(9, silences=(2.0,))
    samples = b""
    for _, _, path in split_audio(io.BytesIO(content), "wav", 120_000, tmp_path):
        with av.open(str(path)) as piece:
            samples += b"".join(bytes(frame.planes[0])[: 2 * frame.samples] for frame in piece.decode(audio=0))
    assert samples == content[44:]


def test_content_of_another_format_raises_an_audio_error() -> None:
    with pytest.raises(AudioError, match="cannot be read as mp3"):
        duration_seconds(io.BytesIO(b"#EXTM3U\nfile:///etc/passwd\n" * 100), "mp3")


def test_audio_with_a_title_that_is_not_utf_8_is_read() -> None:
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, 8000, 8000, "NONE", ""))
        file.writeframes(bytes(16_000))
    title = b"INFO" + b"INAM" + struct.pack("<I", 6) + "café".encode("latin-1") + b"\xff\0"
    sound.seek(0, io.SEEK_END)
    sound.write(b"LIST" + struct.pack("<I", len(title)) + title)
    sound.seek(4)
    sound.write(struct.pack("<I", len(sound.getvalue()) - 8))
    assert duration_seconds(sound, "wav") == 1.0
    assert len(decode(sound.getvalue())) == SAMPLES_A_SECOND
