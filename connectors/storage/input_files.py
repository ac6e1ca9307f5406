"""The files and objects that a source's paths and globs name, sorted by name."""

import contextlib
import glob
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from msgspec import Struct

from connectors.errors import DataError, KeyPath
from connectors.storage import object_store
from connectors.storage.compressed_files import has_suffix
from connectors.storage.object_store import StoredObject

MAX_NAMED_FILES = 5
"""In a warning."""


def input_files(
    patterns: str | Iterable[str], workspace: Path, suffixes: tuple[str, ...], where: KeyPath
) -> tuple[Path, ...]:
    """Return absolute paths, each once, sorted by name; DataError for a pattern that names no file. URLs are skipped.

    A pattern that is the name of a file means this file, whatever characters it contains. A folder names the files
    below it that end in one of the suffixes, in upper or lower case, compressed or not, except hidden files and folders
    and those whose name begins with an underscore.

    `where`: the key of the job file with the patterns.
    """
    names: set[str] = set()
    for pattern, place in _local_places(patterns, workspace):
        files = _files_at(place, suffixes)
        if not files and place.is_dir():
            found = f"{pattern}: no file in the folder ends in {', '.join(suffixes)}"
            raise DataError(where, found, "name a file, or a glob")
        if not files:
            raise missing_file(where, pattern, workspace)
        names.update(files)
    return tuple(Path(name) for name in sorted(names))


def missing_file(where: KeyPath, path: str, workspace: Path) -> DataError:
    """Return the error for a path or glob of the job file, at the key `where`, that names no file."""
    return DataError(where, f"{path}: no such file", f"check the path, relative ones start at {workspace}")


def input_folders(patterns: str | Iterable[str], workspace: Path) -> tuple[Path, ...]:
    """Return the folders among the patterns, absolute."""
    return tuple(place for _, place in _local_places(patterns, workspace) if place.is_dir())


def other_files_warning(
    patterns: str | Iterable[str], workspace: Path, suffixes: tuple[str, ...], urls: Iterable[str] = ()
) -> tuple[str, ...]:
    """Return a warning that names the files in the patterns' folders without any of the suffixes; none if all have one.

    `urls`: objects without them.
    """
    others = [
        str(path)
        for folder in input_folders(patterns, workspace)
        for path in _visible_files(folder)
        if not has_suffix(path.name, suffixes)
    ]
    others += urls
    if not others:
        return ()
    more = f" and {len(others) - MAX_NAMED_FILES} more" if len(others) > MAX_NAMED_FILES else ""
    named = ", ".join(sorted(others)[:MAX_NAMED_FILES])
    return (f"source: {named}{more}: not read, since no name ends in {', '.join(suffixes)}",)


def input_objects(
    patterns: str | Iterable[str], where: KeyPath, suffixes: tuple[str, ...], others: list[str]
) -> tuple[StoredObject, ...]:
    """Return the objects that the URLs among the patterns name; add other objects of these folders to `others`.

    `where`: the key of the job file with the patterns.
    """
    by_url: dict[str, StoredObject] = {}
    for pattern in _pattern_list(patterns):
        if object_store.is_url(pattern):
            object_store.check_installed(where)
            objects = object_store.objects_at(pattern, suffixes, others)
            if not objects:
                raise DataError(where, f"{pattern}: no such object", "check the URL")
            by_url.update((one.url, one) for one in objects)
    return tuple(by_url[url] for url in sorted(by_url))


class DownloadedObjects(Struct, frozen=True):
    """Objects copied into a folder of this machine, for readers that need files."""

    urls: dict[Path, str]
    """Copy -> URL."""

    def replace_paths(self, text: str) -> str:
        """Return a message that names the objects, not their copies."""
        for path, url in self.urls.items():
            text = text.replace(str(path), url)
        return text


@contextlib.contextmanager
def downloaded_objects(objects: Iterable[StoredObject], scratch: Path) -> Iterator[DownloadedObjects]:
    """Provide copies during the block; its errors name the objects. The disk must have room for all copies."""
    urls: dict[Path, str] = {}
    copies = DownloadedObjects(urls)
    folder = scratch / "objects"
    try:
        for number, one in enumerate(objects):
            # The name shows how a file is compressed.
            path = folder / f"{number:06d}" / one.name
            object_store.download(one.url, path)
            urls[path] = one.url
        yield copies
    except DataError as exc:
        where = exc.where if isinstance(exc.where, tuple) else copies.replace_paths(str(exc.where))
        raise DataError(where, *map(copies.replace_paths, (exc.found, exc.remedy))) from exc
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _pattern_list(patterns: str | Iterable[str]) -> Iterable[str]:
    return [patterns] if isinstance(patterns, str) else patterns


def _local_places(patterns: str | Iterable[str], workspace: Path) -> Iterator[tuple[str, Path]]:
    """Yield each pattern that is no URL, and its absolute path."""
    for pattern in _pattern_list(patterns):
        if not object_store.is_url(pattern):
            yield pattern, Path(os.path.abspath(workspace / pattern))  # noqa: PTH100 - Path.resolve would follow links


def _files_at(place: Path, suffixes: tuple[str, ...]) -> list[str]:
    if place.is_file():
        return [str(place)]
    if place.is_dir():
        return [str(path) for path in _visible_files(place) if has_suffix(path.name, suffixes)]
    return [name for name in glob.glob(str(place), recursive=True) if Path(name).is_file()]  # noqa: PTH207


def _visible_files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, except those with a dot or an underscore before a part of their name."""
    for path in folder.rglob("*"):
        if not any(part[0] in "._" for part in path.relative_to(folder).parts) and path.is_file():
            yield path
