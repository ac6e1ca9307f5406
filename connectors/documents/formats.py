"""Table of the formats: which module reads a type."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from connectors.documents import docx, html, pdf, pptx, text, xlsx
from connectors.documents.document import Document
from connectors.media import document_types as types
from connectors.media.document_types import DocumentError, detect_document
from connectors.media.file_types import FileType

ReadPages = Callable[[BinaryIO], list[str]]

READERS: Mapping[FileType, ReadPages] = {
    types.PDF: pdf.read_pages,
    types.DOCX: docx.read_pages,
    types.PPTX: pptx.read_pages,
    types.XLSX: xlsx.read_pages,
    types.HTML: html.read_pages,
    types.MARKDOWN: text.read_pages,
    types.TEXT: text.read_pages,
}


def read_document(file: BinaryIO, pictures: Path | None) -> Document:
    """Read a document; DocumentError if it is none, or broken. `pictures`: a folder for a picture of each page."""
    kind = detect_document(file)
    if pictures is not None and kind is not types.PDF:
        raise DocumentError(f"is {kind.type}; only a PDF has pages as images, leave `pages` out")
    file.seek(0)
    pages = tuple(_clean(page) for page in READERS[kind](file))
    if pictures is None:
        return Document(kind.type, pages)
    file.seek(0)
    return Document(kind.type, pages, tuple(pdf.draw_pages(file, pictures)))


def _clean(page: str) -> str:
    """Return a text that every table and API takes: without NUL characters and halves of surrogate pairs."""
    return page.replace("\0", "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
