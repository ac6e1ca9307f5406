"""The records of a delimited text file, each with its line number, and what is no record."""

import bz2
import codecs
import csv
import gzip
import io
import lzma
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

LONGEST_VALUE = 64 << 20
"""Characters; Python's csv refuses longer ones, so that a quote left open ends somewhere."""

UNREADABLE = "\udcff"
"""Stands for bytes that the encoding does not know; no text can hold it."""

OPENERS: Mapping[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


class Record(NamedTuple):
    """One record: the number of its first line, its values as they stand, its text."""

    line: int
    values: list[str]
    raw: str


class Reject(NamedTuple):
    """What stands in a file and is no row: the number of its line, why, its text."""

    file: str
    line: int
    message: str
    raw: str


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a file is written."""

    delimiter: str
    quote: str | None
    encoding: str


def records(file: Path, dialect: Dialect, rejected: list[Reject]) -> Iterator[Record]:
    """Every record of the file, streamed; empty lines are none.

    A line at which no record can be begun (a quote left open, text after a closing quote) goes to `rejected`, and
    reading goes on at the line after it. OSError and EOFError where the file itself cannot be read.
    """
    csv.field_size_limit(LONGEST_VALUE)
    with (
        _opened(file) as raw,
        io.TextIOWrapper(raw, encoding=dialect.encoding, errors="rowmill.unreadable", newline="") as text,
    ):
        lines = _Lines(text)
        reader = csv.reader(
            lines,
            delimiter=dialect.delimiter,
            quotechar=dialect.quote,
            quoting=csv.QUOTE_MINIMAL if dialect.quote else csv.QUOTE_NONE,
            strict=True,
        )
        while True:
            lines.begin()
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as exc:
                line = lines.first
                rejected.append(Reject(str(file), line, _why(exc), lines.give_back().rstrip("\r\n")))
                continue
            if values:
                yield Record(lines.first, values, "".join(lines.taken).rstrip("\r\n"))


class _Lines:
    """The lines of a file, counted, of which some can be given back."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = iter(text)
        self._again: deque[str] = deque()
        self.taken: list[str] = []
        self.first = 1
        """The number of the first line in `taken`."""

    def begin(self) -> None:
        self.first += len(self.taken)
        self.taken = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._text)
        if self.first == 1 and not self.taken:
            line = line.removeprefix("\ufeff")
        self.taken.append(line)
        return line

    def give_back(self) -> str:
        """The first line taken; the others come again."""
        self._again.extendleft(reversed(self.taken[1:]))
        self.taken = self.taken[:1]
        return self.taken[0]


def _opened(file: Path) -> IO[bytes]:
    opener = OPENERS.get(file.suffix)
    return file.open("rb") if opener is None else cast(IO[bytes], opener(file))


def _why(exc: csv.Error) -> str:
    text = str(exc)
    if "unexpected end" in text or "field larger" in text:
        return "a quote is opened and never closed"
    if "expected after" in text:
        return "text follows a closing quote"
    return text


def _unreadable(exc: UnicodeError) -> tuple[str, int]:
    if isinstance(exc, UnicodeDecodeError):
        return UNREADABLE, exc.end
    raise exc


codecs.register_error("rowmill.unreadable", _unreadable)
