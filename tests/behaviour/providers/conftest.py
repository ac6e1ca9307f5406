"""A provider that records addresses, headers and bodies of every request, with or without TLS."""

import json
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.conftest import chat_reply
from tests.support.certificates import CertificateAuthority
from tests.support.threaded_server import ThreadedServer

PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


class RecordingProvider(ThreadedServer):
    """Answers chat with the text in upper case; `accepts` decides by the headers whether a key is accepted."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.urls: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.models: list[str] = []
        self.accepts: Callable[[dict[str, str]], bool] = lambda headers: True
        self.content: Callable[[dict[str, str], str], str] = lambda headers, text: text.upper()
        super().__init__()

    async def _run(self) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        self.port = runner.addresses[0][1]
        self.base_url = f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}/v1"
        await self._until_closed()
        await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        content = await request.read()
        self.urls.append(request.raw_path)
        self.headers.append(dict(request.headers))
        if not self.accepts(self.headers[-1]):
            text = f"Incorrect API key: {request.headers.get('Authorization')}"
            return web.json_response({"error": {"message": text, "code": "invalid_api_key"}}, status=401)
        if not content:
            return web.json_response({"object": "list", "data": [{"id": "m", "object": "model"}]})
        body = json.loads(content)
        self.models.append(body["model"])
        text = self.content(self.headers[-1], str(body["messages"][-1]["content"]))
        return web.json_response(chat_reply(text, model=f"{body['model']}-2026"))


@pytest.fixture
def recorder() -> Iterator[RecordingProvider]:
    server = RecordingProvider()
    yield server
    server.close()


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    folder = tmp_path / "authority"
    folder.mkdir()
    return CertificateAuthority(folder)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxies and certificates of the machine that runs the tests."""
    for name in (*PROXY_VARIABLES, *map(str.upper, PROXY_VARIABLES), *CERTIFICATE_VARIABLES):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def configure(workspace: Any) -> Callable[..., Any]:
    """Write the keys of provider `test`, and rows; return the job file."""

    def write(rows: int = 2, prices: str = "{}", **keys: Any) -> Any:
        workspace.write("rowmill.yaml", f"providers: {{test: {json.dumps(keys)}}}\nprices: {prices}\n")
        workspace.csv(rows)
        return workspace.job()

    return write
