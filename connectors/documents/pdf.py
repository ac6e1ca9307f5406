"""PDF: the text of each page, or its picture."""

from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from io import BytesIO
from math import sqrt
from pathlib import Path
from typing import BinaryIO

import pypdfium2
import pypdfium2.raw

from connectors.media.document_types import DocumentError

DOTS_PER_INCH = 150
_SCALE = DOTS_PER_INCH / 72 * (1 - 1e-9)
"""Pixels per point. PDFium rounds up, so that a whole number of pixels must not become one more."""
MAX_PICTURE_PIXELS = 25_000_000
"""A larger page (a poster of more than 80 cm a side) is drawn with fewer dots per inch."""

_LINE_HYPHEN = "\ufffe"
"""PDFium's sign for a hyphen at the end of a line."""


def read_pages(file: BinaryIO) -> list[str]:
    """Return the text of each page; a page without text, such as a scan, has an empty one."""
    return [_text(page) for page in _pages(file.read())]


def draw_pages(file: BinaryIO, folder: Path) -> list[str]:
    """Write a PNG of each page into a folder; return their names, which are made of the content."""
    names: list[str] = []
    for page in _pages(file.read()):
        width, height = page.get_size()
        scale = min(_SCALE, sqrt(MAX_PICTURE_PIXELS / max(1.0, width * height)))
        with closing(page.render(scale=scale)) as bitmap, BytesIO() as png:
            bitmap.to_pil().save(png, "PNG")
            content = png.getvalue()
        names.append(f"{sha256(content).hexdigest()[:32]}.png")
        (folder / names[-1]).write_bytes(content)
    return names


def _pages(content: bytes) -> Iterator[pypdfium2.PdfPage]:
    """Yield the pages one after the other; only one is open at a time."""
    try:
        with closing(pypdfium2.PdfDocument(content)) as document:
            for number in range(len(document)):
                try:
                    page = document[number]
                except pypdfium2.PdfiumError as exc:
                    raise DocumentError(f"is broken: page {number + 1} cannot be opened; save it again") from exc
                with closing(page):
                    yield page
    except pypdfium2.PdfiumError as exc:
        if exc.err_code == pypdfium2.raw.FPDF_ERR_PASSWORD:
            raise DocumentError("is encrypted; save it without a password") from exc
        raise DocumentError(f"is a broken PDF ({str(exc).rstrip('.')}); save it again") from exc


def _text(page: pypdfium2.PdfPage) -> str:
    with closing(page.get_textpage()) as textpage:
        text = textpage.get_text_range()
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace(f"{_LINE_HYPHEN}\n", "").replace(_LINE_HYPHEN, "-")
    return "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")
