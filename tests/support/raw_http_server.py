"""A server that sends scripted bytes, valid HTTP or not."""

import asyncio


class RawHttpServer:
    """A server that answers each request with the next of its scripted byte strings; None closes the connection."""

    def __init__(self) -> None:
        self.answers: list[bytes | None] = []
        self.heads: list[bytes] = []
        self.connections = 0
        self.reads_bodies = True
        self.closes_after_last_answer = False
        self.has_request = asyncio.Event()
        self.writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> "RawHttpServer":
        self._server = await asyncio.start_server(self._serve_connection, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.base_url = f"http://{host}:{port}/v1"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        try:
            while self.answers:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                self.has_request.set()
                length = head.lower().partition(b"content-length:")[2].split()
                if self.reads_bodies and length:
                    await reader.readexactly(int(length[0]))
                answer = self.answers.pop(0)
                if answer is None:
                    return
                writer.write(answer)
                await writer.drain()
            if not self.closes_after_last_answer:
                await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
