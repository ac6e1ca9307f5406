"""A provider over a raw socket that can break HTTP anywhere; it records the requests that it receives."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.support.threaded_server import ThreadedServer

Body = dict[str, Any]
FaultyReply = Callable[["ReceivedRequest"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """A request that was read completely, and the connection for its reply."""

    body: Body
    headers: dict[str, str]
    writer: asyncio.StreamWriter

    @property
    def texts(self) -> list[str]:
        """The texts of the rows in it."""
        if "messages" in self.body:
            return [str(self.body["messages"][-1]["content"])]
        return list(self.body["input"])

    async def send(self, data: bytes) -> None:
        """Send exactly these bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def reply(
        self, content: bytes | Body, status: int = 200, kind: str = "application/json", **headers: str
    ) -> None:
        """Send a complete reply; its headers can be replaced, and an empty one is omitted."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        fields = {"Content-Type": kind, "Content-Length": str(len(data))}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in fields.items() if value)]
        await self.send("\r\n".join([*lines, "", ""]).encode() + data)

    def usual_reply(self) -> Body:
        """Return the usual reply: for chat the text in upper case, for embeddings vectors of two numbers."""
        if "messages" in self.body:
            message = {"role": "assistant", "content": self.texts[0].upper()}
            return {
                "id": "c", "object": "chat.completion", "created": 1, "model": "m",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
            }  # fmt: skip
        return self.vectors([[float(len(text)), 1.0] for text in self.texts])

    def vectors(self, vectors: list[list[float]], indexes: list[int] | None = None) -> Body:
        """Return an embeddings reply."""
        data = [
            {"index": index, "embedding": base64.b64encode(np.array(vector, "<f4").tobytes()).decode()}
            for index, vector in zip(indexes or range(len(vectors)), vectors, strict=True)
        ]
        return {"object": "list", "data": data, "model": "e", "usage": {"prompt_tokens": 10 * len(data)}}


class HostileServer(ThreadedServer):
    """A server that replies with `fault` to the requests that `hits` selects, and as usual to all others."""

    def __init__(self) -> None:
        self.received: list[ReceivedRequest] = []
        self.fault: FaultyReply | None = None
        self.hits: Callable[[ReceivedRequest, int], bool] = lambda request, count: False
        """(request, number of earlier requests) -> whether the fault hits it."""
        super().__init__()

    async def _run(self) -> None:
        open_tasks: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            open_tasks.add(task)
            try:
                await self._handle(reader, writer)
            except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
                # The client has gone, or does not speak HTTP.
                pass
            except asyncio.CancelledError:
                pass
            finally:
                open_tasks.discard(task)
                writer.transport.abort()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        await self._until_closed()
        server.close()
        for task in tuple(open_tasks):
            task.cancel()
        await asyncio.gather(*open_tasks, return_exceptions=True)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            start = await reader.readexactly(5)
            if start[:1] == b"\x16":
                # The start of TLS.
                await ReceivedRequest({}, {}, writer).reply(b"plain HTTP only", 400)
                return
            head = (start + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = json.loads(await reader.readexactly(int(headers["content-length"])))
            request = ReceivedRequest(body, headers, writer)
            count = len(self.received)
            self.received.append(request)
            if self.fault is not None and self.hits(request, count):
                await self.fault(request)
            else:
                await request.reply(request.usual_reply())
