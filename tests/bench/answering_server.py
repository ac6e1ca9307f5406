"""A server that answers at once (or after a latency) with as little work as Python can do: the target of benchmarks.

    python tests/bench/answering_server.py PORT LATENCY_MS [HOSTILE_SHARE]

Chat gets a fixed answer, typed chat (a response_format in the body) a JSON answer of ten fields; embeddings get vectors
of 1,536 float32 in base64; pictures get one of 1.5 MB, recordings a text. Packs get the first characters of each item:
HOSTILE_SHARE of these is dropped, repeated or renamed, and as many replies are reordered, cut or refused. Written on
asyncio.Protocol: it shares no code with the embedded provider.
"""

import asyncio
import base64
import random
import struct
import sys
import zlib
from array import array

import orjson
import uvloop

TYPED = {
    "sentiment": "positive",
    "score": 0.9,
    "stars": 5,
    "topics": ["food", "service"],
    "place": {"city": "Berlin", "country": "DE"},
    "price": "fair",
    "recommended": True,
    "language": "en",
    "summary": "A short summary of what was said.",
    "people": [{"name": "Ada", "role": "waiter"}],
}
DIMENSIONS = 1536


def whole(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nx-request-id: r-1\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


def chat(content: str) -> bytes:
    return whole(
        orjson.dumps(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1700000000,
                "model": "gpt-4o-mini",
                "choices": [
                    {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
                ],
                "usage": {"prompt_tokens": 60, "completion_tokens": 20, "total_tokens": 80},
            }
        )
    )


CHAT = chat("This is a short answer of a usual length, made of some twenty tokens or so.")
TYPED_CHAT = chat(orjson.dumps(TYPED).decode())
HEARD = whole(orjson.dumps({"text": "What was said.", "usage": {"type": "duration", "seconds": 60}}))
EMBEDDINGS: dict[tuple[int, int], bytes] = {}


def embeddings(count: int, dimensions: int) -> bytes:
    """So many vectors of numbers between -1 and 1, made once."""
    if (count, dimensions) not in EMBEDDINGS:
        dice = random.Random(1)
        vectors = [
            base64.b64encode(array("f", (dice.uniform(-1, 1) for _ in range(dimensions))).tobytes()) for _ in range(8)
        ]
        data = [
            b'{"object":"embedding","index":%d,"embedding":"%s"}' % (place, vectors[place % 8])
            for place in range(count)
        ]
        usage = b'"usage":{"prompt_tokens":%d,"total_tokens":%d}' % (count * 12, count * 12)
        body = b'{"object":"list","model":"text-embedding-3-small","data":[' + b",".join(data) + b"]," + usage + b"}"
        EMBEDDINGS[count, dimensions] = whole(body)
    return EMBEDDINGS[count, dimensions]


def picture() -> bytes:
    """The reply with a PNG of noise, which nothing makes smaller."""
    side = 700
    noise = random.Random(1).randbytes(side * (side * 3 + 1))
    rows = b"".join(b"\0" + noise[start : start + side * 3] for start in range(0, side * side * 3, side * 3))

    def block(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = block(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + head + block(b"IDAT", zlib.compress(rows, 1)) + block(b"IEND", b"")
    usage = {"input_tokens": 10, "output_tokens": 272, "total_tokens": 282}
    return whole(
        orjson.dumps({"created": 1700000000, "data": [{"b64_json": base64.b64encode(png).decode()}], "usage": usage})
    )


ITEM_CHARACTERS = 20
"""Of an item, that its answer repeats."""
DICE = random.Random(1)


def packed(body: bytes, hostile_share: float) -> bytes:
    """An answer to each line of a packed request, as wrong as the share says."""
    lines = orjson.loads(body)["messages"][-1]["content"].splitlines()
    items = [orjson.loads(line) for line in lines if line.startswith('{"id"')]
    made = [{"id": item["id"], "answer": item["content"][:ITEM_CHARACTERS]} for item in items]
    if not hostile_share:
        return chat(orjson.dumps({"answers": made}).decode())
    answered: list[dict[str, str]] = []
    for item in made:
        dice = DICE.random() / hostile_share
        if dice < 1:
            continue
        answered += [item] * (2 if dice < 2 else 1)
        if 2 <= dice < 3:
            answered[-1] = {**item, "id": "zzzzzz"}
    fate = DICE.random() / hostile_share
    if fate < 1:
        refusal = orjson.dumps({"error": {"message": "one of the items is not acceptable", "code": None}})
        return whole(refusal).replace(b"200 OK", b"400 Bad Request", 1)
    if fate < 2:
        DICE.shuffle(answered)
    text = orjson.dumps({"answers": answered}).decode()
    return chat(text[: DICE.randrange(len(text))] if 2 <= fate < 3 else text)


def alone(body: bytes) -> bytes:
    """The same answer to a row that is alone."""
    return chat(orjson.loads(body)["messages"][-1]["content"][:ITEM_CHARACTERS])


class Answering(asyncio.Protocol):
    """One connection; requests are answered in turn."""

    def __init__(self, latency: float, hostile_share: float) -> None:
        self._latency = latency
        self._hostile_share = hostile_share
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while True:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._received[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 : (head + b"\r\n").find(b"\r\n", at)]) if at >= 0 else 0
            if len(self._received) < end + 4 + length:
                return
            body = bytes(self._received[end + 4 : end + 4 + length])
            del self._received[: end + 4 + length]
            if b"/embeddings" in head[:60]:
                asked = orjson.loads(body)
                answer = embeddings(len(asked["input"]), asked.get("dimensions", DIMENSIONS))
            elif b"/images" in head[:60]:
                answer = PICTURE
            elif b"/audio" in head[:60]:
                answer = HEARD
            elif b'"answers"' in body:
                answer = packed(body, self._hostile_share)
            elif self._hostile_share:
                answer = alone(body)
            else:
                answer = TYPED_CHAT if b'"response_format"' in body else CHAT
            if self._latency:
                asyncio.get_running_loop().call_later(self._latency, self._transport.write, answer)
            else:
                self._transport.write(answer)


PICTURE = picture()


async def main(port: int, latency: float, hostile_share: float = 0) -> None:
    server = await asyncio.get_running_loop().create_server(
        lambda: Answering(latency, hostile_share), "127.0.0.1", port, backlog=2048
    )
    print(f"listening on {server.sockets[0].getsockname()[1]}", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2]) / 1000, *map(float, sys.argv[3:])))
