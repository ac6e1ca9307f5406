"""Store of the documents that were read before, so that a file is read again only if it has changed.

It is a folder with a compressed file for each document. The name of the file is made of everything that decides on its
content: what was read, how, and by which version of the readers. Each is written completely or not at all, and one that
is gone or damaged counts as never stored. Nothing but the time of reading it again depends on it.
"""

import hashlib
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from uuid import uuid4

import orjson

from connectors.documents.document import Document
from connectors.media import document_types

MAX_STORE_BYTES = 2 << 30
"""If the documents take more, those that were not used for longest are deleted."""
_KEPT_SHARE = 0.8
"""What is left of MAX_STORE_BYTES after that."""
_SETTLING_NS = 50_000_000
"""Age of a file's last change from which another change has another time."""
_SETTLING_SECONDS_NS = 2_000_000_000
"""The same on a file system that stores whole seconds."""
_USE_SECONDS = 3600
"""How exactly the last use of a document is known."""
_UNFINISHED = ".part"
_UNFINISHED_SECONDS = 86_400
"""After this time nobody writes an unfinished file any more."""
_READERS = ("lxml", "pypdfium2", "python-calamine")
_WITHOUT_TEXTS = frozenset({"document_reader.py", "document_store.py", "frames.py"})
"""The modules here that have no part in what a document's text is."""


class DocumentStore:
    """The stored documents of one state folder. Several processes may use it at the same time."""

    def __init__(self, folder: Path, workspace: Path, is_read_only: bool = False) -> None:
        """`folder`: may not exist. `workspace`: to which relative paths belong."""
        self._folder = folder
        self._workspace = workspace
        self._is_read_only = is_read_only
        self._unchecked_bytes = 0
        """Written since the size of the whole store was checked."""

    def place_of_file(self, path: str, found: os.stat_result, draws_pages: bool) -> Path | None:
        """Return where the document of a file is stored; None if it changed so lately that its time may not tell."""
        is_coarse = found.st_mtime_ns % 1_000_000_000 == 0
        if time.time_ns() - found.st_mtime_ns < (_SETTLING_SECONDS_NS if is_coarse else _SETTLING_NS):
            return None
        return self._place([str(self._workspace), path, found.st_size, found.st_mtime_ns], draws_pages)

    def place_of_content(self, sha256: str, draws_pages: bool) -> Path:
        """Return where the document of a content is stored that has no path."""
        return self._place([sha256], draws_pages)

    def _place(self, identity: list[object], draws_pages: bool) -> Path:
        facts = orjson.dumps([identity, draws_pages, readers_version()])
        name = hashlib.blake2b(facts, digest_size=16).hexdigest()
        return self._folder / name[:2] / name[2:]

    def load(self, place: Path) -> Document | None:
        """Return the document that is stored at a place; None: none is."""
        try:
            content = place.read_bytes()
            if not self._is_read_only and time.time() - place.stat().st_mtime > _USE_SECONDS:
                os.utime(place)
            # The checksum is checked as well.
            found = orjson.loads(zlib.decompress(content))
        except (OSError, zlib.error, ValueError):
            return None
        pictures = found["pictures"]
        return Document(found["media_type"], tuple(found["pages"]), None if pictures is None else tuple(pictures))

    def save(self, place: Path, document: Document) -> None:
        """Store a document at a place. A full disk, or a folder that cannot be written, is no error."""
        if self._is_read_only:
            return
        facts = {"media_type": document.media_type, "pages": document.pages, "pictures": document.pictures}
        content = zlib.compress(orjson.dumps(facts), 1)
        unfinished = place.with_name(f"{place.name}.{uuid4().hex}{_UNFINISHED}")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_bytes(content)
            unfinished.replace(place)
        except OSError:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            return
        self._unchecked_bytes += len(content)
        if self._unchecked_bytes > MAX_STORE_BYTES * (1 - _KEPT_SHARE):
            self.limit_size()

    def limit_size(self) -> None:
        """Delete the documents that were not used for longest if all take more than MAX_STORE_BYTES."""
        if not self._unchecked_bytes:
            return
        self._unchecked_bytes = 0
        files = sorted(_files(self._folder))
        total = sum(size for _, size, _ in files)
        if total > MAX_STORE_BYTES:
            for _, size, path in files:
                if total <= MAX_STORE_BYTES * _KEPT_SHARE:
                    break
                path.unlink(missing_ok=True)
                total -= size


def prune_documents(folder: Path, before: float, dry_run: bool) -> tuple[int, int]:
    """Delete the stored documents that were not used since a time (Unix seconds); return (documents, bytes)."""
    documents = nbytes = 0
    for used_at, size, path in _files(folder):
        is_unfinished = path.suffix == _UNFINISHED
        if used_at >= (min(before, time.time() - _UNFINISHED_SECONDS) if is_unfinished else before):
            continue
        documents, nbytes = documents + (not is_unfinished), nbytes + size
        if not dry_run:
            path.unlink(missing_ok=True)
    return documents, nbytes


def stored_documents(folder: Path) -> tuple[int, int]:
    """Return (documents, bytes) of all that is stored."""
    sizes = [size for _, size, _ in _files(folder)]
    return len(sizes), sum(sizes)


def _files(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """Yield (time of the last use, bytes, path) of each file."""
    for path in folder.glob("??/*"):
        with suppress(FileNotFoundError):
            found = path.stat()
            yield found.st_mtime, found.st_size, path


@cache
def readers_version() -> str:
    """Return what changes whenever a reader may make another text of the same file."""
    modules = [path for path in sorted(Path(__file__).parent.glob("*.py")) if path.name not in _WITHOUT_TEXTS]
    digest = hashlib.blake2b(digest_size=16)
    for path in (*modules, Path(document_types.__file__)):
        digest.update(path.read_bytes())
    for package in _READERS:
        with suppress(PackageNotFoundError):
            digest.update(f"{package} {version(package)}\n".encode())
    return digest.hexdigest()
