"""Packages that only the extras of Rowmill install."""

from collections.abc import Iterable
from importlib.util import find_spec

from connectors.errors import JobError, KeyPath


def missing_package(names: Iterable[str]) -> str | None:
    """Return the first of the packages, by their import names, that is not installed; None if all are."""
    # Not cached: the lookup is cheap and notices a package installed while a server runs.
    return next((name for name in names if find_spec(name) is None), None)


def require_packages(names: Iterable[str], where: KeyPath, purpose: str, extra: str) -> None:
    """Raise a JobError at `where` unless all packages are installed. `purpose`: what they do; `extra`: the remedy."""
    if missing_package(names) is not None:
        raise JobError(where, f"needs the packages that {purpose}", extra)
