"""Provider pools: members share the work by load, replace one another, and have their own prices."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aiohttp import web

Read = Callable[..., list[dict[str, Any]]]

PRICES = "{m: {input_per_million: %s, output_per_million: %s}}"


@pytest.fixture
def spare(provider: Any) -> Iterator[Any]:
    """A second scripted provider."""
    server = type(provider)()
    yield server
    server.close()


def write_pool(workspace: Any, provider: Any, spare: Any, first: str = "", second: str = "", rest: str = "") -> None:
    """Write a workspace whose pool `both` has the members `test` and `spare`."""
    workspace.write(
        "rowmill.yaml",
        f"""
providers:
  test: {{base_url: "{provider.base_url}", prices: {PRICES % (1, 2)}{first}}}
  spare: {{base_url: "{spare.base_url}", prices: {PRICES % (10, 20)}{second}}}
  both: {{members: [test, spare]}}
{rest}
""",
    )


STEPS = (
    '[{name: answer, endpoint: chat, provider: both, model: m, messages: [{user: "{{ text }}"}], '
    "params: {max_tokens: 20}}]"
)


def refusal(status: int, code: str | None = None, headers: Any = None) -> web.Response:
    error = {"message": "no", "type": "t", "param": None, "code": code}
    return web.json_response({"error": error}, status=status, headers=headers or {})


def test_members_share_the_work_and_usage_names_the_member_and_its_price(
    workspace: Any, provider: Any, spare: Any, cli: Any, read: Read
) -> None:
    write_pool(workspace, provider, spare)
    workspace.csv(200)
    provider.latency = spare.latency = 0.01
    report = cli.run(workspace.job(steps=STEPS, limits="{concurrency: 20}"))
    assert (report["rows_ok"], report["requests"], report["exit_code"]) == (200, 200, 0)
    usage = Counter(row["provider"] for row in read(workspace.folder / "out", "usage"))
    assert usage == {"test": len(provider.seen), "spare": len(spare.seen)}
    assert min(usage.values()) >= 50
    costs = {row["provider"]: row["cost_usd"] for row in read(workspace.folder / "out", "usage")}
    # 10 tokens in, 5 out.
    assert costs == {"test": pytest.approx(20e-6), "spare": pytest.approx(200e-6)}


def test_the_less_loaded_member_gets_more_requests(workspace: Any, provider: Any, spare: Any, cli: Any) -> None:
    write_pool(workspace, provider, spare, ", limits: {concurrency: 12}", ", limits: {concurrency: 4}")
    workspace.csv(320)
    provider.latency = spare.latency = 0.02
    cli.run(workspace.job(steps=STEPS, limits="{concurrency: 40}"))
    assert (provider.most_in_flight, spare.most_in_flight) == (12, 4)
    assert 200 <= len(provider.seen) <= 280


def test_each_member_keeps_its_own_rate_limit(workspace: Any, provider: Any, spare: Any, cli: Any) -> None:
    write_pool(workspace, provider, spare, ", limits: {requests_per_minute: 600}")
    workspace.csv(150)
    provider.latency = spare.latency = 0.01
    report = cli.run(workspace.job(steps=STEPS, limits="{concurrency: 4}"))
    # Ten a second, two and a half at once.
    assert len(provider.seen) <= 4 + 10 * report["seconds"]
    assert len(spare.seen) == 150 - len(provider.seen)


@pytest.mark.parametrize("status", [500, 503])
def test_no_row_fails_if_a_member_goes_down(
    workspace: Any, provider: Any, spare: Any, cli: Any, read: Read, status: int
) -> None:
    write_pool(workspace, provider, spare)
    workspace.csv(300)
    provider.latency = spare.latency = 0.005
    spare.script = lambda path, body, count: refusal(status) if count >= 20 else None
    report = cli.run(workspace.job(steps=STEPS, limits="{concurrency: 30}"))
    assert (report["rows_ok"], report["rows_failed"], report["exit_code"]) == (300, 0, 0)
    assert read(workspace.folder / "out", "errors") == []


class UnreachableProvider:
    """An address without a server."""

    base_url = "http://127.0.0.1:1/v1"


def test_no_row_fails_if_a_member_is_unreachable(workspace: Any, provider: Any, cli: Any) -> None:
    write_pool(workspace, provider, UnreachableProvider)
    workspace.csv(100)
    report = cli.run(workspace.job(steps=STEPS, limits="{concurrency: 30}"))
    assert (report["rows_ok"], report["rows_failed"], report["exit_code"]) == (100, 0, 0)
    assert len(provider.seen) == 100


@pytest.mark.parametrize(("status", "code"), [(401, None), (403, None), (429, "insufficient_quota")])
def test_a_member_whose_key_is_denied_is_excluded_and_the_others_continue(
    workspace: Any, provider: Any, spare: Any, cli: Any, status: int, code: str | None
) -> None:
    write_pool(workspace, provider, spare)
    workspace.csv(200)
    spare.script = lambda path, body, count: refusal(status, code)
    report = cli.run(workspace.job(steps=STEPS, limits="{concurrency: 10}"))
    assert (report["rows_ok"], report["rows_failed"], report["exit_code"]) == (200, 0, 0)
    assert len(spare.seen) <= 10
    assert "spare" not in str(report["stopped"])


def test_when_all_members_are_denied_the_run_stops(workspace: Any, provider: Any, spare: Any, cli: Any) -> None:
    write_pool(workspace, provider, spare)
    workspace.csv(200)
    for server in (provider, spare):
        server.script = lambda path, body, count: refusal(401) if count >= 10 else None
    report = cli.run(workspace.job(steps=STEPS, limits="{concurrency: 4}"))
    assert (report["exit_code"], report["stopped"].split(":")[0]) == (3, "access_denied")
    assert report["rows_ok"] == 20
    assert len(provider.seen) + len(spare.seen) <= 30


def test_when_all_members_are_down_the_run_stops_and_continues_later(
    workspace: Any, provider: Any, spare: Any, cli: Any
) -> None:
    write_pool(workspace, provider, spare)
    workspace.csv(60)
    for server in (provider, spare):
        server.script = lambda path, body, count: refusal(503)
    job = workspace.job(
        steps=STEPS, limits="{concurrency: 10}", retry="{attempts: 9, longest_wait: 0.05, longest_hold: 0.5}"
    )
    report = cli.run(job)
    assert report["exit_code"] == 3
    assert "test has answered nothing" in report["stopped"]
    assert "spare has answered nothing" in report["stopped"]
    for server in (provider, spare):
        server.script = lambda path, body, count: None
    again = cli.run(job)
    assert (again["run_id"], again["exit_code"], again["rows_ok"]) == (report["run_id"], 0, 60)


def test_a_request_that_one_member_refuses_goes_to_another(workspace: Any, provider: Any, spare: Any, cli: Any) -> None:
    write_pool(workspace, provider, spare)
    workspace.csv(50)
    spare.script = lambda path, body, count: refusal(429, headers={"retry-after": "3600"})
    report = cli.run(workspace.job(steps=STEPS, limits="{concurrency: 5}"))
    assert (report["rows_ok"], report["exit_code"]) == (50, 0)
    assert len(spare.seen) <= 5


def test_a_bad_row_is_sent_to_one_member_only(workspace: Any, provider: Any, spare: Any, cli: Any) -> None:
    write_pool(workspace, provider, spare)
    workspace.csv(20)
    for server in (provider, spare):
        server.script = lambda path, body, count: refusal(400) if body["messages"][-1]["content"] == "text 7" else None
    report = cli.run(workspace.job(steps=STEPS))
    assert (report["rows_ok"], report["rows_failed"], report["requests"]) == (19, 1, 20)


def test_the_rows_of_a_shared_request_that_one_member_refuses_go_to_another(
    workspace: Any, provider: Any, spare: Any, cli: Any
) -> None:
    write_pool(workspace, provider, spare)
    workspace.csv(100)
    provider.script = lambda path, body, count: refusal(400)
    steps = '[{name: v, endpoint: embeddings, provider: both, model: m, input: "{{ text }}", dimensions: 4}]'
    report = cli.run(workspace.job(steps=steps))
    assert (report["rows_ok"], report["rows_failed"]) == (100, 0)
    assert provider.seen


@pytest.mark.parametrize("rows", [1, 12, 60])
def test_a_row_that_a_member_refuses_before_it_has_answered_goes_to_another(
    rows: int, workspace: Any, provider: Any, spare: Any, cli: Any
) -> None:
    write_pool(workspace, provider, spare)
    workspace.csv(rows)
    provider.script = lambda path, body, count: refusal(400)
    report = cli.run(workspace.job(steps=STEPS))
    assert (report["exit_code"], report["rows_ok"], report["rows_failed"]) == (0, rows, 0)
    assert len(provider.seen) == report["requests"] - rows
    assert cli.run(workspace.job(steps=STEPS))["requests"] == 0


def test_the_next_run_reuses_answers_of_any_member(workspace: Any, provider: Any, spare: Any, cli: Any) -> None:
    write_pool(workspace, provider, spare)
    workspace.csv(40)
    cli.run(workspace.job(steps=STEPS))
    report = cli.run(workspace.job(steps=STEPS, sink="{parquet: elsewhere}"))
    assert (report["rows_ok"], report["requests"]) == (40, 0)


def test_a_budget_needs_a_price_for_every_member_and_reserves_the_highest(
    workspace: Any, provider: Any, spare: Any, cli: Any
) -> None:
    write_pool(workspace, provider, spare)
    workspace.csv(300)
    provider.tokens = spare.tokens = (10, 20)
    report = cli.run(workspace.job(steps=STEPS, budget="{usd: 0.02}", limits="{concurrency: 50}"))
    billed = len(provider.answered) * 50e-6 + len(spare.answered) * 500e-6
    assert report["exit_code"] == 3
    assert report["cost_usd"] == pytest.approx(billed)
    assert billed <= 0.02
    unpriced = (workspace.folder / "rowmill.yaml").read_text().replace(f", prices: {PRICES % (10, 20)}", "")
    workspace.write("rowmill.yaml", unpriced)
    assert cli("run", workspace.job(steps=STEPS, budget="{usd: 0.02}")) == 2
    assert "no price is known for m at spare" in cli.err


def test_a_budget_names_the_member_without_a_price_by_its_own_name_of_the_model(
    workspace: Any, provider: Any, spare: Any, cli: Any
) -> None:
    write_pool(workspace, provider, spare, second=", models: {m: spare-m}")
    workspace.csv(1)
    assert cli("run", workspace.job(steps=STEPS, budget="{usd: 1}")) == 2
    assert "no price is known for spare-m at spare, so a budget cannot be guaranteed" in cli.err
