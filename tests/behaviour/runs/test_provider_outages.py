"""Runs against a provider that refuses, fails, is slow or sends invalid replies."""

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

Rows = list[dict[str, Any]]
Read = Callable[..., Rows]


def for_prompt(prompt: str, response: Callable[[], Any], times: int = 1_000_000) -> Callable[..., Any]:
    """Return a script with another response to one prompt, so many times."""
    left = [times]

    def script(path: str, body: Any, count: int) -> Any:
        if body.get("messages", [{}])[-1].get("content") == prompt and left[0]:
            left[0] -= 1
            return response()
        return None

    return script


def refusal(status: int, message: str = "no", code: str | None = None, headers: Any = None) -> web.Response:
    error = {"message": message, "type": "invalid_request_error", "param": "messages", "code": code}
    return web.json_response({"error": error}, status=status, headers={"x-request-id": "r-9", **(headers or {})})


def test_a_refused_row_is_an_error_after_one_request_and_affects_no_other(
    workspace: Any, provider: Any, cli: Any, read: Read
) -> None:
    workspace.csv(200)
    provider.script = for_prompt("text 5", lambda: refusal(400, "this text is not allowed"))
    job = workspace.job()
    report = cli.run(job)
    assert (report["rows_ok"], report["rows_failed"], report["requests"], report["exit_code"]) == (199, 1, 200, 1)
    (error,) = read(workspace.folder / "out", "errors")
    assert re.fullmatch("[0-9a-f]{32}-2", error.pop("fingerprint"))
    assert error.pop("failed_at").tzinfo is not None
    assert error == {
        "id": 5, "step": "answer", "error_class": "bad_request", "http_status": 400, "type": "invalid_request_error",
        "param": "messages", "code": None, "message": "this text is not allowed", "details": None,
        "request_id": "r-9", "attempts": 1, "run_id": report["run_id"],
    }  # fmt: skip
    again = cli.run(job)
    assert (again["requests"], again["rows_failed"], again["exit_code"]) == (0, 1, 1)


def test_a_value_that_makes_when_fail_is_an_error_of_its_row_only(
    workspace: Any, provider: Any, cli: Any, read: Read
) -> None:
    workspace.write("rows.csv", "id,text\n" + "".join(f"{n},{'abc' if n in (2, 7) else n % 3}\n" for n in range(1, 9)))
    steps = """
  - name: answer
    endpoint: chat
    provider: test
    model: m
    messages: [{user: "{{ id }}: {{ text }}"}]
    when: cast(text as int) = 1
"""
    job = workspace.job(steps=steps)
    assert cli("plan", job, "--json") == 0
    assert json.loads(cli.out)["steps"][0]["requests"] == 2
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"], report["rows_failed"], report["rows_left"], report["requests"]) == (
        1, 6, 2, 0, 2,
    )  # fmt: skip
    errors = read(workspace.folder / "out", "errors", "id")
    assert [(row["id"], row["step"], row["error_class"], row["attempts"]) for row in errors] == [
        (2, "answer", "input", 0), (7, "answer", "input", 0),
    ]  # fmt: skip
    assert all(row["message"].startswith("steps.answer.when: ") and "'abc'" in row["message"] for row in errors)
    results = read(workspace.folder / "out", order="id")
    assert [(row["id"], row["answer"]) for row in results] == [
        (1, "1: 1"), (3, None), (4, "4: 1"), (5, None), (6, None), (8, None),
    ]  # fmt: skip
    again = cli.run(job)
    assert (again["exit_code"], again["rows_failed"], again["requests"]) == (1, 2, 0)
    workspace.write("rows.csv", "id,text\n" + "".join(f"{n},{n % 3}\n" for n in range(1, 9)))
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"], read(workspace.folder / "out", "errors")) == (0, 8, [])


def test_retry_sends_failed_rows_again_and_successful_ones_leave_the_errors_table(
    workspace: Any, provider: Any, cli: Any, read: Read
) -> None:
    workspace.csv(10)
    provider.script = for_prompt("text 5", lambda: refusal(400))
    job = workspace.job()
    cli.run(job)
    provider.script = lambda path, body, count: None
    provider.seen.clear()
    assert cli("retry", job, "--class", "length") == 1
    assert provider.seen == []
    assert cli("retry", job) == 0
    assert provider.prompts() == ["text 5"]
    assert read(workspace.folder / "out", "errors") == []
    assert len(read(workspace.folder / "out")) == 10


def test_a_failed_row_is_sent_again_after_it_changes(workspace: Any, provider: Any, cli: Any, read: Read) -> None:
    workspace.csv(3)
    provider.script = for_prompt("text 2", lambda: refusal(400))
    job = workspace.job()
    assert cli.run(job)["rows_failed"] == 1
    workspace.write("rows.csv", "id,text\n1,text 1\n2,fixed\n3,text 3\n")
    assert cli.run(job)["exit_code"] == 0
    assert read(workspace.folder / "out", "errors") == []
    assert [row["answer"] for row in read(workspace.folder / "out", order="id")] == ["TEXT 1", "FIXED", "TEXT 3"]


def test_a_changed_row_that_fails_keeps_its_old_result_and_is_in_errors(
    workspace: Any, provider: Any, cli: Any, read: Read
) -> None:
    workspace.csv(2)
    job = workspace.job()
    cli.run(job)
    before = read(workspace.folder / "out", order="id")
    provider.script = for_prompt("spoilt", lambda: refusal(400))
    workspace.write("rows.csv", "id,text\n1,text 1\n2,spoilt\n")
    assert cli.run(job)["rows_failed"] == 1
    assert read(workspace.folder / "out", order="id") == before
    assert [row["id"] for row in read(workspace.folder / "out", "errors")] == [2]
    workspace.csv(2)
    assert cli.run(job)["exit_code"] == 0
    assert read(workspace.folder / "out", "errors") == []


@pytest.mark.parametrize("status", [408, 409, 500, 502, 503, 529])
def test_transient_errors_are_retried(workspace: Any, provider: Any, cli: Any, read: Read, status: int) -> None:
    workspace.csv(5)
    provider.script = for_prompt("text 3", lambda: refusal(status), times=2)
    report = cli.run(workspace.job())
    assert (report["rows_ok"], report["requests"], report["retries"], report["exit_code"]) == (5, 7, 2, 0)
    attempts = [row["attempt"] for row in read(workspace.folder / "out", "usage") if row["keys"] == ["3"]]
    assert sorted(attempts) == [1, 2, 3]


def test_after_the_last_attempt_the_row_is_an_error_that_the_next_run_sends_again(
    workspace: Any, provider: Any, cli: Any, read: Read
) -> None:
    workspace.csv(5)
    provider.script = for_prompt("text 3", lambda: refusal(500, "broken"))
    job = workspace.job()
    report = cli.run(job)
    assert (report["requests"], report["rows_failed"], report["exit_code"]) == (7, 1, 1)
    (error,) = read(workspace.folder / "out", "errors")
    assert (error["error_class"], error["attempts"], error["message"]) == ("server", 3, "broken")
    provider.script = lambda path, body, count: None
    assert cli.run(job)["requests"] == 1
    assert read(workspace.folder / "out", "errors") == []


def test_a_429_uses_no_attempt(workspace: Any, provider: Any, cli: Any, read: Read) -> None:
    workspace.csv(3)
    provider.script = for_prompt(
        "text 3", lambda: refusal(429, "slow", "rate_limit_exceeded", {"retry-after": "0"}), times=7
    )
    report = cli.run(workspace.job())
    assert (report["rows_ok"], report["requests"], report["retries"], report["exit_code"]) == (3, 10, 7, 0)
    assert {row["attempt"] for row in read(workspace.folder / "out", "usage")} == {1}


def test_a_retry_after_beyond_the_longest_hold_stops_the_run(workspace: Any, provider: Any, cli: Any) -> None:
    workspace.csv(50)
    provider.script = lambda path, body, count: refusal(429, "tomorrow", headers={"retry-after": "86400"})
    report = cli.run(workspace.job(limits="{concurrency: 4}"))
    assert (report["exit_code"], report["rows_ok"]) == (3, 0)
    assert "come back in 86400 s" in report["stopped"]
    assert len(provider.seen) <= 4


@pytest.mark.parametrize(
    ("status", "code", "error_class"),
    [(401, "invalid_api_key", "access_denied"), (403, None, "access_denied"), (429, "insufficient_quota", "quota")],
)
def test_an_error_of_the_account_stops_the_run_and_its_results_are_kept(
    workspace: Any, provider: Any, cli: Any, read: Read, status: int, code: str | None, error_class: str
) -> None:
    workspace.csv(300)
    provider.script = lambda path, body, count: refusal(status, "no more", code) if count >= 50 else None
    job = workspace.job(limits="{concurrency: 8}")
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"]) == (3, 50)
    assert report["stopped"].startswith(error_class)
    assert len(provider.seen) <= 58
    assert report["rows_left"] == 250 - report["rows_failed"]
    assert {row["error_class"] for row in read(workspace.folder / "out", "errors")} == {error_class}
    provider.script = lambda path, body, count: None
    went_on = cli.run(job)
    assert (went_on["run_id"], went_on["exit_code"], went_on["requests"]) == (report["run_id"], 0, 250)


def invalid_reply(text: str, content_type: str = "application/json", status: int = 200) -> web.Response:
    return web.Response(text=text, status=status, content_type=content_type)


@pytest.mark.parametrize(
    "answer",
    [
        lambda: invalid_reply("{"),
        lambda: invalid_reply(""),
        lambda: invalid_reply("<html>busy</html>", "text/html"),
        lambda: invalid_reply('{"choices": []}'),
        lambda: invalid_reply("[]"),
        lambda: invalid_reply('{"error": {"message": "overloaded"}}'),
    ],
    ids=["malformed", "empty", "html", "no choice", "a list", "an error in a 200"],
)
def test_a_malformed_reply_is_retried(workspace: Any, provider: Any, cli: Any, answer: Any) -> None:
    workspace.csv(3)
    provider.script = for_prompt("text 2", answer, times=1)
    report = cli.run(workspace.job())
    assert (report["rows_ok"], report["requests"], report["exit_code"]) == (3, 4, 0)


def test_a_request_without_an_answer_times_out_after_the_total_timeout(
    workspace: Any, provider: Any, cli: Any, read: Read, time_passes: Callable[[float], None]
) -> None:
    workspace.csv(3)

    async def hang() -> web.Response:
        time_passes(100)
        await asyncio.sleep(5)
        return web.Response()

    provider.script = for_prompt("text 3", hang)
    retry = "{attempts: 2, longest_wait: 0.01, longest_hold: 900}"
    report = cli.run(workspace.job(limits="{concurrency: 1}", timeouts="{idle: 30, total: 100}", retry=retry))
    assert (report["rows_ok"], report["rows_failed"], report["requests"]) == (2, 1, 4)
    (error,) = read(workspace.folder / "out", "errors")
    message = "no reply within 100 s; raise timeouts.total if the server needs longer"
    assert (error["error_class"], error["message"]) == ("timeout", message)


def test_too_many_failures_stop_the_run(workspace: Any, provider: Any, cli: Any) -> None:
    workspace.csv(2000)
    provider.script = lambda path, body, count: refusal(400) if count % 2 else None
    report = cli.run(workspace.job(limits="{failed_share: 0.2, concurrency: 10}"))
    assert report["exit_code"] == 3
    assert report["stopped"].startswith("failed_share")
    assert 100 <= len(provider.seen) <= 120


def test_the_budget_is_never_exceeded_and_holds_for_all_invocations(workspace: Any, provider: Any, cli: Any) -> None:
    workspace.csv(100)
    provider.tokens = (10, 20)
    # 10 tokens in at 1 $ a million, 20 out at 2 $: 50 millionths of a dollar a row.
    job = workspace.job(budget="{usd: 0.002}", limits="{concurrency: 50}")
    report = cli.run(job)
    assert report["exit_code"] == 3
    assert "budget" in report["stopped"]
    assert report["cost_usd"] <= 0.002
    assert 30 <= report["rows_ok"] <= 40
    again = cli.run(job)
    assert (again["exit_code"], again["run_id"]) == (3, report["run_id"])
    assert report["cost_usd"] + again["cost_usd"] <= 0.002
    more = cli.run(job, "--budget-usd", "0.01")
    assert (more["exit_code"], more["run_id"], more["rows_ok"]) == (0, report["run_id"], 100)


def test_with_a_budget_a_model_without_a_price_is_refused_before_anything_is_sent(
    workspace: Any, provider: Any, cli: Any
) -> None:
    workspace.csv(3)
    steps = '[{name: a, endpoint: chat, provider: test, model: unheard-of, messages: [{user: "{{ text }}"}]}]'
    assert cli("run", workspace.job(steps=steps, budget="{usd: 1}")) == 2
    assert "no price is known for unheard-of" in cli.err
    assert provider.seen == []


def test_without_a_price_the_cost_is_unknown_and_not_zero(workspace: Any, cli: Any, read: Read) -> None:
    workspace.csv(3)
    steps = '[{name: a, endpoint: chat, provider: test, model: unheard-of, messages: [{user: "{{ text }}"}]}]'
    report = cli.run(workspace.job(steps=steps))
    assert (report["exit_code"], report["cost_usd"]) == (0, None)
    assert {row["cost_usd"] for row in read(workspace.folder / "out", "usage")} == {None}


def test_an_invalid_answer_gets_one_repair_turn(workspace: Any, provider: Any, cli: Any, read: Read) -> None:
    workspace.csv(4)

    def script(path: str, body: Any, count: int) -> Any:
        last = body["messages"][-1]["content"]
        if last == "text 1" or (len(body["messages"]) > 1 and body["messages"][0]["content"] == "text 2"):
            return None
        content = '{"mood": "good"}' if last != "text 2" and len(body["messages"]) == 1 else "certainly! good"
        if len(body["messages"]) > 1:
            content = '{"mood": "good"}'
        return reply(content)

    provider.script = script
    steps = """
  - name: a
    endpoint: chat
    provider: test
    model: m
    messages: [{user: "{{ text }}"}]
    output: {mood: {type: string, enum: [good, bad]}}
"""
    job = workspace.job(steps=steps)
    report = cli.run(job)
    # Text 1 and text 2 are answered in upper case at first: the first is repaired, the second is not.
    assert (report["rows_ok"], report["rows_failed"], report["requests"]) == (3, 1, 6)
    assert [row["mood"] for row in read(workspace.folder / "out")] == ["good"] * 3
    (error,) = read(workspace.folder / "out", "errors")
    assert (error["id"], error["error_class"]) == (2, "invalid_answer")
    assert cli.run(job)["requests"] == 0


def reply(content: str) -> Any:
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }


def test_one_bad_text_in_a_group_of_embeddings_is_found_and_the_others_keep_their_vectors(
    workspace: Any, provider: Any, cli: Any, read: Read
) -> None:
    workspace.csv(16)
    provider.script = lambda path, body, count: refusal(400, "bad text") if "text 11" in body["input"] else None
    steps = '[{name: v, endpoint: embeddings, provider: test, model: e, input: "{{ text }}", dimensions: 2}]'
    report = cli.run(workspace.job(steps=steps))
    assert (report["rows_ok"], report["rows_failed"]) == (15, 1)
    assert report["requests"] <= 9
    (error,) = read(workspace.folder / "out", "errors")
    assert (error["id"], error["message"]) == (11, "bad text")
    usage = read(workspace.folder / "out", "usage")
    assert len([row for row in usage if row["http_status"] == 200 for _ in row["keys"]]) == 15


def test_no_more_requests_are_in_flight_than_the_job_allows(workspace: Any, provider: Any, cli: Any) -> None:
    workspace.csv(60)
    provider.latency = 0.02
    cli.run(workspace.job(limits="{concurrency: 7}"))
    assert provider.most_in_flight == 7


def test_a_secret_is_sent_to_its_provider_only(
    workspace: Any, provider: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEY", "sk-very-secret-123")
    workspace.write(
        "rowmill.yaml", f'providers: {{test: {{base_url: "{provider.base_url}", api_key_env: TEST_KEY}}}}\n'
    )
    workspace.csv(5)
    provider.script = for_prompt("text 2", lambda: refusal(400, "denied for reasons"))
    job = workspace.job()
    assert cli("run", job) == 1
    assert {headers["Authorization"] for headers in provider.headers} == {"Bearer sk-very-secret-123"}
    written = [path for path in workspace.folder.rglob("*") if path.is_file()]
    assert written
    assert not [path for path in written if b"sk-very-secret-123" in path.read_bytes()]
    assert "sk-very-secret-123" not in cli.out + cli.err
    monkeypatch.delenv("TEST_KEY")
    assert cli("run", job) == 2
    assert "TEST_KEY" in cli.err
