"""Batches at `rowmill serve`, through a proxy that counts every line and its price."""

import contextlib
import importlib
import itertools
import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from signal import SIGKILL, SIGTERM
from typing import Any

import aiohttp
import httpx2 as httpx
import pytest
from aiohttp import web

from tests.behaviour.runs.test_batches import pass_deadline, start_run
from tests.support.forked import COMMAND, Forked, ended
from tests.support.threaded_server import ThreadedServer

Body = dict[str, Any]
Read = Callable[..., list[Body]]
FINAL = ("completed", "failed", "expired", "cancelled")
PRICES = {"gpt-4o-mini": (1e-6, 2e-6), "text-embedding-3-small": (1e-6, 0)}
"""Dollars for an input and an output token, as the tests' workspace sets them."""


def texts_of(body: Body) -> list[str]:
    """Return the texts of a request."""
    if "messages" in body:
        return [str(body["messages"][-1]["content"])]
    return body["input"] if isinstance(body["input"], list) else [body["input"]]


class CountingProxy(ThreadedServer):
    """A proxy that counts what it passes on, and can set how a batch of the server ends."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.lines: dict[str, dict[str, list[str]]] = {}
        """File -> custom id -> texts."""
        self.batches: dict[str, str] = {}
        """Batch -> its file."""
        self.ends: dict[str, str] = {}
        """Batch -> how it ended."""
        self.submitted: Counter[str] = Counter()
        self.answered_by_batch: Counter[str] = Counter()
        """Texts with a 200 in an output file: paid for."""
        self.online: Counter[str] = Counter()
        self.tokens: Counter[tuple[str, str, str]] = Counter()
        """(batch or online, model, input or output) of what was answered with a 200."""
        self.knobs: Callable[[int], dict[str, str]] = lambda number: {}
        """Metadata for the batch of this number, in the order in which they are asked for."""
        self.creating: Callable[[], None] = lambda: None
        self._numbers = itertools.count()
        super().__init__()

    def cost(self) -> float:
        """What all answers cost: half the price in batches."""
        return sum(
            count * PRICES[model][kind == "output"] * (0.5 if way == "batch" else 1)
            for (way, model, kind), count in self.tokens.items()
        )

    async def _run(self) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/v1/{path:.*}", self._pass_on)
        async with aiohttp.ClientSession() as self._session:
            await self._run_app(app)

    async def _asked(self, method: str, path: str, body: bytes | None, kind: str) -> tuple[int, bytes, str]:
        async with self._session.request(
            method, f"{self.upstream}/{path}", data=body, headers={"content-type": kind}
        ) as reply:
            return reply.status, await reply.read(), reply.content_type

    async def _pass_on(self, request: web.Request) -> web.Response:
        body = await request.read()
        path = request.match_info["path"] + (f"?{request.query_string}" if request.query_string else "")
        creating = (request.method, path) == ("POST", "batches")
        if creating:
            self.creating()
            asked = json.loads(body)
            asked["metadata"] |= self.knobs(next(self._numbers))
            body = json.dumps(asked).encode()
        kind = request.headers.get("content-type", "application/json")
        status, answer, content_type = await self._asked(request.method, path, body, kind)
        item = json.loads(answer) if "json" in content_type else {}
        if (request.method, path) == ("POST", "files"):
            lines = [json.loads(line) for line in body.splitlines() if line.startswith(b'{"custom_id"')]
            self.lines[item["id"]] = {line["custom_id"]: texts_of(line["body"]) for line in lines}
        elif creating and status == 200:
            self.batches[item["id"]] = file = item["input_file_id"]
            for texts in self.lines[file].values():
                self.submitted.update(texts)
        elif path.startswith("batches/") and item.get("status") in FINAL and item["id"] not in self.ends:
            self.ends[item["id"]] = item["status"]
            await self._count_answers(item)
        elif request.method == "POST" and path in ("chat/completions", "responses", "embeddings"):
            self.online.update(texts_of(json.loads(body)))
            if status == 200:
                self._count_tokens("online", item)
        return web.Response(body=answer, status=status, content_type=content_type)

    async def _count_answers(self, batch: Body) -> None:
        if batch["output_file_id"] is None:
            return
        _, content, _ = await self._asked("GET", f"files/{batch['output_file_id']}/content", None, "text/plain")
        for line in map(json.loads, content.splitlines()):
            assert line["response"]["status_code"] == 200
            self.answered_by_batch.update(self.lines[self.batches[batch["id"]]][line["custom_id"]])
            self._count_tokens("batch", line["response"]["body"])

    def _count_tokens(self, way: str, answer: Body) -> None:
        usage = answer["usage"]
        given = usage.get("prompt_tokens", usage.get("input_tokens"))
        self.tokens[way, answer["model"], "input"] += given
        self.tokens[way, answer["model"], "output"] += usage.get("completion_tokens", usage.get("output_tokens", 0))


@pytest.fixture
def server(workspace: Any, provider: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[CountingProxy]:
    """`rowmill serve` behind a counting proxy; it is the workspace's provider `test`."""
    process = Forked(COMMAND, "serve", "--port", "0")
    counted = CountingProxy(process.first_line().split()[2])
    file = workspace.folder / "rowmill.yaml"
    prices = "".join(
        f"  {model}: {{input_per_million: {given * 1e6:g}, output_per_million: {made * 1e6:g}}}\n"
        for model, (given, made) in PRICES.items()
    )
    file.write_text(file.read_text().replace(provider.base_url, counted.base_url) + prices)
    monkeypatch.setattr("pipelines.batch.lifecycle.FIRST_POLL_SECONDS", 0.02)
    monkeypatch.setattr("pipelines.batch.lifecycle.MAX_POLL_SECONDS", 0.05)
    monkeypatch.setattr("pipelines.batch.dispatcher.QUIET_SECONDS", 0.1)
    yield counted
    counted.close()
    process.send_signal(SIGTERM)
    process.ended()


STEPS = {
    "chat": '{name: a, endpoint: chat, provider: test, model: gpt-4o-mini, messages: [{user: "{{ text }}"}]}',
    "responses": '{name: a, endpoint: responses, provider: test, model: gpt-4o-mini, input: "{{ text }}"}',
    "embeddings": (
        "{name: a, endpoint: embeddings, provider: test, model: text-embedding-3-small, dimensions: 8, "
        'input: "{{ text }}"}'
    ),
}


def deadline_in(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    soon = lambda said, zone, now: now + timedelta(seconds=seconds)  # noqa: E731
    monkeypatch.setattr(importlib.import_module("pipelines.engines.local_engine"), "next_deadline", soon)


def assert_nothing_is_paid_twice(counted: CountingProxy, report: Body, rows: int) -> None:
    """Each row has one paid answer, from a batch or online, and the report's cost is the sum of their costs."""
    everything = {f"text {n}" for n in range(1, rows + 1)}
    assert counted.answered_by_batch + counted.online == Counter(everything)
    assert (report["exit_code"], report["rows_ok"]) == (0, rows)
    assert report["cost_usd"] == pytest.approx(counted.cost())
    assert httpx.get(f"{counted.upstream}/files").json()["data"] == []
    assert set(counted.ends) == set(counted.batches)


@pytest.mark.parametrize("endpoint", ["chat", "responses"])
def test_at_the_deadline_a_batch_is_cancelled_and_only_its_unanswered_requests_are_sent_online(
    workspace: Any, server: CountingProxy, cli: Any, read: Read, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    workspace.csv(60)
    # By the deadline some of the lines are answered.
    server.knobs = lambda number: {"rowmill_delay_s": "12"}
    pass_deadline(monkeypatch, lambda: server.batches, 2)
    report = cli.run(workspace.job(steps=f"[{STEPS[endpoint]}]", delivery="batch", deadline='"06:00"'))
    assert set(server.ends.values()) == {"cancelled"}
    assert len(server.answered_by_batch) >= 1
    assert len(server.online) >= 1
    assert_nothing_is_paid_twice(server, report, 60)
    costs = {row["keys"][0]: row["cost_usd"] / row["input_tokens"] for row in read(workspace.folder / "out", "usage")}
    assert len(costs) == 60
    batch_cost, online_cost = (
        max(costs[text.split()[1]] for text in server.answered_by_batch),
        min(costs[text.split()[1]] for text in server.online),
    )
    assert batch_cost < online_cost


def test_requests_that_expired_or_failed_before_the_deadline_are_sent_online_after_it(
    workspace: Any, server: CountingProxy, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.csv(60)
    monkeypatch.setattr("pipelines.batch.builder.MAX_FILE_LINES", 20)
    # The first batch expires in part, the second fails as a whole; the rest is in one that never ends.
    ends = {0: {"rowmill_expire_share": "0.4"}, 1: {"rowmill_fail": "server_error"}}
    server.knobs = lambda number: ends.get(number, {"rowmill_delay_s": "64800"} if number > 2 else {})
    pass_deadline(monkeypatch, lambda: len(server.ends) == 3 and len(server.batches) > 3)
    report = cli.run(workspace.job(steps=f"[{STEPS['chat']}]", delivery="batch", deadline='"06:00"'))
    ends_told = Counter(server.ends.values())
    assert (ends_told["expired"], ends_told["failed"], ends_told["completed"]) == (1, 1, 1)
    assert ends_told["cancelled"] >= 1
    assert (server.answered_by_batch.total(), server.online.total()) == (32, 28)
    assert_nothing_is_paid_twice(server, report, 60)


def test_a_batch_that_fails_because_the_quota_is_used_up_stops_the_run(
    workspace: Any, server: CountingProxy, cli: Any
) -> None:
    workspace.csv(10)
    server.knobs = lambda number: {"rowmill_fail": "billing_hard_limit_reached"}
    job = workspace.job(steps=f"[{STEPS['chat']}]", delivery="batch")
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"]) == (3, 0)
    assert report["stopped"].startswith("quota: test says: ")
    assert len(server.batches) == 1
    server.knobs = lambda number: {}
    assert cli.run(job)["rows_ok"] == 10


def test_a_batch_that_is_created_while_the_deadline_passes_is_cancelled(
    workspace: Any, server: CountingProxy, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.csv(10)
    past = threading.Event()
    server.creating = lambda: past.wait(5) and None
    server.knobs = lambda number: {"rowmill_delay_s": "64800"}
    deadline_in(monkeypatch, 1)
    threading.Timer(2, past.set).start()
    report = cli.run(workspace.job(steps=f"[{STEPS['chat']}]", delivery="batch", deadline='"06:00"'))
    assert list(server.ends.values()) == ["cancelled"]
    assert server.answered_by_batch == Counter()
    assert_nothing_is_paid_twice(server, report, 10)


def test_partly_cancelled_groups_of_embeddings_keep_every_vector_in_its_row(
    workspace: Any, server: CountingProxy, cli: Any, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.csv(200)
    monkeypatch.setattr("connectors.endpoints.embeddings.MAX_TEXTS_PER_REQUEST", 5)
    server.knobs = lambda number: {"rowmill_delay_s": "12"}
    pass_deadline(monkeypatch, lambda: server.batches, 2)
    report = cli.run(workspace.job(steps=f"[{STEPS['embeddings']}]", delivery="batch", deadline='"06:00"'))
    assert server.answered_by_batch.total() >= 1
    assert_nothing_is_paid_twice(server, report, 200)
    made = [row["a"] for row in read(workspace.folder / "out", order="id")]
    near = workspace.job("near", steps=f"[{STEPS['embeddings'].replace('test', 'local', 1)}]", sink="{parquet: near}")
    assert cli.run(near)["exit_code"] == 0
    assert made == [row["a"] for row in read(workspace.folder / "near", order="id")]


MOMENTS = (
    "noted", "uploaded, not noted", "uploaded", "created, not noted", "created", "polled", "fetched in part",
    "settled, not cleaned", "cleaned, not forgotten", "not committed",
)  # fmt: skip


@pytest.mark.parametrize("endpoint", list(STEPS))
def test_a_run_that_is_killed_at_every_moment_in_turn_submits_no_line_twice(
    workspace: Any, server: CountingProxy, cli: Any, read: Read, endpoint: str
) -> None:
    rows = 400 if endpoint == "embeddings" else 100
    workspace.csv(rows)
    job = workspace.job(steps=f"[{STEPS[endpoint]}]", delivery="batch")
    for moment in MOMENTS:
        code, _ = ended(start_run(moment, job))
        assert code == -SIGKILL, moment
    code, out = ended(start_run("", job))
    report = json.loads(out)
    assert (code, report["rows_ok"], report["rows_left"]) == (0, rows, 0)
    everything = Counter({f"text {n}": 1 for n in range(1, rows + 1)})
    assert server.submitted == server.answered_by_batch == everything
    assert server.online == Counter()
    usage = read(workspace.folder / "out", "usage")
    assert sum(row["cost_usd"] for row in usage) == pytest.approx(server.cost())
    assert {row["error_class"] for row in usage} == {None}
    assert httpx.get(f"{server.upstream}/files").json()["data"] == []
    assert set(server.ends.values()) == {"completed"}
    with contextlib.closing(sqlite3.connect(workspace.folder / ".rowmill" / "ledger.sqlite")) as db:
        for table in ("batches", "batch_lines", "noted"):
            assert db.execute(f"select count(*) from {table}").fetchone() == (0,), table
    made = [row["a"] for row in read(workspace.folder / "out", order="id")]
    near = workspace.job("near", steps=f"[{STEPS[endpoint].replace('test', 'local', 1)}]", sink="{parquet: near}")
    assert cli.run(near)["exit_code"] == 0
    assert made == [row["a"] for row in read(workspace.folder / "near", order="id")]
