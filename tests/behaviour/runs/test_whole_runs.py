"""Whole runs against a scripted provider: rows in, typed tables out, nothing asked twice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web

from tests.conftest import chat_reply

Rows = list[dict[str, Any]]
Read = Callable[..., Rows]


def test_every_row_is_requested_once_and_is_in_the_results(workspace: Any, provider: Any, cli: Any, read: Read) -> None:
    workspace.csv(300)
    report = cli.run(workspace.job())
    names = ("rows", "rows_ok", "rows_reused", "rows_failed", "rows_left", "requests")
    assert {name: report[name] for name in names} == {
        "rows": 300, "rows_ok": 300, "rows_reused": 0, "rows_failed": 0, "rows_left": 0, "requests": 300,
    }  # fmt: skip
    assert (report["retries"], report["input_tokens"], report["output_tokens"]) == (0, 3000, 1500)
    assert report["cost_usd"] == pytest.approx(300 * (10 * 1e-6 + 5 * 2e-6))
    assert (report["stopped"], report["exit_code"], report["job"]) == (None, 0, "job")
    results = read(workspace.folder / "out", order="id")
    assert [(row["id"], row["answer"]) for row in results] == [(n, f"TEXT {n}") for n in range(1, 301)]
    assert {row["_run_id"] for row in results} == {report["run_id"]}
    assert len({row["_row_fingerprint"] for row in results}) == 300
    assert read(workspace.folder / "out", "errors") == []
    usage = read(workspace.folder / "out", "usage")
    assert sorted(row["keys"][0] for row in usage) == sorted(str(n) for n in range(1, 301))
    assert sum(row["cost_usd"] for row in usage) == pytest.approx(report["cost_usd"])
    assert sorted(provider.prompts()) == sorted(f"text {n}" for n in range(1, 301))


def test_a_usage_row_describes_the_whole_exchange(workspace: Any, cli: Any, read: Read) -> None:
    workspace.csv(1)
    report = cli.run(workspace.job())
    (row,) = read(workspace.folder / "out", "usage")
    (result,) = read(workspace.folder / "out")
    assert len(row.pop("fingerprints")[0]) == 32
    assert row.pop("latency_ms") > 0
    assert row.pop("started_at").tzinfo is not None
    assert row == {
        "run_id": report["run_id"], "job": "job", "step": "answer", "keys": ["1"], "provider": "test",
        "endpoint": "chat", "model": "m", "model_version": "m", "attempt": 1, "http_status": 200,
        "error_class": None, "input_tokens": 10, "cached_tokens": None, "output_tokens": 5, "reasoning_tokens": None,
        "audio_seconds": None, "characters": None, "images": None, "cost_usd": pytest.approx(2e-5),
        "first_token_ms": None, "request_id": "req-0", "finish_reason": "stop", "service_tier": None,
        "tool_calls": None,
    }  # fmt: skip
    assert result["_run_id"] == report["run_id"]


@pytest.mark.parametrize("header", ["x-request-id", "request-id", "apim-request-id"])
def test_usage_has_the_exchanges_name_by_any_of_its_headers(
    workspace: Any, provider: Any, cli: Any, read: Read, header: str
) -> None:
    workspace.csv(1)
    provider.script = lambda path, body, count: web.json_response(chat_reply("a"), headers={header: "r-7"})
    cli.run(workspace.job())
    assert [row["request_id"] for row in read(workspace.folder / "out", "usage")] == ["r-7"]


def test_a_second_run_sends_nothing_and_says_so(workspace: Any, provider: Any, cli: Any) -> None:
    workspace.csv(20)
    job = workspace.job()
    cli.run(job)
    again = cli.run(job)
    assert (again["requests"], again["rows_ok"], again["rows_reused"], again["exit_code"]) == (0, 20, 20, 0)
    assert cli("run", job, "--quiet") == 0
    assert cli("run", job) == 0
    assert "nothing to send" in cli.out
    assert len(provider.seen) == 20


def test_only_new_and_changed_rows_are_requested(workspace: Any, provider: Any, cli: Any, read: Read) -> None:
    workspace.csv(10)
    job = workspace.job()
    cli.run(job)
    workspace.write("rows.csv", "id,text\n" + "".join(f"{n},{'new' if n == 3 else 'text'} {n}\n" for n in range(1, 13)))
    provider.seen.clear()
    report = cli.run(job)
    assert sorted(provider.prompts()) == ["new 3", "text 11", "text 12"]
    assert (report["rows"], report["rows_ok"], report["rows_reused"], report["requests"]) == (12, 12, 9, 3)
    results = read(workspace.folder / "out", order="id")
    assert [(row["id"], row["answer"]) for row in results] == [
        (n, f"{'NEW' if n == 3 else 'TEXT'} {n}") for n in range(1, 13)
    ]


def test_deleting_the_output_writes_equal_tables_without_a_request(
    workspace: Any, provider: Any, cli: Any, read: Read
) -> None:
    workspace.csv(40)
    provider.script = lambda path, body, count: (
        refused("no such thing") if body["messages"][-1]["content"] == "text 7" else None
    )
    job = workspace.job()
    assert cli.run(job)["exit_code"] == 1
    before = {name: read(workspace.folder / "out", name) for name in ("results", "usage", "errors")}
    assert len(before["errors"]) == 1
    remove(workspace.folder / "out")
    provider.seen.clear()
    report = cli.run(job)
    assert (report["requests"], report["rows_ok"], report["rows_reused"], report["rows_failed"]) == (0, 39, 39, 1)
    assert provider.seen == []
    assert {name: read(workspace.folder / "out", name) for name in before} == before


def test_deleting_the_ledger_asks_nothing_for_rows_in_the_sink(workspace: Any, provider: Any, cli: Any) -> None:
    workspace.csv(25)
    job = workspace.job()
    cli.run(job)
    remove(workspace.folder / ".rowmill")
    provider.seen.clear()
    report = cli.run(job)
    assert (report["requests"], report["rows_ok"], provider.seen) == (0, 25, [])


def test_equal_requests_are_paid_once(workspace: Any, provider: Any, cli: Any, read: Read) -> None:
    workspace.write("rows.csv", "id,text\n" + "".join(f"{n},same\n" for n in range(50)))
    report = cli.run(workspace.job())
    assert (report["requests"], report["rows_ok"]) == (1, 50)
    assert {row["answer"] for row in read(workspace.folder / "out")} == {"SAME"}
    other = workspace.job("other", sink="{parquet: elsewhere}")
    assert cli.run(other)["requests"] == 0
    assert len(provider.seen) == 1


def test_without_reuse_equal_requests_of_different_rows_are_each_sent(workspace: Any, cli: Any) -> None:
    workspace.write("rows.csv", "id,text\n" + "".join(f"{n},same\n" for n in range(5)))
    steps = '[{name: a, endpoint: chat, provider: test, model: m, reuse: false, messages: [{user: "{{ text }}"}]}]'
    assert cli.run(workspace.job(steps=steps))["requests"] == 5


def test_a_later_step_sees_earlier_outputs_and_its_condition(
    workspace: Any, provider: Any, cli: Any, read: Read
) -> None:
    workspace.csv(6)
    steps = """
  - {name: loud, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }}"}]}
  - name: vector
    endpoint: embeddings
    provider: test
    model: e
    dimensions: 3
    input: "{{ loud }}!"
    when: id % 2 = 0 and loud like 'TEXT%'
"""
    report = cli.run(workspace.job(steps=steps))
    results = read(workspace.folder / "out", order="id")
    assert [row["vector"] for row in results] == [None, [7.0] * 3, None, [7.0] * 3, None, [7.0] * 3]
    assert [row["loud"] for row in results] == [f"TEXT {n}" for n in range(1, 7)]
    embedded = [body["input"] for path, body in provider.seen if path == "embeddings"]
    assert sorted(text for texts in embedded for text in texts) == ["TEXT 2!", "TEXT 4!", "TEXT 6!"]
    assert report["exit_code"] == 0


def test_rows_that_leave_the_source_are_kept_or_removed_as_the_job_says(workspace: Any, cli: Any, read: Read) -> None:
    workspace.csv(5)
    keep, remove_ = workspace.job("keep"), workspace.job("remove", sink="{parquet: less, deleted: remove}")
    cli.run(keep)
    cli.run(remove_)
    workspace.csv(3)
    assert cli.run(keep)["rows"] == 3
    assert cli.run(remove_, "--limit", "1")["rows"] == 1
    assert len(read(workspace.folder / "less")) == 5
    assert cli.run(remove_)["rows"] == 3
    assert [row["id"] for row in read(workspace.folder / "out", order="id")] == [1, 2, 3, 4, 5]
    assert [row["id"] for row in read(workspace.folder / "less", order="id")] == [1, 2, 3]


def test_append_asks_new_keys_only_and_never_touches_what_is_there(
    workspace: Any, provider: Any, cli: Any, read: Read
) -> None:
    workspace.csv(3)
    job = workspace.job(sink="{parquet: out, write: append}")
    cli.run(job)
    workspace.write("rows.csv", "id,text\n1,changed\n2,text 2\n9,late\n")
    assert cli.run(job)["requests"] == 1
    answers = {row["id"]: row["answer"] for row in read(workspace.folder / "out")}
    assert answers == {1: "TEXT 1", 2: "TEXT 2", 3: "TEXT 3", 9: "LATE"}


def test_replace_rewrites_the_table_from_stored_answers(workspace: Any, provider: Any, cli: Any, read: Read) -> None:
    workspace.csv(4)
    job = workspace.job(sink="{parquet: out, write: replace}")
    cli.run(job)
    workspace.write("rows.csv", "id,text\n2,text 2\n7,text 7\n")
    report = cli.run(job)
    assert (report["requests"], report["rows_ok"], report["rows_reused"]) == (1, 2, 1)
    assert [(row["id"], row["answer"]) for row in read(workspace.folder / "out", order="id")] == [
        (2, "TEXT 2"),
        (7, "TEXT 7"),
    ]
    assert len(read(workspace.folder / "out", "usage")) == 5
    assert cli("rebuild", job) == 0
    assert [row["id"] for row in read(workspace.folder / "out", order="id")] == [2, 7]
    assert cli("run", job, "--limit", "1") == 2
    assert "replace" in cli.err


def test_a_duckdb_sink_holds_the_same_three_tables(workspace: Any, provider: Any, cli: Any) -> None:
    import duckdb

    workspace.csv(30)
    job = workspace.job(sink="{duckdb: out.duckdb, table: answers, columns: [text]}")
    report = cli.run(job)
    assert report["tables"] == {"results": "answers", "usage": "answers_usage", "errors": "answers_errors"}
    with duckdb.connect(workspace.folder / "out.duckdb") as db:
        assert db.sql("select id, text, answer from answers order by id").fetchall() == [
            (n, f"text {n}", f"TEXT {n}") for n in range(1, 31)
        ]
        assert db.sql("select count(*), sum(len(keys)) from answers_usage").fetchall() == [(30, 30)]
        assert db.sql("select count(*) from answers_errors").fetchall() == [(0,)]
    workspace.csv(31)
    assert cli.run(job)["requests"] == 1
    (workspace.folder / "out.duckdb").unlink()
    provider.seen.clear()
    assert cli.run(job)["rows_ok"] == 31
    assert provider.seen == []


def test_rebuild_writes_the_tables_again_and_sends_nothing(workspace: Any, provider: Any, cli: Any, read: Read) -> None:
    workspace.csv(8)
    job = workspace.job()
    cli.run(job)
    before = read(workspace.folder / "out")
    for part in (workspace.folder / "out" / "results").glob("*.parquet"):
        part.unlink()
    provider.seen.clear()
    assert cli("rebuild", job) == 0
    assert read(workspace.folder / "out") == before
    assert provider.seen == []


def test_rebuild_needs_no_source_whatever_the_types_of_its_columns(workspace: Any, provider: Any, cli: Any) -> None:
    rows = {
        "id": pa.array([1, 2]),
        "text": pa.array(["a", "b"]),
        "exact": pa.array([1_700_000_000_123_456_789, None], pa.timestamp("ns")),
        "short": pa.array([1_700_000_000_123_456_000, None], pa.timestamp("ns")),
        "nothing": pa.nulls(2),
        "parts": pa.array([[{"a": 1}], None], pa.list_(pa.struct([("a", pa.int32())]))),
    }
    pq.write_table(pa.table(rows), workspace.folder / "rows.parquet")
    job = workspace.job(source="{parquet: rows.parquet, key: id}", sink="{parquet: out, columns: all}")
    cli.run(job)
    before = pq.read_table(workspace.folder / "out" / "results").sort_by("id")
    assert before.num_rows == 2
    (workspace.folder / "rows.parquet").unlink()
    for _ in range(2):
        assert cli("rebuild", job) == 0
        assert pq.read_table(workspace.folder / "out" / "results").sort_by("id") == before
        remove(workspace.folder / "out")


def refused(message: str) -> Any:
    from aiohttp import web

    return web.json_response({"error": {"message": message, "type": "invalid_request_error"}}, status=400)


def remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder)
