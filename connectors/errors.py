"""The errors that end a run or a command, sorted by what the reader can do next."""

import difflib
import errno
import re
from collections.abc import Iterable

INTERRUPTED_QUERY = "Query interrupted"
"""What DuckDB makes of the KeyboardInterrupt of a Ctrl-C or SIGTERM that comes while it works."""


class RowmillError(Exception):
    """Told to the user in one line, `WHERE: WHAT; WHAT TO DO`, and ends the command with `exit_code`."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        """Of what the message quotes, characters that would break its line or play tricks are shown escaped."""
        if not message.isprintable():
            message = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        super().__init__(message)


class JobError(RowmillError):
    """The job file, the workspace or the command line is wrong: mend it. Nothing was sent."""


class DataError(RowmillError):
    """The input or the existing output is wrong: mend the data. Nothing was sent."""


class Locked(RowmillError):
    """Another run of this job is under way."""

    exit_code = 4


class Stopped(RowmillError):
    """The run ended before its last row: access denied, budget, too many failures, provider dead, disk full."""

    exit_code = 3


def from_os_error(exc: OSError) -> RowmillError:
    """What the system refused, for the user: a full disk stops a run, a place that cannot be used is a mistake."""
    where = exc.filename or "the system"
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return Stopped(f"{where}: disk full; make room and run again")
    return DataError(f"{where}: {exc.strerror or exc}; see whether it is there and can be written to")


_PARQUET_FILE = re.compile(r"""[Ff]ile ['"]([^'"]+[.]parquet)['"]""")
_NO_PAGES = ("TProtocolException", "don't know what type")
"""What DuckDB says, and names no file, where the headers of pages are broken."""


def from_duckdb_error(exc: Exception) -> DataError | None:
    """What DuckDB met in a Parquet file of ours that no longer is what was written; None for all else."""
    told = str(exc).strip().split("\n", 1)[0]
    remedy = "run again: answers that the ledger has are not asked again"
    match type(exc).__name__:
        case "InvalidInputException" | "IOException" if found := _PARQUET_FILE.search(told):
            return DataError(f"{found[1]}: cannot be read ({told.partition(' Error: ')[2]}); move it away and {remedy}")
        case "Error" if told.startswith(_NO_PAGES):
            return DataError(
                f"the sink: one of its Parquet files cannot be read ({told}); find it by reading each, "
                f"move it away and {remedy}"
            )
    return None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did you mean X?` for the nearest known word, or the sorted list of all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]}?"
    return f"known here: {', '.join(names)}" if names else "none is known here"
