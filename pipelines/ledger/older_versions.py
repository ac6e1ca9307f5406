"""Older versions: jobs that run by a version of Rowmill that does not know the present tables of the ledger.

A run writes the version of the ledger that it knows into the lock file of its job.
"""

import fcntl
import os
import re
from collections.abc import Sequence
from pathlib import Path

_VERSION = re.compile(r"ledger version (\d+)")


def lock_holder(version: int) -> str:
    """Return the text of a job's lock file while this process holds it. `version`: of the ledger."""
    return f"{os.getpid()}, ledger version {version}"


def jobs_of_older_versions(state: Path, version: int) -> Sequence[str]:
    """Return the jobs that are run by processes that know no ledger of this version."""
    return [path.stem for path in sorted((state / "locks").glob("*.lock")) if _is_older(path, version)]


def _is_older(path: Path, version: int) -> bool:
    known = _VERSION.search(path.read_text(errors="replace"))
    if known is not None and int(known[1]) >= version:
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
