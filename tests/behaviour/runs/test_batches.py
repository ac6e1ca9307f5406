"""Runs through the Batch API: half the price, the same tables, and no line submitted twice, whatever happens."""

import asyncio
import itertools
import json
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from msgspec.structs import replace

from pipelines.batch.dispatcher import BatchDispatcher, BatchProgress
from pipelines.batch.store import Batch
from tests.conftest import noon
from tests.support.exhaustive import marks
from tests.support.forked import Forked, ended

Read = Callable[..., list[dict[str, Any]]]
BATCH = {"delivery": "batch"}
CLOCK = datetime


def assert_nothing_is_left(batches: Any, folder: Path) -> None:
    """No file and no batch is left at the provider or here."""
    assert batches.files == {}
    assert list((folder / ".rowmill" / "batches").glob("*/*")) == []
    with sqlite3.connect(folder / ".rowmill" / "ledger.sqlite") as db:
        for table in ("batches", "batch_lines", "noted"):
            assert db.execute(f"select count(*) from {table}").fetchone() == (0,), table
    db.close()


def test_a_batch_run_writes_the_same_table_at_half_the_price(
    workspace: Any, batches: Any, cli: Any, read: Read
) -> None:
    workspace.csv(300)
    report = cli.run(workspace.job(**BATCH))
    assert (report["exit_code"], report["rows_ok"], report["requests"], report["retries"]) == (0, 300, 300, 0)
    assert report["cost_usd"] == pytest.approx(300 * (10 * 1e-6 + 5 * 2e-6) / 2)
    assert [(row["id"], row["answer"]) for row in read(workspace.folder / "out", order="id")] == [
        (n, f"TEXT {n}") for n in range(1, 301)
    ]
    usage = read(workspace.folder / "out", "usage")
    assert sorted(row["keys"][0] for row in usage) == sorted(str(n) for n in range(1, 301))
    assert {(row["attempt"], row["http_status"], row["input_tokens"], row["finish_reason"]) for row in usage} == {
        (1, 200, 10, "stop")
    }
    assert all(row["request_id"].startswith("r-") and row["cost_usd"] == pytest.approx(1e-5) for row in usage)
    assert batches.lines_of_batches == [300]
    assert batches.online == Counter()
    assert_nothing_is_left(batches, workspace.folder)
    batches.seen.clear()
    assert cli.run(workspace.job(**BATCH))["rows_reused"] == 300
    assert batches.seen == []


def test_the_ledger_stores_the_request_as_it_was_sent(workspace: Any, batches: Any, cli: Any) -> None:
    workspace.csv(3)
    job = workspace.job(**BATCH)
    cli.run(job)
    assert cli("show", job, "2") == 0
    assert "text 2" in cli.out
    assert "TEXT 2" in cli.out


def test_embeddings_share_requests_and_every_row_gets_its_own_vector(
    workspace: Any, batches: Any, cli: Any, read: Read
) -> None:
    workspace.csv(700)
    steps = '[{name: v, endpoint: embeddings, provider: test, model: e, dimensions: 3, input: "{{ text }}"}]'
    report = cli.run(workspace.job(steps=steps, **BATCH))
    assert (report["exit_code"], report["rows_ok"]) == (0, 700)
    assert report["requests"] < 10
    assert report["cost_usd"] == pytest.approx(700 * 10 * 1e-6 / 2)
    assert [row["v"] for row in read(workspace.folder / "out", order="id")] == [
        [float(len(f"text {n}"))] * 3 for n in range(1, 701)
    ]
    assert set(batches.submitted.values()) == {1}


def test_a_later_step_has_a_separate_batch(workspace: Any, batches: Any, cli: Any, read: Read) -> None:
    workspace.csv(20)
    steps = """
  - {name: loud, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }}"}]}
  - {name: vector, endpoint: embeddings, provider: test, model: e, dimensions: 3, input: "{{ loud }}!", when: id > 5}
"""
    assert cli.run(workspace.job(steps=steps, **BATCH))["exit_code"] == 0
    rows = read(workspace.folder / "out", order="id")
    assert [row["vector"] is None for row in rows] == [n <= 5 for n in range(1, 21)]
    assert [batch["endpoint"] for batch in batches.batches.values()] == ["/v1/chat/completions", "/v1/embeddings"]


def test_refused_lines_are_errors_with_the_providers_message_and_are_not_sent_again(
    workspace: Any, batches: Any, cli: Any, read: Read
) -> None:
    workspace.csv(10)
    refusal = {"error": {"message": "not this", "type": "invalid_request_error", "param": "messages", "code": "c"}}
    batches.script = lambda text, body: {"status_code": 400, "body": refusal} if text == "text 5" else None
    job = workspace.job(**BATCH)
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"], report["rows_failed"]) == (1, 9, 1)
    (row,) = read(workspace.folder / "out", "errors")
    told_of_it = ("id", "error_class", "http_status", "param", "code", "message", "attempts")
    assert {name: row[name] for name in told_of_it} == {
        "id": 5, "error_class": "bad_request", "http_status": 400, "param": "messages", "code": "c",
        "message": "not this", "attempts": 1,
    }  # fmt: skip
    (used,) = [row for row in read(workspace.folder / "out", "usage") if row["keys"] == ["5"]]
    assert (used["http_status"], used["error_class"], used["cost_usd"]) == (400, "bad_request", 0.0)
    assert cli.run(job)["requests"] == 0
    assert_nothing_is_left(batches, workspace.folder)


def test_a_batch_without_an_output_file_is_read_if_all_its_lines_failed(workspace: Any, batches: Any, cli: Any) -> None:
    workspace.csv(3)
    batches.script = lambda text, body: {"status_code": 400, "body": {"error": {"message": "no"}}}
    assert cli.run(workspace.job(**BATCH))["rows_failed"] == 3


def test_a_line_with_an_invalid_status_is_sent_again(workspace: Any, batches: Any, cli: Any) -> None:
    workspace.csv(5)
    left = [{"status_code": 0, "body": ""}]
    batches.script = lambda text, body: left.pop() if text == "text 2" and left else None
    report = cli.run(workspace.job(**BATCH))
    assert (report["exit_code"], report["rows_ok"], batches.lines_of_batches) == (0, 5, [5, 1])


@pytest.mark.parametrize("how", ["expired", "missing", "silent"])
def test_lines_without_an_answer_are_sent_again_in_the_next_batch(
    workspace: Any, batches: Any, cli: Any, read: Read, how: str
) -> None:
    workspace.csv(20)
    left = Counter({"text 3": 1, "text 4": 2})

    def script(text: str, body: Any) -> str | None:
        left[text] -= 1
        return how if left[text] >= 0 else None

    batches.script = script
    report = cli.run(workspace.job(**BATCH))
    # A line that is in no file of a complete batch may have been billed.
    billable = 3 if how == "missing" else 0
    assert (report["exit_code"], report["rows_ok"], report["requests"]) == (0, 20, 20 + billable)
    assert batches.lines_of_batches == [20, 2, 1]
    usage = read(workspace.folder / "out", "usage")
    assert Counter(row["error_class"] for row in usage) == Counter({None: 20, **({"unknown": 3} if billable else {})})
    attempts = {row["keys"][0]: row["attempt"] for row in usage if row["error_class"] is None}
    assert (attempts["2"], attempts["3"], attempts["4"]) == (1, 2, 3)


def test_lines_fail_after_the_last_attempt_and_the_next_run_sends_them_again(
    workspace: Any, batches: Any, cli: Any, read: Read
) -> None:
    workspace.csv(5)
    failing = {"status_code": 500, "body": {"error": {"message": "broken"}}}
    batches.script = lambda text, body: {"text 1": "expired", "text 2": failing}.get(text)  # type: ignore[return-value]
    job = workspace.job(**BATCH)
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"], report["rows_failed"]) == (1, 3, 2)
    assert batches.submitted["text 1"] == batches.submitted["text 2"] == 3
    assert [(e["id"], e["error_class"], e["attempts"]) for e in read(workspace.folder / "out", "errors", "id")] == [
        (1, "timeout", 3),
        (2, "server", 3),
    ]
    batches.script = lambda text, body: None
    assert cli.run(job)["requests"] == 2


def test_one_bad_row_in_a_group_of_embeddings_affects_no_other(
    workspace: Any, batches: Any, cli: Any, read: Read
) -> None:
    workspace.csv(30)
    refusal = {"status_code": 400, "body": {"error": {"message": "no"}}}
    batches.script = lambda text, body: refusal if "text 7" in body["input"] else None
    steps = '[{name: v, endpoint: embeddings, provider: test, model: e, dimensions: 3, input: "{{ text }}"}]'
    report = cli.run(workspace.job(steps=steps, **BATCH))
    assert (report["rows_ok"], report["rows_failed"]) == (29, 1)
    assert [row["id"] for row in read(workspace.folder / "out", "errors")] == [7]
    assert len(batches.lines_of_batches) == 2


def test_files_are_split_at_the_limits_of_the_api(
    workspace: Any, batches: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.csv(50)
    monkeypatch.setattr("pipelines.batch.builder.MAX_FILE_LINES", 20)
    assert cli.run(workspace.job(**BATCH))["rows_ok"] == 50
    assert sorted(batches.lines_of_batches) == [10, 20, 20]
    monkeypatch.setattr("pipelines.batch.builder.MAX_FILE_BYTES", 2500)
    assert cli.run(workspace.job("other", sink="{parquet: o}", source="{csv: rows.csv, key: id, limit: 12}", steps=(
        '[{name: a, endpoint: chat, provider: test, model: m, messages: [{user: "and {{ text }}"}]}]'
    ), **BATCH))["rows_ok"] == 12  # fmt: skip
    assert max(batches.lines_of_batches[3:]) < 12
    assert set(batches.submitted.values()) == {1}
    assert_nothing_is_left(batches, workspace.folder)


@pytest.mark.parametrize("bytes_", [1500, 2500, 5000])
def test_no_file_is_larger_than_the_api_allows_nor_much_smaller(
    workspace: Any, batches: Any, cli: Any, monkeypatch: pytest.MonkeyPatch, bytes_: int
) -> None:
    workspace.csv(60)
    monkeypatch.setattr("pipelines.batch.builder.MAX_FILE_BYTES", bytes_)
    # What a line of this test takes besides its body: a little more than 100 bytes.
    monkeypatch.setattr("pipelines.batch.builder.MAX_LINE_OVERHEAD_BYTES", 150)
    assert cli.run(workspace.job(**BATCH))["rows_ok"] == 60
    *full, _ = batches.bytes_of_batches
    assert max(batches.bytes_of_batches) <= bytes_
    assert min(full) > bytes_ - 2 * 300
    assert set(batches.submitted.values()) == {1}


@pytest.mark.parametrize(
    ("message", "is_refused"),
    [
        ("encoding_format must be float", lambda body: "encoding_format" in body),
        ("batch size is invalid, it should not be larger than 10", lambda body: len(body["input"]) > 10),
    ],
    ids=["encoding", "size"],
)
def test_a_stated_refusal_of_a_group_is_learned_by_one_batch(
    workspace: Any, batches: Any, cli: Any, message: str, is_refused: Callable[[Any], bool]
) -> None:
    workspace.csv(40)
    steps = '[{name: v, endpoint: embeddings, provider: test, model: e, dimensions: 3, input: "{{ text }}"}]'
    refusal = {"status_code": 400, "body": {"error": {"message": message}}}
    batches.script = lambda text, body: refusal if is_refused(body) else None
    report = cli.run(workspace.job(steps=steps, **BATCH))
    assert (report["exit_code"], report["rows_ok"]) == (0, 40)
    assert len(batches.lines_of_batches) == 2


def test_the_size_limit_of_an_embeddings_batch_counts_inputs_not_lines(
    workspace: Any, batches: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.csv(50)
    monkeypatch.setattr("pipelines.batch.builder.MAX_FILE_LINES", 20)
    monkeypatch.setattr("connectors.endpoints.embeddings.MAX_TEXTS_PER_REQUEST", 6)
    steps = '[{name: v, endpoint: embeddings, provider: test, model: e, dimensions: 3, input: "{{ text }}"}]'
    assert cli.run(workspace.job(steps=steps, **BATCH))["rows_ok"] == 50
    assert sorted(batches.texts_of_batches, reverse=True) == [18, 18, 14]
    assert max(batches.lines_of_batches) == 3


def test_rows_that_arrive_slowly_are_gathered_into_larger_batches(
    workspace: Any, batches: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.csv(500)
    monkeypatch.setattr("pipelines.execution.job_run.CHUNK_ROWS", 50)
    batches.held = True
    chunks = itertools.count(1)

    async def wait(self: BatchDispatcher) -> None:
        await asyncio.sleep(0.15)
        batches.held = next(chunks) < 10

    monkeypatch.setattr(BatchDispatcher, "wait_for_capacity", wait)
    report = cli.run(workspace.job(**BATCH))
    assert (report["exit_code"], report["rows_ok"]) == (0, 500)
    first, *rest = batches.lines_of_batches
    assert (first, len(rest) <= 3) == (50, True)


def test_several_batches_run_at_a_time_up_to_the_limit_of_open_rows(
    workspace: Any, batches: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.csv(2500)
    monkeypatch.setattr("pipelines.batch.builder.MAX_FILE_LINES", 100)
    monkeypatch.setattr("pipelines.dispatch.step_runner.CHUNK_ROWS", 50)
    monkeypatch.setattr("pipelines.execution.job_run.CHUNK_ROWS", 50)
    monkeypatch.setattr("pipelines.execution.job_run.OPEN_BATCH_ROWS", 500)
    most: list[int] = []

    def watched(method: str, path: str) -> None:
        under_way = sum(
            len(b["lines"]) for b in batches.batches.values() if b["status"] in ("validating", "in_progress")
        )
        most.append(under_way)
        batches.held = batches.most_running < 5

    batches.refuse = watched
    report = cli.run(workspace.job(**BATCH))
    assert (report["exit_code"], report["rows_ok"], report["requests"]) == (0, 2500, 2500)
    assert batches.most_running >= 5
    assert 500 <= max(most) < 550
    assert max(batches.lines_of_batches) == 100
    assert set(batches.submitted.values()) == {1}
    assert_nothing_is_left(batches, workspace.folder)


@pytest.mark.parametrize("later", [False, True], ids=["refused at once", "failed before the first poll"])
def test_a_batch_above_the_enqueued_limit_waits_for_running_batches(
    workspace: Any, batches: Any, cli: Any, monkeypatch: pytest.MonkeyPatch, later: bool
) -> None:
    workspace.csv(60)
    monkeypatch.setattr("pipelines.batch.builder.MAX_FILE_LINES", 20)
    batches.most_lines, batches.limit_fails_later = 40, later

    def hold_until_one_is_refused(method: str, path: str) -> None:
        batches.held = not batches.limited

    batches.refuse = hold_until_one_is_refused
    report = cli.run(workspace.job(**BATCH))
    assert (report["exit_code"], report["rows_ok"], report["retries"]) == (0, 60, 0)
    assert batches.limited >= 1
    assert set(batches.submitted.values()) == {1}
    assert_nothing_is_left(batches, workspace.folder)


def test_a_batch_that_is_above_the_limit_by_itself_is_split(
    workspace: Any, batches: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.csv(60)
    monkeypatch.setattr("pipelines.batch.dispatcher.MIN_SPLIT_LINES", 5)
    batches.most_lines = 20
    assert cli.run(workspace.job(**BATCH))["rows_ok"] == 60
    assert max(batches.lines_of_batches) <= 20
    assert set(batches.submitted.values()) == {1}
    assert_nothing_is_left(batches, workspace.folder)


def test_a_batch_of_an_earlier_run_that_is_above_the_limit_by_itself_is_split_too(
    workspace: Any, batches: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.csv(60)
    monkeypatch.setattr("pipelines.batch.dispatcher.MIN_SPLIT_LINES", 5)
    job = workspace.job(**BATCH)
    batches.refuse = lambda method, path: batches.error(401, "not today") if path == "/v1/batches" else None
    assert cli.run(job)["exit_code"] == 3
    batches.refuse = lambda method, path: None
    batches.most_lines = 20
    assert cli.run(job)["rows_ok"] == 60
    assert max(batches.lines_of_batches) <= 20
    assert set(batches.submitted.values()) == {1}
    assert_nothing_is_left(batches, workspace.folder)


def test_the_budget_is_reserved_at_batch_prices_and_stops_the_run(workspace: Any, batches: Any, cli: Any) -> None:
    workspace.csv(100)
    # 20 tokens out at 1 $ a million at worst, about 10 in at half a dollar: 25 to 35 millionths of a dollar a row.
    job = workspace.job(budget="{usd: 0.0005}", **BATCH)
    report = cli.run(job)
    assert (report["exit_code"], report["stopped"].startswith("budget")) == (3, True)
    assert report["cost_usd"] <= 0.0005
    assert report["rows_ok"] == report["requests"] == sum(batches.submitted.values()) >= 30
    more = cli.run(job, "--budget-usd", "0.01")
    assert (more["exit_code"], more["run_id"], more["rows_ok"]) == (0, report["run_id"], 100)
    assert set(batches.submitted.values()) == {1}
    assert_nothing_is_left(batches, workspace.folder)


def test_the_daily_budget_holds_for_batches(workspace: Any, batches: Any, cli: Any) -> None:
    file = workspace.folder / "rowmill.yaml"
    file.write_text(file.read_text() + "budget: {usd_per_day: 0.0005}\n" + noon())
    workspace.csv(100)
    report = cli.run(workspace.job(**BATCH))
    assert (report["exit_code"], report["stopped"].startswith("budget")) == (3, True)
    assert 5 <= report["rows_ok"] == sum(batches.submitted.values()) < 100
    with sqlite3.connect(workspace.folder / ".rowmill" / "ledger.sqlite") as db:
        ((spent,),) = db.execute("select spent from days").fetchall()
    db.close()
    assert spent == pytest.approx(report["cost_usd"] * 1e12)


def test_a_refused_key_stops_the_run(workspace: Any, batches: Any, cli: Any) -> None:
    workspace.csv(3)
    batches.refuse = lambda method, path: batches.error(401, "no such key") if path == "/v1/files" else None
    report = cli.run(workspace.job(**BATCH))
    assert (report["exit_code"], report["rows_left"]) == (3, 3)
    assert report["stopped"] == "access_denied: test says of a batch: no such key"
    batches.refuse = lambda method, path: None
    assert cli.run(workspace.job(**BATCH))["rows_ok"] == 3
    assert set(batches.submitted.values()) == {1}
    assert_nothing_is_left(batches, workspace.folder)


def test_transient_failures_of_the_batch_api_are_retried(workspace: Any, batches: Any, cli: Any) -> None:
    workspace.csv(5)
    failing = Counter(dict.fromkeys(("/v1/files", "/v1/batches", "/v1/batches/batch_0"), 2))

    def refuse(method: str, path: str) -> Any:
        failing[path] -= 1
        return batches.error(503, "busy") if failing[path] >= 0 else None

    batches.refuse = refuse
    assert cli.run(workspace.job(**BATCH))["exit_code"] == 0
    assert set(batches.submitted.values()) == {1}
    assert_nothing_is_left(batches, workspace.folder)


def pass_deadline(monkeypatch: pytest.MonkeyPatch, when: Callable[[], object], seconds: float = 0) -> None:
    """Let the deadline pass so many seconds after a condition holds, however slow the machine is."""

    def poll() -> None:
        last = time.monotonic() + 60
        while not when() and time.monotonic() < last:
            time.sleep(0.01)

    run_until_deadline = BatchDispatcher._run_until_deadline

    async def wait(self: BatchDispatcher) -> None:
        await asyncio.to_thread(poll)
        await asyncio.sleep(seconds)
        self._options = replace(self._options, deadline=datetime.now(UTC))
        await run_until_deadline(self)

    monkeypatch.setattr(BatchDispatcher, "_run_until_deadline", wait)


def test_after_the_deadline_the_remaining_requests_are_sent_online_at_the_full_price(
    workspace: Any, batches: Any, cli: Any, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.csv(20)
    batches.held = True
    # What the batch has done by then is taken from it.
    batches.script = lambda text, body: "answered" if text in ("text 1", "text 2") else None
    pass_deadline(monkeypatch, lambda: any(batch["polls"] for batch in [*batches.batches.values()]))
    report = cli.run(workspace.job(deadline='"06:00"', **BATCH))
    assert (report["exit_code"], report["rows_ok"], report["requests"]) == (0, 20, 20)
    assert batches.online == Counter({f"text {n}": 1 for n in range(3, 21)})
    costs = {row["keys"][0]: row["cost_usd"] for row in read(workspace.folder / "out", "usage")}
    assert (costs["1"], costs["3"]) == (pytest.approx(1e-5), pytest.approx(2e-5))
    assert_nothing_is_left(batches, workspace.folder)


def test_a_cancelled_batch_that_does_not_end_is_not_awaited_forever(
    workspace: Any, batches: Any, cli: Any, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.csv(10)
    batches.held = True
    batches.refuse = lambda method, path: web.json_response({}) if path.endswith("/cancel") else None
    monkeypatch.setattr("pipelines.batch.lifecycle.CANCEL_WAIT_SECONDS", 0.2)
    pass_deadline(monkeypatch, lambda: any(batch["polls"] for batch in [*batches.batches.values()]))
    report = cli.run(workspace.job(deadline='"06:00"', **BATCH))
    assert (report["exit_code"], report["rows_ok"], report["requests"]) == (0, 10, 20)
    assert batches.online == Counter({f"text {n}": 1 for n in range(1, 11)})
    usage = read(workspace.folder / "out", "usage")
    assert Counter(row["error_class"] for row in usage) == {"unknown": 10, None: 10}
    # Of what may still come of the batch nothing is known: 20 tokens out at half the price, and the tokens in.
    assert all(row["cost_usd"] >= 2e-5 for row in usage)
    assert sum(row["cost_usd"] for row in usage) == pytest.approx(report["cost_usd"])
    assert_nothing_is_left(batches, workspace.folder)


def test_a_batch_that_the_provider_has_forgotten_counts_at_its_worst_case_and_the_next_run_sends_it_again(
    workspace: Any, batches: Any, cli: Any, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.batch.lifecycle.NOT_FOUND_SECONDS", 0.2)
    workspace.csv(5)
    batches.refuse = lambda method, path: batches.error(404, "no such batch") if "batch_0" in path else None
    job = workspace.job(**BATCH)
    report = cli.run(job)
    assert (report["exit_code"], report["rows_failed"], report["rows_left"], report["requests"]) == (3, 0, 5, 5)
    assert "the answers of batch_0 are out of reach" in report["stopped"]
    assert ("POST", "/v1/batches/batch_0/cancel") in batches.seen
    assert len(batches.files) == 1
    assert report["cost_usd"] >= 5 * 2e-5
    again = cli.run(job)
    assert (again["exit_code"], again["rows_ok"], again["requests"], again["run_id"]) == (0, 5, 5, report["run_id"])
    usage = read(workspace.folder / "out", "usage")
    assert Counter(row["error_class"] for row in usage) == {"unknown": 5, None: 5}
    assert sum(row["cost_usd"] for row in usage) == pytest.approx(report["cost_usd"] + again["cost_usd"])


def test_the_deadline_is_the_next_occurrence_of_its_time_of_day() -> None:
    from zoneinfo import ZoneInfo

    from pipelines.config.batch_rules import next_deadline

    berlin = ZoneInfo("Europe/Berlin")
    evening = datetime(2026, 3, 28, 22, 0, tzinfo=UTC)
    assert next_deadline("06:00", berlin, evening) == datetime(2026, 3, 29, 4, 0, tzinfo=UTC)
    assert next_deadline("23:30", berlin, evening) == datetime(2026, 3, 28, 22, 30, tzinfo=UTC)
    assert next_deadline("23:00", berlin, evening) == datetime(2026, 3, 29, 21, 0, tzinfo=UTC)


def test_an_endpoint_without_a_batch_api_is_refused_before_anything_is_sent(
    workspace: Any, batches: Any, cli: Any
) -> None:
    workspace.csv(3)
    steps = '[{name: say, endpoint: speech, provider: test, model: tts-1, voice: alloy, input: "{{ text }}"}]'
    assert cli("run", workspace.job(steps=steps, **BATCH)) == 2
    assert "the Batch API takes chat, embeddings, responses only" in cli.err
    assert batches.seen == []


def test_a_pool_is_refused_for_batches(workspace: Any, batches: Any, cli: Any) -> None:
    file = workspace.folder / "rowmill.yaml"
    file.write_text(file.read_text().replace("providers:\n", "providers:\n  both: {members: [test, local]}\n"))
    workspace.csv(3)
    assert cli("run", workspace.job(**BATCH), "--provider", "both") == 2
    assert "both is a pool" in cli.err


DRIVER = """
import os, signal, sys
from connectors.endpoints import embeddings
from pipelines.batch import builder, dispatcher, lifecycle, settler, store
from pipelines.execution import committer
from pipelines.runtime import provider_api

lifecycle.FIRST_POLL_SECONDS, lifecycle.MAX_POLL_SECONDS = 0.02, 0.05
dispatcher.QUIET_SECONDS, builder.MAX_FILE_LINES = 0.1, 20
settler.LINES_AT_ONCE, embeddings.MAX_TEXTS_PER_REQUEST = 4, 5

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def dying(owner, name, when=lambda *arguments: True, before=False):
    real = getattr(owner, name)
    async def replacement(*arguments):
        if before and when(*arguments):
            die()
        result = await real(*arguments)
        if when(*arguments):
            die()
        return result
    setattr(owner, name, replacement)

settled = []
moment = sys.argv[1]
if moment == "noted":
    dying(store.BatchLedger, "record_pending")
elif moment == "uploaded, not noted":
    dying(provider_api.ProviderApi, "upload_file")
elif moment == "uploaded":
    dying(store.BatchLedger, "record_state", lambda self, batch: batch.state == "uploaded")
elif moment == "created, not noted":
    dying(provider_api.ProviderApi, "create_batch")
elif moment == "created":
    dying(store.BatchLedger, "record_state", lambda self, batch: batch.state == "created")
elif moment == "polled":
    dying(provider_api.ProviderApi, "get_batch")
elif moment == "fetched in part":
    dying(settler.BatchSettler, "_settle_result", lambda *arguments: settled.append(1) or len(settled) == 6)
elif moment == "settled, not cleaned":
    dying(lifecycle.BatchLifecycle, "clean", before=True)
elif moment == "cleaned, not forgotten":
    dying(store.BatchLedger, "delete", before=True)
elif moment == "counted as unknown":
    lifecycle.NOT_FOUND_SECONDS = 0.1
    dying(settler.BatchSettler, "_settle_as_unknown")
elif moment == "not committed":
    committer.Committer._commit = lambda self, gathered: die()

from pipelines.cli import main
main(sys.argv[2:])
"""


def start_run(moment: str, job: Path) -> Forked:
    """Start a run that kills itself at the moment; with `""` it ends by itself."""
    return Forked(DRIVER, moment, "run", job, "--json", "--quiet")


MOMENTS = (
    "noted", "uploaded, not noted", "uploaded", "created, not noted", "created", "polled", "fetched in part",
    "settled, not cleaned", "cleaned, not forgotten", "not committed",
)  # fmt: skip


@pytest.mark.parametrize(
    ("moment", "pack"),
    [
        pytest.param(moment, pack, marks=marks(pack and place % 3 > 0), id=f"{moment}, {endpoint}")
        for pack, endpoint in ((False, "chat"), (True, "embeddings"))
        for place, moment in enumerate(MOMENTS)
    ],
)
def test_a_run_after_a_kill_attaches_to_its_batches_and_submits_no_line_twice(
    workspace: Any, batches: Any, read: Read, moment: str, pack: bool
) -> None:
    workspace.csv(50)
    steps = '[{name: answer, endpoint: embeddings, provider: test, model: e, dimensions: 3, input: "{{ text }}"}]'
    job = workspace.job(**({"steps": steps} if pack else {}), **BATCH)
    code, _ = ended(start_run(moment, job))
    assert code == -signal.SIGKILL
    code, out = ended(start_run("", job))
    report = json.loads(out)
    assert (code, report["rows_ok"], report["rows_failed"], report["rows_left"]) == (0, 50, 0, 0)
    assert batches.submitted == Counter({f"text {n}": 1 for n in range(1, 51)})
    rows = read(workspace.folder / "out", order="id")
    wanted = [[float(len(f"text {n}"))] * 3 if pack else f"TEXT {n}" for n in range(1, 51)]
    assert [row["answer"] for row in rows] == wanted
    usage = read(workspace.folder / "out", "usage")
    assert sorted(key for row in usage for key in row["keys"]) == sorted(str(n) for n in range(1, 51))
    assert {row["error_class"] for row in usage} == {None}
    assert sum(row["cost_usd"] for row in usage) == pytest.approx(50 * (5e-6 if pack else 1e-5))
    assert_nothing_is_left(batches, workspace.folder)
    assert ended(start_run("", job))[0] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_its_batches_running_and_the_next_one_fetches_them(
    workspace: Any, batches: Any, number: signal.Signals
) -> None:
    workspace.csv(50)
    batches.held = True
    job = workspace.job(**BATCH)
    process = start_run("", job)
    while sum(batch["polls"] > 1 for batch in batches.batches.values()) < 3:
        time.sleep(0.005)
        assert process.poll() is None
    process.send_signal(number)
    code, out = ended(process)
    first = json.loads(out)
    assert (code, first["rows_left"], first["requests"]) == (130, 50, 0)
    assert first["stopped"] == "interrupted: batches go on at the provider (3); the next run fetches them"
    batches.held = False
    code, out = ended(start_run("", job))
    second = json.loads(out)
    assert (code, second["run_id"], second["rows_ok"], second["requests"]) == (0, first["run_id"], 50, 50)
    assert set(batches.submitted.values()) == {1}
    assert_nothing_is_left(batches, workspace.folder)


def test_an_interruption_after_the_daily_budget_was_spent_reports_the_batches_that_continue(
    workspace: Any, batches: Any
) -> None:
    file = workspace.folder / "rowmill.yaml"
    file.write_text(file.read_text() + "budget: {usd_per_day: 0.0005}\n" + noon())
    workspace.csv(100)
    batches.held = True
    process = start_run("", workspace.job(**BATCH))
    while not any(batch["polls"] > 1 for batch in batches.batches.values()):
        time.sleep(0.005)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, out = ended(process)
    words = f"interrupted: batches go on at the provider ({len(batches.batches)}); the next run fetches them"
    assert (code, json.loads(out)["stopped"]) == (130, words)


def test_the_requests_of_a_recorded_batch_whose_file_was_removed_go_into_another_batch(
    workspace: Any, batches: Any
) -> None:
    workspace.csv(50)
    job = workspace.job(**BATCH)
    assert ended(start_run("noted", job))[0] == -signal.SIGKILL
    for left in (workspace.folder / ".rowmill" / "batches").rglob("*.jsonl"):
        left.unlink()
    code, out = ended(start_run("", job))
    report = json.loads(out)
    assert (code, report["rows_ok"], report["requests"]) == (0, 50, 50)
    assert set(batches.submitted.values()) == {1}
    assert_nothing_is_left(batches, workspace.folder)


def test_a_job_that_was_changed_to_online_ends_its_open_batches(workspace: Any, batches: Any, cli: Any) -> None:
    workspace.csv(50)
    batches.held = True
    job = workspace.job(**BATCH)
    assert ended(start_run("created", job))[0] == -signal.SIGKILL
    assert "text 1" in batches.submitted
    batches.script = lambda text, body: "answered" if text == "text 1" else None
    report = cli.run(job, "--delivery", "online")
    assert (report["exit_code"], report["rows_ok"]) == (0, 50)
    assert {batch["status"] for batch in batches.batches.values()} == {"cancelled"}
    assert batches.online == Counter({f"text {n}": 1 for n in range(2, 51)})
    assert_nothing_is_left(batches, workspace.folder)


def test_the_answer_of_a_row_that_left_the_source_while_its_batch_ran_is_stored(
    workspace: Any, batches: Any, cli: Any, read: Read
) -> None:
    workspace.csv(15)
    job = workspace.job(**BATCH)
    assert ended(start_run("created", job))[0] == -signal.SIGKILL
    workspace.csv(10)
    assert cli.run(job)["rows_ok"] == 10
    assert len(read(workspace.folder / "out")) == 10
    assert len(read(workspace.folder / "out", "usage")) == 15
    workspace.csv(15)
    again = cli.run(job)
    assert (again["rows_ok"], again["requests"]) == (15, 0)
    assert set(batches.submitted.values()) == {1}


def test_the_embedded_provider_supports_batches_of_chat_responses_and_embeddings(
    workspace: Any, batches: Any, cli: Any, read: Read
) -> None:
    workspace.csv(12)
    steps = """
  - {name: said, endpoint: chat, provider: local, model: gpt-4o-mini, messages: [{user: "{{ text }}"}]}
  - {name: again, endpoint: responses, provider: local, model: gpt-4o-mini, input: "{{ text }}, once more"}
  - {name: vector, endpoint: embeddings, provider: local, model: text-embedding-3-small, input: "{{ text }}"}
"""
    online = workspace.job("online", steps=steps, sink="{parquet: online}")
    assert cli.run(online)["exit_code"] == 0
    (workspace.folder / ".rowmill" / "ledger.sqlite").unlink()
    report = cli.run(workspace.job(steps=steps, **BATCH))
    assert (report["exit_code"], report["rows_ok"], report["cost_usd"]) == (0, 12, 0)
    wanted = read(workspace.folder / "online", order="id")
    made = read(workspace.folder / "out", order="id")
    for row in (*wanted, *made):
        del row["_run_id"]
    assert made == wanted
    assert_nothing_is_left(batches, workspace.folder)


def test_request_counts_that_are_not_numbers_are_ignored() -> None:
    progress = BatchProgress()
    batch = Batch("m", 1, "s", "p", "/v1/chat/completions", 0, None)
    for counts in ({"completed": "n/a", "failed": 2}, {"completed": None, "failed": 2}, {"failed": 2.0}):
        progress.update(batch, {"request_counts": counts})
        assert progress.format() == "1 batch at the provider: 2 of 0 requests answered"
    progress.update(batch, {"request_counts": "many"})
    assert progress.format() == "1 batch at the provider: 0 of 0 requests answered"
