"""Quotations: where a quoted text lies in its source, exactly or after normalization."""

import re
import unicodedata
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Literal

from msgspec import Struct

MatchKind = Literal["exact", "normalized", "none"]

PLAIN_PUNCTUATION = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u2039\u203a\u02bc\u0060\u00b4", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb\u301d\u301e\u301f", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d", "-"),
    }
)
"""Typographic quotes and dashes -> their plain characters."""

_WHITE_SPACE = re.compile(r"\s+")


class Quotation(Struct, frozen=True):
    """The place of a quotation in a text, in code points; `end` is exclusive. None without a match."""

    start: int | None
    end: int | None
    match: MatchKind


NOT_FOUND = Quotation(None, None, "none")


class QuotedText:
    """A text in which quotations are looked up."""

    def __init__(self, text: str) -> None:
        self._text = text

    def find(self, quotation: str) -> Quotation:
        """Return the first exact occurrence, else the first normalized one.

        Normalized: equal after NFKC and case folding, with white space collapsed and typographic quotes and dashes
        replaced by plain ones.
        """
        if not quotation:
            return NOT_FOUND
        start = self._text.find(quotation)
        if start >= 0:
            return Quotation(start, start + len(quotation), "exact")
        wanted = _NormalizedText(quotation).text.strip()
        found = self._normalized.text.find(wanted) if wanted else -1
        if found < 0:
            return NOT_FOUND
        spans = self._normalized.spans
        return Quotation(spans[found][0], spans[found + len(wanted) - 1][1], "normalized")

    @cached_property
    def _normalized(self) -> "_NormalizedText":
        return _NormalizedText(self._text)


class _NormalizedText:
    """A normalized text, and for each of its characters the span of the original that it comes from."""

    def __init__(self, original: str) -> None:
        self.text: str
        self.spans: Sequence[tuple[int, int]]
        pieces = _segments(original)
        ends = list(accumulate(len(piece) for piece in pieces))
        characters: list[str] = []
        spans: list[tuple[int, int]] = []
        for piece, end in zip(pieces, ends, strict=True):
            span = (end - len(piece), end)
            for character in _normalize(piece):
                if character != " ":
                    characters.append(character)
                    spans.append(span)
                elif characters and characters[-1] == " ":
                    spans[-1] = (spans[-1][0], end)
                else:
                    characters.append(" ")
                    spans.append(span)
        self.text, self.spans = "".join(characters), spans


def _segments(text: str) -> Sequence[str]:
    """Cut a text into the shortest pieces that normalize independently of one another."""
    if unicodedata.is_normalized("NFKC", text):
        return text
    pieces: list[str] = []
    for character in text:
        # An ASCII character combines with nothing before it.
        if pieces and not character.isascii() and _nfkc(pieces[-1] + character) != _nfkc(pieces[-1]) + _nfkc(character):
            pieces[-1] += character
        else:
            pieces.append(character)
    return pieces


def _nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _normalize(piece: str) -> str:
    # Before NFKC, which makes a space of an acute accent, and two quotes of a double prime.
    plain = piece.translate(PLAIN_PUNCTUATION)
    folded = _nfkc(_nfkc(plain).casefold()).translate(PLAIN_PUNCTUATION)
    return _WHITE_SPACE.sub(" ", folded)
