"""Errors that end a run or a command, by what the reader can do next."""

import difflib
import errno
import re
from collections.abc import Iterable
from pathlib import PurePath
from typing import Self

KeyPath = tuple[str | int, ...]
"""Keys and list indexes (from 0) from the top of a file to a value; a step by its name or its index."""


class RowmillError(Exception):
    """An error that ends the command with `exit_code`; its message is one line, `WHERE: WHAT; WHAT TO DO`."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        """Escape characters that would break the line or control the terminal."""
        if not message.isprintable():
            message = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        super().__init__(message)


class LocatedError(RowmillError):
    """An error in what the user gave: where it is, what was found and what to do."""

    def __init__(
        self, where: str | PurePath | KeyPath, found: str, remedy: str = "", *, text_line: int | None = None
    ) -> None:
        """`where`: a key path of the job file, or text: a file with its line, a flag; empty: `found` is the message.

        `text_line`: the line, from 1, within the text that is at the key path.
        """
        self.where, self.found, self.remedy, self.text_line = where, found, remedy, text_line
        place = dotted(where) if isinstance(where, tuple) else str(where)
        super().__init__(f"{place and f'{place}: '}{found}{remedy and f'; {remedy}'}")

    def __reduce__(self) -> tuple[type[Self], tuple[str | PurePath | KeyPath, str, str], dict[str, int | None]]:
        return type(self), (self.where, self.found, self.remedy), {"text_line": self.text_line}

    @property
    def key_path(self) -> KeyPath | None:
        """The key path in the job file; None if the error is elsewhere or has its file and line already."""
        return self.where if isinstance(self.where, tuple) else None

    def located(self, where: str) -> Self:
        """Return the same error with another location, such as file, line and key."""
        return type(self)(where, self.found, self.remedy)


class JobError(LocatedError):
    """The job file, the workspace or the command line is wrong: fix it. Nothing was sent."""


class DataError(LocatedError):
    """The input or the existing output is wrong: fix the data. Nothing was sent."""


class NoResultsYet(DataError):
    """The job whose results a job reads has not run."""


class FieldError(ValueError):
    """Raised by a model's validator: what was found and what to do; `path` is relative to the model."""

    def __init__(self, found: str, remedy: str, path: KeyPath = ()) -> None:
        super().__init__(f"{found}; {remedy}")
        self.found, self.remedy, self.path = found, remedy, path


class Locked(RowmillError):
    """Another run of this job is under way."""

    exit_code = 4


class Stopped(RowmillError):
    """The run ended before its last row: access denied, budget, too many failures, provider dead, disk full."""

    exit_code = 3


def from_os_error(exc: OSError) -> RowmillError:
    """Return the user's error for a failed system call: a full disk stops the run, an unusable path is a DataError."""
    where = exc.filename or "the system"
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return Stopped(f"{where}: disk full; make room and run again")
    if exc.errno == errno.EEXIST:
        return DataError(
            where, "a file, or a link to nothing, where a folder is needed", "remove it, or name another path"
        )
    return DataError(where, exc.strerror or str(exc), "check that it exists and can be written")


_PARQUET_FILE = re.compile(r"""[Ff]ile ['"]([^'"]+[.]parquet)['"]""")
_BROKEN_PAGES = ("TProtocolException", "don't know what type")
"""Beginnings of DuckDB's messages about broken page headers, which name no file."""


def from_duckdb_error(exc: Exception) -> DataError | None:
    """Return the error for a damaged Parquet file of a sink; None for any other exception."""
    message = str(exc).strip().split("\n", 1)[0]
    remedy = "run again: answers in the ledger are not requested again"
    match type(exc).__name__:
        case "InvalidInputException" | "IOException" if found := _PARQUET_FILE.search(message):
            return DataError(
                found[1], f"cannot be read ({message.partition(' Error: ')[2]})", f"move it away and {remedy}"
            )
        case "Error" if message.startswith(_BROKEN_PAGES):
            return DataError(
                "the sink",
                f"one of its Parquet files cannot be read ({message})",
                f"find it by reading each, move it away and {remedy}",
            )
    return None


def dotted(path: KeyPath) -> str:
    """Return a key path as `--set` takes it: `steps.label.model`."""
    return ".".join(map(str, path))


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is most like `word`; None if none is."""
    matches = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `did you mean X?` for the closest known word, else the sorted list of all known words."""
    names = sorted(known)
    if match := closest(word, names):
        return f"did you mean {match}?"
    return f"known here: {', '.join(names)}" if names else "no names are known here"
