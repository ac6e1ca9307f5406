"""A server that records the bytes of every request and answers each with a minimal valid reply."""

import asyncio
import base64
import json
import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.behaviour.api.wire import fields_of

ROOT = Path(__file__).parents[3]
REPLIES = ROOT / "tests" / "replies"
SOUND = (ROOT / "jobs" / "data" / "audio" / "austen_0880.mp3").read_bytes()
PICTURE = (ROOT / "jobs" / "data" / "images" / "coffee_square.png").read_bytes()

TYPED = '{"a": 1}'
"""An answer that fits every schema of the table."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One recorded request."""

    method: str
    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error reply."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class Recorder:
    """A server for `/WHO/v1/...`; `seen[WHO]` are the requests to it."""

    def __init__(self) -> None:
        self.seen: dict[str, list[Recorded]] = defaultdict(list)
        self.refusals: dict[str, Refusal] = {}
        """WHO -> fixed reply."""
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._run()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    async def _run(self) -> None:
        app = web.Application(client_max_size=1 << 27)
        app.router.add_post("/{who}/v1/{path:.*}", self._answer)
        app.router.add_get("/picture.png", self._picture)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _picture(self, request: web.Request) -> web.Response:
        return web.Response(body=PICTURE, content_type="image/png")

    async def _answer(self, request: web.Request) -> web.Response:
        raw = await request.read()
        who, path = request.match_info["who"], request.match_info["path"]
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen[who].append(Recorded(request.method, f"/{path}", headers, raw))
        if (refusal := self.refusals.get(who)) is not None:
            named = {"content-type": "application/json", "x-request-id": f"req-{who}", **refusal.headers}
            return web.Response(status=refusal.status, body=refusal.body, headers=named)
        form = headers["content-type"].startswith("multipart/form-data")
        sent = fields_of(headers["content-type"], raw) if form else json.loads(raw)
        kind, body = self._reply(path, sent)
        return web.Response(body=body, headers={"content-type": kind, "x-request-id": f"req-{who}"})

    def _reply(self, path: str, sent: Mapping[str, Any]) -> tuple[str, bytes]:
        if path == "chat/completions":
            return "application/json", _dumped(_completion(sent))
        if path == "responses":
            return "application/json", _dumped(_response(sent))
        if path == "embeddings":
            return "application/json", _dumped(_vectors(sent))
        if path == "audio/speech":
            return _spoken_events() if sent.get("stream_format") == "sse" else ("audio/mpeg", SOUND)
        return self._heard(sent) if path.startswith("audio/") else self._pictures(sent)

    def _heard(self, sent: Mapping[str, Any]) -> tuple[str, bytes]:
        form = sent.get("response_format", "json")
        if form in ("text", "srt", "vtt"):
            return "text/plain", b"Hello.\n"
        names = {"verbose_json": "transcription-segments.json", "diarized_json": "transcription-diarized.json"}
        if sent.get("stream") == "true":
            return "text/event-stream", (REPLIES / "transcription-streaming.sse").read_bytes()
        return _recorded(names.get(form, "transcription.json"))

    def _pictures(self, sent: Mapping[str, Any]) -> tuple[str, bytes]:
        picture = base64.b64encode(PICTURE).decode()
        if sent.get("stream") in (True, "true"):
            streamed = (REPLIES / "image-edit-streaming.sse").read_text().replace('"..."', f'"{picture}"')
            return "text/event-stream", streamed.encode()
        one = {"b64_json": picture}
        if sent.get("response_format") == "url":
            one = {"url": f"{self.address}/picture.png"}
        return "application/json", _dumped({"created": 1, "data": [one] * int(sent.get("n", 1))})


def _completion(sent: Mapping[str, Any]) -> dict[str, Any]:
    reply = json.loads((REPLIES / "chat-default.json").read_bytes())
    reply["choices"] = [{**reply["choices"][0], "index": index} for index in range(sent.get("n", 1))]
    if "json_schema" in sent.get("response_format", {}):
        reply["choices"][0]["message"]["content"] = TYPED
    return dict(reply)


def _response(sent: Mapping[str, Any]) -> dict[str, Any]:
    if "input" in sent:
        reply = json.loads((REPLIES / "responses-text-input.json").read_bytes())
        if sent.get("text", {}).get("format", {}).get("type") == "json_schema":
            reply["output"][0]["content"][0]["text"] = TYPED
    else:
        reply = json.loads((REPLIES / "reference-basic.json").read_bytes())
        if sent.get("response_format", {}).get("type") == "json_schema":
            reply["response"]["content"] = json.loads(TYPED)
    return dict(reply)


def _vectors(sent: Mapping[str, Any]) -> dict[str, Any]:
    usual = 3072 if sent["model"] == "text-embedding-3-large" else 1536
    vector: Any = [0.5] * sent.get("dimensions", usual)
    if sent["encoding_format"] == "base64":
        vector = base64.b64encode(b"\0\0\0\x3f" * len(vector)).decode()
    data = [{"object": "embedding", "index": index, "embedding": vector} for index in range(len(sent["input"]))]
    return {"object": "list", "model": sent["model"], "data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}}


def _spoken_events() -> tuple[str, bytes]:
    events: list[dict[str, Any]] = [
        {"type": "speech.audio.delta", "audio": base64.b64encode(SOUND).decode()},
        {"type": "speech.audio.done", "usage": {"input_tokens": 2, "output_tokens": 9, "total_tokens": 11}},
    ]
    return "text/event-stream", b"".join(b"data: " + _dumped(event) + b"\n\n" for event in events)


def _recorded(name: str) -> tuple[str, bytes]:
    return "application/json", (REPLIES / name).read_bytes()


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()
