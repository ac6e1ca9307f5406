"""Documents: what reading one gives."""

from collections.abc import Iterator

from msgspec import Struct


class Document(Struct, frozen=True):
    """A document that was read."""

    media_type: str
    """By content, such as `application/pdf`."""
    pages: tuple[str, ...]
    """The text of each page."""
    pictures: tuple[str, ...] | None = None
    """The file name of each page's picture, in the folder that was given; None: not drawn."""

    @property
    def text(self) -> str:
        """The texts of all pages, with a blank line between them."""
        return PAGE_SEPARATOR.join(self.pages)


PAGE_SEPARATOR = "\n\n"


def join_blocks(blocks: Iterator[tuple[str, str]]) -> str:
    """Join (separator before, text) of non-empty blocks; the first separator is left out."""
    parts: list[str] = []
    for separator, text in blocks:
        if text:
            parts.extend((separator, text) if parts else (text,))
    return "".join(parts)
