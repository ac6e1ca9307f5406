"""Media readers, a web server and generated media files."""

import io
import wave
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from connectors.contracts import MediaColumn
from connectors.media.media_reader import MediaReader
from connectors.records import RowError

IMAGE = MediaColumn("image", 20 << 20)
AUDIO = MediaColumn("audio", 25 << 20)

Reader = Callable[..., MediaReader]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[dict[str, Handler]], Awaitable[str]]


@pytest.fixture
async def reader(tmp_path: Path) -> AsyncIterator[Reader]:
    """Create readers whose workspace is tmp_path/work."""
    readers: list[MediaReader] = []
    (tmp_path / "work").mkdir()

    def make(**settings: Any) -> MediaReader:
        options = {"roots": [], "hosts": [], "provider_hosts": frozenset(), "retry_waits": (), **settings}
        readers.append(MediaReader(workspace=tmp_path / "work", scratch=tmp_path / "scratch", **options))
        return readers[-1]

    yield make
    for created in readers:
        await created.close()


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start a server with these GET routes and return its address."""
    runners: list[web.AppRunner] = []

    async def start(routes: dict[str, Handler]) -> str:
        app = web.Application()
        for path, handler in routes.items():
            app.router.add_get(path, handler)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


def png(width: int = 1, height: int = 1) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "png")
    return file.getvalue()


def sound(seconds: float, silences: tuple[float, ...] = (), rate: int = 16_000, channels: int = 1) -> bytes:
    """Noise as wav, silent for 0.8 s from each time in `silences`."""
    noise = np.random.default_rng(7).normal(0, 6000, round(seconds * rate)).clip(-32000, 32000).astype("<i2")
    for start in silences:
        noise[round(start * rate) : round((start + 0.8) * rate)] = 0
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(np.repeat(noise, channels).tobytes())
    return file.getvalue()


async def problem(reader: MediaReader, value: Any, use: MediaColumn = IMAGE) -> str:
    found = await reader.read(value, use, "photo")
    assert isinstance(found, RowError), found
    assert found.error_class == "input"
    return found.message
