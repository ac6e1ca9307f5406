"""What rows say of pictures and sounds (paths, URLs, bytes) becomes content: found, measured and checked."""

import asyncio
import base64
import binascii
import contextlib
import hashlib
import io
import itertools
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import unquote_to_bytes

from connectors.contracts import MediaColumn
from connectors.media.audio_splitter import LONGEST, SoundProblem, cut, seconds_of
from connectors.media.file_types import HEAD_BYTES, ACCEPTED_TYPES, ACCEPTED_NAMES, pixels
from connectors.media.file_types import detect_type as kind_of_head
from connectors.media.url_fetcher import WAITS, Fetcher, FetchError
from connectors.records import ErrorClass, Media, RowError

IN_MEMORY = 64 << 10
"""Bytes of a content that is kept in memory; a larger one lies in a file until it is sent."""

LARGEST_CUT = 4 << 30
"""Bytes of a sound that is fetched to be cut."""

LONG = 2 * LONGEST
"""Seconds of a sound that is sent whole where it could be cut: gpt-4o-transcribe takes 1,500."""

_MADE = re.compile(r"[0-9a-f]{32}\.[a-z0-9]{2,5}")
_WORKERS = 4
_BLOCK = 1 << 20
_Found = TypeVar("_Found")


class MediaProblem(Exception):
    """A value that makes no content, and why."""

    def __init__(self, error_class: ErrorClass, message: str) -> None:
        super().__init__(message)
        self.error_class: ErrorClass = error_class


class MediaReader:
    """Reads what rows name, at most a few at a time, in threads of its own."""

    def __init__(
        self,
        workspace: Path,
        roots: Sequence[Path],
        hosts: Sequence[str],
        scratch: Path,
        provider_hosts: frozenset[str],
        state: Path | None = None,
        made: tuple[str, Path] | None = None,
        waits: Sequence[float] = WAITS,
    ) -> None:
        """`hosts`, `provider_hosts`: names, or `name:port`, whose addresses may be private. `scratch`: a folder that
        is removed after the run. `state`: the workspace's state folder, closed to rows. `made`: (files_prefix, folder)
        of the files that earlier steps of the same job made."""
        self._workspace = Path(os.path.realpath(workspace))
        self._roots = (self._workspace, *(Path(os.path.realpath(root)) for root in roots))
        self._closed = (Path(os.path.realpath(state or workspace / ".rowmill")), Path(os.path.realpath(scratch)))
        self._scratch = scratch
        self._made = made
        scratch.mkdir(parents=True, exist_ok=True)
        self._hosts = (*hosts, *provider_hosts)
        self._waits = waits
        self._numbers = itertools.count()
        self._threads = ThreadPoolExecutor(_WORKERS, "media")
        self._fetcher: Fetcher | None = None

    async def close(self) -> None:
        """Let go of connections and threads."""
        if self._fetcher is not None:
            await self._fetcher.close()
        await asyncio.to_thread(self._threads.shutdown)

    def release(self, media: Media) -> None:
        """The content is needed no more: what lies of it in the scratch folder goes."""
        for each in (media, *(piece for _, piece in media.pieces)):
            if each.path is not None and each.path.is_relative_to(self._scratch):
                each.path.unlink(missing_ok=True)

    async def fetch(self, url: str, largest: int) -> bytes:
        """What a reply's URL leads to; FetchError where nothing came."""
        content = io.BytesIO()
        await self._opened_fetcher().fetch(url, largest, content)
        return content.getvalue()

    async def read(
        self, value: Any, use: MediaColumn, name: str | None = None
    ) -> Media | str | list[Media | str] | RowError | None:
        """What a row's value names or holds, as `MediaUse` says; the nulls in a list are passed over.

        `name` stands before the message of an error: the column's, or else the kind. What may come right later
        (a server that does not answer) is no `input` error.
        """
        try:
            if isinstance(value, list | tuple):
                return [await self._one(inner, use) for inner in value if inner is not None]
            return None if value is None else await self._one(value, use)
        except (MediaProblem, FetchError) as exc:
            return RowError(exc.error_class, f"{name or use.kind}: {exc}")

    async def _one(self, value: Any, use: MediaColumn) -> Media | str:
        if isinstance(value, Mapping) and set(value) == {"bytes", "path"}:
            # As the files of Hugging Face's datasets hold pictures and sounds.
            value = value["path"] if value["bytes"] is None else value["bytes"]
        if isinstance(value, bytes | bytearray | memoryview):
            return await self._in_thread(lambda: self._of_bytes(bytes(value), use, "the content"))
        if not isinstance(value, str):
            raise MediaProblem("input", f"found {type(value).__name__}, expected a path, a URL or bytes")
        if value[:5].lower() == "data:":
            return await self._in_thread(lambda: self._of_bytes(_decoded(value, use), use, "the data URL"))
        scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", value)
        if scheme is None:
            return await self._in_thread(lambda: self._of_path(value, use))
        if scheme[1].lower() not in ("http", "https"):
            raise MediaProblem("input", f"{scheme[0]} is not fetched; http, https and data URLs are")
        return value if use.passes_urls else await self._of_url(value, use)

    async def _in_thread(self, work: Callable[[], _Found]) -> _Found:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _opened_fetcher(self) -> Fetcher:
        if self._fetcher is None:
            self._fetcher = Fetcher(self._hosts, self._waits)
        return self._fetcher

    async def _of_url(self, url: str, use: MediaColumn) -> Media:
        path = self._fresh_path("fetched")
        try:
            with path.open("w+b") as file:
                await self._opened_fetcher().fetch(url, LARGEST_CUT if use.split else use.max_bytes, file)
                file.flush()
                media = await self._in_thread(lambda: self._of_file(file, path, use, "what the URL leads to"))
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        if media.path is None or media.pieces:
            path.unlink()
        return media

    def _of_bytes(self, content: bytes, use: MediaColumn, shown: str) -> Media:
        if len(content) <= IN_MEMORY:
            return self._of_file(io.BytesIO(content), None, use, shown)
        _check_size(len(content), use)
        path = self._fresh_path("spooled")
        path.write_bytes(content)
        try:
            media = self._of_file(io.BytesIO(content), path, use, shown)
        except BaseException:
            path.unlink()
            raise
        if media.pieces:
            path.unlink()
        return media

    def _of_path(self, value: str, use: MediaColumn) -> Media:
        with self._opened(value) as (file, path):
            return self._of_file(file, path, use, _shortened(value))

    @contextlib.contextmanager
    def _opened(self, value: str) -> Iterator[tuple[BinaryIO, Path]]:
        """A regular file below the workspace or a root, opened without following a link at any step of the way."""
        shown = _shortened(value)
        if not value or "\0" in value:
            raise MediaProblem("input", "the path is empty" if not value else "the path holds a NUL character")
        try:
            if (made := self._made_here(value)) is not None and made.exists():
                real, root = made, made.parent
            else:
                real, root = self._resolved(value)
            file = _open_below(root, real.relative_to(root).parts)
        except (OSError, ValueError) as exc:
            raise MediaProblem("input", f"{shown} cannot be read ({_said(exc)})") from exc
        if file is None:
            raise MediaProblem("input", f"{shown} is no file")
        with file:
            yield file, real

    def _made_here(self, value: str) -> Path | None:
        if self._made is None:
            return None
        prefix, folder = self._made
        name = value.removeprefix(prefix)
        return Path(os.path.realpath(folder)) / name if prefix + name == value and _MADE.fullmatch(name) else None

    def _resolved(self, value: str) -> tuple[Path, Path]:
        """(the path without links in it, the workspace or root that it lies below)."""
        real = Path(os.path.realpath(self._workspace / value))
        root = next((root for root in self._roots if real.is_relative_to(root)), None)
        if root is None:
            raise MediaProblem(
                "input",
                f"{_shortened(value)} lies outside of the workspace; name its folder in `roots` of rowmill.yaml",
            )
        if any(real.is_relative_to(closed) for closed in self._closed):
            raise MediaProblem("input", f"{_shortened(value)} is Rowmill's own; move it elsewhere")
        return real, root

    def _of_file(self, file: BinaryIO, path: Path | None, use: MediaColumn, shown: str) -> Media:
        """Measured and checked; `path`: where a content that is not small lies."""
        size = file.seek(0, os.SEEK_END)
        _check_size(size, use)
        file.seek(0)
        digest = hashlib.sha256()
        content = file.read(min(size, IN_MEMORY))
        kind = kind_of_head(content[:HEAD_BYTES])
        if kind is None or kind.group != use.kind:
            raise MediaProblem("input", f"{shown} is no {_WORD[use.kind]} ({ACCEPTED_NAMES[use.kind]})")
        if kind not in ACCEPTED_TYPES[use.kind]:
            raise MediaProblem("input", f"{shown} is {kind.suffix}, taken are {ACCEPTED_NAMES[use.kind]}; convert it")
        digest.update(content)
        while block := file.read(_BLOCK):
            digest.update(block)
        width_height: tuple[int, int] | None = None
        seconds: float | None = None
        try:
            if use.kind == "image":
                width_height = pixels(file, kind)
                if width_height is None:
                    raise MediaProblem("input", f"{shown} cannot be read: its {kind.suffix} header is broken")
            else:
                seconds = seconds_of(file, kind.suffix)
            pieces: tuple[tuple[float, Media], ...] = ()
            if seconds is not None and use.split and (size > use.max_bytes or seconds > LONG):
                pieces = self._cut(file, kind.suffix, use.max_bytes)
        except SoundProblem as exc:
            raise MediaProblem("input", f"{shown}: {exc}") from exc
        small = size <= IN_MEMORY
        return Media(
            digest=digest.hexdigest(),
            size=size,
            kind=kind.type,
            suffix=kind.suffix,
            path=None if small else path,
            data=content if small else None,
            pixels=width_height,
            seconds=seconds,
            pieces=pieces,
        )

    def _cut(self, file: BinaryIO, suffix: str, largest: int) -> tuple[tuple[float, Media], ...]:
        folder = self._fresh_path("cut")
        folder.mkdir()
        try:
            return tuple((start, _piece(path, length)) for start, length, path in cut(file, suffix, largest, folder))
        except BaseException:
            shutil.rmtree(folder)
            raise

    def _fresh_path(self, name: str) -> Path:
        """A name of its own for each, even of equal content, so that `release` takes nothing from others."""
        return self._scratch / f"{name}-{next(self._numbers)}"


_WORD: Mapping[str, str] = {"image": "picture", "audio": "sound"}


def _piece(path: Path, seconds: float) -> Media:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Media(digest, path.stat().st_size, "audio/flac", "flac", path=path, seconds=seconds)


def _check_size(size: int, use: MediaColumn) -> None:
    if size == 0:
        raise MediaProblem("input", "it is empty")
    if size > use.max_bytes and not use.split:
        advice = "; `split: true` at the step cuts it" if use.kind == "audio" else ""
        raise MediaProblem("input", f"{size:,} bytes, more than {use.max_bytes / (1 << 20):g} MB are not taken{advice}")


def _open_below(root: Path, parts: Iterable[str]) -> BinaryIO | None:
    """The regular file; None where it is something else. A link put in the way meanwhile is not followed."""
    *folders, name = parts or ("",)
    if not name:
        return None
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            inner = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = inner
        # Looked at before it is opened: opening alone makes some devices act.
        if not stat.S_ISREG(os.stat(name, dir_fd=here, follow_symlinks=False).st_mode):
            return None
        found = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=here)
    finally:
        os.close(here)
    if not stat.S_ISREG(os.fstat(found).st_mode):
        os.close(found)
        return None
    return os.fdopen(found, "rb")


def _decoded(url: str, use: MediaColumn) -> bytes:
    head, comma, body = url[5:].partition(",")
    if not comma:
        raise MediaProblem("input", "the data URL has no content")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(body)
    # At least so many; the exact size is checked once it is decoded.
    _check_size(max(1, len(body) * 3 // 4 - 2), use)
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise MediaProblem("input", f"the data URL's base64 is broken ({exc})") from exc


def _shortened(value: str) -> str:
    return value if len(value) <= 200 else f"{value[:200]}…"


def _said(exc: OSError | ValueError) -> str:
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
