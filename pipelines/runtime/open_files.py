"""The limit of open files: how many connections fit into it, next to the ledger and the tables."""

import contextlib
import os
import sys
from pathlib import Path

MIN_OTHER_FILES = 24
"""Files of the ledger, of tables and of name look-ups, besides those that are open already."""
OTHER_FILES_SHARE = 8
"""At least an eighth of the limit is for other files: rows may name pictures, and parts of tables are read together."""
MAX_FILES_ON_MACOS = 10_240
"""macOS names no limit and refuses more than OPEN_MAX."""


def affordable_connections(wanted: int) -> tuple[int, str | None]:
    """Return (connections, at most `wanted`, for which this process may open files; a warning if these are fewer).

    Raises the soft limit to the hard one if it is too low.
    """
    if sys.platform == "win32":
        return wanted, None
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _connections(soft, wanted) < wanted and soft != hard:
        for limit in (hard, MAX_FILES_ON_MACOS):
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
                soft = limit
                break
    connections = _connections(soft, wanted)
    if connections == wanted:
        return wanted, None
    return connections, (
        f"{wanted} requests at a time need more open files than the {soft} that this process may have; "
        f"{connections} are sent at a time; raise the limit first: ulimit -n {_needed_limit(wanted)}"
    )


def _connections(soft: int, wanted: int) -> int:
    """Return how many of the wanted connections fit into the limit; -1 is none."""
    if soft < 0:
        return wanted
    return max(1, min(wanted, soft - _open_files() - max(MIN_OTHER_FILES, soft // OTHER_FILES_SHARE)))


def _needed_limit(wanted: int) -> int:
    """Return a power of two that is enough."""
    limit = 256
    while limit - limit // OTHER_FILES_SHARE < wanted + _open_files():
        limit *= 2
    return limit


def _open_files() -> int:
    folder = "/proc/self/fd" if Path("/proc/self/fd").exists() else "/dev/fd"
    # The listing itself opens one.
    return len(os.listdir(folder)) - 1  # noqa: PTH208
