"""Provider of the simulated week: the embedded provider as a server that bills everything it answers."""

import asyncio
import json
import threading
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from connectors.emulator.server import EXTRA_HEADERS, EmulatorApp, EmulatorOptions
from connectors.emulator.store import file_content

Body = dict[str, Any]

PICO_A_TOKEN = {
    "rowmill-sentiment": (150_000, 600_000),
    "gpt-4o-mini": (150_000, 600_000),
    "text-embedding-3-small": (20_000, 0),
}
"""Model -> pico-dollars for an input and an output token, as in the workspace; half of it in batches."""


@dataclass(frozen=True, slots=True)
class Bill:
    """An answer of the server."""

    model: str
    asked: tuple[str, ...]
    """Texts to embed, or all messages of a chat in one."""
    texts: tuple[str, ...]
    """The same without the job's system prompt."""
    pico: int
    batch: bool


class BillingApi:
    """The embedded provider in a thread, on one port for the whole week; it bills everything it answers."""

    def __init__(self) -> None:
        self.bills: dict[str, Bill] = {}
        """By request id."""
        self.requests = 0
        """All requests, including those for files and the state of batches."""
        self.refused: list[str] = []
        self.refuse = ""
        """A text that is refused."""
        self.held: list[str] = []
        """Request ids of answers that were billed but never arrived."""
        self._hold: tuple[int, int, threading.Event] | None = None
        self.lines: dict[str, Body] = {}
        """Requests in batches, by their custom id."""
        self._provider = EmulatorApp(EmulatorOptions())
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._runner: web.AppRunner = self._do(self._set_up())
        self._site: web.TCPSite | None = None
        self.port = 0
        self.up()

    def up(self) -> None:
        """Listen."""
        self.port = self._do(self._listen())

    def down(self) -> None:
        """Stop listening: connections are refused."""
        assert self._site is not None
        self._do(self._site.stop())

    def hold(self, after: int, until: int) -> threading.Event:
        """Hold back all answers but the next `after`; the returned event is set when `until` are held."""
        reached = threading.Event()
        self._hold = (len(self.bills) + after, until, reached)
        return reached

    def release(self) -> None:
        """Hold back no further answers; those that are held stay so."""
        self._hold = None

    def close(self) -> None:
        self._do(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def files(self) -> int:
        """Return the number of stored files."""
        return len(self._provider._state.contents)

    def _do(self, what: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(10)

    async def _set_up(self) -> web.AppRunner:
        app = self._provider.app()
        app.middlewares.append(self._record)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        return runner

    async def _listen(self) -> int:
        self._site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await self._site.start()
        return int(self._runner.addresses[0][1])

    @web.middleware
    async def _record(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests += 1
        if request.path not in ("/v1/chat/completions", "/v1/embeddings"):
            response = await handler(request)
            if request.path == "/v1/batches" and request.method == "POST":
                self._record_batch(json.loads(response.body))
            elif request.path.endswith("/content"):
                self._bill_batch(response.body)
            return response  # type: ignore[no-any-return]
        response = await handler(request)
        # Afterwards, because the embedded provider cannot read a body that was read before.
        body = json.loads(await request.read())
        if "messages" in body and body["messages"][-1]["content"] == self.refuse:
            self.refused.append(self.refuse)
            problem = {"message": "The text was refused.", "type": "invalid_request_error", "param": None, "code": None}
            return web.json_response({"error": problem}, status=400)
        assert response.status == 200, response.body
        request_id = request[EXTRA_HEADERS]["x-request-id"]
        self._bill(request_id, body, json.loads(response.body)["usage"], False)
        if self._hold is not None and len(self.bills) > self._hold[0]:
            self.held.append(request_id)
            if len(self.held) == self._hold[1]:
                self._hold[2].set()
            await asyncio.Event().wait()
        return response  # type: ignore[no-any-return]

    def _bill(self, request_id: str, body: Body, usage: Body, batch: bool) -> None:
        input_price, output_price = PICO_A_TOKEN[body["model"]]
        pico = usage["prompt_tokens"] * input_price + usage.get("completion_tokens", 0) * output_price
        if "messages" in body:
            messages = [str(message["content"]) for message in body["messages"]]
            asked, texts = ("\n".join(messages),), (messages[-1],)
        else:
            asked = texts = tuple([body["input"]] if isinstance(body["input"], str) else body["input"])
        self.bills[request_id] = Bill(body["model"], asked, texts, pico // 2 if batch else pico, batch)

    def _record_batch(self, batch: Body) -> None:
        for line in map(json.loads, file_content(self._provider._state, batch["input_file_id"]).splitlines()):
            assert line["custom_id"] not in self.lines
            self.lines[line["custom_id"]] = line["body"]

    def _bill_batch(self, content: bytes) -> None:
        for line in map(json.loads, content.splitlines()):
            response = line["response"]
            assert response["status_code"] == 200
            usage = response["body"]["usage"]
            self._bill(response["request_id"], self.lines[line["custom_id"]], usage, True)
