"""The pieces of a report's page: tables, figures, and a row's values with their pictures and sounds; all escaped."""

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import orjson

from connectors.errors import JobError
from pipelines.analysis.results import Results

LONGEST = 600
"""Characters of a text that are shown."""
LARGEST_SOUND = 3 << 20
LARGEST_PICTURE = 64 << 20
PIXELS = 480
"""Longer side of a picture that is shown."""
NUMBERS = 6
"""Numbers of a vector that are shown."""
SOUNDS = {
    "mp3": "audio/mpeg",
    "wav": "audio/wav",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "opus": "audio/ogg",
    "m4a": "audio/mp4",
    "aac": "audio/aac",
    "webm": "audio/webm",
}
PICTURES = frozenset({"png", "jpg", "jpeg", "webp", "gif"})


class Safe(str):
    """HTML that is finished; any other text is escaped where it is put in."""

    __slots__ = ()


def cell(value: Any) -> str:
    """A value as the content of a table's cell."""
    if isinstance(value, Safe):
        return value
    if value is None:
        return '<span class="none">–</span>'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return escape(number(value))
    return escape(str(value))


def number(value: float) -> str:
    """Four digits that say something."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def fact(name: str, value: Any, shown: str | None = None) -> Safe:
    """A figure that can be found in the page by its name, with its exact value beside what is shown."""
    exact = "" if value is None else str(value)
    text = cell(value) if shown is None else escape(shown)
    return Safe(f'<data data-fact="{escape(name)}" value="{escape(exact)}">{text}</data>')


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]], caption: str, numbers: frozenset[int]) -> Safe:
    """A table that scrolls by itself where the page is narrow; the first cell of a row is its head."""
    made = "".join(
        "<tr>"
        + "".join(
            f"<{'td' if place else 'th scope=row'}{' class=n' if place in numbers else ''}>{cell(value)}"
            f"</{'td' if place else 'th'}>"
            for place, value in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    head = "".join(
        f'<th scope="col"{" class=n" if place in numbers else ""}>{escape(name)}</th>'
        for place, name in enumerate(heads)
    )
    return Safe(
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(caption, quote=True)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{made}</tbody></table></div>"
    )


def figures(told: Mapping[str, Safe]) -> Safe:
    """Large figures with their names."""
    inner = "".join(f"<div><dt>{escape(name)}</dt><dd>{value}</dd></div>" for name, value in told.items())
    return Safe(f'<dl class="figures">{inner}</dl>')


def shown_value(results: Results, column: str, value: Any) -> Safe:
    """A result's value: texts shortened, vectors by their length, files as what they hold."""
    if isinstance(value, list):
        if len(value) > NUMBERS and all(isinstance(one, float) for one in value):
            first = ", ".join(f"{one:.3f}" for one in value[:NUMBERS])
            return Safe(f'<span class="vector">{len(value):,} numbers: {first} …</span>')
        if value and all(isinstance(one, str) and _suffix(one) for one in value):
            return Safe("".join(shown_value(results, column, one) for one in value))
    if isinstance(value, bytes):
        return _picture(value, column) or Safe(f"{len(value):,} bytes")
    if isinstance(value, str):
        return _file(results, column, value) or _text(value)
    if isinstance(value, list | dict):
        return _text(orjson.dumps(value, default=str).decode())
    return Safe(cell(value))


def _text(text: str) -> Safe:
    if len(text) <= LONGEST:
        return Safe(escape(text))
    return Safe(f"{escape(text[:LONGEST])}… <small>({len(text):,} characters)</small>")


def _suffix(value: str) -> str | None:
    """The suffix of what looks like the path of a picture or a sound."""
    if len(value) > 400 or "\n" in value or "://" in value:
        return None
    suffix = value.rpartition(".")[2].lower()
    return suffix if suffix in PICTURES or suffix in SOUNDS else None


def _file(results: Results, column: str, value: str) -> Safe | None:
    """The picture or sound that a value names; None where it names none that may be opened."""
    suffix = _suffix(value)
    if suffix is None:
        return None
    try:
        path = results.media(value)
    except JobError:
        return None
    name = f'<figcaption class="path">{escape(value)}</figcaption>'
    if suffix in SOUNDS:
        if path.stat().st_size > LARGEST_SOUND:
            return Safe(f"<figure>{name}</figure>")
        label = escape(f"sound of {column}: {Path(value).name}", quote=True)
        url = data_url(SOUNDS[suffix], path.read_bytes())
        return Safe(
            f'<figure><audio controls preload="metadata" aria-label="{label}" src="{url}"></audio>{name}</figure>'
        )
    if path.stat().st_size > LARGEST_PICTURE:
        return Safe(f"<figure>{name}</figure>")
    picture = _picture(path.read_bytes(), f"{column}: {Path(value).name}")
    return None if picture is None else Safe(f"<figure>{picture}{name}</figure>")


def _picture(content: bytes, what: str) -> Safe | None:
    """A picture made small enough for the page; None for what is none."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as opened:
            opened.seek(0)
            small = opened.convert("RGBA" if opened.has_transparency_data else "RGB")
            full = opened.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    small.thumbnail((PIXELS, PIXELS))
    out = io.BytesIO()
    small.save(out, "WEBP", quality=80)
    return Safe(
        f'<img alt="{escape(what, quote=True)}" width="{small.width}" height="{small.height}" loading="lazy" '
        f'src="{data_url("image/webp", out.getvalue())}" title="{full[0]} × {full[1]} pixels">'
    )


def data_url(kind: str, content: bytes) -> str:
    """The content itself in place of an address."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
