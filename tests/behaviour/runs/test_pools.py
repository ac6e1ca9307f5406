"""Pools: members share the work by what each has left, stand in for one another, and are paid at their own prices."""

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


def pooled(workspace: Any, provider: Any, spare: Any, first: str = "", second: str = "", rest: str = "") -> None:
    """A workspace whose pool `both` has the members `test` and `spare`."""
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


def test_the_members_share_the_work_and_usage_names_the_one_that_answered_at_its_price(
    workspace: Any, provider: Any, spare: Any, cli: Any, read: Read
) -> None:
    pooled(workspace, provider, spare)
    workspace.csv(200)
    provider.latency = spare.latency = 0.01
    told = cli.run(workspace.job(steps=STEPS, limits="{concurrency: 20}"))
    assert (told["rows_ok"], told["requests"], told["exit_code"]) == (200, 200, 0)
    usage = Counter(row["provider"] for row in read(workspace.folder / "out", "usage"))
    assert usage == {"test": len(provider.seen), "spare": len(spare.seen)}
    assert min(usage.values()) >= 50
    costs = {row["provider"]: row["cost_usd"] for row in read(workspace.folder / "out", "usage")}
    # 10 tokens in, 5 out.
    assert costs == {"test": pytest.approx(20e-6), "spare": pytest.approx(200e-6)}


def test_a_member_with_more_left_gets_more(workspace: Any, provider: Any, spare: Any, cli: Any) -> None:
    pooled(workspace, provider, spare, ", limits: {concurrency: 12}", ", limits: {concurrency: 4}")
    workspace.csv(320)
    provider.latency = spare.latency = 0.02
    cli.run(workspace.job(steps=STEPS, limits="{concurrency: 40}"))
    assert (provider.most_in_flight, spare.most_in_flight) == (12, 4)
    assert 200 <= len(provider.seen) <= 280


def test_each_member_is_held_to_its_own_pace(workspace: Any, provider: Any, spare: Any, cli: Any) -> None:
    pooled(workspace, provider, spare, ", limits: {requests_per_minute: 600}")
    workspace.csv(150)
    provider.latency = spare.latency = 0.01
    told = cli.run(workspace.job(steps=STEPS, limits="{concurrency: 4}"))
    # Ten a second, two and a half at once.
    assert len(provider.seen) <= 4 + 10 * told["seconds"]
    assert len(spare.seen) == 150 - len(provider.seen)


@pytest.mark.parametrize("status", [500, 503])
def test_a_member_that_dies_costs_no_row(
    workspace: Any, provider: Any, spare: Any, cli: Any, read: Read, status: int
) -> None:
    pooled(workspace, provider, spare)
    workspace.csv(300)
    provider.latency = spare.latency = 0.005
    spare.script = lambda path, body, count: refusal(status) if count >= 20 else None
    told = cli.run(workspace.job(steps=STEPS, limits="{concurrency: 30}"))
    assert (told["rows_ok"], told["rows_failed"], told["exit_code"]) == (300, 0, 0)
    assert read(workspace.folder / "out", "errors") == []


class Nowhere:
    """An address where nothing listens."""

    base_url = "http://127.0.0.1:1/v1"


def test_a_member_that_is_not_there_costs_no_row(workspace: Any, provider: Any, cli: Any) -> None:
    pooled(workspace, provider, Nowhere)
    workspace.csv(100)
    told = cli.run(workspace.job(steps=STEPS, limits="{concurrency: 30}"))
    assert (told["rows_ok"], told["rows_failed"], told["exit_code"]) == (100, 0, 0)
    assert len(provider.seen) == 100


@pytest.mark.parametrize(("status", "code"), [(401, None), (403, None), (429, "insufficient_quota")])
def test_a_member_whose_key_is_denied_is_asked_no_more_and_the_others_go_on(
    workspace: Any, provider: Any, spare: Any, cli: Any, status: int, code: str | None
) -> None:
    pooled(workspace, provider, spare)
    workspace.csv(200)
    spare.script = lambda path, body, count: refusal(status, code)
    told = cli.run(workspace.job(steps=STEPS, limits="{concurrency: 10}"))
    assert (told["rows_ok"], told["rows_failed"], told["exit_code"]) == (200, 0, 0)
    assert len(spare.seen) <= 10
    assert "spare" not in str(told["stopped"])


def test_when_all_members_are_denied_the_run_stops(workspace: Any, provider: Any, spare: Any, cli: Any) -> None:
    pooled(workspace, provider, spare)
    workspace.csv(200)
    for server in (provider, spare):
        server.script = lambda path, body, count: refusal(401) if count >= 10 else None
    told = cli.run(workspace.job(steps=STEPS, limits="{concurrency: 4}"))
    assert (told["exit_code"], told["stopped"].split(":")[0]) == (3, "access_denied")
    assert told["rows_ok"] == 20
    assert len(provider.seen) + len(spare.seen) <= 30


def test_when_all_members_are_dead_the_run_stops_and_goes_on_later(
    workspace: Any, provider: Any, spare: Any, cli: Any
) -> None:
    pooled(workspace, provider, spare)
    workspace.csv(60)
    for server in (provider, spare):
        server.script = lambda path, body, count: refusal(503)
    job = workspace.job(
        steps=STEPS, limits="{concurrency: 10}", retry="{attempts: 9, longest_wait: 0.05, longest_hold: 0.5}"
    )
    told = cli.run(job)
    assert told["exit_code"] == 3
    assert "test has answered nothing" in told["stopped"]
    assert "spare has answered nothing" in told["stopped"]
    for server in (provider, spare):
        server.script = lambda path, body, count: None
    again = cli.run(job)
    assert (again["run_id"], again["exit_code"], again["rows_ok"]) == (told["run_id"], 0, 60)


def test_a_refusal_of_one_member_sends_the_request_to_another(
    workspace: Any, provider: Any, spare: Any, cli: Any
) -> None:
    pooled(workspace, provider, spare)
    workspace.csv(50)
    spare.script = lambda path, body, count: refusal(429, headers={"retry-after": "3600"})
    told = cli.run(workspace.job(steps=STEPS, limits="{concurrency: 5}"))
    assert (told["rows_ok"], told["exit_code"]) == (50, 0)
    assert len(spare.seen) <= 5


def test_a_row_at_fault_is_asked_once_and_not_of_every_member(
    workspace: Any, provider: Any, spare: Any, cli: Any
) -> None:
    pooled(workspace, provider, spare)
    workspace.csv(20)
    for server in (provider, spare):
        server.script = lambda path, body, count: refusal(400) if body["messages"][-1]["content"] == "text 7" else None
    told = cli.run(workspace.job(steps=STEPS))
    assert (told["rows_ok"], told["rows_failed"], told["requests"]) == (19, 1, 20)


def test_which_member_answered_does_not_matter_to_the_next_run(
    workspace: Any, provider: Any, spare: Any, cli: Any
) -> None:
    pooled(workspace, provider, spare)
    workspace.csv(40)
    cli.run(workspace.job(steps=STEPS))
    told = cli.run(workspace.job(steps=STEPS, sink="{parquet: elsewhere}"))
    assert (told["rows_ok"], told["requests"]) == (40, 0)


def test_with_a_budget_every_member_needs_a_price_and_the_dearest_is_set_aside(
    workspace: Any, provider: Any, spare: Any, cli: Any
) -> None:
    pooled(workspace, provider, spare)
    workspace.csv(300)
    provider.tokens = spare.tokens = (10, 20)
    told = cli.run(workspace.job(steps=STEPS, budget="{usd: 0.02}", limits="{concurrency: 50}"))
    billed = len(provider.answered) * 50e-6 + len(spare.answered) * 500e-6
    assert told["exit_code"] == 3
    assert told["cost_usd"] == pytest.approx(billed)
    assert billed <= 0.02
    unpriced = (workspace.folder / "rowmill.yaml").read_text().replace(f", prices: {PRICES % (10, 20)}", "")
    workspace.write("rowmill.yaml", unpriced)
    assert cli("run", workspace.job(steps=STEPS, budget="{usd: 0.02}")) == 2
    assert "no price is known for m at spare" in cli.err
