"""A server of a test: in a thread, with a loop of its own, from when it is made until it is closed."""

import asyncio
import threading
from typing import Any

from aiohttp import web


class ThreadedServer:
    """What the scripted servers share; their own `__init__` ends with this one's, which returns once they listen."""

    base_url: str

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._run())
        self._loop.close()

    async def _run(self) -> None:
        """Listen, then `_until_closed`."""
        raise NotImplementedError

    async def _until_closed(self) -> None:
        self._ready.set()
        await self._stop.wait()

    async def _run_app(self, app: web.Application, **options: Any) -> None:
        """`_run` of a server that is an application under /v1; `options` are those of aiohttp's server."""
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, **options)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        self.base_url = f"http://{host}:{port}/v1"
        await self._until_closed()
        await runner.cleanup()
