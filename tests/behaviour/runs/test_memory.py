"""Memory limits by bytes: unread answers, wide rows, and files that are sent."""

import hashlib
import os
import sys
import threading
from pathlib import Path
from typing import Any, ClassVar

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web

from connectors.contracts import Provider
from connectors.records import Call, Reply
from connectors.sinks.parquet_table import ParquetTables
from connectors.sql import query_connection
from connectors.transport.client import HttpTransport, RequestTimeouts
from pipelines.dispatch import media_files
from pipelines.dispatch.step_runner import StepRunner
from tests.conftest import chat_reply, table

MB = 1 << 20
IN_FLIGHT = 4


def holders(bodies: list[bytes]) -> list[int]:
    """Return the number of references to each of them, this list included."""
    return [sys.getrefcount(body) for body in bodies]


class LargeAnswers:
    """A transport that answers every request at once with a body of a megabyte."""

    asked = 0
    much_asked = threading.Event()
    bodies: ClassVar[list[bytes]] = []
    most_held = 0
    """Most bytes of replies in memory at any request."""
    runners: ClassVar[list[StepRunner]] = []
    most_open = 0

    def __init__(self, timeouts: RequestTimeouts, connections: int) -> None:
        pass

    async def send(self, provider: Provider, call: Call) -> Reply:
        LargeAnswers.asked += 1
        if LargeAnswers.asked > 40:
            self.much_asked.set()
        (alone,) = holders([bytes(16)])
        self.bodies[:] = [body for body, count in zip(self.bodies, holders(self.bodies), strict=True) if count > alone]
        LargeAnswers.most_held = max(LargeAnswers.most_held, sum(map(len, self.bodies)))
        LargeAnswers.most_open = max([LargeAnswers.most_open, *(runner.open_bytes for runner in self.runners)])
        if call.path == "/audio/speech":
            # Each its own, or it would be written once.
            content = b"ID3" + orjson.loads(call.body or b"")["input"].encode() + bytes(MB)
        else:
            content = orjson.dumps(chat_reply("yes" * (MB // 3)))
        self.bodies.append(content)
        return Reply(200, {}, content, 1.0)

    async def close(self) -> None:
        pass


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> type[LargeAnswers]:
    """Replaces HTTP."""
    monkeypatch.setattr("pipelines.engines.local_engine.HttpTransport", LargeAnswers)
    monkeypatch.setattr("pipelines.dispatch.pending_requests.EARLY_READ_BYTES", 2 * MB)
    monkeypatch.setattr("pipelines.dispatch.read_buffer.MAX_UNREAD_BYTES", 4 * MB)
    LargeAnswers.asked, LargeAnswers.most_open, LargeAnswers.runners = 0, 0, []
    LargeAnswers.much_asked.clear()
    LargeAnswers.bodies, LargeAnswers.most_held = [], 0
    return LargeAnswers


STEPS = {
    "speech": "[{name: sound, endpoint: speech, provider: test, model: tts-1, voice: alloy, "
    'input: "{{ text }}", response_format: mp3}]',
    "chat": '[{name: answer, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }}"}]}]',
}


@pytest.mark.parametrize("kind", ["speech", "chat"])
def test_unread_answers_are_limited_by_their_bytes(
    workspace: Any, cli: Any, answering: type[LargeAnswers], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    write_files, first = media_files.write_files, threading.Lock()

    def slow_at_first(*given: Any) -> None:
        if first.acquire(blocking=False):
            # The disk is slow: the senders have time to run ahead, as far as they may.
            answering.much_asked.wait(0.5)
        write_files(*given)

    monkeypatch.setattr("pipelines.dispatch.step_runner.write_files", slow_at_first)
    workspace.csv(100)
    report = cli.run(workspace.job(steps=STEPS[kind], limits=f"{{concurrency: {IN_FLIGHT}}}"))
    assert (report["rows_ok"], report["requests"]) == (100, 100)
    # To be read; in flight; and of each of a few chunks what is too little to be read yet, and what is just being read.
    assert answering.most_held <= (4 + IN_FLIGHT + 4 * 2) * MB
    if kind == "speech":
        assert len(list((workspace.folder / "out/files").iterdir())) == 100


def test_wide_rows_start_a_few_megabytes_at_a_time(
    workspace: Any, cli: Any, answering: type[LargeAnswers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.execution.job_run.MAX_OPEN_BYTES", 4 * MB)
    monkeypatch.setattr("pipelines.preparation.row_selection.CHUNK_BYTES", 1 * MB)

    class Watched(StepRunner):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            answering.runners.append(self)

    monkeypatch.setattr("pipelines.engines.local_engine.StepRunner", Watched)
    texts = pa.table({"id": range(64), "text": [f"{number} " + "x" * (MB // 2) for number in range(64)]})
    pq.write_table(texts, workspace.folder / "rows.parquet", row_group_size=4)
    job = workspace.job(source="{parquet: rows.parquet, key: id}", steps=STEPS["chat"], limits="{concurrency: 50}")
    assert cli.run(job)["rows_ok"] == 64
    assert 2 * MB <= answering.most_open <= 5 * MB
    (runner,) = answering.runners
    assert (runner.open_rows, runner.open_bytes) == (0, 0)


def test_rows_wait_while_a_full_commit_waits_for_the_running_one(
    workspace: Any, cli: Any, answering: type[LargeAnswers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.execution.committer.COMMIT_BYTES", 4 * MB)
    monkeypatch.setattr("pipelines.execution.job_run.CHUNK_ROWS", 2)
    commit, first = ParquetTables.commit, threading.Lock()

    def slow_at_first(*given: Any) -> None:
        if first.acquire(blocking=False):
            # Another may hold the sink for long: until no more is asked, at least.
            before = -1
            while answering.asked != before and not answering.much_asked.is_set():
                before = answering.asked
                answering.much_asked.wait(0.5)
            assert not answering.much_asked.is_set()
        commit(*given)

    monkeypatch.setattr(ParquetTables, "commit", slow_at_first)
    workspace.csv(100)
    report = cli.run(workspace.job(steps=STEPS["chat"], limits=f"{{concurrency: {IN_FLIGHT}}}"))
    assert (report["exit_code"], report["rows_ok"], report["requests"]) == (0, 100, 100)


def test_rows_that_are_forwarded_one_by_one_make_the_same_tables(
    workspace: Any, provider: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def script(path: str, body: Any, count: int) -> Any:
        said = body["messages"][-1]["content"]
        if said == "text 7":
            return web.json_response({"error": {"message": "no", "type": "invalid_request_error"}}, status=400)
        return None

    provider.script = script
    steps = (
        '[{name: first, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }}"}]}, '
        "{name: second, endpoint: chat, provider: test, model: m, when: id % 3 = 0, "
        'messages: [{user: "{{ first }}!"}]}]'
    )
    workspace.csv(60)
    whole = cli.run(workspace.job("whole", steps=steps, sink="{parquet: whole}"))
    monkeypatch.setattr("pipelines.dispatch.pending_requests.EARLY_READ_BYTES", 1)
    (workspace.folder / ".rowmill/ledger.sqlite").unlink()
    pieces = cli.run(workspace.job("pieces", steps=steps, sink="{parquet: pieces}"))
    names = ("rows", "rows_ok", "rows_failed", "rows_left", "requests", "rows_reused")
    assert {name: pieces[name] for name in names} == {name: whole[name] for name in names}
    seen = [
        (
            [(row["id"], row["first"], row["second"]) for row in table(workspace.folder / name, order="id")],
            [(row["id"], row["step"], row["message"]) for row in table(workspace.folder / name, "errors")],
        )
        for name in ("whole", "pieces")
    ]
    assert seen[0] == seen[1]
    assert seen[0][0][2] == (3, "TEXT 3", "TEXT 3!")


def test_a_row_group_larger_than_the_memory_limit_is_read_page_by_page(workspace: Any, provider: Any, cli: Any) -> None:
    # 80 MB that no compression makes smaller, in one row group.
    texts = [os.urandom(1000).hex() for _ in range(80_000)]
    pq.write_table(pa.table({"id": range(80_000), "text": texts}), workspace.folder / "rows.parquet")
    job = workspace.job(source="{parquet: rows.parquet, key: id, limit: 3}", steps=STEPS["chat"])
    assert cli.run(job)["rows_ok"] == 3
    answers = [row["answer"] for row in table(workspace.folder / "out", order="id")]
    assert answers == [text.upper() for text in texts[:3]]


def test_the_rows_of_a_limit_are_neither_sorted_nor_kept_in_memory(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": range(100), "text": ["x"] * 100}), tmp_path / "rows.parquet")
    with query_connection(tmp_path / "scratch") as db:
        query = f"select count(text) from (select * from read_parquet('{tmp_path}/rows.parquet') limit 90)"
        ((_, plan),) = db.execute(f"explain {query}").fetchall()
    assert "Limit" in plan
    assert "Order" not in plan
    assert "Join" not in plan


def test_a_resumed_run_sends_rows_that_are_new_changed_or_failed_transiently(
    workspace: Any, provider: Any, cli: Any
) -> None:
    def script(path: str, body: Any, count: int) -> Any:
        said = body["messages"][-1]["content"]
        if said in refused:
            return web.json_response({"error": {"message": "no", "type": "invalid_request_error"}}, status=400)
        return None

    def write(texts: dict[int, str]) -> None:
        pq.write_table(pa.table({"id": list(texts), "text": list(texts.values())}), workspace.folder / "rows.parquet")

    def there() -> list[tuple[int, str]]:
        return [(row["id"], row["answer"]) for row in table(workspace.folder / "out", order="id")]

    provider.script = script
    refused = {"text 3", "text 7"}
    texts = {number: f"text {number}" for number in range(10)}
    write(texts)
    job = workspace.job(source="{parquet: rows.parquet, key: id}", steps=STEPS["chat"])
    assert cli.run(job)["rows_ok"] == 8
    texts |= {2: "changed 2", 7: "changed 7", 10: "new 10"}
    write(texts)
    report = cli.run(job)
    assert (report["rows"], report["rows_ok"], report["rows_reused"], report["requests"]) == (11, 10, 7, 3)
    assert there() == [(number, text.upper()) for number, text in texts.items() if number != 3]
    # Far more rows than the sink holds: now those there are the smaller table.
    texts |= {number: f"text {number}" for number in range(11, 60)}
    write(texts)
    report = cli.run(job)
    assert (report["rows_ok"], report["rows_reused"], report["requests"]) == (59, 10, 49)
    assert there() == [(number, text.upper()) for number, text in texts.items() if number != 3]


async def test_a_file_is_read_from_disk_while_it_is_sent(tmp_path: Path) -> None:
    content = bytes(range(256)) * 8192
    path = tmp_path / "sound.wav"
    path.write_bytes(content)
    came: list[tuple[str, str, str]] = []

    async def take(request: web.Request) -> web.Response:
        form = await request.post()
        file = form["file"]
        assert isinstance(file, web.FileField)
        came.append((file.filename, file.content_type, hashlib.sha256(file.file.read()).hexdigest()))
        return web.json_response({"model": form["model"]})

    app = web.Application(client_max_size=1 << 30)
    app.router.add_post("/v1/audio/transcriptions", take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    transport = HttpTransport(RequestTimeouts(), 1)
    try:
        provider = Provider("test", f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
        form = (("model", "m", None), ("file", path, "file.wav"))
        replies = [await transport.send(provider, Call("POST", "/audio/transcriptions", form=form)) for _ in range(2)]
    finally:
        await transport.close()
        await runner.cleanup()
    assert [reply.body for reply in replies] == [b'{"model": "m"}'] * 2
    assert came == [("file.wav", "audio/wav", hashlib.sha256(content).hexdigest())] * 2
