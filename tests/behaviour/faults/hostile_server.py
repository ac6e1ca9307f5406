"""A provider over a raw socket, which can break HTTP wherever it likes; it counts the requests that it has read."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.support.threaded_server import ThreadedServer

Body = dict[str, Any]
Answer = Callable[["Asked"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that has been read to its end, and the way back."""

    body: Body
    headers: dict[str, str]
    writer: asyncio.StreamWriter

    @property
    def texts(self) -> list[str]:
        """What it asks about."""
        if "messages" in self.body:
            return [str(self.body["messages"][-1]["content"])]
        return list(self.body["input"])

    async def send(self, data: bytes) -> None:
        """These very bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def reply(
        self, content: bytes | Body, status: int = 200, kind: str = "application/json", **headers: str
    ) -> None:
        """A whole reply; its headers can be replaced, an empty one is left out."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        told = {"Content-Type": kind, "Content-Length": str(len(data))}
        told |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in told.items() if value)]
        await self.send("\r\n".join([*lines, "", ""]).encode() + data)

    def usual(self) -> Body:
        """Chat: the text in upper case; embeddings: vectors of two numbers."""
        if "messages" in self.body:
            message = {"role": "assistant", "content": self.texts[0].upper()}
            return {
                "id": "c", "object": "chat.completion", "created": 1, "model": "m",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
            }  # fmt: skip
        return self.vectors([[float(len(text)), 1.0] for text in self.texts])

    def vectors(self, vectors: list[list[float]], indexes: list[int] | None = None) -> Body:
        """An embeddings reply."""
        data = [
            {"index": index, "embedding": base64.b64encode(np.array(vector, "<f4").tobytes()).decode()}
            for index, vector in zip(indexes or range(len(vectors)), vectors, strict=True)
        ]
        return {"object": "list", "data": data, "model": "e", "usage": {"prompt_tokens": 10 * len(data)}}


class RoughServer(ThreadedServer):
    """Answers as `fault` does where `hits` says so, as usual everywhere else."""

    def __init__(self) -> None:
        self.read: list[Asked] = []
        self.fault: Answer | None = None
        self.hits: Callable[[Asked, int], bool] = lambda asked, count: False
        """(request, how many came before it)"""
        super().__init__()

    async def _run(self) -> None:
        open_now: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            open_now.add(task)
            try:
                await self._talk(reader, writer)
            except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
                # The other side has gone, or speaks no HTTP.
                pass
            except asyncio.CancelledError:
                pass
            finally:
                open_now.discard(task)
                writer.transport.abort()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        await self._until_closed()
        server.close()
        for task in tuple(open_now):
            task.cancel()
        await asyncio.gather(*open_now, return_exceptions=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            start = await reader.readexactly(5)
            if start[:1] == b"\x16":
                # The beginning of TLS.
                await Asked({}, {}, writer).reply(b"plain HTTP only", 400)
                return
            head = (start + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = json.loads(await reader.readexactly(int(headers["content-length"])))
            asked = Asked(body, headers, writer)
            count = len(self.read)
            self.read.append(asked)
            if self.fault is not None and self.hits(asked, count):
                await self.fault(asked)
            else:
                await asked.reply(asked.usual())
