"""Models, files and batches of a provider: the few calls of the API that make no answer."""

import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import orjson

from connectors.contracts import Provider
from connectors.errors import JobError, Stopped
from connectors.records import FATAL_ERROR_CLASSES, Call, Reply, RowError
from connectors.transport.client import HttpTransport, RequestError, RequestTimeouts
from connectors.transport.error_replies import row_error
from pipelines.config.workspace import Workspace, find_workspace
from pipelines.config.workspace_file import LOCAL
from pipelines.runtime.event_loop import run_loop

T = TypeVar("T")
Item = dict[str, Any]
"""An object of the API as it comes: a model, a file, a batch."""

PAGE = 100
"""Objects asked for at a time; of batches more cannot be had."""


class Refused(Exception):
    """The provider answered, and not as asked: its own words."""

    def __init__(self, error: RowError) -> None:
        super().__init__(error.message)
        self.error = error


class ProviderApi:
    """One provider's models, files and batches; each call may raise Refused, or RequestError where no reply comes."""

    def __init__(self, transport: HttpTransport, provider: Provider) -> None:
        self._transport = transport
        self.provider = provider

    async def models(self) -> list[Item]:
        """All models that the key may use."""
        return [model async for model in self._listed("/models", {})]

    async def model(self, name: str) -> Item:
        """One model."""
        return await self._asked("GET", f"/models/{quote(name, safe='/:')}")

    async def files(self, purpose: str | None = None) -> list[Item]:
        """All files of the key's project, the newest first."""
        return [file async for file in self._listed("/files", {} if purpose is None else {"purpose": purpose})]

    async def file(self, file_id: str) -> Item:
        """One file's facts."""
        return await self._asked("GET", _at("files", file_id))

    async def upload(
        self, file: Path, name: str, purpose: str, told: Callable[[int], None] = lambda sent: None
    ) -> Item:
        """The new file; `told` gets the bytes sent so far."""
        return _object(await self._transport.upload(self.provider, "/files", {"purpose": purpose}, file, name, told))

    async def download(self, file_id: str, write: Callable[[bytes], object]) -> None:
        """A file's content, piece by piece."""
        reply = await self._transport.download(self.provider, f"{_at('files', file_id)}/content", write)
        if not 200 <= reply.status < 300:
            raise Refused(row_error(reply))

    async def delete_file(self, file_id: str) -> Item:
        """What the provider says of the deletion."""
        return await self._asked("DELETE", _at("files", file_id))

    def batches(self) -> AsyncIterator[Item]:
        """All batches, the newest first, asked for as they are read."""
        return self._listed("/batches", {"limit": str(PAGE)})

    async def batch(self, batch_id: str) -> Item:
        """One batch as it stands."""
        return await self._asked("GET", _at("batches", batch_id))

    async def create_batch(self, file_id: str, path: str, metadata: Mapping[str, str]) -> Item:
        """The new batch: the requests of an uploaded file, all to one path."""
        asked = {"input_file_id": file_id, "endpoint": path, "completion_window": "24h", "metadata": dict(metadata)}
        return await self._asked("POST", "/batches", orjson.dumps(asked))

    async def cancel_batch(self, batch_id: str) -> Item:
        """The batch, which is cancelled or about to be."""
        return await self._asked("POST", f"{_at('batches', batch_id)}/cancel")

    async def _asked(self, method: str, path: str, body: bytes | None = None) -> Item:
        return _object(await self._transport.send(self.provider, Call(method, path, body)))

    async def _listed(self, path: str, query: Mapping[str, str]) -> AsyncIterator[Item]:
        after: dict[str, str] = {}
        while True:
            asked = urlencode({**query, **after})
            page = await self._asked("GET", f"{path}?{asked}" if asked else path)
            items = [item for item in page.get("data") or () if isinstance(item, dict)]
            for item in items:
                yield item
            last = items[-1].get("id") if items else None
            # A server that ignores `after` would send the same page for ever.
            if not page.get("has_more") or last is None or after.get("after") == last:
                return
            after = {"after": str(last)}


def _at(kind: str, name: str) -> str:
    return f"/{kind}/{quote(name, safe='')}"


def _object(reply: Reply) -> Item:
    if not 200 <= reply.status < 300:
        raise Refused(row_error(reply))
    try:
        told = orjson.loads(reply.body)
    except orjson.JSONDecodeError as exc:
        raise Refused(RowError("malformed_reply", f"the reply is no JSON ({exc})", reply.status)) from exc
    if not isinstance(told, dict):
        raise Refused(RowError("malformed_reply", "the reply is no JSON object", reply.status))
    return told


@contextlib.contextmanager
def reached(name: str, workspace: Workspace) -> Iterator[Provider]:
    """A provider of the workspace; `local` listens meanwhile, and keeps its files in the workspace's state."""
    provider = workspace.provider(name, "--provider")
    if provider.name != LOCAL:
        yield provider
        return
    from connectors.emulator.server import EmulatorOptions, EmulatorServer

    with EmulatorServer(EmulatorOptions(folder=workspace.state / LOCAL)) as server:
        yield replace(provider, base_url=server.base_url)


def ask_provider(name: str, work: Callable[[ProviderApi], Coroutine[Any, Any, T]]) -> T:
    """What the calls return, made to a provider of this folder's workspace; what it refuses is told in its words."""
    with reached(name, find_workspace(Path.cwd())) as provider:
        try:
            return run_loop(_asked_all(provider, work))
        except Refused as exc:
            stopping = exc.error.error_class in FATAL_ERROR_CLASSES
            message = " ".join(exc.error.message.split())
            raise (Stopped(f"{name}: {message}") if stopping else JobError(name, message)) from exc
        except RequestError as exc:
            raise Stopped(f"{name}: {exc}; is {provider.base_url} right, and does it run?") from exc


async def _asked_all(provider: Provider, work: Callable[[ProviderApi], Coroutine[Any, Any, T]]) -> T:
    transport = HttpTransport(RequestTimeouts(), 8)
    try:
        return await work(ProviderApi(transport, provider))
    finally:
        await transport.close()
