"""The emulator: an OpenAI-style API under /v1, in a background thread or as a server."""

import asyncio
import hmac
import itertools
import logging
import secrets
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web
from msgspec import Struct

from connectors.emulator import models
from connectors.emulator.api import ApiError, ApiRequest, ApiRoute, EmulatorState, Handler, json_answer
from connectors.emulator.audio import routes as audio_routes
from connectors.emulator.batches import batches, files
from connectors.emulator.chat import completions
from connectors.emulator.embeddings import routes as embeddings_routes
from connectors.emulator.faults.fault_injection import FAULT, FAULTS_BEFORE_ANSWER, Faults, corrupt, fail_before
from connectors.emulator.images import routes as images_routes
from connectors.emulator.rate_limits import USED_TOKENS, RequestLimits
from connectors.emulator.request_body import MAX_BODY_BYTES, malformed_part, read_body
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
ROUTES: tuple[ApiRoute, ...] = tuple(route for module in ENDPOINTS for route in module.ROUTES)

EXTRA_HEADERS = web.RequestKey("rowmill_headers", dict[str, str])
"""Headers of the reply to a request, whatever the reply is."""
STARTED_AT = web.RequestKey("rowmill_started_at", float)


class EmulatorOptions(Struct, frozen=True):
    """Behaviour of the emulator; by default any key works and nothing is limited."""

    api_key: str | None = None
    """The required key; None accepts any key or none."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    latency_ms: float = 0
    """Delay before each answer."""
    faults: tuple[str, ...] = ()
    """KIND=RATE entries, e.g. `500=0.01`."""
    script: str = ""
    """Outcomes of the first requests, e.g. `429,200,500*2`."""
    seed: int = 0
    """Seed of the faults by rate."""
    folder: Path | None = None
    """Folder for files and batches; None keeps them in memory."""

    def __post_init__(self) -> None:
        """Raise ValueError for an invalid fault or script."""
        Faults(self.faults, self.script, self.seed)


class EmulatorApp:
    """The web application: authentication, limits, faults and headers around the routes."""

    def __init__(self, options: EmulatorOptions) -> None:
        self._options = options
        self._key = None if options.api_key is None else options.api_key.encode()
        self._faults = Faults(options.faults, options.script, options.seed)
        self._limits = RequestLimits(options.requests_per_minute, options.tokens_per_minute)
        self._state = EmulatorState(folder=options.folder)
        self._request_numbers = itertools.count(1)
        self._request_id_prefix = secrets.token_hex(10)

    def app(self) -> web.Application:
        """All routes under /v1; any other path gets the API's own 404."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        for route in ROUTES:
            app.router.add_route(route.method, f"/v1{route.path}", self._handle(route))
        app.router.add_route("*", "/{path:.*}", self._handle(ApiRoute("*", "", _unknown_url, is_rate_limited=False)))
        app.on_response_prepare.append(_add_headers)
        return app

    def _handle(self, route: ApiRoute) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answer(request: web.Request) -> web.StreamResponse:
            request[STARTED_AT] = time.perf_counter()
            request[EXTRA_HEADERS] = {
                "x-request-id": f"req_{self._request_id_prefix}{next(self._request_numbers):012x}",
                "x-rowmill-local": "1",
            }
            try:
                if route.requires_key:
                    self._check_key(request)
                if route.is_rate_limited:
                    return await self._handle_limited(route.handler, request)
                body, files, _ = await read_body(request)
                return await route.handler(ApiRequest(request, self._state, body, files))
            except ApiError as exc:
                return json_answer(exc.body, exc.status, exc.headers)

        return answer

    async def _handle_limited(self, handler: Handler, request: web.Request) -> web.StreamResponse:
        fault = self._faults.next()
        if self._options.latency_ms:
            await asyncio.sleep(self._options.latency_ms / 1000)
        if fault in FAULTS_BEFORE_ANSWER:
            await request.read()
            return await fail_before(fault, request)
        if fault is not None:
            request[FAULT] = fault
        body, files, length = await read_body(request)
        # The API estimates the same way before it counts: one token per four bytes.
        estimate = length // 4
        if self._limits:
            try:
                self._limits.admit(estimate)
            finally:
                request[EXTRA_HEADERS].update(self._limits.headers())
        response = await handler(ApiRequest(request, self._state, body, files))
        if self._limits:
            self._limits.settle(estimate, request.get(USED_TOKENS, estimate))
        return response if fault is None else await corrupt(fault, request, response)

    def _check_key(self, request: web.Request) -> None:
        if self._key is None:
            return
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), self._key):
            raise ApiError(401, "Incorrect API key provided", code="invalid_api_key")


async def _unknown_url(api_request: ApiRequest) -> web.StreamResponse:
    request = api_request.http_request
    raise ApiError(404, f"Invalid URL ({request.method} {request.path})", code="unknown_url")


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    headers = request.get(EXTRA_HEADERS)
    if headers is not None:
        response.headers.update(headers)
        response.headers["openai-processing-ms"] = str(int((time.perf_counter() - request[STARTED_AT]) * 1000))


class _MalformedRequestFilter(logging.Filter):
    """Reports a malformed request in one line; a defect of the server keeps its traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        malformed = malformed_part(error)
        if malformed is not None:
            record.msg, record.args = f"Refused a malformed HTTP request: {malformed}", None
            record.exc_info = None
        return True


SERVER_LOG = logging.getLogger("rowmill.serve")
SERVER_LOG.addFilter(_MalformedRequestFilter())


async def _listen(options: EmulatorOptions, host: str, port: int) -> tuple[web.AppRunner, int]:
    """Start to listen: (runner to clean up, port); OSError if the port is unavailable."""
    # With cancellation, a handler that hangs on purpose ends when its client disconnects.
    runner = web.AppRunner(
        EmulatorApp(options).app(),
        logger=SERVER_LOG,
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=0.5,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=1024).start()
    except OSError:
        await runner.cleanup()
        raise
    return runner, runner.addresses[0][1]


class EmulatorServer:
    """The emulator on a free port of 127.0.0.1, in a background thread, for the duration of a `with`."""

    def __init__(self, options: EmulatorOptions | None = None) -> None:
        self._options = options or EmulatorOptions()
        self._thread = threading.Thread(target=self._run, name="rowmill-local", daemon=True)
        self._ready = threading.Event()
        self._stop: Callable[[], object] | None = None
        self._error: OSError | None = None
        self.base_url = ""
        """The URL, which ends in /v1."""

    def __enter__(self) -> "EmulatorServer":
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error
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
            self._error = exc
            self._ready.set()
            return
        self._stop = lambda: loop.call_soon_threadsafe(stopped.set)
        self.base_url = f"http://127.0.0.1:{port}/v1"
        self._ready.set()
        await stopped.wait()
        await runner.cleanup()


def serve_forever(host: str, port: int, options: EmulatorOptions, print_line: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; `print_line` receives the URL. OSError if the port is unavailable."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_until_signal(host, port, options, print_line))


async def _until_signal(host: str, port: int, options: EmulatorOptions, print_line: Callable[[str], None]) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signal_number, stopped.set)
    runner, port = await _listen(options, host, port)
    url_host = f"[{host}]" if ":" in host else host
    print_line(f"Listening on http://{url_host}:{port}/v1 (Ctrl-C ends it)")
    await stopped.wait()
    await runner.cleanup()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop if it is installed (not on Windows); None for asyncio's loop."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
