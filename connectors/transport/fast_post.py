"""A POST of a small body over aiohttp's private parts, at a third of the CPU time that its session takes.

`ClientSession.request` costs some 80 µs of CPU time, two thirds of it for redirects, cookies, traces and a task that
writes the body. None of them is used here, and they were a third of the cost of a whole row. The connector, the parser
and the timeouts are aiohttp's own, but not public. `is_enabled` is the one place that decides: a release whose parts
the tests have not seen uses the session, and so does every release if the environment says `ROWMILL_FAST_POST=0`.
"""

import asyncio
import os
import ssl
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from yarl import URL

from connectors.records import record

if TYPE_CHECKING:
    from aiohttp.client_reqrep import ConnectionKey
    from aiohttp.tracing import Trace

SUPPORTED_RELEASES = ("3.14.",)
"""Prefixes of the aiohttp versions whose private parts the tests have seen."""
SWITCH = "ROWMILL_FAST_POST"
"""Environment variable: `0` sends every request through aiohttp's session."""
MAX_BODY_BYTES = 256 << 10
"""A larger body may take long to send, which the session does not count as silence."""


def is_enabled(release: str = aiohttp.__version__) -> bool:
    """Whether small requests skip the session: a supported release, and not switched off."""
    return os.environ.get(SWITCH) != "0" and release.startswith(SUPPORTED_RELEASES)


@record
class ResponseHead:
    """A reply's status and headers, with the stream of its body."""

    status: int
    headers: Mapping[str, str]
    content: aiohttp.StreamReader
    is_packed: bool = False
    """Whether its body arrives in a content encoding."""

    def whole_body(self) -> bytes | None:
        """Return the body if all of it has arrived, as that of a usual reply has; None: read `content`."""
        content = self.content
        if self.is_packed or type(content) is not aiohttp.StreamReader or not content.is_eof() or content.exception():
            return None
        if content._size > content._low_water:
            # Reading from the connection may be paused, and goes on only when `content` is read.
            return None
        parts, content._buffer = content._buffer, deque()
        content._size = 0
        return parts[0] if len(parts) == 1 else b"".join(parts)


@dataclass(frozen=True, slots=True)
class RequestHead:
    """The part that all requests to one URL share."""

    target: aiohttp.ClientRequest
    """Names the host for the connector."""
    key: "ConnectionKey"
    """Names it for connections that are open."""
    head_bytes: bytes
    """Request line and headers up to the value of Content-Length, which is last."""


class PostProtocol(ResponseHandler):
    """The protocol of a connection, with one parser for all replies to POST requests.

    A connection on which bytes arrive that no request waits for is used no more: they would answer the next one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._is_prepared = False
        self.is_idle = False

    def prepare(self) -> None:
        """Expect the reply to a POST request."""
        self.is_idle = False
        if not self._is_prepared:
            super().set_response_params(read_until_eof=True)
            self._is_prepared = True

    def set_response_params(self, **params: Any) -> None:
        """Expect the reply to a request of the session."""
        self._is_prepared = self.is_idle = False
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        if self.is_idle and data:
            self.force_close()
        super().data_received(data)


class FastPost:
    """POST requests over the connector of a session."""

    def __init__(self, connector: "CleanConnector", timeout: aiohttp.ClientTimeout) -> None:
        self._connector = connector
        self._timeout = timeout

    async def begin(self, head: RequestHead, body: bytes) -> "tuple[Connection, ResponseHead]":
        """Send the body; return the head of the reply, and the connection to be ended by `end` or closed.

        Raises what a session raises.
        """
        connection = self._connector.idle_connection(head.key)
        if connection is None:
            try:
                connection = await self._connector.connect(head.target, [], self._timeout)
            except TimeoutError as exc:
                raise aiohttp.ConnectionTimeoutError(f"Connection timeout to host {head.target.url}") from exc
        protocol, transport = connection.protocol, connection.transport
        assert isinstance(protocol, PostProtocol) and transport is not None
        try:
            protocol.prepare()
            transport.write(b"%b%d\r\n\r\n%b" % (head.head_bytes, len(body), body))
            message, content = await protocol.read()
            while 100 <= message.code < 200 and message.code != 101:
                message, content = await protocol.read()
        except BaseException:
            connection.close()
            raise
        return connection, ResponseHead(message.code, message.headers, content, message.compression is not None)

    def end(self, connection: "Connection") -> None:
        """Keep the connection for the next request, now that the reply is read."""
        protocol, transport = connection.protocol, connection.transport
        if transport is None or transport.get_write_buffer_size():
            # Answered before the body was sent: its rest must not precede the next request.
            connection.close()
            return
        assert isinstance(protocol, PostProtocol)
        protocol.is_idle = True
        connection.release()


class CleanConnector(aiohttp.TCPConnector):
    """A connector that drops an idle connection on which bytes have arrived: they would answer the next request."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        protocol: type[ResponseHandler] = PostProtocol
        self._factory = partial(protocol, loop=self._loop)

    def idle_connection(self, key: "ConnectionKey") -> "Connection | None":
        """Return a connection that waits for a request, as `connect` does; None: `connect` opens one."""
        idle, oldest = self._conns.get(key), time.monotonic() - (self._keepalive_timeout or 0.0)
        while idle:
            protocol, since = idle.popleft()
            if protocol.is_connected() and not protocol.should_close and since >= oldest:
                self._acquired.add(protocol)
                found = Connection(self, key, protocol, self._loop)
            else:
                found = None
                protocol.close()
            if not idle:
                del self._conns[key]
            if found is not None:
                return found
        return None

    async def _get(self, key: "ConnectionKey", traces: "list[Trace]") -> "Connection | None":
        while (connection := await super()._get(key, traces)) is not None:
            protocol = connection.protocol
            if protocol is None or not protocol.should_close:
                return connection
            connection.close()
        return None


def request_head(url: str, headers: Mapping[str, str], tls: ssl.SSLContext | bool = True) -> RequestHead:
    """Return the head of POST requests to this URL, with these headers and those that a session adds."""
    where = URL(url)
    target = aiohttp.ClientRequest("POST", where, headers=headers, loop=asyncio.get_running_loop(), ssl=tls)
    del target.headers["Content-Length"]
    lines = [f"POST {where.raw_path_qs} HTTP/1.1", *(f"{name}: {value}" for name, value in target.headers.items())]
    return RequestHead(target, target.connection_key, "\r\n".join([*lines, "Content-Length: "]).encode())
