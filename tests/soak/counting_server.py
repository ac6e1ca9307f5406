"""A provider that counts: each request by the number under which the ledger noted it, with what it was paid for it.

The launcher puts that number into the query of the address (`?note=…`). A request counts as seen when its last byte
has come, whatever becomes of its connection then: a server with a handler of its own might drop it unseen.
"""

import asyncio
import base64
import json
import re
import struct
import threading
from dataclasses import dataclass
from typing import Any

PRICE_IN, PRICE_OUT = 1_000_000, 2_000_000
"""Pico-dollars a token of chat; a token of embeddings costs as much as one in."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One request, and what its answer says of it."""

    note: int
    request_id: str
    texts: tuple[str, ...]
    tokens: tuple[int, int]

    @property
    def billed(self) -> int:
        """Pico-dollars."""
        return PRICE_IN * self.tokens[0] + PRICE_OUT * self.tokens[1]


class CountingServer:
    """Answers chat with the message in upper case, embeddings with the text's length three times."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.delivered: set[int] = set()
        """Notes of requests whose whole answer was written while the client was there."""
        self.connections = 0
        self.latency = 0.01
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve(ready)), daemon=True)
        self._thread.start()
        assert ready.wait(10)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self, ready: threading.Event) -> None:
        server = await self._loop.create_server(lambda: _Connection(self), "127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        ready.set()
        await self._stop.wait()
        server.close()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[Seen, bytes]:
        """Count a request; no two consecutive answers have the same tokens."""
        count = len(self.seen)
        # Undisturbed runs are counted together.
        named = re.search(r"\?note=(\d+)", path)
        note = 0 if named is None else int(named[1])
        name = f"req-{count}"
        given = 10 + count % 7
        if "messages" in body:
            text = body["messages"][-1]["content"]
            seen = Seen(note, name, (text,), (given, 1 + count % 11))
            result = _chat(text.upper(), body["model"], *seen.tokens)
        else:
            texts = tuple(body["input"] if isinstance(body["input"], list) else [body["input"]])
            seen = Seen(note, name, texts, (given * len(texts), 0))
            result = _vectors(texts, body["model"], given * len(texts))
        self.seen.append(seen)
        return seen, json.dumps(result).encode()


class _Connection(asyncio.Protocol):
    def __init__(self, server: CountingServer) -> None:
        self._server = server
        self._unread = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections -= 1

    def data_received(self, data: bytes) -> None:
        self._unread += data
        while True:
            head, found, rest = self._unread.partition(b"\r\n\r\n")
            if not found:
                return
            size = int(re.search(rb"(?i)content-length: *(\d+)", head)[1])  # type: ignore[index]
            if len(rest) < size:
                return
            self._unread = rest[size:]
            seen, body = self._server.answer(head.split(b" ", 2)[1].decode(), json.loads(rest[:size]))
            asyncio.get_running_loop().call_later(self._server.latency, self._tell, seen, body)

    def _tell(self, seen: Seen, body: bytes) -> None:
        if self._transport.is_closing():
            return
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nx-request-id: {seen.request_id}\r\n"
        self._transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        self._server.delivered.add(seen.note)


def _chat(content: str, model: str, given: int, made: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, "refusal": None}
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made},
    }  # fmt: skip


def _vectors(texts: tuple[str, ...], model: str, given: int) -> dict[str, Any]:
    vectors = [base64.b64encode(struct.pack("<3f", *[float(len(text))] * 3)).decode() for text in texts]
    return {
        "object": "list", "model": model, "usage": {"prompt_tokens": given, "total_tokens": given},
        "data": [{"object": "embedding", "index": n, "embedding": vector} for n, vector in enumerate(vectors)],
    }  # fmt: skip
