"""Table of the formats: which module reads a type."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from connectors.documents import docx, html, pdf, pptx, text, xlsx
from connectors.documents.document import PAGE_SEPARATOR, Document, PageKind
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


def read_document(file: BinaryIO, pages: PageKind, folder: Path | None) -> Document:
    """Read a document; its pictures go to `folder`. DocumentError if it is none, or broken."""
    kind = detect_document(file)
    file.seek(0)
    if pages == "images":
        if kind is not types.PDF:
            raise DocumentError(f"is {kind.type}; only a PDF has pages as images, leave `pages` out")
        assert folder is not None, "pages as images need a folder"
        return Document(kind.type, tuple(pdf.draw_pages(file, folder)), None)
    texts = tuple(_clean(page) for page in READERS[kind](file))
    return Document(kind.type, texts, PAGE_SEPARATOR.join(texts))


def _clean(page: str) -> str:
    """Return a text that every table and API takes: without NUL characters and halves of surrogate pairs."""
    return page.replace("\0", "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
