"""Server of the live page: pages, changes as server-sent events, files of rows, and the forms that steer runs."""

import asyncio
import contextlib
import functools
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from connectors.errors import JobError, RowmillError
from pipelines.analysis.results import Results
from pipelines.config.job_graph import empty_sink
from pipelines.config.loaded_job import LoadedJob
from pipelines.config.workspace import Workspace
from pipelines.config.yaml_reader import parse_value
from pipelines.control.client import send_request
from pipelines.control.protocol import Command, ControlRequest
from pipelines.control.run_settings import SETTABLE
from pipelines.dashboard.access import Access, add_headers
from pipelines.dashboard.cell_values import served_file
from pipelines.dashboard.job_facts import JobFactsReader
from pipelines.dashboard.job_page import job_page
from pipelines.dashboard.job_tables import TableName
from pipelines.dashboard.rendering import Page, assets, part, render_page
from pipelines.dashboard.row_pages import answers_page, row_page, rows_page
from pipelines.dashboard.workspace_pages import job_address, job_state, overview_page, runs_page, schedule_page
from pipelines.dashboard.workspace_reader import Snapshot, WatchedJob, WorkspaceReader
from pipelines.monitoring.json_log import print_defect

REFRESH_SECONDS = 1.0
KEEPALIVE_SECONDS = 15.0
"""A stream without changes sends a comment after this time, and so learns that its browser has left."""
MAX_STREAMS = 32
MAX_FORM_BYTES = 64 << 10
MAX_ADDRESS_BYTES = 64 << 10
"""The key of a row may be a long text, and is in addresses."""
SERVER_OPTIONS: Mapping[str, Any] = {
    "max_line_size": MAX_ADDRESS_BYTES,
    "max_field_size": MAX_ADDRESS_BYTES,
    # A compressed body is refused, so it is never unpacked.
    "auto_decompress": False,
}
"""Options of aiohttp's server."""

NOTICES = {
    "pause": "Paused: nothing new is sent, requests in flight are answered.",
    "resume": "The run goes on.",
    "drain": "Draining: nothing new is sent; the run ends when all requests in flight are answered.",
    "set": "Set, until this run ends.",
}
"""By command."""

MakePage = Callable[[], Page]


class WatchServer:
    """The pages of one workspace."""

    def __init__(self, workspace: Workspace, access: Access, is_read_only: bool) -> None:
        self._workspace = workspace
        self._access = access
        self._is_read_only = is_read_only
        self._reader = WorkspaceReader(workspace)
        self._facts = JobFactsReader(self._reader)
        self._stopping = asyncio.Event()
        self._streams = 0
        self._rendered: dict[str, tuple[float, Page]] = {}
        """Address -> (time, page) of the live pages that were last rendered."""

    def app(self) -> web.Application:
        """Return the application."""
        app = web.Application(
            client_max_size=MAX_FORM_BYTES,
            middlewares=[self._access.middleware(self._error_page), self._catch_defects],  # type: ignore[list-item]
        )
        router = app.router
        for address in ("/", "/runs", "/schedule", "/jobs/{name}"):
            router.add_get(address, self._live_page)
        router.add_get("/jobs/{name}/rows", self._rows_page)
        router.add_get("/jobs/{name}/row", self._row_page)
        router.add_get("/jobs/{name}/answers", self._answers_page)
        router.add_get("/jobs/{name}/media", self._media)
        router.add_post("/jobs/{name}/control", self._control)
        router.add_get("/events", self._events, allow_head=False)
        for address in assets():
            router.add_get(address, _asset)
        app.on_response_prepare.append(add_headers)
        app.on_shutdown.append(self._end_streams)
        return app

    async def _end_streams(self, app: web.Application) -> None:
        self._stopping.set()

    @web.middleware
    async def _catch_defects(self, request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            response: web.StreamResponse = await handler(request)
        except (web.HTTPException, ConnectionError, asyncio.CancelledError):
            raise
        except Exception as exc:
            print_defect(exc, as_json=False, job="watch", run_id=None)
            raise web.HTTPInternalServerError(text="A defect of Rowmill; its traceback is in the terminal.") from exc
        return response

    def _error_page(self, request: web.Request, error: web.HTTPException) -> web.StreamResponse:
        page = Page(error.reason, "history", (part("message", is_live=False, title=error.reason, text=error.text),))
        return self._html(page, "", error.status)

    def _html(self, page: Page, events: str, status: int) -> web.Response:
        html = render_page(page, str(self._workspace.folder.name), events, self._is_read_only)
        return web.Response(text=html, content_type="text/html", status=status)

    # Live pages.

    async def _live_page(self, request: web.Request) -> web.StreamResponse:
        address = request.path
        notice = NOTICES.get(request.query.get("done", ""), "")
        page = await asyncio.to_thread(self._make_page(address, notice))
        return self._html(page, f"/events?page={request.rel_url.raw_path}", page.status)

    def _make_page(self, address: str, notice: str = "", refusal: str = "") -> MakePage:
        """Return what makes the live page at an address; HTTPNotFound if there is none."""
        pages = {"/": overview_page, "/runs": runs_page, "/schedule": schedule_page}
        if address in pages:
            return lambda: pages[address](self._reader, self._reader.snapshot())
        if address.startswith("/jobs/"):
            return functools.partial(self._job_page, address.removeprefix("/jobs/"), notice, refusal)
        raise web.HTTPNotFound(text="There is no such page.")

    def _job_page(self, name: str, notice: str, refusal: str) -> Page:
        snapshot = self._reader.snapshot()
        job = _found(snapshot, name)
        token = None if self._is_read_only else self._access.form_token
        facts = self._facts.read(job, snapshot)
        if facts.control is not None:
            # It is newer than the heartbeat: a pause is seen at once.
            job = job.with_figures(facts.control)
        return job_page(self._reader, snapshot, job, facts, token, notice, refusal)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """Send the parts of a live page that have changed, until the browser leaves."""
        address = request.query.get("page", "/")
        make = self._make_page(address)
        if self._streams >= MAX_STREAMS:
            raise web.HTTPServiceUnavailable(text="Too many pages are open.")
        self._streams += 1
        try:
            # If there is no such job, that is the answer.
            await self._refreshed(address, make)
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            # A browser that leaves while something is sent makes the write fail. A job that disappears ends the stream.
            with contextlib.suppress(ConnectionError, web.HTTPNotFound):
                await self._send_changes(request, response, address, make)
        finally:
            self._streams -= 1
        return response

    async def _send_changes(
        self, request: web.Request, response: web.StreamResponse, address: str, make: MakePage
    ) -> None:
        sent: dict[str, str] = {}
        states: Mapping[str, str] = {}
        last_write = time.monotonic()
        while not self._stopping.is_set() and request.transport is not None:
            page = await self._refreshed(address, make)
            changed = {one.name: one.html for one in page.parts if one.is_live and sent.get(one.name) != one.html}
            if changed:
                await response.write(_event("parts", changed))
                sent |= changed
            now = await asyncio.to_thread(self._states, address)
            if states and (news := _announcement(states, now)):
                await response.write(_event("announce", news))
            states = now
            if changed:
                last_write = time.monotonic()
            elif time.monotonic() - last_write > KEEPALIVE_SECONDS:
                await response.write(b": nothing has changed\n\n")
                last_write = time.monotonic()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), REFRESH_SECONDS)

    async def _refreshed(self, address: str, make: MakePage) -> Page:
        """Return the page as it is now; several viewers share one."""
        made_at, page = self._rendered.get(address, (0.0, None))
        if page is None or time.monotonic() - made_at > REFRESH_SECONDS / 2:
            page = await asyncio.to_thread(make)
            if len(self._rendered) > MAX_STREAMS:
                self._rendered.clear()
            self._rendered[address] = (time.monotonic(), page)
        return page

    def _states(self, address: str) -> Mapping[str, str]:
        """Return job -> state of the jobs that a page is about."""
        only = address.removeprefix("/jobs/") if address.startswith("/jobs/") else None
        return {job.name: job_state(job).text for job in self._reader.snapshot().jobs if only in (None, job.name)}

    # Rows.

    async def _rows_page(self, request: web.Request) -> web.StreamResponse:
        loaded, snapshot = await asyncio.to_thread(self._loaded, request.match_info["name"])
        name: TableName = "errors" if request.query.get("table") == "errors" else "results"
        start = request.query.get("start", "0")
        page = await asyncio.to_thread(rows_page, loaded, snapshot, name, int(start) if _is_count(start) else 0)
        return self._html(page, "", page.status)

    async def _row_page(self, request: web.Request) -> web.StreamResponse:
        loaded, snapshot = await asyncio.to_thread(self._loaded, request.match_info["name"])
        page = await asyncio.to_thread(row_page, self._reader, loaded, snapshot, request.query.get("key", ""))
        return self._html(page, "", page.status)

    async def _answers_page(self, request: web.Request) -> web.StreamResponse:
        loaded, snapshot = await asyncio.to_thread(self._loaded, request.match_info["name"])
        page = await asyncio.to_thread(answers_page, loaded, snapshot)
        return self._html(page, "", page.status)

    async def _media(self, request: web.Request) -> web.StreamResponse:
        """Send a picture or a sound that a row names; its type is found from its bytes."""
        loaded, _ = await asyncio.to_thread(self._loaded, request.match_info["name"])
        try:
            path, media_type = await asyncio.to_thread(_served_file, loaded, request.query.get("file", ""))
        except (JobError, OSError, ValueError) as exc:
            raise web.HTTPNotFound(text="There is no such picture or sound.") from exc
        return web.FileResponse(
            path, headers={"Content-Type": media_type, "Content-Security-Policy": "default-src 'none'; sandbox"}
        )

    def _loaded(self, name: str) -> tuple[LoadedJob, Snapshot]:
        snapshot = self._reader.snapshot()
        job = _found(snapshot, name)
        if job.loaded is None:
            raise web.HTTPNotFound(text=job.problem or "No job file of this workspace describes this job.")
        return job.loaded, snapshot

    # Steering.

    async def _control(self, request: web.Request) -> web.StreamResponse:
        if self._is_read_only:
            raise web.HTTPForbidden(text="This page is read-only: rowmill watch was started with --read-only.")
        name = request.match_info["name"]
        form = await request.post()
        _found(await asyncio.to_thread(self._reader.snapshot), name)
        try:
            command, values = _command(form)
            reply = await asyncio.to_thread(
                send_request, self._workspace.state, name, ControlRequest(command, values), start_seconds=1.0
            )
            refusal = reply.error
            self._facts.forget_state(name)
        except RowmillError as exc:
            refusal = str(exc)
        if refusal is not None:
            page = await asyncio.to_thread(self._make_page(f"/jobs/{name}", refusal=refusal))
            return self._html(page, f"/events?page={job_address(name)}", page.status)
        raise web.HTTPSeeOther(f"{job_address(name)}?done={command}")


def _found(snapshot: Snapshot, name: str) -> WatchedJob:
    job = snapshot.job(name)
    if job is None:
        raise web.HTTPNotFound(text=f"This workspace has no job {name}.")
    return job


def _command(form: Mapping[str, Any]) -> tuple[Command, Mapping[str, Any]]:
    """Return the command of a form, and for `set` the values that were changed; JobError if there is none."""
    match str(form.get("command")):
        case "pause":
            return "pause", {}
        case "resume":
            return "resume", {}
        case "drain":
            return "drain", {}
        case "set":
            given = {key: str(form[key]).strip() for key in SETTABLE if key in form}
            changed = {key: text for key, text in given.items() if text != str(form.get(f"before.{key}"))}
            return "set", {key: parse_value(text, f"set {key}") if text else None for key, text in changed.items()}
    raise JobError("control", "no such command", "use the buttons of the page")


def _served_file(loaded: LoadedJob, name: str) -> tuple[Path, str]:
    """Return (path, media type) of a file that a row may name; JobError or OSError if it is not served."""
    path, kind = served_file(Results(loaded, loaded.workspace, empty_sink(loaded, longest_hold=0)), name)
    return path, kind.type


def _announcement(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {state}" for name, state in now.items() if before.get(name) != state)


def _event(name: str, data: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(data))


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 16


async def _asset(request: web.Request) -> web.StreamResponse:
    media_type, content = assets()[request.path]
    return web.Response(body=content, content_type=media_type, charset="utf-8")


def serve_forever(workspace: Workspace, port: int, is_read_only: bool, print_address: Callable[[str], None]) -> None:
    """Serve on 127.0.0.1 until SIGINT or SIGTERM; `print_address` gets the address. OSError if the port is taken."""
    asyncio.run(_until_signal(workspace, port, is_read_only, print_address))


async def _until_signal(
    workspace: Workspace, port: int, is_read_only: bool, print_address: Callable[[str], None]
) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    access = Access()
    app = WatchServer(workspace, access, is_read_only).app()
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0, **SERVER_OPTIONS)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        print_address(f"http://127.0.0.1:{runner.addresses[0][1]}/?token={access.token}")
        await stopped.wait()
    finally:
        await runner.cleanup()
