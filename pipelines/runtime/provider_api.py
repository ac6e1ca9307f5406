"""Models, files and batches of a provider: the calls of the API that produce no answers."""

import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import orjson
from msgspec.structs import replace

from connectors.contracts import Provider
from connectors.error_classes import FATAL_ERROR_CLASSES
from connectors.errors import JobError, Stopped
from connectors.records import Call, Reply, RowError
from connectors.transport.client import HttpTransport, RequestError, RequestTimeouts
from connectors.transport.error_replies import row_error
from pipelines.config.workspace import Workspace, find_workspace
from pipelines.config.workspace_file import LOCAL
from pipelines.runtime.event_loop import run_loop
from pipelines.runtime.services import embedded_provider

T = TypeVar("T")
Item = dict[str, Any]
"""An object of the API: a model, a file, a batch."""

PAGE_SIZE = 100
"""Objects per page; the API returns no more batches at a time."""


class RequestRefused(Exception):
    """An error reply of the provider."""

    def __init__(self, error: RowError) -> None:
        super().__init__(error.message)
        self.error = error


class ProviderApi:
    """One provider's models, files and batches.

    Each call raises RequestRefused for an error reply, and RequestError if no reply arrives.
    """

    def __init__(self, transport: HttpTransport, provider: Provider) -> None:
        self._transport = transport
        self.provider = provider

    async def list_models(self) -> list[Item]:
        """Return all models that the key may use."""
        return [model async for model in self._pages("/models", {})]

    async def get_model(self, name: str) -> Item:
        """Return one model."""
        return await self._send("GET", f"/models/{quote(name, safe='/:')}")

    async def list_files(self, purpose: str | None = None) -> list[Item]:
        """Return all files of the key's project, newest first."""
        return [file async for file in self._pages("/files", {} if purpose is None else {"purpose": purpose})]

    async def get_file(self, file_id: str) -> Item:
        """Return the description of one file."""
        return await self._send("GET", _path("files", file_id))

    async def upload_file(
        self, file: Path, name: str, purpose: str, on_progress: Callable[[int], None] = lambda sent_bytes: None
    ) -> Item:
        """Upload a file and return its description; `on_progress` receives the bytes sent so far."""
        fields = {"purpose": purpose}
        return _item(await self._transport.upload(self.provider, "/files", fields, file, name, on_progress))

    async def download_file(self, file_id: str, write: Callable[[bytes], object]) -> None:
        """Pass a file's content to `write`, chunk by chunk."""
        reply = await self._transport.download(self.provider, f"{_path('files', file_id)}/content", write)
        if not 200 <= reply.status < 300:
            raise RequestRefused(row_error(reply))

    async def delete_file(self, file_id: str) -> Item:
        """Delete a file and return the provider's reply."""
        return await self._send("DELETE", _path("files", file_id))

    def list_batches(self) -> AsyncIterator[Item]:
        """Yield all batches, newest first; a page is requested when it is needed."""
        return self._pages("/batches", {"limit": str(PAGE_SIZE)})

    async def get_batch(self, batch_id: str) -> Item:
        """Return the current state of one batch."""
        return await self._send("GET", _path("batches", batch_id))

    async def create_batch(self, file_id: str, path: str, metadata: Mapping[str, str]) -> Item:
        """Create a batch of the requests in an uploaded file, all to one path."""
        body = {"input_file_id": file_id, "endpoint": path, "completion_window": "24h", "metadata": dict(metadata)}
        return await self._send("POST", "/batches", orjson.dumps(body))

    async def cancel_batch(self, batch_id: str) -> Item:
        """Cancel a batch; it may be in the state `cancelling` for some minutes."""
        return await self._send("POST", f"{_path('batches', batch_id)}/cancel")

    async def _send(self, method: str, path: str, body: bytes | None = None) -> Item:
        return _item(await self._transport.send(self.provider, Call(method, path, body)))

    async def _pages(self, path: str, query: Mapping[str, str]) -> AsyncIterator[Item]:
        after: dict[str, str] = {}
        while True:
            parameters = urlencode({**query, **after})
            page = await self._send("GET", f"{path}?{parameters}" if parameters else path)
            items = [item for item in page.get("data") or () if isinstance(item, dict)]
            for item in items:
                yield item
            following = {"after": str(items[-1].get("id"))} if items else after
            # A server that ignores `after` would send the same page for ever.
            if not page.get("has_more") or following == after:
                return
            after = following


def call_provider(name: str, work: Callable[[ProviderApi], Coroutine[Any, Any, T]]) -> T:
    """Return the result of calls to a provider of the current folder's workspace; an error reply ends the command."""
    with open_provider(name, find_workspace(Path.cwd())) as provider:
        try:
            return run_loop(_with_transport(provider, work))
        except RequestRefused as exc:
            message = " ".join(exc.error.message.split())
            if exc.error.error_class == "malformed_reply":
                remedy = f"see whether {provider.base_url} is the address of its API"
                raise JobError(name, message, remedy) from exc
            # A name that the provider does not know is the user's mistake here, not the set-up's.
            is_fatal = exc.error.error_class in FATAL_ERROR_CLASSES - {"setup"}
            raise (Stopped(f"{name}: {message}") if is_fatal else JobError(name, message)) from exc
        except RequestError as exc:
            raise Stopped(f"{name}: {exc}; is {provider.base_url} right, and does it run?") from exc


@contextlib.contextmanager
def open_provider(name: str, workspace: Workspace) -> Iterator[Provider]:
    """Yield a provider of the workspace; the embedded provider runs meanwhile if it is `local`."""
    provider = workspace.provider(name, "--provider")
    if provider.key_source is not None:
        provider.key_source.prepare()
    if provider.name != LOCAL:
        yield provider
        return
    with embedded_provider(workspace) as url:
        yield replace(provider, base_url=url)


async def _with_transport(provider: Provider, work: Callable[[ProviderApi], Coroutine[Any, Any, T]]) -> T:
    transport = HttpTransport(RequestTimeouts(), 8)
    try:
        return await work(ProviderApi(transport, provider))
    finally:
        await transport.close()


def _path(kind: str, name: str) -> str:
    return f"/{kind}/{quote(name, safe='')}"


def _item(reply: Reply) -> Item:
    if not 200 <= reply.status < 300:
        raise RequestRefused(row_error(reply))
    try:
        item = orjson.loads(reply.body)
    except orjson.JSONDecodeError as exc:
        raise RequestRefused(RowError("malformed_reply", f"the reply is not JSON ({exc})", reply.status)) from exc
    if not isinstance(item, dict):
        raise RequestRefused(RowError("malformed_reply", "the reply is not a JSON object", reply.status))
    return item
