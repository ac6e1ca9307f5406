"""Packages for sound and pictures, which the extra `rowmill[media]` installs."""

from connectors.errors import KeyPath
from connectors.optional_packages import missing_package, require_packages

MEDIA_EXTRA = "pip install 'rowmill[media]'"

_PACKAGES = ("av", "numpy", "PIL")


def has_media_packages() -> bool:
    """Return whether all packages are installed."""
    return missing_package(_PACKAGES) is None


def require_media_packages(where: KeyPath) -> None:
    """Raise a JobError at `where` unless recordings can be measured and cut."""
    require_packages(_PACKAGES, where, "read recordings", MEDIA_EXTRA)
