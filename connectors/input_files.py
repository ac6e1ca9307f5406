"""The files that a source's paths and globs name, sorted by name."""

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from connectors.errors import DataError


def input_files(patterns: str | Iterable[str], workspace: Path, suffixes: tuple[str, ...]) -> tuple[Path, ...]:
    """Absolute paths, each once, sorted by name; DataError for a pattern that names no file.

    A folder stands for the files below it that end in one of the suffixes; hidden files and folders and those whose
    name begins with an underscore are not looked at.
    """
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        place = os.path.abspath(workspace / pattern)  # noqa: PTH100 - Path.resolve would follow links
        files = _files_at(Path(place), suffixes)
        if not files:
            raise DataError(f"{pattern}: no file is there; check the path, relative ones start at {workspace}")
        found.update(files)
    return tuple(Path(name) for name in sorted(found))


def _files_at(place: Path, suffixes: tuple[str, ...]) -> list[str]:
    if place.is_file():
        return [str(place)]
    if place.is_dir():
        below = (path for path in place.rglob("*") if path.name.endswith(suffixes) and path.is_file())
        return [str(path) for path in below if not any(part[0] in "._" for part in path.relative_to(place).parts)]
    return [name for name in glob.glob(str(place), recursive=True) if Path(name).is_file()]  # noqa: PTH207
