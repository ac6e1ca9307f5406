"""An HTTP proxy of a test: it passes every connection on to one server, whatever host is asked for."""

import asyncio
import base64
import contextlib
from urllib.parse import urlsplit

from tests.support.threaded_server import ThreadedServer


class ProxyServer(ThreadedServer):
    """Passes plain requests and CONNECT tunnels on to `target`; `credentials` (user:password) are required if set."""

    def __init__(self, target: str, credentials: str | None = None, refusal: int | None = None) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname, parts.port)
        self._credentials = credentials
        self._refusal = refusal
        self._connections: set[asyncio.Task[None]] = set()
        self.requests: list[str] = []
        """The request lines."""
        super().__init__()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _run(self) -> None:
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        await self._until_closed()
        server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            # The client has gone.
            return
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        line, _, rest = head.partition(b"\r\n")
        self.requests.append(line.decode())
        if (status := self._refused(rest)) is not None:
            writer.write(b"HTTP/1.1 %d Refused\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status)
            await writer.drain()
        else:
            await self._pass_on(line, rest, reader, writer)

    def _refused(self, headers: bytes) -> int | None:
        if self._refusal is not None:
            return self._refusal
        if self._credentials is None:
            return None
        wanted = b"proxy-authorization: basic " + base64.b64encode(self._credentials.encode()).lower()
        return None if wanted in headers.lower() else 407

    async def _pass_on(
        self, line: bytes, rest: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(*self._target)
        method, url, version = line.split(b" ")
        if method == b"CONNECT":
            writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        else:
            parts = urlsplit(url.decode())
            path = parts.path + (f"?{parts.query}" if parts.query else "")
            headers = [each for each in rest.split(b"\r\n") if not each.lower().startswith((b"proxy-", b"connection:"))]
            # One request a connection: the next one would have its own target.
            headers[:0] = [b"%b %b %b" % (method, path.encode(), version), b"Connection: close"]
            inner_writer.write(b"\r\n".join(headers))
        try:
            await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))
        finally:
            inner_writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
        else:
            writer.close()
