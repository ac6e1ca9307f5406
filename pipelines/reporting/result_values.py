"""Values of results as the report shows them: shortened text, vectors, pictures and sounds embedded in the page."""

import base64
import io
from pathlib import Path
from typing import Any, ClassVar

import orjson
from msgspec import Struct

from connectors.errors import JobError
from connectors.media.media_packages import has_media_packages
from pipelines.analysis.results import Results
from pipelines.reporting.page.page_values import format_cell

MAX_TEXT_CHARACTERS = 600
MAX_SOUND_BYTES = 3 << 20
MAX_PICTURE_BYTES = 64 << 20
MAX_PICTURE_PIXELS = 480
"""Longer side of a picture in the page."""
MAX_VECTOR_NUMBERS = 6
"""Numbers of a vector in the page."""
LONG_VALUE_CHARACTERS = 60
"""A longer value takes a line of its row."""
SOUND_TYPES = {
    "mp3": "audio/mpeg",
    "wav": "audio/wav",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "opus": "audio/ogg",
    "m4a": "audio/mp4",
    "aac": "audio/aac",
    "webm": "audio/webm",
}
PICTURE_SUFFIXES = frozenset({"png", "jpg", "jpeg", "webp", "gif"})


class Text(Struct, frozen=True):
    """A text, cut to MAX_TEXT_CHARACTERS."""

    kind: ClassVar[str] = "text"
    text: str
    full_length: int | None = None
    """Characters of the whole text if it was cut."""

    @property
    def is_long(self) -> bool:
        return len(self.text) > LONG_VALUE_CHARACTERS


class EmbeddedFile(Struct, frozen=True):
    """A picture or a sound; without `url` only its path is shown."""

    kind: ClassVar[str] = "media"
    is_long: ClassVar[bool] = True
    path: str | None = None
    url: str | None = None
    label: str = ""
    is_sound: bool = False
    width: int = 0
    height: int = 0
    title: str = ""


class EmbeddedFiles(Struct, frozen=True):
    """Several pictures or sounds."""

    kind: ClassVar[str] = "media list"
    is_long: ClassVar[bool] = True
    items: tuple[Text | EmbeddedFile, ...]


def result_value(results: Results, column: str, value: Any) -> Text | EmbeddedFile | EmbeddedFiles:
    """Return what the report shows of one value in a result row."""
    if isinstance(value, list):
        if len(value) > MAX_VECTOR_NUMBERS and all(isinstance(one, float) for one in value):
            first = ", ".join(f"{one:z.3f}" for one in value[:MAX_VECTOR_NUMBERS])
            return Text(f"{len(value):,} numbers: {first} …")
        if value and all(isinstance(one, str) and _media_suffix(one) for one in value):
            return EmbeddedFiles(tuple(_media_file(results, column, one) or _cut_text(one) for one in value))
    if isinstance(value, bytes):
        return _picture(value, column) or Text(f"{len(value):,} bytes")
    if isinstance(value, str):
        return _media_file(results, column, value) or _cut_text(value)
    if isinstance(value, list | dict):
        return _cut_text(orjson.dumps(value, default=str).decode())
    return Text("–" if value is None else str(format_cell(value)))


def _cut_text(text: str) -> Text:
    if len(text) <= MAX_TEXT_CHARACTERS:
        return Text(text)
    return Text(f"{text[:MAX_TEXT_CHARACTERS]}…", len(text))


def _media_suffix(value: str) -> str | None:
    """The suffix of a text that looks like the path of a picture or a sound."""
    if len(value) > 400 or "\n" in value or "://" in value:
        return None
    suffix = value.rpartition(".")[2].lower()
    return suffix if suffix in PICTURE_SUFFIXES or suffix in SOUND_TYPES else None


def _media_file(results: Results, column: str, value: str) -> EmbeddedFile | None:
    """The picture or sound that a value names; None if it names no file that may be opened."""
    suffix = _media_suffix(value)
    if suffix is None:
        return None
    try:
        path = results.media(value)
        size = path.stat().st_size
        if size > (MAX_SOUND_BYTES if suffix in SOUND_TYPES else MAX_PICTURE_BYTES):
            return EmbeddedFile(value)
        content = path.read_bytes()
    except (JobError, OSError, ValueError):
        # A text that only looks like a path may be no name at all: too long, or with a null character.
        return None
    label = f"{column}: {Path(value).name}"
    if suffix in SOUND_TYPES:
        return EmbeddedFile(value, _data_url(SOUND_TYPES[suffix], content), f"sound of {label}", is_sound=True)
    return _picture(content, label, value)


def _picture(content: bytes, label: str, path: str | None = None) -> EmbeddedFile | None:
    """A picture reduced to the page's size; None if the bytes are not a picture."""
    if not has_media_packages():
        return None if path is None else EmbeddedFile(path)
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as opened:
            opened.seek(0)
            small = opened.convert("RGBA" if opened.has_transparency_data else "RGB")
            full = opened.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    small.thumbnail((MAX_PICTURE_PIXELS, MAX_PICTURE_PIXELS))
    out = io.BytesIO()
    small.save(out, "WEBP", quality=80)
    url, title = _data_url("image/webp", out.getvalue()), f"{full[0]} × {full[1]} pixels"
    return EmbeddedFile(path, url, label, width=small.width, height=small.height, title=title)


def _data_url(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
