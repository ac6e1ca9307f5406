"""HTTP client: sends requests to providers and turns every failure into a RequestError."""

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
from connectors.media.file_types import MEDIA_TYPES
from connectors.records import Call, ErrorClass, Reply
from connectors.transport import fast_post
from connectors.transport.fast_post import CleanConnector, FastPost, RequestHead, ResponseHead, request_head

MAX_REPLY_BYTES = 128 << 20
"""Unpacked; reading a larger reply stops there."""
MAX_UNSTREAMED_BYTES = 1 << 20
"""aiohttp writes a larger body at once and warns, so it gets such a body as a file."""

KEY_PLACEHOLDER = "[the key]"
MIN_SECRET_KEY_LENGTH = 6
"""Characters: a shorter key is no secret (`EMPTY`, `none`) and may be a word of an error message."""
MIN_UNIQUE_KEY_LENGTH = 20
"""Characters of a key that no answer contains by chance; in answers only such a key is replaced."""


@dataclass(frozen=True, slots=True)
class RequestTimeouts:
    """Seconds until a request fails; 0: never."""

    connect_s: float = 10
    idle_s: float = 60
    """Without a byte from the server."""
    total_s: float = 600


class RequestError(Exception):
    """A request without a complete reply."""

    def __init__(self, error_class: ErrorClass, message: str, latency_ms: float, is_billable: bool) -> None:
        """`is_billable`: the server may have done, and billed, its work all the same."""
        super().__init__(message)
        self.error_class: ErrorClass = error_class
        self.latency_ms = latency_ms
        self.is_billable = is_billable


class Transport(Protocol):
    """The seam through which every request is sent and every test feeds its replies."""

    async def send(self, provider: Provider, call: Call) -> Reply:
        """Return the complete reply, whatever its status; raise RequestError if none arrives."""

    async def close(self) -> None:
        """Close the connections."""


class HttpTransport:
    """Transport over aiohttp: a key goes only to its provider's host, and redirects are not followed."""

    def __init__(self, timeouts: RequestTimeouts, connections: int) -> None:
        """`connections`: the maximum; as many as requests may be in flight."""
        self.uses_fast_post = fast_post.is_enabled()
        connector_type = CleanConnector if self.uses_fast_post else aiohttp.TCPConnector
        connector = connector_type(limit=connections, ttl_dns_cache=300)
        connect, idle = timeouts.connect_s or None, timeouts.idle_s or None
        timeout = aiohttp.ClientTimeout(total=timeouts.total_s or None, sock_connect=connect, sock_read=idle)
        self._session = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), timeout=timeout, auto_decompress=True
        )
        self._fast_post = FastPost(connector, timeout)
        self._heads: dict[tuple[str, str], RequestHead] = {}
        # A file may take any time: only silence ends its transfer.
        self._file_timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect, sock_read=idle)
        self._headers: dict[tuple[str, bool], dict[str, str]] = {}

    async def close(self) -> None:
        await self._session.close()

    async def send(self, provider: Provider, call: Call) -> Reply:
        started = time.perf_counter()
        url, body = provider.base_url + call.path, call.body
        with _FailureMapper(started, provider.api_key) as exchange:

            async def read(response: Response) -> Reply:
                exchange.has_reply = True
                content, first_byte_ms = await _read_body(response, started)
                return _reply(response, content, started, provider.api_key, first_byte_ms if call.stream else None)

            is_small = body is not None and len(body) <= fast_post.MAX_BODY_BYTES
            if self.uses_fast_post and call.method == "POST" and body is not None and is_small:
                if (head := self._heads.get((url, provider.name))) is None:
                    head = self._heads[url, provider.name] = request_head(url, self._headers_of(provider, call))
                return await self._fast_post.post(head, body, read)
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
        """POST a form whose last field, `file`, streams from disk; `on_progress` gets the bytes sent so far."""
        started = time.perf_counter()
        with (
            _ProgressFile(file, on_progress) as content,
            _FailureMapper(started, provider.api_key, ConnectionError) as exchange,
        ):
            form = aiohttp.FormData(fields)
            form.add_field("file", content, filename=filename, content_type="application/octet-stream")
            headers = self._headers_of(provider, Call("POST", path, form=()))
            async with self._session.post(
                provider.base_url + path, data=form, headers=headers, allow_redirects=False, timeout=self._file_timeout
            ) as response:
                exchange.has_reply = True
                body, _ = await _read_body(response, started)
                return _reply(response, body, started, provider.api_key)

    async def download(self, provider: Provider, path: str, write: Callable[[bytes], object]) -> Reply:
        """GET a content of any size: a 2xx body goes to `write` piece by piece, any other body is in the reply."""
        started = time.perf_counter()
        with _FailureMapper(started, provider.api_key, ConnectionError) as exchange:
            headers = self._headers_of(provider, Call("GET", path))
            async with self._session.get(
                provider.base_url + path, headers=headers, allow_redirects=False, timeout=self._file_timeout
            ) as response:
                exchange.has_reply = True
                if not 200 <= response.status < 300:
                    body, _ = await _read_body(response, started)
                    return _reply(response, body, started, provider.api_key)
                async for part in response.content.iter_any():
                    write(part)
                return _reply(response, b"", started, provider.api_key)

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


class _FailureMapper:
    """A context manager that raises every failure of an exchange as a RequestError."""

    __slots__ = ("_api_key", "_connection_errors", "_started", "has_reply")

    def __init__(self, started: float, api_key: str | None, connection_errors: type[OSError] = OSError) -> None:
        """`connection_errors`: OSErrors of the connection, as opposed to those of a file that is read or written."""
        self._started = started
        self._api_key = api_key
        self._connection_errors = connection_errors
        self.has_reply = False
        """Whether a reply has begun."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: object) -> None:
        if exc is not None and (failure := self._classify(exc)) is not None:
            error_class, message, is_billable = failure
            # aiohttp quotes a piece of what is not HTTP, whatever its bytes are.
            message = _without_key(
                message.encode(errors="backslashreplace"), self._api_key, MIN_SECRET_KEY_LENGTH
            ).decode()
            raise RequestError(error_class, message, _elapsed_ms(self._started), is_billable) from exc

    def _classify(self, exc: BaseException) -> tuple[ErrorClass, str, bool] | None:
        """Return (class, message, may have been billed); None if the exchange did not cause the exception."""
        text = str(exc) or type(exc).__name__
        match exc:
            case aiohttp.ConnectionTimeoutError():
                return "timeout", f"no connection in time: {text}", False
            case aiohttp.SocketTimeoutError():
                when = "in the middle of its reply" if self.has_reply else "before its reply began"
                return "timeout", f"the server went silent {when}", True
            case TimeoutError():
                return "timeout", "no complete reply within the total time (timeouts.total)", True
            case aiohttp.ClientConnectorError():
                return "connection", f"cannot connect: {text}", False
            case aiohttp.http_exceptions.HttpProcessingError() if not self.has_reply:
                return "malformed_reply", f"not an HTTP reply: {exc.message}", True
            case aiohttp.ClientPayloadError() | aiohttp.http_exceptions.HttpProcessingError():
                return "malformed_reply", f"the reply was cut off: {text}", True
            case aiohttp.ClientResponseError():
                return "malformed_reply", f"not an HTTP reply: {text}", True
        if isinstance(exc, (aiohttp.ClientError, self._connection_errors)):
            return "connection", f"the connection broke: {text}", True
        return None


Response = aiohttp.ClientResponse | ResponseHead


async def _read_body(response: Response, started: float) -> tuple[bytes, float | None]:
    """Return (unpacked body, milliseconds until its first byte); RequestError above MAX_REPLY_BYTES."""
    length = response.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length) <= 1 << 20 and "content-encoding" not in response.headers:
        return await response.content.read(), _elapsed_ms(started)
    first_byte_ms: float | None = None
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        if first_byte_ms is None:
            first_byte_ms = _elapsed_ms(started)
        parts.append(part)
        size += len(part)
        if size > MAX_REPLY_BYTES:
            # The error keeps this frame alive for a while; free the parts.
            parts.clear()
            message = f"the reply is larger than {MAX_REPLY_BYTES >> 20} MB: reading stopped"
            raise RequestError("malformed_reply", message, _elapsed_ms(started), is_billable=True)
    return b"".join(parts), first_byte_ms


class _ProgressFile(io.BufferedReader):
    """A file that reports how many bytes have been read."""

    def __init__(self, file: Path, on_progress: Callable[[int], None]) -> None:
        super().__init__(io.FileIO(file))
        self._on_progress = on_progress
        self._read_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        self._read_bytes += len(content)
        self._on_progress(self._read_bytes)
        return content


def _reply(
    response: Response, body: bytes, started: float, api_key: str | None, first_token_ms: float | None = None
) -> Reply:
    body = body.removeprefix(codecs.BOM_UTF8)
    headers = {
        name.lower(): value if value.isascii() else _valid_text(value) for name, value in response.headers.items()
    }
    min_length = MIN_UNIQUE_KEY_LENGTH if 200 <= response.status < 300 else MIN_SECRET_KEY_LENGTH
    if api_key is not None and len(api_key) >= min_length:
        body = _without_key(body, api_key, min_length)
        if any(api_key in value for value in headers.values()):
            headers = {name: value.replace(api_key, KEY_PLACEHOLDER) for name, value in headers.items()}
    return Reply(response.status, headers, body, _elapsed_ms(started), first_token_ms)


def _valid_text(value: str) -> str:
    """Return a header's value as valid Unicode: bytes that are not UTF-8 arrive as lone surrogates."""
    return value.encode(errors="surrogateescape").decode(errors="replace")


def _without_key(content: bytes, api_key: str | None, min_length: int) -> bytes:
    """Replace a key that a careless server repeats."""
    if api_key is None or len(api_key) < min_length:
        return content
    for form in {api_key, api_key.replace("/", "\\/")}:
        if form.encode() in content:
            content = content.replace(form.encode(), KEY_PLACEHOLDER.encode())
    return content


def _content(value: bytes | None) -> bytes | io.BytesIO | None:
    return io.BytesIO(value) if value is not None and len(value) > MAX_UNSTREAMED_BYTES else value


def _form(call: Call, files: contextlib.ExitStack) -> aiohttp.FormData:
    # Names such as `image[]` are sent unquoted. The suffix gives the type: OpenAI refuses pictures without one.
    form = aiohttp.FormData(quote_fields=False, default_to_multipart=True)
    for name, value, filename in call.form or ():
        if filename is None:
            form.add_field(name, value)
        else:
            kind = MEDIA_TYPES.get(filename.rpartition(".")[2], "application/octet-stream")
            content: object = value
            if isinstance(value, Path):
                content = files.enter_context(value.open("rb"))
            elif isinstance(value, bytes):
                content = _content(value)
            form.add_field(name, content, filename=filename, content_type=kind)
    return form


def _elapsed_ms(started: float) -> float:
    return (time.perf_counter() - started) * 1000
