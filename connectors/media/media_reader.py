"""Reading of image, audio and document files that rows name by path, URL or bytes: located, measured and checked."""

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
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar
from urllib.parse import unquote_to_bytes

from connectors.contracts import MediaColumn
from connectors.error_classes import ErrorClass
from connectors.media.audio_splitter import MAX_PIECE_SECONDS, AudioError, duration_seconds, split_audio
from connectors.media.document_types import DocumentError, detect_document
from connectors.media.file_types import ACCEPTED_NAMES, ACCEPTED_TYPES, HEAD_BYTES, FileType, image_size
from connectors.media.file_types import detect_type as kind_of_head
from connectors.media.url_fetcher import DIRECT, RETRY_WAITS, FetchError, UrlFetcher, WebAccess
from connectors.records import Media, RowError

MAX_IN_MEMORY_BYTES = 64 << 10
"""A larger content is in a file until it is sent."""

MAX_SPLIT_BYTES = 4 << 30
"""Of audio that is fetched to be split."""

MAX_UNSPLIT_SECONDS = 2 * MAX_PIECE_SECONDS
"""Of audio that is sent whole although it may be split: gpt-4o-transcribe accepts 1,500."""

_OUTPUT_NAME = re.compile(r"[0-9a-f]{32}\.[a-z0-9]{2,5}")
_THREADS = 4
_READ_BYTES = 1 << 20
_KIND_NAMES: Mapping[str, str] = {"image": "picture", "audio": "sound"}

T = TypeVar("T")


class MediaError(Exception):
    """A value that is not a readable file, and why."""

    def __init__(self, error_class: ErrorClass, message: str) -> None:
        super().__init__(message)
        self.error_class: ErrorClass = error_class


class MediaReader:
    """Reader of the files that rows name, a few at a time, in its own threads."""

    def __init__(
        self,
        workspace: Path,
        roots: Sequence[Path],
        hosts: Sequence[str],
        scratch: Path,
        provider_hosts: frozenset[str],
        state_folder: Path | None = None,
        output_files: tuple[str, Path] | None = None,
        retry_waits: Sequence[float] = RETRY_WAITS,
        web_access: WebAccess = DIRECT,
    ) -> None:
        """`hosts`, `provider_hosts`: names, or `name:port`, whose addresses may be private. `scratch`: a folder that
        is removed after the run. `state_folder`: of the workspace; rows cannot read it. `output_files`: (files_prefix,
        folder) of the files that earlier steps of the same job wrote."""
        self._workspace = Path(os.path.realpath(workspace))
        self._roots = (self._workspace, *(Path(os.path.realpath(root)) for root in roots))
        self._private_folders = (
            Path(os.path.realpath(state_folder or workspace / ".rowmill")),
            Path(os.path.realpath(scratch)),
        )
        self._scratch = scratch
        self._output_files = output_files
        scratch.mkdir(parents=True, exist_ok=True)
        self._hosts = (*hosts, *provider_hosts)
        self._retry_waits = retry_waits
        self._web_access = web_access
        self._file_numbers = itertools.count()
        self._threads = ThreadPoolExecutor(_THREADS, "media")
        self._fetcher: UrlFetcher | None = None

    async def close(self) -> None:
        """Close connections and threads."""
        if self._fetcher is not None:
            await self._fetcher.close()
        await asyncio.to_thread(self._threads.shutdown)

    def release(self, media: Media) -> None:
        """Delete the content's files in the scratch folder; it is no longer needed."""
        for part in (media, *(piece for _, piece in media.pieces)):
            if part.path is not None and part.path.is_relative_to(self._scratch):
                part.path.unlink(missing_ok=True)

    async def fetch(self, url: str, max_bytes: int) -> bytes:
        """Return the content of a reply's URL; FetchError if there is none."""
        content = io.BytesIO()
        await self._open_fetcher().fetch(url, max_bytes, content)
        return content.getvalue()

    async def read(
        self, value: Any, use: MediaColumn, name: str | None = None
    ) -> Media | str | list[Media | str] | RowError | None:
        """Return the files that a row's value names or contains, as `MediaColumn` says; nulls in a list are skipped.

        `name` begins the message of an error: the column, or else the kind. A temporary failure, such as a server that
        does not respond, is not an `input` error.
        """
        try:
            if isinstance(value, list | tuple):
                return [await self._read_value(inner, use) for inner in value if inner is not None]
            return None if value is None else await self._read_value(value, use)
        except (MediaError, FetchError) as exc:
            return RowError(exc.error_class, f"{name or use.kind}: {exc}")

    @contextlib.asynccontextmanager
    async def open(self, value: Any, max_bytes: int) -> AsyncIterator[BinaryIO]:
        """Open the file of any type that a row's value names or contains; MediaError or FetchError if there is none."""
        use, path, value = MediaColumn("document", max_bytes), named_path(value), _named_value(value)
        if path is not None:
            with contextlib.ExitStack() as opened:
                file, _ = await self._in_thread(lambda: opened.enter_context(self._open_path(path)))
                try:
                    _check_size(file.seek(0, os.SEEK_END), use)
                except MediaError as exc:
                    raise MediaError(exc.error_class, f"{_shortened(path)}: {exc}") from exc
                file.seek(0)
                yield file
            return
        with tempfile.TemporaryFile(dir=self._scratch) as file:
            if isinstance(value, str) and _is_web_address(value):
                await self._open_fetcher().fetch(value, max_bytes, file)
            else:
                content = value if isinstance(value, bytes) else _decode_data_url(value, use)
                await self._in_thread(lambda: file.write(content))
            file.flush()
            _check_size(file.seek(0, os.SEEK_END), use)
            file.seek(0)
            yield file

    async def _read_value(self, value: Any, use: MediaColumn) -> Media | str:
        value = _named_value(value)
        if isinstance(value, bytes):
            return await self._in_thread(lambda: self._from_bytes(value, use, "the content"))
        if value[:5].lower() == "data:":
            return await self._in_thread(lambda: self._from_bytes(_decode_data_url(value, use), use, "the data URL"))
        if not _is_web_address(value):
            return await self._in_thread(lambda: self._from_path(value, use))
        return value if use.passes_urls else await self._from_url(value, use)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _open_fetcher(self) -> UrlFetcher:
        if self._fetcher is None:
            self._fetcher = UrlFetcher(self._hosts, self._retry_waits, self._web_access)
        return self._fetcher

    async def _from_url(self, url: str, use: MediaColumn) -> Media:
        path = self._new_path("fetched")
        try:
            with path.open("w+b") as file:
                await self._open_fetcher().fetch(url, MAX_SPLIT_BYTES if use.split else use.max_bytes, file)
                file.flush()
                media = await self._in_thread(lambda: self._from_file(file, path, use, "the content of the URL"))
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        if media.path is None or media.pieces:
            path.unlink()
        return media

    def _from_bytes(self, content: bytes, use: MediaColumn, source: str) -> Media:
        if len(content) <= MAX_IN_MEMORY_BYTES:
            return self._from_file(io.BytesIO(content), None, use, source)
        _check_size(len(content), use)
        path = self._new_path("spooled")
        path.write_bytes(content)
        try:
            media = self._from_file(io.BytesIO(content), path, use, source)
        except BaseException:
            path.unlink()
            raise
        if media.pieces:
            path.unlink()
        return media

    def _from_path(self, value: str, use: MediaColumn) -> Media:
        with self._open_path(value) as (file, path):
            return self._from_file(file, path, use, _shortened(value))

    @contextlib.contextmanager
    def _open_path(self, value: str) -> Iterator[tuple[BinaryIO, Path]]:
        """Open a regular file below the workspace or a root, without following a link anywhere on the path."""
        source = _shortened(value)
        if not value or "\0" in value:
            raise MediaError("input", "the path is empty" if not value else "the path contains a NUL character")
        try:
            if (output := self._output_path(value)) is not None and output.exists():
                real, root = output, output.parent
            else:
                real, root = self._resolve(value)
            file = _open_below(root, real.relative_to(root).parts)
        except (OSError, ValueError) as exc:
            raise MediaError("input", f"{source} cannot be read ({_os_message(exc)})") from exc
        if file is None:
            raise MediaError("input", f"{source} is not a file")
        with file:
            yield file, real

    def _output_path(self, value: str) -> Path | None:
        if self._output_files is None:
            return None
        prefix, folder = self._output_files
        name = value.removeprefix(prefix)
        is_output = prefix + name == value and _OUTPUT_NAME.fullmatch(name)
        return Path(os.path.realpath(folder)) / name if is_output else None

    def _resolve(self, value: str) -> tuple[Path, Path]:
        """Return (the path without links, the workspace or root above it)."""
        real = Path(os.path.realpath(self._workspace / value))
        root = next((root for root in self._roots if real.is_relative_to(root)), None)
        if root is None:
            raise MediaError(
                "input",
                f"{_shortened(value)} is outside the workspace; add its folder to `roots` of rowmill.yaml",
            )
        if any(real.is_relative_to(private) for private in self._private_folders):
            raise MediaError("input", f"{_shortened(value)} belongs to Rowmill; move it elsewhere")
        return real, root

    def _from_file(self, file: BinaryIO, path: Path | None, use: MediaColumn, source: str) -> Media:
        """Measure and check a content. `path`: its file, if it is not small."""
        size = file.seek(0, os.SEEK_END)
        _check_size(size, use)
        file.seek(0)
        digest = hashlib.sha256()
        content = file.read(min(size, MAX_IN_MEMORY_BYTES))
        kind = _document_type(file, source) if use.kind == "document" else _media_type(content, use.kind, source)
        file.seek(len(content))
        digest.update(content)
        while block := file.read(_READ_BYTES):
            digest.update(block)
        size_pixels: tuple[int, int] | None = None
        seconds: float | None = None
        try:
            if use.kind == "image":
                size_pixels = image_size(file, kind)
                if size_pixels is None:
                    raise MediaError("input", f"{source} cannot be read: its {kind.suffix} header is broken")
            elif use.kind == "audio":
                seconds = duration_seconds(file, kind.suffix)
            pieces: tuple[tuple[float, Media], ...] = ()
            if seconds is not None and use.split and (size > use.max_bytes or seconds > MAX_UNSPLIT_SECONDS):
                pieces = self._split(file, kind.suffix, use.max_bytes)
        except AudioError as exc:
            raise MediaError("input", f"{source}: {exc}") from exc
        small = size <= MAX_IN_MEMORY_BYTES
        return Media(
            digest=digest.hexdigest(),
            size=size,
            kind=kind.type,
            suffix=kind.suffix,
            path=None if small else path,
            data=content if small else None,
            pixels=size_pixels,
            seconds=seconds,
            pieces=pieces,
        )

    def _split(self, file: BinaryIO, suffix: str, max_bytes: int) -> tuple[tuple[float, Media], ...]:
        folder = self._new_path("cut")
        folder.mkdir()
        try:
            return tuple(
                (start, _piece(path, length)) for start, length, path in split_audio(file, suffix, max_bytes, folder)
            )
        except BaseException:
            shutil.rmtree(folder)
            raise

    def _new_path(self, name: str) -> Path:
        """Return a unique path, even for equal content, so that `release` deletes no other file."""
        return self._scratch / f"{name}-{next(self._file_numbers)}"


def _media_type(content: bytes, group: Literal["image", "audio"], source: str) -> FileType:
    kind = kind_of_head(content[:HEAD_BYTES])
    if kind is None or kind.group != group:
        raise MediaError("input", f"{source} is not a {_KIND_NAMES[group]} ({ACCEPTED_NAMES[group]})")
    if kind not in ACCEPTED_TYPES[group]:
        raise MediaError("input", f"{source} is {kind.suffix}, accepted are {ACCEPTED_NAMES[group]}; convert it")
    return kind


def _document_type(file: BinaryIO, source: str) -> FileType:
    try:
        return detect_document(file)
    except DocumentError as exc:
        raise MediaError("input", f"{source} {exc}") from exc


def named_path(value: Any) -> str | None:
    """Return the path that a row's value has; None for a URL or content. MediaError for other values."""
    named = _named_value(value)
    is_path = isinstance(named, str) and named[:5].lower() != "data:" and not _is_web_address(named)
    return str(named) if is_path else None


def _named_value(value: Any) -> str | bytes:
    """Return the path, URL or content that a row's value has; MediaError for other values."""
    if isinstance(value, Mapping) and set(value) == {"bytes", "path"}:
        # The form of images and audio in Hugging Face's datasets.
        value = value["path"] if value["bytes"] is None else value["bytes"]
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str):
        raise MediaError("input", f"found {type(value).__name__}, expected a path, a URL or bytes")
    return value


def is_fetched(value: Any, use: MediaColumn) -> bool:
    """Return whether reading a row's value for this use fetches a URL."""
    items = value if isinstance(value, list) else [value]
    return not use.passes_urls and any(map(is_web_url, items))


def is_web_url(value: Any) -> bool:
    """Return whether a value is an http or https URL."""
    return isinstance(value, str) and re.match("https?://", value, re.IGNORECASE) is not None


def _is_web_address(value: str) -> bool:
    """Return whether a value is a URL to fetch, and no path; MediaError for other URLs."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", value)
    if scheme is not None and scheme[1].lower() not in ("http", "https"):
        raise MediaError("input", f"{scheme[0]} is not fetched; http, https and data URLs are")
    return scheme is not None


def _piece(path: Path, seconds: float) -> Media:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Media(digest, path.stat().st_size, "audio/flac", "flac", path=path, seconds=seconds)


def _check_size(size: int, use: MediaColumn) -> None:
    if size == 0:
        raise MediaError("input", "it is empty")
    if size > use.max_bytes and not use.split:
        advice = "; `split: true` in the step splits it" if use.kind == "audio" else ""
        unit = 1 << 20 if use.max_bytes % (1 << 20) == 0 else 1_000_000
        raise MediaError("input", f"{size:,} bytes, the limit is {use.max_bytes / unit:g} MB{advice}")


def _open_below(root: Path, parts: Iterable[str]) -> BinaryIO | None:
    """Open a regular file; None if it is something else. Links are not followed, even if created meanwhile."""
    *folders, name = parts or ("",)
    if not name:
        return None
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            inner = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = inner
        # Checked before opening: merely opening some devices makes them act.
        if not stat.S_ISREG(os.stat(name, dir_fd=here, follow_symlinks=False).st_mode):
            return None
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=here)
    finally:
        os.close(here)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return os.fdopen(descriptor, "rb")


def _decode_data_url(url: str, use: MediaColumn) -> bytes:
    head, comma, body = url[5:].partition(",")
    if not comma:
        raise MediaError("input", "the data URL has no content")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(body)
    # A lower bound; the exact size is checked after decoding.
    _check_size(max(1, len(body) * 3 // 4 - 2), use)
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise MediaError("input", f"the data URL's base64 is broken ({exc})") from exc


def _shortened(value: str) -> str:
    return value if len(value) <= 200 else f"{value[:200]}…"


def _os_message(exc: OSError | ValueError) -> str:
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
