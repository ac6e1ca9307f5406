"""Packages for sound and pictures, which the extra `rowmill[media]` installs."""

from importlib.util import find_spec

from connectors.errors import JobError, KeyPath

MEDIA_EXTRA = "pip install 'rowmill[media]'"

_PACKAGES = ("av", "numpy", "PIL")


def has_media_packages() -> bool:
    """Return whether all packages are installed."""
    return all(find_spec(package) is not None for package in _PACKAGES)


def require_media_packages(where: KeyPath) -> None:
    """Raise a JobError at `where` unless recordings can be measured and cut."""
    if not has_media_packages():
        raise JobError(where, "needs the packages that read recordings", MEDIA_EXTRA)
