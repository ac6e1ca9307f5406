"""A small request over aiohttp's connections, parser and time-outs, without what its session makes around each one.

`ClientSession.request` costs some 80 µs of CPU, two thirds of it for redirects, cookies, traces and a task that writes
the body: none of them is used here, and they were a third of what a whole row costs. Its parts underneath are not a
public interface. So this way is taken only with releases that the tests have seen; with others all goes by the session.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import aiohttp
from yarl import URL

from connectors.records import record
from connectors.transport.shared_timeout import SharedTimeout

if TYPE_CHECKING:
    from aiohttp.client_proto import ResponseHandler
    from aiohttp.client_reqrep import ConnectionKey
    from aiohttp.connector import Connection
    from aiohttp.http_parser import RawResponseMessage
    from aiohttp.tracing import Trace

T = TypeVar("T")

SUPPORTED_RELEASES = ("3.14.",)
"""How the versions of aiohttp begin whose parts are known to fit."""
MAX_BODY_BYTES = 256 << 10
"""Bytes of a body: a larger one may take its time to be sent, which the session does not count as silence."""


@record
class ResponseHead:
    """A reply whose head has arrived."""

    status: int
    headers: Mapping[str, str]
    content: aiohttp.StreamReader


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What all requests to one address have in common."""

    request: aiohttp.ClientRequest
    """Tells the connector where to connect."""
    head: bytes
    """Up to the number of the body's bytes."""


class FastPost:
    """Sends bodies by POST over the connector of a session."""

    def __init__(self, connector: aiohttp.TCPConnector, timeout: aiohttp.ClientTimeout) -> None:
        self._connector = connector
        self._timeout = timeout
        self._total = SharedTimeout(timeout.total)

    @staticmethod
    def fits(version: str = aiohttp.__version__) -> bool:
        """Whether this release of aiohttp is one that was tried."""
        return version.startswith(SUPPORTED_RELEASES)

    async def post(self, line: RequestHead, body: bytes, read: Callable[[ResponseHead], Awaitable[T]]) -> T:
        """What `read` makes of the reply. Raises what a session raises; TimeoutError where the total time is over."""
        with self._total:
            try:
                connection = await self._connector.connect(line.request, [], self._timeout)
            except TimeoutError as exc:
                raise aiohttp.ConnectionTimeoutError(f"Connection timeout to host {line.request.url}") from exc
            protocol, transport = connection.protocol, connection.transport
            assert protocol is not None and transport is not None
            try:
                protocol.set_response_params(read_until_eof=True, read_timeout=self._timeout.sock_read)
                transport.write(b"%b%d\r\n\r\n%b" % (line.head, len(body), body))
                message, content = await _answer(protocol)
                while 100 <= message.code < 200 and message.code != 101:
                    message, content = await _answer(protocol)
                result = await read(ResponseHead(message.code, message.headers, content))
            except BaseException:
                connection.close()
                raise
            if transport.get_write_buffer_size():
                # Answered before the body was sent: the rest of it must not precede the next request.
                connection.close()
            else:
                connection.release()
            return result


class CleanConnector(aiohttp.TCPConnector):
    """Takes no connection again on which something came while it rested: it would answer the next request."""

    async def _get(self, key: "ConnectionKey", traces: "list[Trace]") -> "Connection | None":
        while (connection := await super()._get(key, traces)) is not None:
            protocol = connection.protocol
            if protocol is None or not protocol.should_close:
                return connection
            connection.close()
        return None


async def _answer(protocol: "ResponseHandler") -> "tuple[RawResponseMessage, aiohttp.StreamReader]":
    """The next head of a reply; silence before it is counted anew."""
    protocol.start_timeout()
    return await protocol.read()


def request_head(url: str, headers: Mapping[str, str]) -> RequestHead:
    """The line for POST to this address with these headers and those that the session would add."""
    where = URL(url)
    request = aiohttp.ClientRequest("POST", where, headers=headers, loop=asyncio.get_running_loop(), ssl=True)
    del request.headers["Content-Length"]
    head = [f"POST {where.raw_path_qs} HTTP/1.1", *(f"{name}: {value}" for name, value in request.headers.items())]
    return RequestHead(request, "\r\n".join([*head, "Content-Length: "]).encode())
