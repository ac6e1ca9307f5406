"""The data row of every parameter, and the types of the parameter table."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

TEXT = 'He said "hi" — 你好\n\\ {{ braces }}'
"""Characters that templates and JSON often break."""


@dataclass(frozen=True, slots=True)
class P:
    """One parameter: a row of the table."""

    section: str
    """Section of the reference, or `OpenAPI` for parameters of the current description only."""
    name: str
    says: str
    """Keys of the step as YAML, merged with the group's step."""
    place: str
    """Path in the JSON body, with dots between keys and positions, or the form field."""
    sent: Any
    """The expected value; in a file field, the name of a column of FILES means its content."""


@dataclass(frozen=True, slots=True)
class Group:
    """The parameters of one endpoint in one dialect."""

    step: Mapping[str, Any]
    path: str
    schema: str
    """Schema of the whole body."""
    rows: tuple[P, ...]
    files: frozenset[str] = frozenset()
    """Form fields with files; if there are any, the request is a form."""


def picture(form: str, mode: str = "RGB") -> bytes:
    """A small square in one of Pillow's formats."""
    file = BytesIO()
    Image.new(mode, (64, 64), (200, 30, 30) if mode == "RGB" else (0, 0, 0, 0)).save(file, form)
    return file.getvalue()


def sound(container: str, codec: str) -> bytes:
    """A quarter of a second of a tone."""
    file = BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=48_000, layout="mono")
        assert isinstance(stream, av.AudioStream)
        tone = (np.sin(np.arange(12_000) * 440 * 2 * np.pi / 48_000) * 8000).astype("<i2")
        resampler = av.AudioResampler(stream.format, "mono", 48_000, stream.codec_context.frame_size or None)
        frame = av.AudioFrame.from_ndarray(tone[None], "s16", "mono")
        frame.rate = 48_000
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    return file.getvalue()


PICTURES: Mapping[str, bytes] = {
    "png": picture("PNG"),
    "jpg": picture("JPEG"),
    "webp": picture("WEBP"),
    "gif": picture("GIF"),
}
MASK = picture("PNG", "RGBA")
_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp", "gif": "image/gif"}
DATA_URL: Mapping[str, str] = {
    kind: f"data:{_TYPES[kind]};base64,{base64.b64encode(content).decode()}" for kind, content in PICTURES.items()
}

_SOUNDS: Mapping[str, tuple[str, str]] = {
    "mp3": ("mp3", "libmp3lame"),
    "mp4": ("mp4", "aac"),
    "m4a": ("ipod", "aac"),
    "mpeg": ("mpeg", "mp2"),
    "mpga": ("mp2", "mp2"),
    "wav": ("wav", "pcm_s16le"),
    "webm": ("webm", "libopus"),
    "flac": ("flac", "flac"),
    "ogg": ("ogg", "libopus"),
}
"""Suffix -> container and codec of PyAV."""


@cache
def files() -> Mapping[str, bytes]:
    """Column -> content of its file."""
    return {**PICTURES, "mask": MASK, **{suffix: sound(*how) for suffix, how in _SOUNDS.items()}}


def write_row(folder: Path) -> Path:
    """A Parquet file with the one row, next to its files."""
    columns: dict[str, Any] = {
        "id": 1,
        "text": TEXT,
        "url": "https://example.com/a.png",
        "data_url": DATA_URL["png"],
        "photo": PICTURES["png"],
        "past": json.dumps(_HISTORY),
    }
    for column, content in files().items():
        name = f"{column}.{column if column != 'mask' else 'png'}"
        (folder / name).write_bytes(content)
        columns[column] = name
    table = pa.table({name: [value] for name, value in columns.items()})
    table = table.append_column("history", pa.array([_HISTORY], _TURNS))
    pq.write_table(table, folder / "row.parquet")
    return folder / "row.parquet"


_HISTORY = [
    {"role": "user", "content": "What is it?"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "name": "look_up", "arguments": '{"of": 1}'}]},
    {"role": "tool", "content": "3", "tool_call_id": "c1"},
]
_CALLS = pa.list_(pa.struct([("id", pa.string()), ("name", pa.string()), ("arguments", pa.string())]))
_TURNS = pa.list_(
    pa.struct([("role", pa.string()), ("content", pa.string()), ("tool_calls", _CALLS), ("tool_call_id", pa.string())])
)
