"""A browser without a screen for the pages of `rowmill watch`, and the server in a thread."""

import http.client
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from urllib.parse import urlencode

import pytest

from pipelines.config.workspace import find_workspace
from pipelines.dashboard.access import Access
from pipelines.dashboard.server import SERVER_OPTIONS, WatchServer
from tests.support.threaded_server import ThreadedServer


@dataclass(frozen=True)
class Reply:
    """A reply of the server."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def facts(self) -> dict[str, str]:
        """Name -> exact value of the figures on the page."""
        found = re.findall(r'<data data-fact="([^"]*)" value="([^"]*)">', self.text)
        return {unescape(name): unescape(value) for name, value in found}

    @property
    def addresses(self) -> list[str]:
        """The addresses that the page loads, links to or sends forms to."""
        return [unescape(address) for address in re.findall(r'(?:src|href|action)="([^"]*)"', self.text)]

    @property
    def outside_addresses(self) -> list[str]:
        """Those that are no paths of this server."""
        return [one for one in self.addresses if not re.match(r"/(?!/)|#|data:image/", one)]

    def words(self) -> str:
        """The text that a reader sees."""
        return " ".join(unescape(re.sub(r"<[^>]*>", " ", self.text)).split())


class Watch(ThreadedServer):
    """`rowmill watch` in a thread, and a browser that has opened its address."""

    def __init__(self, folder: Path, is_read_only: bool = False) -> None:
        self.access = Access()
        self._folder = folder
        self._is_read_only = is_read_only
        super().__init__()

    async def _run(self) -> None:
        app = WatchServer(find_workspace(self._folder), self.access, self._is_read_only).app()
        await self._run_app(app, **SERVER_OPTIONS)

    def close(self) -> None:
        if self._thread.is_alive():
            super().close()

    @property
    def port(self) -> int:
        return int(self.base_url.split(":")[2].split("/")[0])

    def request(self, method: str, path: str, body: str | None = None, **headers: str) -> Reply:
        """Send a request with exactly these headers, whose `_` is a hyphen."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, given)
        response = connection.getresponse()
        reply = Reply(response.status, dict(response.getheaders()), response.read())
        connection.close()
        return reply

    @property
    def cookie(self) -> str:
        return f"rowmill_{self.port}={self.access.token}"

    def get(self, path: str) -> Reply:
        """Open a page."""
        return self.request("GET", path, Cookie=self.cookie)

    def post(self, path: str, **fields: str) -> Reply:
        """Send a form of a page."""
        return self.request(
            "POST", path, urlencode({"form": self.access.form_token, **fields}), Cookie=self.cookie,
            Origin=f"http://127.0.0.1:{self.port}", Content_Type="application/x-www-form-urlencoded",
        )  # fmt: skip


OpenWatch = Callable[..., Watch]


@pytest.fixture
def watch() -> Iterator[OpenWatch]:
    """Starts `rowmill watch` for a folder."""
    servers: list[Watch] = []

    def start(folder: Path, is_read_only: bool = False) -> Watch:
        servers.append(Watch(folder, is_read_only))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
