"""Plain text and Markdown: the characters as they are; one page."""

from typing import BinaryIO

from connectors.media.document_types import DocumentError, byte_order_mark


def read_pages(file: BinaryIO) -> list[str]:
    """Return the text as the only page, with its line ends as `\\n`."""
    content = file.read()
    text = decode_marked(content)
    try:
        text = content.decode() if text is None else text
    except UnicodeDecodeError as exc:
        raise DocumentError(f"is not UTF-8 (byte {exc.start}); convert it") from exc
    return [text.replace("\r\n", "\n").replace("\r", "\n")]


def decode_marked(content: bytes) -> str | None:
    """Decode a text with a byte order mark; None without one. DocumentError if it is not what the mark says."""
    encoding = byte_order_mark(content)
    if encoding is None:
        return None
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as exc:
        raise DocumentError(f"is broken {encoding.upper()} (byte {exc.start}); convert it to UTF-8") from exc
