"""HTTP client: sends requests to providers and turns every failure into a RequestError."""

import codecs
import contextlib
import io
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Concatenate, Literal, ParamSpec, Protocol, Self

import aiohttp
from msgspec import Struct
from msgspec.structs import replace

from connectors.contracts import KeyUnavailable, Provider
from connectors.error_classes import ErrorClass
from connectors.media.file_types import MEDIA_TYPES
from connectors.records import Call, Reply
from connectors.transport import fast_post
from connectors.transport.access.connection_faults import is_https_port, permanent_fault, refused_by_proxy
from connectors.transport.access.provider_access import ProviderAccess
from connectors.transport.access.secret_mask import SecretMask
from connectors.transport.access.tunnels import TunnelConnector, TunnelError
from connectors.transport.deadlines import Deadline, DeadlineExceeded, Deadlines
from connectors.transport.fast_post import CleanConnector, FastPost, ResponseHead, WholeReply
from connectors.transport.first_token import FirstToken
from connectors.transport.sse import is_event_stream, whole_json
from connectors.transport.tcp_keepalive import keepalive_socket

P = ParamSpec("P")

MAX_REPLY_BYTES = 128 << 20
"""Unpacked; reading a larger reply stops there."""
MAX_UNSTREAMED_BYTES = 1 << 20
"""aiohttp writes a larger body at once and warns, so it gets such a body as a file."""


class RequestTimeouts(Struct, frozen=True):
    """Seconds until a request fails; 0: never."""

    connect_s: float = 10
    idle_s: float = 60
    """Silence within a reply: after its first byte, or after the first token of a streamed one."""
    total_s: float = 600
    """The whole exchange; of the transfer of a file, the time without progress before the reply begins."""


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
        connector_type = CleanConnector if fast_post.is_enabled() else TunnelConnector
        connector = connector_type(limit=connections, ttl_dns_cache=300, socket_factory=keepalive_socket)
        # aiohttp's own deadlines would expire after a suspension before anything is read.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect_s or None, sock_read=None)
        self._session = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), timeout=timeout, auto_decompress=True
        )
        self._connector = connector
        self._fast_post = FastPost(connector, timeout) if isinstance(connector, CleanConnector) else None
        self._timeouts = timeouts
        self._deadlines = Deadlines(timeouts.total_s, timeouts.idle_s)
        self._accesses: dict[tuple[str, str], ProviderAccess] = {}
        """By name and address of the provider: the way to it with its present key."""

    def set_connections(self, connections: int) -> None:
        """Replace the maximum; more that are open by now stay open until their requests end."""
        # aiohttp has no public way, and reads it before it opens each connection.
        self._connector._limit = connections

    async def close(self) -> None:
        self._deadlines.close()
        await self._session.close()

    @property
    def uses_fast_post(self) -> bool:
        """Whether small requests skip the session."""
        return self._fast_post is not None

    async def send(self, provider: Provider, call: Call) -> Reply:
        return await self._with_access(provider, call.on_refused_key, self._send, call)

    def _send(self, access: ProviderAccess, call: Call) -> Awaitable[Reply]:
        body = call.body
        is_small = body is not None and len(body) <= fast_post.MAX_BODY_BYTES
        if self._fast_post is not None and access.proxy is None and is_small and call.method == "POST":
            return self._post(self._fast_post, access, call, body or b"")
        return self._send_by_session(access, call)

    async def _send_by_session(self, access: ProviderAccess, call: Call) -> Reply:
        started, body = time.perf_counter(), call.body
        with (
            _FailureMapper(started, access, self._timeouts) as exchange,
            self._deadlines.start() as deadline,
            contextlib.ExitStack() as files,
        ):
            data = _form(call, files) if call.form is not None else _content(body)
            async with self._request(
                access, call.method, call.path, data, is_json=call.form is None and body is not None
            ) as response:
                exchange.has_reply = True
                return await _read_reply(response, call, access, started, deadline)

    async def _post(self, fast_post: FastPost, access: ProviderAccess, call: Call, body: bytes) -> Reply:
        """Do the same for a small body, without the session."""
        started, has_reply = time.perf_counter(), False
        try:
            with self._deadlines.start() as deadline:
                connection, found = await fast_post.begin(access.head(call.path), body)
                has_reply = True
                try:
                    if isinstance(found, ResponseHead):
                        reply = await _read_reply(found, call, access, started, deadline)
                    else:
                        reply = _whole_reply(found, call, access, started)
                except BaseException:
                    connection.close()
                    raise
                fast_post.end(connection)
                return reply
        except BaseException as exc:
            _FailureMapper(started, access, self._timeouts, has_reply=has_reply).raise_mapped(exc)
            raise

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
        return await self._with_access(provider, "repeat", self._upload, path, fields, file, filename, on_progress)

    async def _upload(
        self,
        access: ProviderAccess,
        path: str,
        fields: Mapping[str, str],
        file: Path,
        filename: str,
        on_progress: Callable[[int], None],
    ) -> Reply:
        started = time.perf_counter()
        with (
            _FailureMapper(started, access, self._timeouts, ConnectionError) as exchange,
            self._deadlines.start() as deadline,
            _ProgressFile(file, on_progress, deadline) as content,
        ):
            form = aiohttp.FormData(fields)
            form.add_field("file", content, filename=filename, content_type="application/octet-stream")
            async with self._request(access, "POST", path, form) as response:
                exchange.has_reply = True
                body, _ = await _read_body(response, started, deadline)
                return _reply(response, body, started, access.mask)

    async def download(self, provider: Provider, path: str, write: Callable[[bytes], object]) -> Reply:
        """GET a content of any size: a 2xx body goes to `write` piece by piece, any other body is in the reply."""
        return await self._with_access(provider, "repeat", self._download, path, write)

    async def _download(self, access: ProviderAccess, path: str, write: Callable[[bytes], object]) -> Reply:
        started = time.perf_counter()
        with (
            _FailureMapper(started, access, self._timeouts, ConnectionError) as exchange,
            self._deadlines.start() as deadline,
        ):
            async with self._request(access, "GET", path) as response:
                exchange.has_reply = True
                if not 200 <= response.status < 300:
                    body, _ = await _read_body(response, started, deadline)
                    return _reply(response, body, started, access.mask)
                masked = access.mask.writer(write)
                async for part in response.content.iter_any():
                    # A file may take any time: only silence ends its transfer.
                    deadline.end_total()
                    deadline.restart_idle()
                    masked.write(part)
                masked.finish()
                return _reply(response, b"", started, access.mask)

    async def _with_access(
        self,
        provider: Provider,
        on_refused_key: Literal["repeat", "renew", "return"],
        exchange: Callable[Concatenate[ProviderAccess, P], Awaitable[Reply]],
        *arguments: P.args,
        **options: P.kwargs,
    ) -> Reply:
        """Return the reply of an exchange, which is repeated at most once; `on_refused_key`: see Call."""
        access = self._accesses.get((provider.name, provider.base_url))
        if access is None or provider.key_source is not None or access.key != provider.api_key:
            access = await self._access(provider)
        reply = await exchange(access, *arguments, **options)
        if reply.status < 400:
            return reply
        is_renewed = reply.status == 401 and provider.key_source is not None and access.key is not None
        if is_renewed and on_refused_key != "return":
            access = await self._access(provider, rejected=access.key)
            if on_refused_key == "renew":
                return replace(reply, is_key_renewed=True)
            reply = await exchange(access, *arguments, **options)
        message: str | None = None
        if reply.status == 407:
            message = refused_by_proxy(407, access)
        elif is_https_port(reply.status, reply.body):
            message = "the server speaks TLS at this address; write https:// in base_url"
        if message is not None:
            raise RequestError("setup", message, reply.latency_ms, is_billable=False)
        return reply

    async def _access(self, provider: Provider, rejected: str | None = None) -> ProviderAccess:
        """Return the way to a provider with its present key; `rejected`: the key to replace."""
        key, source = provider.api_key, provider.key_source
        if source is not None:
            started = time.perf_counter()
            try:
                key = await (source.current_key() if rejected is None else source.renewed_key(rejected))
            except KeyUnavailable as exc:
                message = f"the key cannot be renewed: {exc}"
                raise RequestError("access_denied", message, _elapsed_ms(started), is_billable=False) from exc
        known = self._accesses.get((provider.name, provider.base_url))
        if known is None or known.key != key:
            known = self._accesses[provider.name, provider.base_url] = ProviderAccess(provider, key)
        return known

    def _request(
        self, access: ProviderAccess, method: str, path: str, data: object = None, *, is_json: bool = False
    ) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Send a request through the session."""
        return self._session.request(
            method,
            access.url(path),
            data=data,
            headers=access.headers(is_json),
            allow_redirects=False,
            ssl=access.tls,
            proxy=access.proxy,
        )


class _FailureMapper:
    """A context manager that raises every failure of an exchange as a RequestError."""

    __slots__ = ("_access", "_connection_errors", "_started", "_timeouts", "has_reply")

    def __init__(
        self,
        started: float,
        access: ProviderAccess,
        timeouts: RequestTimeouts,
        connection_errors: type[OSError] = OSError,
        has_reply: bool = False,
    ) -> None:
        """`connection_errors`: OSErrors of the connection, as opposed to those of a file that is read or written."""
        self._started = started
        self._access = access
        self._timeouts = timeouts
        self._connection_errors = connection_errors
        self.has_reply = has_reply
        """Whether a reply has begun."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: object) -> None:
        if exc is not None:
            self.raise_mapped(exc)

    def raise_mapped(self, exc: BaseException) -> None:
        """Raise a failure of the exchange as a RequestError."""
        if (failure := self._classify(exc)) is not None:
            error_class, message, is_billable = failure
            # aiohttp quotes a piece of what is not HTTP, whatever its bytes are.
            message = self._access.mask.text(message)
            raise RequestError(error_class, message, _elapsed_ms(self._started), is_billable) from exc

    def _classify(self, exc: BaseException) -> tuple[ErrorClass, str, bool] | None:
        """Return (class, message, may have been billed); None if the exchange did not cause the exception."""
        text = str(exc) or type(exc).__name__
        if not self.has_reply and (fault := permanent_fault(exc, self._access)) is not None:
            return "setup", fault, False
        match exc:
            case aiohttp.ConnectionTimeoutError():
                seconds = f"{self._timeouts.connect_s:g} s"
                return (
                    "timeout",
                    f"no connection within {seconds}; raise timeouts.connect if the network is slow",
                    False,
                )
            case DeadlineExceeded(kind="idle"):
                seconds = f"{self._timeouts.idle_s:g} s"
                message = f"silence for {seconds} in the middle of the reply; raise timeouts.idle if the server pauses"
                return "timeout", message, True
            case DeadlineExceeded():
                what = "complete reply" if self.has_reply else "reply"
                seconds = f"{self._timeouts.total_s:g} s"
                return "timeout", f"no {what} within {seconds}; raise timeouts.total if the server needs longer", True
            case aiohttp.ClientHttpProxyError():
                return "connection", f"the proxy cannot reach the server (HTTP {exc.status})", False
            case aiohttp.ClientProxyConnectionError():
                return "connection", f"cannot connect to the proxy: {text}", False
            case TunnelError():
                return "connection", f"the proxy opened no tunnel: {text}", False
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


async def _read_reply(
    response: Response, call: Call, access: ProviderAccess, started: float, deadline: Deadline
) -> Reply:
    first_token = FirstToken() if call.stream else None
    content, first_token_ms = await _read_body(response, started, deadline, first_token)
    return _reply(response, content, started, access.mask, first_token_ms)


def _whole_reply(found: WholeReply, call: Call, access: ProviderAccess, started: float) -> Reply:
    """Return a usual reply that arrived in one piece."""
    has_token = call.stream and FirstToken().feed(found.body)
    first_token_ms = _elapsed_ms(started) if has_token else None
    return _masked_reply(200, found.headers, found.body, started, access.mask.answer, first_token_ms)


async def _read_body(
    response: Response, started: float, deadline: Deadline, first_token: FirstToken | None = None
) -> tuple[bytes, float | None]:
    """Return (unpacked body, milliseconds until the first token of a stream); RequestError above MAX_REPLY_BYTES.

    From the first byte, or the first token, silence ends the exchange. White space before it keeps a connection alive.
    """
    length = response.headers.get("content-length", "")
    is_small = length.isascii() and length.isdigit() and int(length) <= 1 << 20
    if is_small and response.content.is_eof() and "content-encoding" not in response.headers:
        body = await response.content.read()
        is_stream_with_token = first_token is not None and first_token.feed(body)
        return body, _elapsed_ms(started) if is_stream_with_token else None
    has_begun = False
    first_token_ms: float | None = None
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        if has_begun:
            deadline.restart_idle()
        elif first_token.feed(part) if first_token is not None else part.strip():
            has_begun = True
            first_token_ms = None if first_token is None else _elapsed_ms(started)
            deadline.restart_idle()
        parts.append(part)
        size += len(part)
        if size > MAX_REPLY_BYTES:
            # The error keeps this frame alive for a while; free the parts.
            parts.clear()
            message = f"the reply is larger than {MAX_REPLY_BYTES >> 20} MB: reading stopped"
            raise RequestError("malformed_reply", message, _elapsed_ms(started), is_billable=True)
    return b"".join(parts), first_token_ms


class _ProgressFile(io.BufferedReader):
    """A file that reports how many bytes have been read; with each of them the total time begins again."""

    def __init__(self, file: Path, on_progress: Callable[[int], None], deadline: Deadline) -> None:
        super().__init__(io.FileIO(file))
        self._on_progress = on_progress
        self._deadline = deadline
        self._read_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        self._read_bytes += len(content)
        self._deadline.restart_total()
        self._on_progress(self._read_bytes)
        return content


def _reply(
    response: Response, body: bytes, started: float, mask: SecretMask, first_token_ms: float | None = None
) -> Reply:
    headers = {
        name.lower(): value if value.isascii() else _valid_text(value) for name, value in response.headers.items()
    }
    masked = mask.answer if 200 <= response.status < 300 else mask.error
    return _masked_reply(response.status, headers, body, started, masked, first_token_ms)


def _masked_reply(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    started: float,
    masked: Callable[[bytes], bytes],
    first_token_ms: float | None,
) -> Reply:
    """Return the reply without secrets; `headers`: names in lower case."""
    body = masked(whole_json(body.removeprefix(codecs.BOM_UTF8)))
    # All at once: a reply has some twenty headers, and almost none of them repeats a secret.
    values = "\n".join(headers.values()).encode(errors="surrogatepass")
    if masked(values) is not values:
        headers = {name: _masked_text(value, masked) for name, value in headers.items()}
    mask = masked if is_event_stream(body) else None
    return Reply(status, headers, body, _elapsed_ms(started), first_token_ms, mask=mask)


def _valid_text(value: str) -> str:
    """Return a header's value as valid Unicode: bytes that are not UTF-8 arrive as lone surrogates."""
    return value.encode(errors="surrogateescape").decode(errors="replace")


def _masked_text(value: str, masked: Callable[[bytes], bytes]) -> str:
    content = value.encode(errors="surrogatepass")
    return value if (found := masked(content)) is content else found.decode(errors="surrogatepass")


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
