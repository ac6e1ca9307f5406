"""The local provider: an OpenAI-style API under /v1, in a thread of its own or as a server."""

import asyncio
import hmac
import itertools
import secrets
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from connectors.emulator import models
from connectors.emulator.api import ApiError, Handler, Incoming, Route, State, json_answer
from connectors.emulator.audio import routes as audio_routes
from connectors.emulator.batches import batches, files
from connectors.emulator.chat import completions
from connectors.emulator.embeddings import routes as embeddings_routes
from connectors.emulator.fault_injection import FAULT, FAULTS_BEFORE_ANSWER, Faults, fail_before, spoil
from connectors.emulator.images import routes as images_routes
from connectors.emulator.rate_limits import USED_TOKENS, RequestLimits
from connectors.emulator.request_body import MAX_BODY_BYTES, read_body
from connectors.emulator.responses import responses

ENDPOINTS = (
    completions,
    responses,
    embeddings_routes,
    models,
    audio_routes,
    images_routes,
    files,
    batches,
)
ROUTES: tuple[Route, ...] = tuple(route for module in ENDPOINTS for route in module.ROUTES)

EXTRA_HEADERS = web.RequestKey("rowmill_told", dict[str, str])
"""Of every request: headers of its answer, whatever it is."""
STARTED_AT = web.RequestKey("rowmill_began", float)


@dataclass(frozen=True, slots=True)
class EmulatorOptions:
    """How the provider behaves; by default it takes any key and as many requests as come."""

    api_key: str | None = None
    """Requests without this key are refused; None: any key, or none, will do."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    latency_ms: float = 0
    """Before each answer."""
    faults: tuple[str, ...] = ()
    """KIND=RATE each, e.g. `500=0.01`."""
    script: str = ""
    """How the first requests end, e.g. `429,200,500*2`."""
    seed: int = 0
    """Of the faults by rate."""
    folder: Path | None = None
    """Where files are kept; None: in memory."""

    def __post_init__(self) -> None:
        """ValueError for faults that are none."""
        Faults(self.faults, self.script, self.seed)


class EmulatorApp:
    """The application: auth, limits, faults and headers around the routes."""

    def __init__(self, options: EmulatorOptions) -> None:
        self._options = options
        self._key = None if options.api_key is None else options.api_key.encode()
        self._faults = Faults(options.faults, options.script, options.seed)
        self._limits = RequestLimits(options.requests_per_minute, options.tokens_per_minute)
        self._state = State(folder=options.folder)
        self._numbers = itertools.count(1)
        self._name = secrets.token_hex(10)

    def app(self) -> web.Application:
        """All routes under /v1; what is none of them is answered with the API's own 404."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        for route in ROUTES:
            app.router.add_route(route.method, f"/v1{route.path}", self._answering(route))
        app.router.add_route("*", "/{path:.*}", self._answering(Route("*", "", _unknown, limited=False)))
        app.on_response_prepare.append(_add_headers)
        return app

    def _answering(self, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answer(request: web.Request) -> web.StreamResponse:
            request[STARTED_AT] = time.perf_counter()
            request[EXTRA_HEADERS] = {
                "x-request-id": f"req_{self._name}{next(self._numbers):012x}",
                "x-rowmill-local": "1",
            }
            try:
                if route.keyed:
                    self._check_key(request)
                if route.limited:
                    return await self._limited(route.handler, request)
                body, files, _ = await read_body(request)
                return await route.handler(Incoming(request, self._state, body, files))
            except ApiError as exc:
                return json_answer(exc.body, exc.status, exc.headers)

        return answer

    async def _limited(self, handler: Handler, request: web.Request) -> web.StreamResponse:
        fault = self._faults.next()
        if self._options.latency_ms:
            await asyncio.sleep(self._options.latency_ms / 1000)
        if fault in FAULTS_BEFORE_ANSWER:
            await request.read()
            return await fail_before(fault, request)
        if fault is not None:
            request[FAULT] = fault
        body, files, length = await read_body(request)
        # As the API does before it has counted: a token for every four bytes.
        estimate = length // 4
        if self._limits:
            try:
                self._limits.admit(estimate)
            finally:
                request[EXTRA_HEADERS].update(self._limits.headers())
        response = await handler(Incoming(request, self._state, body, files))
        if self._limits:
            self._limits.settle(estimate, request.get(USED_TOKENS, estimate))
        return response if fault is None else await spoil(fault, request, response)

    def _check_key(self, request: web.Request) -> None:
        if self._key is None:
            return
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), self._key):
            raise ApiError(401, "Incorrect API key provided", code="invalid_api_key")


async def _unknown(incoming: Incoming) -> web.StreamResponse:
    request = incoming.request
    raise ApiError(404, f"Invalid URL ({request.method} {request.path})", code="unknown_url")


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    told = request.get(EXTRA_HEADERS)
    if told is not None:
        response.headers.update(told)
        response.headers["openai-processing-ms"] = str(int((time.perf_counter() - request[STARTED_AT]) * 1000))


async def _listen(options: EmulatorOptions, host: str, port: int) -> tuple[web.AppRunner, int]:
    """(what is to be cleaned up, the port); OSError where it cannot listen."""
    # Cancellation: a handler that hangs on purpose ends when its client leaves.
    runner = web.AppRunner(EmulatorApp(options).app(), access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=1024).start()
    except OSError:
        await runner.cleanup()
        raise
    return runner, runner.addresses[0][1]


class EmulatorServer:
    """The provider on a free port of 127.0.0.1, in a thread of its own, as long as the `with` lasts."""

    def __init__(self, options: EmulatorOptions | None = None) -> None:
        self._options = options or EmulatorOptions()
        self._thread = threading.Thread(target=self._run, name="rowmill-local", daemon=True)
        self._ready = threading.Event()
        self._stop: Callable[[], object] | None = None
        self._failed: OSError | None = None
        self.base_url = ""
        """Ends in /v1."""

    def __enter__(self) -> "EmulatorServer":
        self._thread.start()
        self._ready.wait()
        if self._failed is not None:
            self._thread.join()
            raise self._failed
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._stop is not None:
            self._stop()
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        try:
            runner, port = await _listen(self._options, "127.0.0.1", 0)
        except OSError as exc:
            self._failed = exc
            self._ready.set()
            return
        self._stop = lambda: loop.call_soon_threadsafe(stopped.set)
        self.base_url = f"http://127.0.0.1:{port}/v1"
        self._ready.set()
        await stopped.wait()
        await runner.cleanup()


def serve_forever(host: str, port: int, options: EmulatorOptions, print_line: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; `say` gets the line that tells where. OSError where it cannot listen."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_until_signal(host, port, options, print_line))


async def _until_signal(host: str, port: int, options: EmulatorOptions, synthesize: Callable[[str], None]) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    runner, port = await _listen(options, host, port)
    shown = f"[{host}]" if ":" in host else host
    synthesize(f"Listening on http://{shown}:{port}/v1 (Ctrl-C ends it)")
    await stopped.wait()
    await runner.cleanup()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed (not on Windows); None: asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
