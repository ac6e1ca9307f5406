"""A scripted Batch API, independent of the embedded provider: counts every line that is submitted to it."""

import itertools
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from aiohttp import web

from connectors.transport.awake_clock import AWAKE_CLOCK
from tests.support.threaded_server import ThreadedServer

Body = dict[str, Any]
LineScript = Callable[[str, Body], Body | str | None]
"""(text, body) -> a response {status_code, body}, `expired`, `missing` (in no file), `silent` (no response in the error
file) or `answered` (even by a batch that is cancelled); None: the usual answer."""


@pytest.fixture
def time_passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let the clock of limits and deadlines jump ahead, by seconds: a slow machine takes no part in it."""
    return lambda seconds: monkeypatch.setattr(AWAKE_CLOCK, "_suspended", AWAKE_CLOCK._suspended - seconds)


class BatchProvider(ThreadedServer):
    """Files, batches and, for what is asked online, chat; a batch ends after so many looks at it."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[str, bytes]] = {}
        self.batches: dict[str, Body] = {}
        self.submitted: Counter[str] = Counter()
        """Texts in lines of batches that were created and did not fail at once."""
        self.online: Counter[str] = Counter()
        self.lines_of_batches: list[int] = []
        self.bytes_of_batches: list[int] = []
        self.texts_of_batches: list[int] = []
        self.most_running = 0
        """Batches at the same time."""
        self.polls = 2
        self.held = False
        """While it is, no batch ends by itself."""
        self.script: LineScript = lambda text, body: None
        self.most_lines: int | None = None
        """Enqueued at a time: what is above is refused, or fails later, with token_limit_exceeded."""
        self.most_characters: int | None = None
        """The same, of the texts in all lines."""
        self.limit_words = "Enqueued token limit reached for m."
        self.limit_fails_later = False
        self.limited = 0
        self.refuse: Callable[[str, str], web.Response | None] = lambda method, path: None
        self.change_end: Callable[[Body], None] = lambda batch: None
        """Changes a batch that has just ended, or its files."""
        self.create: Callable[[web.Request], Awaitable[web.Response]] = self._create
        self.seen: list[tuple[str, str]] = []
        self._numbers = itertools.count()
        super().__init__()

    @staticmethod
    def error(status: int, message: str, code: str | None = None) -> web.Response:
        """An error as the API words it."""
        problem = {"message": message, "type": "t", "param": None, "code": code}
        return web.json_response({"error": problem}, status=status)

    async def _run(self) -> None:
        app = web.Application(client_max_size=1 << 30, middlewares=[self._watched])
        app.router.add_post("/v1/files", self._upload)
        app.router.add_get("/v1/files", self._list_files)
        app.router.add_get("/v1/files/{id}/content", self._content)
        app.router.add_delete("/v1/files/{id}", self._delete)
        app.router.add_post("/v1/batches", self._create_as_scripted)
        app.router.add_get("/v1/batches", self._list_batches)
        app.router.add_get("/v1/batches/{id}", self._show)
        app.router.add_post("/v1/batches/{id}/cancel", self._cancel)
        app.router.add_post("/v1/chat/completions", self._chat)
        await self._run_app(app)

    @web.middleware
    async def _watched(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.seen.append((request.method, request.path))
        refused = self.refuse(request.method, request.path)
        return refused if refused is not None else await handler(request)

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        file = form["file"]
        assert form["purpose"] == "batch"
        assert isinstance(file, web.FileField)
        name = f"file-{next(self._numbers)}"
        self.files[name] = (file.filename, file.file.read())
        return web.json_response({"id": name, "object": "file", "filename": file.filename, "purpose": "batch"})

    async def _list_files(self, request: web.Request) -> web.Response:
        listed = [{"id": name, "object": "file", "filename": file[0]} for name, file in self.files.items()]
        return web.json_response(page(listed[::-1], request))

    async def _content(self, request: web.Request) -> web.Response:
        if request.match_info["id"] not in self.files:
            return self.error(404, "no such file")
        return web.Response(body=self.files[request.match_info["id"]][1])

    async def _delete(self, request: web.Request) -> web.Response:
        if self.files.pop(request.match_info["id"], None) is None:
            return self.error(404, "no such file")
        return web.json_response({"id": request.match_info["id"], "object": "file", "deleted": True})

    async def _create_as_scripted(self, request: web.Request) -> web.Response:
        return await self.create(request)

    async def _create(self, request: web.Request) -> web.Response:
        asked = await request.json()
        assert asked["completion_window"] == "24h"
        content = self.files[asked["input_file_id"]][1]
        lines = [json.loads(line) for line in content.splitlines()]
        assert len({line["custom_id"] for line in lines}) == len(lines)
        assert all(line["url"] == asked["endpoint"] and line["method"] == "POST" for line in lines)
        over = self._over(lines)
        self.limited += over
        if over and not self.limit_fails_later:
            return self.error(400, self.limit_words, "token_limit_exceeded")
        batch = {
            "id": f"batch_{len(self.batches)}", "object": "batch", "endpoint": asked["endpoint"], "errors": None,
            "input_file_id": asked["input_file_id"], "completion_window": "24h", "status": "validating",
            "output_file_id": None, "error_file_id": None, "created_at": 2_000_000_000, "polls": 0,
            "metadata": asked["metadata"], "lines": lines, "fails": over,
        }  # fmt: skip
        self.batches[str(batch["id"])] = batch
        self.bytes_of_batches.append(len(content))
        self.texts_of_batches.append(sum(len(texts_of(line["body"])) for line in lines))
        running = sum(one["status"] in ("validating", "in_progress") for one in self.batches.values())
        self.most_running = max(self.most_running, running)
        if not over:
            self.lines_of_batches.append(len(lines))
            for line in lines:
                self.submitted.update(texts_of(line["body"]))
        return web.json_response(batch_item(batch))

    def _over(self, lines: list[Body]) -> bool:
        """Whether these are too many beside those that are enqueued."""
        running = [b for b in self.batches.values() if b["status"] in ("validating", "in_progress") and not b["fails"]]
        enqueued = [*lines, *(line for batch in running for line in batch["lines"])]
        characters = sum(len(text) for line in enqueued for text in texts_of(line["body"]))
        return (self.most_lines is not None and len(enqueued) > self.most_lines) or (
            self.most_characters is not None and characters > self.most_characters
        )

    async def _list_batches(self, request: web.Request) -> web.Response:
        return web.json_response(page([batch_item(batch) for batch in self.batches.values()][::-1], request, most=2))

    async def _show(self, request: web.Request) -> web.Response:
        batch = self.batches[request.match_info["id"]]
        batch["polls"] += 1
        if batch["status"] == "cancelling":
            self._end(batch, "cancelled")
        elif batch["fails"] and batch["status"] != "failed":
            batch["status"] = "failed"
            problem = {"code": "token_limit_exceeded", "message": self.limit_words, "line": None}
            batch["errors"] = {"object": "list", "data": [problem]}
        elif batch["status"] == "validating":
            batch["status"] = "in_progress"
        elif batch["status"] == "in_progress" and batch["polls"] >= self.polls and not self.held:
            self._end(batch, "completed")
        return web.json_response(batch_item(batch))

    async def _cancel(self, request: web.Request) -> web.Response:
        batch = self.batches[request.match_info["id"]]
        if batch["status"] not in ("validating", "in_progress"):
            return self.error(409, "it has ended")
        batch["status"] = "cancelling"
        return web.json_response(batch_item(batch))

    def _end(self, batch: Body, status: str) -> None:
        """Answers in another order than the questions; refused lines and those without an answer in a second file."""
        came: list[Body] = []
        failed: list[Body] = []
        for line in batch["lines"][::-1]:
            scripted = self.script(texts_of(line["body"])[0], line["body"])
            named = {"id": f"batch_req_{line['custom_id']}", "custom_id": line["custom_id"]}
            if scripted == "missing" or (scripted is None and status == "cancelled"):
                continue
            if scripted in ("expired", "silent"):
                status = "expired" if scripted == "expired" else status
                code = "batch_expired" if scripted == "expired" else "server_error"
                failed.append({**named, "response": None, "error": {"code": code, "message": "no answer"}})
                continue
            if scripted == "answered" or scripted is None:
                scripted = {"status_code": 200, "body": usual(line["body"])}
            assert isinstance(scripted, dict)
            answer = {**named, "response": {"request_id": f"r-{line['custom_id']}", **scripted}, "error": None}
            (came if scripted["status_code"] == 200 else failed).append(answer)
        for kind, lines in (("output", came), ("error", failed)):
            if lines:
                name = f"file-{kind}-{batch['id']}"
                content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
                self.files[name] = (f"{batch['id']}_{kind}.jsonl", content)
                batch[f"{kind}_file_id"] = name
        batch["status"] = status
        self.change_end(batch)

    async def _chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.online.update(texts_of(body))
        return web.json_response(usual(body))


def texts_of(body: Body) -> list[str]:
    """What a request asks about."""
    if "messages" in body:
        return [str(body["messages"][-1]["content"])]
    return list(body["input"])


def usual(body: Body) -> Body:
    """A chat answer in upper case, or small vectors; 10 tokens in for each text and 5 out."""
    texts = texts_of(body)
    if "messages" not in body:
        vectors = [{"object": "embedding", "index": n, "embedding": [float(len(t))] * 3} for n, t in enumerate(texts)]
        return {"object": "list", "model": body["model"], "data": vectors, "usage": {"prompt_tokens": 10 * len(texts)}}
    message = {"role": "assistant", "content": texts[0].upper(), "refusal": None}
    return {
        "id": "c", "object": "chat.completion", "created": 1, "model": body["model"],
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }  # fmt: skip


def batch_item(batch: Body) -> Body:
    """A batch as the API tells it."""
    return {name: value for name, value in batch.items() if name not in ("lines", "polls", "fails")}


def page(items: list[Body], request: web.Request, most: int = 1000) -> Body:
    """A page of a list, by `after`."""
    after = request.query.get("after")
    start = next((n + 1 for n, item in enumerate(items) if item["id"] == after), 0)
    return {"object": "list", "data": items[start : start + most], "has_more": len(items) > start + most}


@pytest.fixture
def batches(workspace: Any, provider: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchProvider]:
    """A Batch API that the workspace's provider `test` is, looked at every few milliseconds."""
    server = BatchProvider()
    file = workspace.folder / "rowmill.yaml"
    file.write_text(file.read_text().replace(provider.base_url, server.base_url))
    monkeypatch.setattr("pipelines.batch.lifecycle.FIRST_POLL_SECONDS", 0.02)
    monkeypatch.setattr("pipelines.batch.lifecycle.MAX_POLL_SECONDS", 0.05)
    monkeypatch.setattr("pipelines.batch.dispatcher.QUIET_SECONDS", 0.1)
    yield server
    server.close()
