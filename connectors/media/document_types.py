"""Types of documents, recognised by content and never by name."""

import codecs
import os
import re
import zipfile
import zlib
from typing import BinaryIO

from connectors.media.file_types import FileType

PDF = FileType("document", "application/pdf", "pdf")
DOCX = FileType("document", "application/vnd.openxmlformats-officedocument.wordprocessingml.document", "docx")
PPTX = FileType("document", "application/vnd.openxmlformats-officedocument.presentationml.presentation", "pptx")
XLSX = FileType("document", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", "xlsx")
HTML = FileType("document", "text/html", "html")
MARKDOWN = FileType("document", "text/markdown", "md")
TEXT = FileType("document", "text/plain", "txt")

ACCEPTED_DOCUMENTS = "PDF, DOCX, PPTX, XLSX, HTML, Markdown and UTF-8 text"


class DocumentError(Exception):
    """A file that cannot be read as a document: what was found; what to do."""


_HEAD_BYTES = 4096
_OFFICE_TYPES = (
    (re.compile(rb"wordprocessingml\.document\.main\+xml|word\.document\.macroEnabled\.main\+xml"), DOCX),
    (
        re.compile(rb"presentationml\.(?:presentation|slideshow)\.main\+xml|powerpoint\.\w+\.macroEnabled\.main\+xml"),
        PPTX,
    ),
    (re.compile(rb"spreadsheetml\.sheet\.main\+xml|excel\.sheet\.macroEnabled\.main\+xml"), XLSX),
)
"""The type of an office file's main part, in its list of types."""
_OFFICE_LIST = "[Content_Types].xml"
_MAX_OFFICE_LIST_BYTES = 1 << 20
_TEXT_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_MARKDOWN = re.compile(r"^(?:#{1,6} \S|```|~~~)|\[[^\]\n]+\]\([^)\s]+\)|^\*\*\S|^[^\n]+\n(?:===+|---+)$", re.MULTILINE)
"""A heading, a link, a code block or a bold line."""
_HTML = re.compile(
    r"(?:\s|<\?xml[^>]*>|<!--.*?-->)*(?:<!doctype html|<(?:html|head|body|title|meta|script|style|link|base)\b)",
    re.IGNORECASE | re.DOTALL,
)
_HTML_PART = re.compile(r"\s*<(?:p|div|h[1-6]|table|ul|ol|section|article|main|span)\b[^<]*>", re.IGNORECASE)
"""The start of a part of a page; a Markdown file may begin so as well, but seldom ends with an element."""
_OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_REFUSED = (
    (b"{\\rtf", "is RTF; save it as DOCX or PDF"),
    (b"%!PS", "is PostScript; save it as PDF"),
    (b"\x1f\x8b", "is compressed with gzip; unpack it"),
    (b"BZh", "is compressed with bzip2; unpack it"),
    (b"(\xb5/\xfd", "is compressed with zstd; unpack it"),
    (b"\xfd7zXZ", "is compressed with xz; unpack it"),
    (b"\x89PNG", "is a picture; send it as {image: COLUMN}"),
    (b"\xff\xd8\xff", "is a picture; send it as {image: COLUMN}"),
    (b"GIF8", "is a picture; send it as {image: COLUMN}"),
)


def detect_document(file: BinaryIO) -> FileType:
    """Return the type of a document; DocumentError for other files, and for an empty one."""
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    if not head:
        raise DocumentError("is empty")
    if b"%PDF-" in head[:1024]:
        return PDF
    if head.startswith(b"PK"):
        return _office_type(file)
    if head.startswith(_OLD_OFFICE):
        raise DocumentError(
            "is encrypted, or from an Office older than 2007; save it without a password as DOCX, PPTX or XLSX"
        )
    for signature, message in _REFUSED:
        if head.startswith(signature):
            raise DocumentError(message)
    start = _text_start(head)
    if _HTML.match(start) or (_HTML_PART.match(start) and _last_byte(file) == b">"):
        return HTML
    if not _is_utf8(head) and byte_order_mark(head) is None:
        raise DocumentError(f"is of an unknown type, or text that is not UTF-8; {ACCEPTED_DOCUMENTS} are read")
    return MARKDOWN if _MARKDOWN.search(start) else TEXT


def byte_order_mark(content: bytes) -> str | None:
    """Return the encoding that a byte order mark states; None without one."""
    return next((encoding for mark, encoding in _TEXT_MARKS if content.startswith(mark)), None)


def _office_type(file: BinaryIO) -> FileType:
    try:
        with zipfile.ZipFile(file) as archive:
            if any(entry.flag_bits & 1 for entry in archive.infolist()):
                raise DocumentError("is encrypted; save it without a password")
            if _OFFICE_LIST not in archive.namelist():
                raise DocumentError(f"is a zip archive; unpack it: {ACCEPTED_DOCUMENTS} are read")
            with archive.open(_OFFICE_LIST) as part:
                types = part.read(_MAX_OFFICE_LIST_BYTES)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError) as exc:
        raise DocumentError(f"is a broken zip archive ({exc}); save it again") from exc
    for pattern, kind in _OFFICE_TYPES:
        if pattern.search(types):
            return kind
    raise DocumentError("is an office file of another type; save it as DOCX, PPTX or XLSX")


def _text_start(head: bytes) -> str:
    """Return the first characters, whatever their encoding: all signs of HTML are ASCII."""
    mark = byte_order_mark(head)
    return head.decode("latin-1") if mark is None else head.decode(mark, "ignore").lstrip("\ufeff")


def _is_utf8(head: bytes) -> bool:
    """Return whether a content can be UTF-8 text by its first bytes; the last character may be cut."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return b"\0" not in head


def _last_byte(file: BinaryIO) -> bytes:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 64))
    return file.read().rstrip()[-1:]
