"""A POST of a small body over aiohttp's private parts, at a fifth of the CPU time that its session takes.

A session spends most of it on redirects, cookies, traces, a task that writes the body, and a parser of replies that
arrive in pieces. A usual reply is read here as it arrives; any other by aiohttp's parser. The connector, the parser
and the timeouts are aiohttp's own, but not public. `is_enabled` is the one place that decides: a release whose parts
the tests have not seen uses the session, and so does every release if the environment says `ROWMILL_FAST_POST=0`.
"""

import asyncio
import os
import re
import ssl
import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from msgspec import Struct
from yarl import URL

from connectors.transport.access.tunnels import TunnelConnector

if TYPE_CHECKING:
    from aiohttp.client_reqrep import ConnectionKey
    from aiohttp.tracing import Trace

SUPPORTED_RELEASES = ("3.14.",)
"""Prefixes of the aiohttp versions whose private parts the tests have seen."""
SWITCH = "ROWMILL_FAST_POST"
"""Environment variable: `0` sends every request through aiohttp's session."""
MAX_BODY_BYTES = 256 << 10
"""A larger body may take long to send, which the session does not count as silence."""
MAX_HEAD_BYTES = 4 << 10
"""A longer head of a reply is left to aiohttp's parser, with its limits."""

_USUAL_HEAD = re.compile(r"HTTP/1\.1 200(?: [ -~]*)?(?:\r\n[A-Za-z0-9_-]+:[ -~]*)+")
_UNUSUAL_HEADERS = frozenset({"content-encoding", "transfer-encoding", "upgrade"})
"""Headers that say more of the body than its length."""


def is_enabled(release: str = aiohttp.__version__) -> bool:
    """Whether small requests skip the session: a supported release, and not switched off."""
    return os.environ.get(SWITCH) != "0" and release.startswith(SUPPORTED_RELEASES)


class WholeReply(Struct, frozen=True):
    """A usual reply that arrived in one piece."""

    headers: Mapping[str, str]
    """Names in lower case, each once; ASCII."""
    body: bytes


def whole_reply(received: bytes) -> WholeReply | None:
    """Return the 200 reply that these bytes are, with nothing behind it; None: aiohttp's parser must read them.

    The parser takes three times as long, since it expects replies in pieces, of any form.
    """
    end = received.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
    if end < 0 or not (head := received[:end]).isascii():
        return None
    text = head.decode("ascii")
    if _USUAL_HEAD.fullmatch(text) is None:
        return None
    lines = text.split("\r\n")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip(" ")
    length = headers.get("content-length", "")
    if not length.isdigit() or int(length) != len(received) - end - 4:
        return None
    # A header that is repeated may contradict itself.
    if len(headers) != len(lines) - 1 or not _UNUSUAL_HEADERS.isdisjoint(headers):
        return None
    if "connection" in headers and headers["connection"].lower() != "keep-alive":
        return None
    return WholeReply(headers, received[end + 4 :])


class ResponseHead(Struct, frozen=True):
    """A reply's status and headers, with the stream of its body."""

    status: int
    headers: Mapping[str, str]
    content: aiohttp.StreamReader


class RequestHead(Struct, frozen=True):
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
        self._arrival: asyncio.Future[WholeReply | None] | None = None

    def expect_reply(self) -> "asyncio.Future[WholeReply | None]":
        """Expect the reply to a POST request; return it once it arrives in one piece, as usual.

        None: `read` returns the reply in pieces, or raises why there is none.
        """
        self.is_idle = False
        if not self._is_prepared:
            super().set_response_params(read_until_eof=True)
            self._is_prepared = True
        arrival: asyncio.Future[WholeReply | None] = self._loop.create_future()
        self._arrival = arrival
        return arrival

    def set_response_params(self, **params: Any) -> None:
        """Expect the reply to a request of the session."""
        self._is_prepared = self.is_idle = False
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        if self.is_idle and data:
            self.force_close()
        if self._arrival is not None and (reply := whole_reply(data)) is not None:
            self._end_arrival(reply)
            return
        super().data_received(data)
        self._end_arrival(None)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._end_arrival(None)

    def _end_arrival(self, reply: WholeReply | None) -> None:
        arrival, self._arrival = self._arrival, None
        if arrival is not None and not arrival.done():
            arrival.set_result(reply)


class FastPost:
    """POST requests over the connector of a session."""

    def __init__(self, connector: "CleanConnector", timeout: aiohttp.ClientTimeout) -> None:
        self._connector = connector
        self._timeout = timeout

    async def begin(self, head: RequestHead, body: bytes) -> "tuple[Connection, WholeReply | ResponseHead]":
        """Send the body; return the reply or its head, and the connection to be ended by `end` or closed.

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
            arrival = protocol.expect_reply()
            transport.write(b"%b%d\r\n\r\n%b" % (head.head_bytes, len(body), body))
            if (reply := await arrival) is not None:
                return connection, reply
            message, content = await protocol.read()
            while 100 <= message.code < 200 and message.code != 101:
                message, content = await protocol.read()
        except BaseException:
            connection.close()
            raise
        return connection, ResponseHead(message.code, message.headers, content)

    def end(self, connection: "Connection") -> None:
        """Keep the connection for the next request, now that the reply is read."""
        protocol, transport = connection.protocol, connection.transport
        if transport is None or transport.get_write_buffer_size():
            # Answered before the body was sent: its rest must not precede the next request.
            connection.close()
            return
        assert isinstance(protocol, PostProtocol)
        protocol.is_idle = True
        self._connector.keep(connection)


class CleanConnector(TunnelConnector):
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

    def keep(self, connection: "Connection") -> None:
        """Let a connection wait for the next request, as its `release` does."""
        protocol = connection._protocol
        if self._waiters or self._closed or self._cleanup_handle is None or protocol is None or protocol.should_close:
            connection.release()
            return
        connection._protocol = None
        self._acquired.discard(protocol)
        self._conns[connection._key].append((protocol, time.monotonic()))

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
