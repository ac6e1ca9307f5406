"""Splitter of texts into pieces of at most so many tokens, with exact offsets.

A paragraph, sentence, line or word that fits into a piece is never cut. A longer one is cut at the level below it, at
last between characters. The same text gives the same pieces as long as the model's tokenizer and the Unicode tables of
`regex` stay the same.

Speed: all text is counted about twice, once by sentences and once by pieces. That takes most of the time.
"""

import itertools
from collections.abc import Callable, Iterator
from enum import IntEnum

import regex
from msgspec import Struct

from connectors.tokens import token_counter

MIN_TOKENS = 4
"""A character has at most four bytes, and so at most four tokens: no piece can be smaller."""

_CHARACTERS_PER_TOKEN = 4.0
"""Of the first text that is cut; then as in the text cut last."""
_LONG_WORD_CHARACTERS = 32
_SEARCH_COUNTS = 6
"""Counts in the search for the end of a cut unit, which is then within a few percent of the limit."""


class Piece(Struct, frozen=True):
    """A part of a text: `text[start:end]`."""

    start: int
    """In code points, from 0."""
    end: int
    """Exclusive."""


class _Level(IntEnum):
    """The units above words, largest first."""

    PARAGRAPH = 0
    SENTENCE = 1
    LINE = 2


_LINE_END = r"(?:\r\n|[\n\r\v\f\x85\u2028])"
_WITHOUT_SPACES = r"[\p{Ideographic}\p{Hiragana}\p{LB=SA}\p{Extended_Pictographic}]"
_CLOSING = r"[\p{SB=Close}.!?]"
_ENDS = {
    _Level.PARAGRAPH: regex.compile(rf"(?:{_LINE_END}[^\S\n\r\v\f\x85\u2028\u2029]*+{_LINE_END}|[\f\u2029])\s*+"),
    # After Unicode Standard Annex 29. A full stop ends no sentence before a small letter, nor after an initial.
    # Without white space after it, only a mark of a script without spaces ends one. A row of marks is tried from its
    # first one only: from each of them, a row of 100,000 full stops would take 10 s.
    _Level.SENTENCE: regex.compile(
        rf"(?:\G|(?<!{_CLOSING}))(?:[\p{{SB=Close}}.]*+[!?]{_CLOSING}*+\s++"
        rf"|(?:[\p{{SB=Close}}]++\.|(?<!\b\p{{Lu}})\.|\.[\p{{SB=Close}}]*+\.){_CLOSING}*+\s++(?!\p{{Ll}}))"
        rf"|[\p{{SB=STerm}}\uFF0E--[!?]]{_CLOSING}*+\s*+",
        regex.V1,
    ),
    _Level.LINE: regex.compile(rf"{_LINE_END}\s*+"),
}
_WORD = regex.compile(rf"(?:(?:[!-~]|(?!{_WITHOUT_SPACES})\S)++|(?={_WITHOUT_SPACES})\X)?+\s*+", regex.V1)
"""A word and the white space after it. A character of a script without spaces is a word, and so is an emoji."""
_GRAPHEME = regex.compile(r"\X")


def split_text(text: str, tokens: int, overlap: int = 0, model: str = "gpt-4o") -> Iterator[Piece]:
    """Yield the pieces of a text in order; together they cover every character. An empty text has no piece.

    `tokens`: the most tokens of a piece by the model's tokenizer, MIN_TOKENS or more. `overlap`: at most so many tokens
    of the piece before, whole words, are repeated at the start of a piece; less than `tokens`. A longer word is not
    repeated.
    """
    if tokens < MIN_TOKENS:
        raise ValueError(f"a piece has {MIN_TOKENS} tokens or more, found {tokens}")
    if not 0 <= overlap < tokens:
        raise ValueError(f"the overlap is less than the tokens of a piece ({tokens}), found {overlap}")
    return _Splitter(text, tokens, overlap, token_counter(model)).pieces()


class _Splitter:
    """One text on its way into pieces."""

    def __init__(self, text: str, tokens: int, overlap: int, count: Callable[[str], int]) -> None:
        self._text = text
        self._tokens = tokens
        self._overlap = overlap
        self._count_text = count
        self._unit_sizes: dict[tuple[int, int], int] = {}
        """Start and end of a sentence or line -> its tokens, from the present piece on."""
        self._units: dict[_Level, tuple[int, int]] = {}
        """(start, end) of the unit of each level that was found last."""
        self._characters_per_token = _CHARACTERS_PER_TOKEN

    def pieces(self) -> Iterator[Piece]:
        start = begin = 0
        while start < len(self._text):
            piece, size = self._piece(begin, start)
            yield piece
            begin, start = self._overlap_start(piece, size), piece.end
            self._unit_sizes = {unit: size for unit, size in self._unit_sizes.items() if unit[0] >= start}

    def _piece(self, begin: int, start: int) -> tuple[Piece, int]:
        """Return the piece whose new text is from `start` on, and its tokens; before it is repeated text if it fits."""
        room = self._tokens - (self._count(begin, start) if begin < start else 0)
        while True:
            end = self._fill(_Level.PARAGRAPH, start, start, len(self._text), room)
            if end > start:
                # Tokens do not add up exactly where texts are joined.
                size = self._count(begin, end)
                if size <= self._tokens:
                    return Piece(begin, end), size
                room -= size - self._tokens
            if end == start or room < MIN_TOKENS:
                if begin == start:
                    return Piece(start, self._cut(start, len(self._text), MIN_TOKENS)), MIN_TOKENS
                begin, room = start, self._tokens

    def _fill(self, level: _Level, start: int, at: int, stop: int, room: int) -> int:
        """Return where the piece ends, at most `stop`, whose new text so far is from `start` to `at`.

        `room`: the tokens that it may still have. The place is `start` if nothing fits after a repetition.
        """
        end = stop
        while at < stop:
            end = self._end(level, at, stop)
            size = self._unit_tokens(level, at, end, room)
            if size > room:
                break
            at, room = end, room - size
        most = self._tokens - self._overlap
        if at == stop or (at > start and self._unit_tokens(level, at, end, most) <= most):
            return at
        if level is not _Level.LINE:
            return self._fill(_Level(level + 1), start, at, end, room)
        return self._fill_words(start, at, end, room)

    def _fill_words(self, start: int, at: int, stop: int, room: int) -> int:
        """Return the end of the words that fit, or of the characters if the next word does not fit into any piece."""
        cut = self._cut(at, stop, room)
        if cut == stop:
            return stop
        whole, word_end = self._last_word_end(at, cut, stop)
        # A word at the start goes before repeated text, which is left out if it takes the place.
        most = self._tokens if whole == start else self._tokens - self._overlap
        is_whole = whole > start or room < self._tokens
        return whole if is_whole and self._count_up_to(whole, word_end, most) <= most else self._last_end(at, cut)

    def _last_word_end(self, at: int, cut: int, stop: int) -> tuple[int, int]:
        """Return the last end of a word up to `cut`, `at` if there is none, and the end of the next word or so."""
        # A word that is longer than any piece need not be read to its end.
        stop = min(stop, cut + 2 * self._tokens * int(_CHARACTERS_PER_TOKEN))
        whole = word_end = at
        for first in sorted({at, max(at, cut - _LONG_WORD_CHARACTERS)}, reverse=True):
            for word in _WORD.finditer(self._text, first, stop):
                word_end = word.end()
                if word_end > cut:
                    break
                whole = word_end
            if whole > at:
                break
        return whole, word_end

    def _last_end(self, at: int, cut: int) -> int:
        """Return the last end of a character up to `cut`; if there is none, it is cut between its code points."""
        # A slice, as `regex` looks back to the start of a row of flags at each of them.
        ends = (at + grapheme.end() for grapheme in _GRAPHEME.finditer(self._text[at : cut + 1]))
        return max(itertools.takewhile(lambda end: end <= cut, ends), default=cut)

    def _cut(self, at: int, stop: int, room: int) -> int:
        """Return about the furthest place up to which the text from `at` on has at most `room` tokens."""
        good, bad = 0, stop - at + 1
        size = min(stop - at, int(room * self._characters_per_token))
        for _ in range(_SEARCH_COUNTS):
            found = self._count(at, at + size)
            if found:
                self._characters_per_token = size / found
            good, bad = (size, bad) if found <= room else (good, size)
            if bad - good <= 1 + good // 32:
                break
            size = min(max(size * room // max(found, 1), good + 1), bad - 1)
        while good == 0 and bad > 1:
            size = bad // 2
            good, bad = (size, bad) if self._count(at, at + size) <= room else (0, size)
        return at + good

    def _end(self, level: _Level, at: int, stop: int) -> int:
        """Return the end of the unit that contains the character `at`."""
        first, last = self._units.get(level, (0, 0))
        if not first <= at < last:
            found = _ENDS[level].search(self._text, at, stop)
            last = stop if found is None else found.end()
            self._units[level] = (at, last)
        return last

    def _unit_tokens(self, level: _Level, at: int, end: int, room: int) -> int:
        """Return the tokens of a unit; of a part of it if they are more than `room`."""
        total = 0
        while at < end and total <= room:
            stop = end if level is _Level.LINE else self._end(_Level.SENTENCE, at, end)
            size = self._unit_sizes.get((at, stop))
            if size is None:
                size = self._unit_sizes[at, stop] = self._count_up_to(at, stop, self._tokens)
            at, total = stop, total + size
        return total

    def _count_up_to(self, at: int, end: int, room: int) -> int:
        """Return the tokens that a text adds to the text before it; of a part of it if they are more than `room`.

        Of a long text the start is counted first: if that does not fit, the text does not. A space belongs to the token
        of the word after it, so that of the text before is counted, but not the last one.
        """
        first, last = self._before_space(at), self._before_space(end)
        part = first + 1 + int(max(1, room) * self._characters_per_token * 1.5)
        while part < last:
            if (size := self._count(first, part)) > room:
                return size
            part += part - first
        return self._count(first, last)

    def _before_space(self, place: int) -> int:
        return place - 1 if place and self._text[place - 1] == " " else place

    def _count(self, at: int, end: int) -> int:
        return self._count_text(self._text[at:end])

    def _overlap_start(self, piece: Piece, size: int) -> int:
        """Return the start of the last words of a piece, which the next one repeats. `size`: the piece's tokens."""
        end = piece.end
        if not self._overlap or end == len(self._text):
            return end
        length = self._overlap * (end - piece.start) // size
        for _ in range(_SEARCH_COUNTS):
            word = _WORD.match(self._text, max(piece.start + 1, end - length), end)
            start = end if word is None else word.end()
            found = self._count(start, end)
            if found <= self._overlap:
                return start
            length = min(length * self._overlap // found, end - start - 1)
        return end
