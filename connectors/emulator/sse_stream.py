"""Server-sent events: events as a streamed answer, with injected faults."""

import asyncio
from collections.abc import Iterable
from typing import Any

import orjson
from aiohttp import web

from connectors.emulator.api import ApiRequest
from connectors.emulator.faults.altered_answers import ALTERED_ANSWERS, alter_chunk
from connectors.emulator.faults.altered_packs import ALTERED_PACKS
from connectors.emulator.faults.altered_replies import ALTERED_REPLIES, altered_event
from connectors.emulator.faults.fault_injection import FAULT, drop

DONE = b"data: [DONE]\n\n"


def event(body: Any, name: str | None = None) -> bytes:
    """One event; `name` for events that have one in addition to their data."""
    data = b"data: " + orjson.dumps(body) + b"\n\n"
    return data if name is None else f"event: {name}\n".encode() + data


async def event_stream(api_request: ApiRequest, events: Iterable[bytes]) -> web.StreamResponse:
    """Stream the events, one write each."""
    request = api_request.http_request
    kind = request.get(FAULT)
    # A pack is never streamed.
    if kind is not None and kind not in ALTERED_PACKS:
        return await _faulty_stream(request, list(events), kind)
    response = _new_response()
    await response.prepare(request)
    for chunk in events:
        await response.write(chunk)
    await response.write_eof()
    return response


async def _faulty_stream(request: web.Request, events: list[bytes], kind: str) -> web.StreamResponse:
    """Stream half of the events, then produce the fault; or all, with another ending."""
    response = _new_response()
    await response.prepare(request)
    if kind in ALTERED_REPLIES:
        for chunk in events:
            await response.write(altered_event(kind, chunk))
        await response.write_eof()
        return response
    if kind in ALTERED_ANSWERS:
        for chunk in events:
            await response.write(alter_chunk(kind, chunk) if chunk.startswith(b"data: ") else chunk)
        await response.write_eof()
        return response
    half = max(1, len(events) // 2)
    for chunk in events[:half]:
        await response.write(chunk)
    if kind == "hang-body":
        await asyncio.Event().wait()
    if kind == "truncated":
        return drop(request)
    await response.write(b'data: {"id": "chatcmpl-\n\n')
    for chunk in events[half:]:
        await response.write(chunk)
    await response.write_eof()
    return response


def _new_response() -> web.StreamResponse:
    return web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"})
