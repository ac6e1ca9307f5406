"""Documents: what reading one gives."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

PageKind = Literal["text", "images"]


@dataclass(frozen=True, slots=True)
class Document:
    """A document that was read."""

    media_type: str
    """By content, such as `application/pdf`."""
    pages: tuple[str, ...]
    """The text of each page, or the file name of its picture in the folder that was given."""
    text: str | None
    """The texts of all pages with a blank line between them."""


PAGE_SEPARATOR = "\n\n"


def join_blocks(blocks: Iterator[tuple[str, str]]) -> str:
    """Join (separator before, text) of non-empty blocks; the first separator is left out."""
    parts: list[str] = []
    for separator, text in blocks:
        if text:
            parts.extend((separator, text) if parts else (text,))
    return "".join(parts)
