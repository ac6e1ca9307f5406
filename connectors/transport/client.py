"""The one place where requests leave the machine, and every way in which that can fail."""

import codecs
import contextlib
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import aiohttp

from connectors.contracts import Provider
from connectors.media.file_types import TYPES
from connectors.records import Call, ErrorClass, Reply
from connectors.transport.fast_post import MAX_BODY_BYTES, FastPost, RequestHead, ResponseHead, CleanConnector, request_head

MAX_REPLY_BYTES = 128 << 20
"""Bytes, unpacked: a reply that is larger is not read to its end."""

KEY_PLACEHOLDER = "[the key]"
MIN_SECRET_KEY_LENGTH = 6
"""Characters: a shorter key is no secret (`EMPTY`, `none`), and may be a word of an error's message."""
MIN_UNIQUE_KEY_LENGTH = 20
"""Characters of a key that no answer holds by chance: in answers only such a one is hidden."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds until a request is given up."""

    connect: float = 10
    idle: float = 60
    """Without a byte from the server."""
    total: float = 600


class RequestError(Exception):
    """No whole reply came. `billable` where the server may have done, and billed, its work all the same."""

    def __init__(self, error_class: ErrorClass, message: str, latency_ms: float, billable: bool) -> None:
        super().__init__(message)
        self.error_class: ErrorClass = error_class
        self.latency_ms = latency_ms
        self.billable = billable


class Transport(Protocol):
    """Everything is sent here, every test is fed here."""

    async def send(self, provider: Provider, call: Call) -> Reply:
        """The whole reply, whatever its status; RequestError where none comes."""

    async def close(self) -> None:
        """Let go of the connections."""


class HttpTransport:
    """Transport over aiohttp: keys go only to their provider's host, redirects are not followed."""

    def __init__(self, timeouts: Timeouts, connections: int) -> None:
        """`connections`: at most so many at a time; make it as many as requests are in flight."""
        of_tried_release = FastPost.fits()
        kind = CleanConnector if of_tried_release else aiohttp.TCPConnector
        connector = kind(limit=connections, ttl_dns_cache=300)
        timeout = aiohttp.ClientTimeout(
            total=timeouts.total or None, sock_connect=timeouts.connect or None, sock_read=timeouts.idle or None
        )
        self._session = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), timeout=timeout, auto_decompress=True
        )
        self._lines: dict[tuple[str, str], RequestHead] = {}
        self._direct = FastPost(connector, timeout) if of_tried_release else None
        # A file takes the time that it takes: only silence ends it.
        self._patient = aiohttp.ClientTimeout(
            total=None, sock_connect=timeouts.connect or None, sock_read=timeouts.idle or None
        )
        self._headers: dict[tuple[str, bool], dict[str, str]] = {}

    async def close(self) -> None:
        await self._session.close()

    async def send(self, provider: Provider, call: Call) -> Reply:
        began = time.perf_counter()
        url, body = provider.base_url + call.path, call.body
        with _Failures(began, provider.api_key) as exchange:

            async def read(response: Response) -> Reply:
                exchange.started = True
                whole, first_byte = await _whole(response, began)
                return _reply(response, whole, began, provider.api_key, first_byte if call.stream else None)

            if self._direct is not None and call.method == "POST" and body is not None and len(body) <= MAX_BODY_BYTES:
                if (line := self._lines.get((url, provider.name))) is None:
                    line = self._lines[url, provider.name] = request_head(url, self._headers_of(provider, call))
                return await self._direct.post(line, body, read)
            with contextlib.ExitStack() as files:
                data = _form(call, files) if call.form is not None else _content(body)
                headers = self._headers_of(provider, call)
                async with self._session.request(
                    call.method, url, data=data, headers=headers, allow_redirects=False
                ) as response:
                    return await read(response)

    async def upload(
        self,
        provider: Provider,
        path: str,
        fields: Mapping[str, str],
        file: Path,
        filename: str,
        on_progress: Callable[[int], None],
    ) -> Reply:
        """POST a form whose last field, `file`, streams from disk; `told` gets the bytes sent so far."""
        began = time.perf_counter()
        with _Told(file, on_progress) as content, _Failures(began, provider.api_key, ConnectionError) as exchange:
            form = aiohttp.FormData(fields)
            form.add_field("file", content, filename=filename, content_type="application/octet-stream")
            headers = self._headers_of(provider, Call("POST", path, form=()))
            async with self._session.post(
                provider.base_url + path, data=form, headers=headers, allow_redirects=False, timeout=self._patient
            ) as response:
                exchange.started = True
                body, _ = await _whole(response, began)
                return _reply(response, body, began, provider.api_key)

    async def download(self, provider: Provider, path: str, write: Callable[[bytes], object]) -> Reply:
        """GET a content of any size: a 2xx reply's goes to `write` piece by piece, another's is the reply's body."""
        began = time.perf_counter()
        with _Failures(began, provider.api_key, ConnectionError) as exchange:
            headers = self._headers_of(provider, Call("GET", path))
            async with self._session.get(
                provider.base_url + path, headers=headers, allow_redirects=False, timeout=self._patient
            ) as response:
                exchange.started = True
                if not 200 <= response.status < 300:
                    body, _ = await _whole(response, began)
                    return _reply(response, body, began, provider.api_key)
                async for part in response.content.iter_any():
                    write(part)
                return _reply(response, b"", began, provider.api_key)

    def _headers_of(self, provider: Provider, call: Call) -> dict[str, str]:
        is_json = call.form is None and call.body is not None
        headers = self._headers.get((provider.name, is_json))
        if headers is None:
            headers = {"User-Agent": "rowmill/0.1"}
            if is_json:
                headers["Content-Type"] = "application/json"
            if provider.api_key is not None:
                headers["Authorization"] = f"Bearer {provider.api_key}"
            self._headers[provider.name, is_json] = headers
        return headers


class _Failures:
    """Every way in which an exchange can fail, as a RequestError."""

    __slots__ = ("_began", "_key", "_of_system", "started")

    def __init__(self, began: float, key: str | None, of_system: type[OSError] = OSError) -> None:
        """`of_system`: which OSErrors are the connection's, and not those of a file read or written meanwhile."""
        self._began = began
        self._key = key
        self._of_system = of_system
        self.started = False
        """Whether a reply has begun."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: object) -> None:
        if exc is not None and (told := self._told(exc)) is not None:
            error_class, what, billable = told
            # Of what is no HTTP, aiohttp quotes a piece, whatever its bytes are.
            words = _hidden(what.encode(errors="backslashreplace"), self._key, MIN_SECRET_KEY_LENGTH).decode()
            raise RequestError(error_class, words, _since(self._began), billable) from exc

    def _told(self, exc: BaseException) -> tuple[ErrorClass, str, bool] | None:
        """(class, words, whether it may have been billed); None for what is no failure of an exchange."""
        match exc:
            case aiohttp.ConnectionTimeoutError():
                return "timeout", f"no connection in time: {_said(exc)}", False
            case TimeoutError():
                return "timeout", _timeout_words(exc, self.started), True
            case aiohttp.ClientConnectorError():
                return "connection", f"cannot connect: {_said(exc)}", False
            case aiohttp.http_exceptions.HttpProcessingError() if not self.started:
                return "malformed_reply", f"this is no HTTP reply: {exc.message}", True
            case aiohttp.ClientPayloadError() | aiohttp.http_exceptions.HttpProcessingError():
                return "malformed_reply", f"the reply broke off: {_said(exc)}", True
            case aiohttp.ClientResponseError():
                return "malformed_reply", f"this is no HTTP reply: {_said(exc)}", True
        if isinstance(exc, (aiohttp.ClientError, self._of_system)):
            return "connection", f"the connection broke: {_said(exc)}", True
        return None


Response = aiohttp.ClientResponse | ResponseHead


async def _whole(response: Response, began: float) -> tuple[bytes, float | None]:
    """(unpacked body, milliseconds until its first byte where it came in pieces); RequestError above LARGEST_REPLY."""
    length = response.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length) <= 1 << 20 and "content-encoding" not in response.headers:
        return await response.content.read(), _since(began)
    first_byte: float | None = None
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        if first_byte is None:
            first_byte = _since(began)
        parts.append(part)
        size += len(part)
        if size > MAX_REPLY_BYTES:
            # The error keeps this frame for a while: not what it holds.
            parts.clear()
            words = f"the reply is larger than {MAX_REPLY_BYTES >> 20} MB: not read further"
            raise RequestError("malformed_reply", words, _since(began), billable=True)
    return b"".join(parts), first_byte


class _Told(io.BufferedReader):
    """A file that tells how much of it has been read."""

    def __init__(self, file: Path, told: Callable[[int], None]) -> None:
        super().__init__(io.FileIO(file))
        self._tell_read = told
        self._so_far = 0

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        self._so_far += len(content)
        self._tell_read(self._so_far)
        return content


def _reply(
    response: Response, body: bytes, began: float, key: str | None, first_token_ms: float | None = None
) -> Reply:
    body = body.removeprefix(codecs.BOM_UTF8)
    headers = {name.lower(): value if value.isascii() else _text(value) for name, value in response.headers.items()}
    least = MIN_UNIQUE_KEY_LENGTH if 200 <= response.status < 300 else MIN_SECRET_KEY_LENGTH
    if key is not None and len(key) >= least:
        body = _hidden(body, key, least)
        if any(key in value for value in headers.values()):
            headers = {name: value.replace(key, KEY_PLACEHOLDER) for name, value in headers.items()}
    return Reply(response.status, headers, body, _since(began), first_token_ms)


def _text(value: str) -> str:
    """A header's value, whose bytes may be no UTF-8: then they came as lone surrogates, which no table takes."""
    return value.encode(errors="surrogateescape").decode(errors="replace")


def _hidden(told: bytes, key: str | None, least: int) -> bytes:
    """What a server says, without the key that it may have been careless enough to repeat."""
    if key is None or len(key) < least:
        return told
    for form in {key, key.replace("/", "\\/")}:
        if form.encode() in told:
            told = told.replace(form.encode(), KEY_PLACEHOLDER.encode())
    return told


def _content(value: bytes | None) -> bytes | io.BytesIO | None:
    """Large ones as a file, which aiohttp sends piece by piece instead of all at once, with a warning."""
    return io.BytesIO(value) if value is not None and len(value) > 1 << 20 else value


def _form(call: Call, files: contextlib.ExitStack) -> aiohttp.FormData:
    # Names such as `image[]` stand as they are. The type goes by the suffix: OpenAI refuses pictures without one.
    form = aiohttp.FormData(quote_fields=False, default_to_multipart=True)
    for name, value, filename in call.form or ():
        if filename is None:
            form.add_field(name, value)
        else:
            kind = TYPES.get(filename.rpartition(".")[2], "application/octet-stream")
            content: object = value
            if isinstance(value, Path):
                content = files.enter_context(value.open("rb"))
            elif isinstance(value, bytes):
                content = _content(value)
            form.add_field(name, content, filename=filename, content_type=kind)
    return form


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1000


def _said(exc: BaseException) -> str:
    return str(exc) or type(exc).__name__


def _timeout_words(exc: BaseException, started: bool) -> str:
    if isinstance(exc, aiohttp.SocketTimeoutError):
        return "the server went silent" + (" in the middle of its reply" if started else " before its reply began")
    return "no whole reply within the total time (timeouts.total)"
