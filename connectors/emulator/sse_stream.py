"""Server-sent events: a list of events as a streamed answer, spoiled where a fault asks for it."""

import asyncio
from collections.abc import Iterable
from typing import Any

import orjson
from aiohttp import web

from connectors.emulator.api import Incoming
from connectors.emulator.fault_injection import FAULT, drop

DONE = b"data: [DONE]\n\n"


def event(body: Any, name: str | None = None) -> bytes:
    """One event; `name` for those that have one beside their data."""
    data = b"data: " + orjson.dumps(body) + b"\n\n"
    return data if name is None else f"event: {name}\n".encode() + data


async def event_stream(incoming: Incoming, events: Iterable[bytes]) -> web.StreamResponse:
    """The events, one write each."""
    request = incoming.request
    kind = request.get(FAULT)
    if kind is not None:
        return await _spoiled(request, list(events), kind)
    response = _response()
    await response.prepare(request)
    for one in events:
        await response.write(one)
    await response.write_eof()
    return response


async def _spoiled(request: web.Request, events: list[bytes], kind: str) -> web.StreamResponse:
    """Half of the events, then what the fault says."""
    response = _response()
    await response.prepare(request)
    half = max(1, len(events) // 2)
    for one in events[:half]:
        await response.write(one)
    if kind == "hang-body":
        await asyncio.Event().wait()
    if kind == "truncated":
        return drop(request)
    await response.write(b'data: {"id": "chatcmpl-\n\n')
    for one in events[half:]:
        await response.write(one)
    await response.write_eof()
    return response


def _response() -> web.StreamResponse:
    return web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"})
