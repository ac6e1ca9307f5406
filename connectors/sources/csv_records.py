"""Records of a delimited text file, each with its line number, and rejected lines."""

import codecs
import csv
import io
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

from connectors.storage.compressed_files import open_file

MAX_VALUE_CHARACTERS = 64 << 20
"""Python's csv refuses longer values, so that an open quote does not swallow the whole file."""

UNREADABLE = "\udcff"
"""Replaces bytes that the encoding cannot decode; it never occurs in text."""


class CsvRecord(NamedTuple):
    """One record: the number of its first line, its values as written, its text."""

    line: int
    values: list[str]
    raw: str


class RejectedLine(NamedTuple):
    """A line that is not a row: its number, the reason, its text."""

    file: str
    line: int
    message: str
    raw: str


class CsvFormat(Struct, frozen=True):
    """How a delimited text file is written."""

    delimiter: str
    quote: str | None
    encoding: str


def read_records(file: Path, dialect: CsvFormat, rejected: list[RejectedLine]) -> Iterator[CsvRecord]:
    """Stream the records of a file; empty lines are skipped.

    A line that starts no valid record (an open quote, text after a closing quote) is added to `rejected`, and reading
    continues with the next line. OSError and EOFError if the file itself cannot be read.
    """
    csv.field_size_limit(MAX_VALUE_CHARACTERS)
    with (
        open_file(file) as raw,
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
            lines.begin_record()
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as exc:
                line = lines.first
                rejected.append(RejectedLine(str(file), line, _reason(exc), lines.reject().rstrip("\r\n")))
                continue
            if values:
                yield CsvRecord(lines.first, values, "".join(lines.record_lines).rstrip("\r\n"))


class _Lines:
    """The lines of a file, counted, which can be read again after a rejected one."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = iter(text)
        self._unread: deque[str] = deque()
        self.record_lines: list[str] = []
        self.first = 1
        """The number of the first line in `record_lines`."""

    def begin_record(self) -> None:
        self.first += len(self.record_lines)
        self.record_lines = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._unread.popleft() if self._unread else next(self._text)
        if self.first == 1 and not self.record_lines:
            line = line.removeprefix("\ufeff")
        self.record_lines.append(line)
        return line

    def reject(self) -> str:
        """Return the first line of the record; the others are read again."""
        self._unread.extendleft(reversed(self.record_lines[1:]))
        self.record_lines = self.record_lines[:1]
        return self.record_lines[0]


def _reason(exc: csv.Error) -> str:
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
