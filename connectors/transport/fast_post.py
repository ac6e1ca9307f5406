"""A POST of a small body over aiohttp's private parts, at a third of the CPU time that its session takes.

`ClientSession.request` costs some 80 µs of CPU time, two thirds of it for redirects, cookies, traces and a task that
writes the body. None of them is used here, and they were a third of the cost of a whole row. The connector, the parser
and the timeouts are aiohttp's own, but not public. `is_enabled` is the one place that decides: a release whose parts
the tests have not seen uses the session, and so does every release if the environment says `ROWMILL_FAST_POST=0`.
"""

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import aiohttp
from yarl import URL

from connectors.records import record

if TYPE_CHECKING:
    from aiohttp.client_reqrep import ConnectionKey
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

T = TypeVar("T")

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


@dataclass(frozen=True, slots=True)
class RequestHead:
    """The part that all requests to one URL share."""

    target: aiohttp.ClientRequest
    """Names the host for the connector."""
    head_bytes: bytes
    """Request line and headers up to the value of Content-Length, which is last."""


class FastPost:
    """POST requests over the connector of a session."""

    def __init__(self, connector: aiohttp.TCPConnector, timeout: aiohttp.ClientTimeout) -> None:
        self._connector = connector
        self._timeout = timeout

    async def post(self, head: RequestHead, body: bytes, read: Callable[[ResponseHead], Awaitable[T]]) -> T:
        """Send the body and return what `read` makes of the reply. Raises what a session raises."""
        try:
            connection = await self._connector.connect(head.target, [], self._timeout)
        except TimeoutError as exc:
            raise aiohttp.ConnectionTimeoutError(f"Connection timeout to host {head.target.url}") from exc
        protocol, transport = connection.protocol, connection.transport
        assert protocol is not None and transport is not None
        try:
            protocol.set_response_params(read_until_eof=True)
            transport.write(b"%b%d\r\n\r\n%b" % (head.head_bytes, len(body), body))
            message, content = await protocol.read()
            while 100 <= message.code < 200 and message.code != 101:
                message, content = await protocol.read()
            result = await read(ResponseHead(message.code, message.headers, content))
        except BaseException:
            connection.close()
            raise
        if transport.get_write_buffer_size():
            # Answered before the body was sent: its rest must not precede the next request.
            connection.close()
        else:
            connection.release()
        return result


class CleanConnector(aiohttp.TCPConnector):
    """A connector that drops an idle connection on which bytes have arrived: they would answer the next request."""

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
    return RequestHead(target, "\r\n".join([*lines, "Content-Length: "]).encode())
