"""A scripted provider, independent of the embedded one, and a workspace that talks to it."""

import asyncio
import base64
import gc
import inspect
import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from hypothesis import HealthCheck, settings

from pipelines.runtime import child_process
from tests.support.forked import command_line
from tests.support.threaded_server import ThreadedServer

Body = dict[str, Any]
Script = Callable[[str, Body, int], web.StreamResponse | Body | None]
"""(path, body, how many requests came before) -> a response, a JSON body for a 200, or None for the usual answer."""

ReadTable = Callable[..., list[Body]]
"""(folder, table name, order) -> the rows of a table in a Parquet sink."""


STARTED = child_process.COMMAND
"""The command of a job's process."""

# The same examples each time; `pytest --hypothesis-profile=default` draws others.
# Time proves nothing on a machine that others use.
settings.register_profile("repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")


def pytest_configure() -> None:
    """Collect no garbage until all tests are imported: it takes a fifth of that time."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Collect garbage again, but not among the tests, which live as long as the process."""
    gc.freeze()
    gc.enable()


class ScriptedProvider(ThreadedServer):
    """Answers chat with the last message in upper case, embeddings with small vectors; counts what it saw."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Body]] = []
        self.answered: list[tuple[str, Body]] = []
        self.headers: list[dict[str, str]] = []
        self.peers: list[int] = []
        """The client's port of every request."""
        self.script: Script = lambda path, body, count: None
        self.latency = 0.0
        self.in_flight = 0
        self.most_in_flight = 0
        self.tokens = (10, 5)
        super().__init__()

    def prompts(self) -> list[str]:
        """The last message of every chat request, in the order in which they came."""
        return [body["messages"][-1]["content"] for path, body in self.seen if "messages" in body]

    async def _run(self) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/v1/{path:.*}", self._answer)
        await self._run_app(app)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        path = request.match_info["path"]
        count = len(self.seen)
        self.seen.append((path, body))
        self.headers.append(dict(request.headers))
        assert request.transport is not None
        self.peers.append(request.transport.get_extra_info("peername")[1])
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.latency:
                await asyncio.sleep(self.latency)
            scripted = self.script(path, body, count)
            if inspect.isawaitable(scripted):
                scripted = await scripted
            if isinstance(scripted, web.StreamResponse):
                return scripted
            self.answered.append((path, body))
            answer = scripted or self._usual(path, body)
            return web.json_response(answer, headers={"x-request-id": f"req-{count}"})
        finally:
            self.in_flight -= 1

    def _usual(self, path: str, body: Body) -> Body:
        given, made = self.tokens
        if path == "embeddings":
            texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
            size = body.get("dimensions", 4)
            vectors = [np.full(size, float(len(text)), dtype="<f4").tobytes() for text in texts]
            return {
                "object": "list",
                "model": body["model"],
                "data": [
                    {"object": "embedding", "index": index, "embedding": base64.b64encode(vector).decode()}
                    for index, vector in enumerate(vectors)
                ],
                "usage": {"prompt_tokens": given * len(texts), "total_tokens": given * len(texts)},
            }
        return chat_reply(str(body["messages"][-1]["content"]).upper(), body["model"], given, made)


def chat_reply(content: str | None, model: str = "m", given: int = 10, made: int = 5, finish: str = "stop") -> Body:
    """A chat completion."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, "refusal": None},
                "logprobs": None,
                "finish_reason": finish,
            }
        ],
        "usage": {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made},
    }


def error_reply(status: int, message: str, code: str | None = None, **headers: str) -> web.Response:
    """An error as the API words it."""
    return web.json_response(
        {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}},
        status=status,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )


@pytest.fixture(scope="session", autouse=True)
def without_waits_for_disks() -> Iterator[None]:
    """No test cuts the power, so files need not reach the disk; tests of `fsync` replace it by their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def forked_children() -> Iterator[None]:
    """Fork the processes of jobs instead of starting Python, which takes most of a short run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(child_process, "COMMAND", tuple(command_line()))
        yield


@pytest.fixture
def started_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the processes of jobs as for users, although it takes long."""
    monkeypatch.setattr(child_process, "COMMAND", STARTED)


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    """A provider that a test scripts."""
    server = ScriptedProvider()
    yield server
    server.close()


BUCKET = "rowmill-tests"


OBJECT_SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print("http://%s:%s" % server.get_host_and_port(), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="session")
def object_server() -> Iterator[str]:
    """The address of a local S3 server with one bucket; a process of its own, as a client may hold on to the GIL."""
    import subprocess
    import sys
    import urllib.request

    server = subprocess.Popen(
        [sys.executable, "-c", OBJECT_SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    address = server.stdout.readline().strip()
    with urllib.request.urlopen(urllib.request.Request(f"{address}/{BUCKET}", method="PUT")) as reply:
        assert reply.status == 200
    yield address
    server.communicate()


@pytest.fixture
def bucket(object_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a place of the test's own on an object store that the environment names."""
    for name, value in {
        "AWS_ENDPOINT_URL": object_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "secret-of-the-test",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}{tmp_path}"


def noon() -> str:
    """Return the line of a rowmill.yaml for a time zone in which it is noon: no day of a budget ends during a test."""
    return f"time_zone: Etc/GMT{datetime.now(UTC).hour - 12:+d}\n"


class Workspace:
    """A folder with a rowmill.yaml whose provider `test` is the scripted one."""

    def __init__(self, folder: Path, base_url: str) -> None:
        self.folder = folder
        self.write(
            "rowmill.yaml",
            f"""
providers:
  test: {{base_url: "{base_url}"}}
prices:
  m: {{input_per_million: 1, output_per_million: 2}}
  e: {{input_per_million: 1}}
""",
        )

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def csv(self, rows: int, name: str = "rows.csv") -> Path:
        """Rows id 1..n with a text of their own."""
        return self.write(name, "id,text\n" + "".join(f"{n},text {n}\n" for n in range(1, rows + 1)))

    def job(self, name: str = "job", **replaced: str) -> Path:
        """A job file that asks the scripted provider about each row; its top-level blocks can be replaced."""
        blocks = {
            "name": name,
            "source": "{csv: rows.csv, key: id}",
            "steps": '[{name: answer, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }}"}], '
            "params: {max_tokens: 20}}]",
            "sink": "{parquet: out}",
            "retry": "{attempts: 3, longest_wait: 0.02, longest_hold: 5}",
        }
        blocks.update(replaced)
        return self.write(f"{name}.yaml", "".join(f"{key}: {value}\n" for key, value in blocks.items() if value))


@pytest.fixture
def workspace(tmp_path: Path, provider: ScriptedProvider) -> Workspace:
    """A workspace whose provider is the scripted one."""
    return Workspace(tmp_path, provider.base_url)


class Cli:
    """The command line, in this process."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture
        self.out = ""
        self.err = ""

    def __call__(self, *arguments: str | Path) -> int:
        """The exit code; what was printed is in `out` and `err`."""
        from pipelines.cli import exit_code_of

        self._capture.readouterr()
        code = exit_code_of([str(argument) for argument in arguments])
        self.out, self.err = self._capture.readouterr()
        return code

    def run(self, job: Path, *arguments: str) -> Body:
        """The object that `rowmill run --json` prints."""
        code = self("run", job, "--json", "--quiet", *arguments)
        (line,) = self.out.splitlines()
        report: Body = json.loads(line)
        assert report["exit_code"] == code
        return report


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line, in this process, without the width that pytest-xdist sets."""
    monkeypatch.delenv("COLUMNS", raising=False)
    return Cli(capsys)


def table(folder: Path, name: str = "results", order: str = "all") -> list[Body]:
    """The rows of one table of a Parquet sink, as DuckDB reads them."""
    from tests.support.shared_database import shared_cursor

    with shared_cursor() as db:
        return (
            db.sql(f"select * from read_parquet('{folder}/{name}/*.parquet') order by {order}")
            .to_arrow_table()
            .to_pylist()
        )


@pytest.fixture
def read() -> ReadTable:
    """Reads a table of a Parquet sink: (folder, name, order)."""
    return table
