"""Limits of whole runs: kept together by processes that share a key, a dead provider held and given up, money kept."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

Read = Callable[..., list[dict[str, Any]]]


def started(job: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", "run", str(job), "--json", "--quiet"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: "subprocess.Popen[str]") -> dict[str, Any]:
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err, err
    told: dict[str, Any] = json.loads(out) if out else {}
    return told


def limited(workspace: Any, provider: Any, limits: str, rest: str = "") -> None:
    workspace.write(
        "rowmill.yaml",
        f'providers: {{test: {{base_url: "{provider.base_url}", limits: {limits}}}}}\n'
        f"prices: {{m: {{input_per_million: 1, output_per_million: 2}}}}\n{rest}\n",
    )


def refusal(status: int, message: str = "no", headers: Any = None) -> web.Response:
    error = {"message": message, "type": "t", "param": None, "code": None}
    return web.json_response({"error": error}, status=status, headers=headers or {})


def test_two_runs_on_one_key_share_its_requests_in_flight(workspace: Any, provider: Any, cli: Any) -> None:
    limited(workspace, provider, "{concurrency: 6}")
    workspace.csv(300)
    workspace.csv(300, "others.csv")
    provider.latency = 0.03
    jobs = [workspace.job("one"), workspace.job("two", source="{csv: others.csv, key: id}", sink="{parquet: out2}")]
    told = [ended(process) for process in [started(job) for job in jobs]]
    assert [(one["exit_code"], one["rows_ok"]) for one in told] == [(0, 300), (0, 300)]
    assert provider.most_in_flight == 6


def test_two_runs_on_one_key_share_its_pace(workspace: Any, provider: Any, cli: Any) -> None:
    limited(workspace, provider, "{requests_per_minute: 6000}")
    workspace.csv(300)
    workspace.write("others.csv", "id,text\n" + "".join(f"{n},other {n}\n" for n in range(300)))
    arrived: list[float] = []

    def script(path: str, body: Any, count: int) -> None:
        arrived.append(time.monotonic())

    provider.script = script
    jobs = [workspace.job("one"), workspace.job("two", source="{csv: others.csv, key: id}", sink="{parquet: out2}")]
    assert [ended(process)["rows_ok"] for process in [started(job) for job in jobs]] == [300, 300]
    # 100 a second, and a quarter of a second's worth at once for each.
    for first in range(0, 600, 50):
        for last in range(first + 100, 600, 50):
            assert last - first <= 100 * (arrived[last] - arrived[first]) + 60


def test_a_run_that_was_killed_leaves_its_share_to_the_next_at_once(workspace: Any, provider: Any, cli: Any) -> None:
    limited(workspace, provider, "{concurrency: 2}")
    workspace.csv(40)
    provider.latency = 0.05
    process = started(workspace.job())
    while len(provider.seen) < 5:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    told = cli.run(workspace.job())
    assert (told["exit_code"], told["rows_ok"]) == (0, 40)
    assert told["seconds"] < 20


def test_a_dead_provider_is_probed_now_and_then_and_the_run_ends_by_itself_and_goes_on_later(
    workspace: Any, provider: Any, cli: Any
) -> None:
    workspace.csv(300)
    provider.script = lambda path, body, count: refusal(503, "maintenance") if count >= 100 else None
    job = workspace.job(limits="{concurrency: 10}", retry="{attempts: 9, longest_wait: 0.2, longest_hold: 1.5}")
    told = cli.run(job)
    assert (told["exit_code"], told["rows_ok"]) == (3, 100)
    assert "test has answered nothing for" in told["stopped"]
    assert "maintenance" in told["stopped"]
    assert "run again when it is back" in told["stopped"]
    # Until the circuit opened, and then a probe every 0.2 s.
    assert len(provider.seen) <= 100 + 40 + 10
    provider.script = lambda path, body, count: None
    again = cli.run(job)
    assert (again["run_id"], again["exit_code"], again["requests"]) == (told["run_id"], 0, 200)


def test_where_there_is_no_server_rows_wait_for_it_instead_of_failing(
    workspace: Any, provider: Any, cli: Any, read: Read
) -> None:
    workspace.csv(50)
    text = (workspace.folder / "rowmill.yaml").read_text().replace(provider.base_url, "http://127.0.0.1:1/v1")
    workspace.write("rowmill.yaml", text)
    job = workspace.job(limits="{concurrency: 3}", retry="{attempts: 3, longest_wait: 0.1, longest_hold: 1}")
    told = cli.run(job)
    assert (told["exit_code"], told["rows_ok"]) == (3, 0)
    assert told["rows_failed"] <= 1
    assert "cannot connect" in told["stopped"]


def test_a_provider_that_comes_back_before_it_is_given_up_costs_no_row(workspace: Any, provider: Any, cli: Any) -> None:
    workspace.csv(200)
    provider.script = lambda path, body, count: refusal(502) if 50 <= count < 85 else None
    told = cli.run(
        workspace.job(limits="{concurrency: 5}", retry="{attempts: 9, longest_wait: 0.02, longest_hold: 60}")
    )
    assert (told["exit_code"], told["rows_ok"], told["rows_failed"]) == (0, 200, 0)


class Billing:
    """A provider that bills what it answers, keeps to max_tokens, and misbehaves by a seed."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.billed = 0
        """Pico-dollars: a million a token in, two a token out."""

    async def __call__(self, path: str, body: Any, count: int) -> Any:
        chance = self.dice.random()
        if chance < 0.05:
            return refusal(500)
        if chance < 0.08:
            return refusal(429, headers={"retry-after-ms": "20"})
        given = self.dice.randint(1, len(body["messages"][-1]["content"]) + 4)
        made = self.dice.randint(0, body["max_tokens"])
        self.billed += given * 10**6 + made * 2 * 10**6
        if chance < 0.12:
            # Done and billed, but what comes back is worth nothing.
            return web.Response(text='{"choices": [', content_type="application/json")
        if chance < 0.13:
            import asyncio

            await asyncio.sleep(1)
        message = {"role": "assistant", "content": "x"}
        reply: dict[str, Any] = {
            "id": "c",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made},
        }
        if chance < 0.16:
            del reply["usage"]
        return reply


TWO_STEPS = """
  - {name: a, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }}"}], params: {max_tokens: 20}}
  - {name: b, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }} {{ a }}"}],
     params: {max_tokens: 9}}
"""


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_the_server_bills_is_never_above_the_budget_whatever_happens(
    workspace: Any, provider: Any, seed: int
) -> None:
    workspace.csv(800)
    bill = Billing(seed)
    provider.script = bill
    provider.latency = 0.02
    budget = 20_000 * 10**6
    job = workspace.job(
        steps=TWO_STEPS,
        budget="{usd: 0.02}",
        limits="{concurrency: 500}",
        timeouts="{idle: 0.5}",
        retry="{attempts: 4, longest_wait: 0.02, longest_hold: 30}",
    )
    for _ in range(3):
        before = len(provider.seen)
        process = started(job)
        while process.poll() is None and len(provider.seen) < before + bill.dice.randint(20, 120):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert bill.billed <= budget
    told = ended(started(job))
    assert told["exit_code"] == 3
    assert bill.billed <= budget
    assert "rows are left" in told["stopped"]
    assert "of the budget of $0.020000" in told["stopped"]
    again = ended(started(job))
    assert (again["exit_code"], again["run_id"]) == (3, told["run_id"])
    assert bill.billed <= budget


@pytest.mark.parametrize("seed", [4, 5])
def test_jobs_that_run_at_the_same_time_and_are_killed_never_spend_more_than_the_days_budget(
    workspace: Any, provider: Any, seed: int
) -> None:
    limited(workspace, provider, "{}", "budget: {usd_per_day: 0.02}")
    workspace.csv(1000)
    bill = Billing(seed)
    provider.script = bill
    provider.latency = 0.02
    budget = 20_000 * 10**6
    same = {
        "steps": TWO_STEPS.replace("{{ text }}", "{{ text }} " + "and more" * seed),
        "limits": "{concurrency: 200}",
        "retry": "{attempts: 4, longest_wait: 0.02, longest_hold: 30}",
    }
    one = workspace.job("one", **same)
    two = workspace.job("two", sink="{parquet: out2}", **{**same, "steps": TWO_STEPS})
    for _ in range(2):
        before = len(provider.seen)
        processes = [started(one), started(two)]
        while len(provider.seen) < before + 100 and any(process.poll() is None for process in processes):
            time.sleep(0.005)
        processes[0].send_signal(signal.SIGKILL)
        for process in processes:
            process.communicate(timeout=60)
        assert bill.billed <= budget
    told = ended(started(one))
    assert told["exit_code"] == 3
    assert "the day's budget of $0.02" in told["stopped"]
    assert bill.billed <= budget


def test_a_provider_that_holds_its_senders_does_not_hold_those_of_another(
    workspace: Any, provider: Any, cli: Any
) -> None:
    held = type(provider)()
    try:
        workspace.write(
            "rowmill.yaml",
            f'providers: {{test: {{base_url: "{provider.base_url}"}}, held: {{base_url: "{held.base_url}"}}}}\n',
        )
        workspace.csv(400)
        # It holds its senders until the other has answered all of its rows.
        held.script = lambda path, body, count: (
            refusal(429, headers={"retry-after": "2"}) if len(provider.answered) < 201 else None
        )
        steps = """
  - {name: a, endpoint: chat, provider: held, model: m, messages: [{user: "{{ text }}"}], when: id < 200}
  - {name: b, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }} too"}], when: id >= 200}
"""
        retry = "{attempts: 3, longest_wait: 5, longest_hold: 60}"
        told = cli.run(workspace.job(steps=steps, limits="{concurrency: 8}", retry=retry))
        assert (told["exit_code"], told["rows_ok"], told["stopped"]) == (0, 400, None)
        assert told["retries"] <= 20
    finally:
        held.close()


def test_a_dead_provider_does_not_hold_the_rows_of_another(workspace: Any, provider: Any, cli: Any) -> None:
    dead = "http://127.0.0.1:1/v1"
    workspace.write(
        "rowmill.yaml",
        f'providers: {{test: {{base_url: "{provider.base_url}"}}, dead: {{base_url: "{dead}"}}}}\n',
    )
    workspace.csv(400)
    steps = """
  - {name: a, endpoint: chat, provider: dead, model: m, messages: [{user: "{{ text }}"}], when: id < 200}
  - {name: b, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }} too"}], when: id >= 200}
"""
    retry = "{attempts: 3, longest_wait: 5, longest_hold: 6}"
    told = cli.run(workspace.job(steps=steps, limits="{concurrency: 8}", retry=retry))
    assert told["exit_code"] == 3
    assert "dead has answered nothing" in told["stopped"]
    assert told["rows_ok"] >= 190


def test_two_runs_at_the_same_time_use_the_days_budget_almost_whole_and_never_more(
    workspace: Any, provider: Any
) -> None:
    limited(workspace, provider, "{}", "budget: {usd_per_day: 0.02}")
    workspace.csv(2000)
    provider.latency = 0.02
    same = {"limits": "{concurrency: 20}"}
    # 10 tokens in and 5 out of at most 20: $0.00002 each, so 1,000 of the 4,000 rows.
    jobs = [
        workspace.job("one", **same),
        workspace.job("two", sink="{parquet: out2}", steps=TWO_STEPS.replace("{{ text }}", "too {{ text }}"), **same),
    ]
    told = [ended(process) for process in [started(job) for job in jobs]]
    assert [one["exit_code"] for one in told] == [3, 3]
    assert 950 <= len(provider.answered) <= 1000
