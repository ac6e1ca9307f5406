"""Limits of whole runs: shared by processes with one key, dead providers, and budgets."""

import json
import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from aiohttp import web

from tests.conftest import noon
from tests.support.forked import Forked, ended, run

Read = Callable[..., list[dict[str, Any]]]


def wait_for_report(process: Forked) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(ended(process)[1])
    return report


def write_limits(workspace: Any, provider: Any, limits: str, rest: str = "") -> None:
    workspace.write(
        "rowmill.yaml",
        f'providers: {{test: {{base_url: "{provider.base_url}", limits: {limits}}}}}\n'
        f"prices: {{m: {{input_per_million: 1, output_per_million: 2}}}}\n{rest}\n",
    )


def refusal(status: int, message: str = "no", headers: Any = None) -> web.Response:
    error = {"message": message, "type": "t", "param": None, "code": None}
    return web.json_response({"error": error}, status=status, headers=headers or {})


def test_two_runs_on_one_key_share_its_requests_in_flight(workspace: Any, provider: Any, cli: Any) -> None:
    write_limits(workspace, provider, "{concurrency: 6}")
    workspace.csv(300)
    workspace.csv(300, "others.csv")
    provider.latency = 0.03
    jobs = [workspace.job("one"), workspace.job("two", source="{csv: others.csv, key: id}", sink="{parquet: out2}")]
    reports = [wait_for_report(process) for process in [run(job) for job in jobs]]
    assert [(one["exit_code"], one["rows_ok"]) for one in reports] == [(0, 300), (0, 300)]
    assert provider.most_in_flight == 6


def test_two_runs_on_one_key_share_its_request_rate(workspace: Any, provider: Any, read: Read) -> None:
    write_limits(workspace, provider, "{requests_per_minute: 6000}")
    workspace.csv(300)
    workspace.write("others.csv", "id,text\n" + "".join(f"{n},other {n}\n" for n in range(300)))
    jobs = [workspace.job("one"), workspace.job("two", source="{csv: others.csv, key: id}", sink="{parquet: out2}")]
    assert [wait_for_report(process)["rows_ok"] for process in [run(job) for job in jobs]] == [300, 300]
    # By the times of sending: a provider that is slow for a moment sees many requests at once.
    folders = [workspace.folder / name for name in ("out", "out2")]
    sent = sorted(row["started_at"].timestamp() for folder in folders for row in read(folder, "usage"))
    assert len(sent) == len(provider.seen) == 600
    # 100 a second, and a burst of a quarter of a second for each run.
    for first in range(0, 600, 50):
        for last in range(first + 100, 600, 50):
            assert last - first <= 100 * (sent[last] - sent[first]) + 60


def test_the_share_of_a_killed_run_is_free_at_once(workspace: Any, provider: Any, cli: Any) -> None:
    write_limits(workspace, provider, "{concurrency: 2}")
    workspace.csv(40)
    provider.latency = 0.05
    process = run(workspace.job())
    while len(provider.seen) < 5:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.ended()
    provider.most_in_flight = 0
    report = cli.run(workspace.job())
    assert (report["exit_code"], report["rows_ok"]) == (0, 40)
    assert provider.most_in_flight == 2


def test_a_dead_provider_is_probed_until_the_run_stops_and_a_later_run_continues(
    workspace: Any, provider: Any, cli: Any
) -> None:
    workspace.csv(300)
    provider.script = lambda path, body, count: refusal(503, "maintenance") if count >= 100 else None
    job = workspace.job(limits="{concurrency: 10}", retry="{attempts: 9, longest_wait: 0.2, longest_hold: 1.5}")
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"]) == (3, 100)
    assert "test has answered nothing for" in report["stopped"]
    assert "maintenance" in report["stopped"]
    assert "run again when it is back" in report["stopped"]
    # Until the circuit opens, then a probe every 0.2 s.
    assert len(provider.seen) <= 100 + 40 + 10
    provider.script = lambda path, body, count: None
    again = cli.run(job)
    assert (again["run_id"], again["exit_code"], again["requests"]) == (report["run_id"], 0, 200)


def test_rows_wait_for_a_missing_server_instead_of_failing(workspace: Any, provider: Any, cli: Any, read: Read) -> None:
    workspace.csv(50)
    text = (workspace.folder / "rowmill.yaml").read_text().replace(provider.base_url, "http://127.0.0.1:1/v1")
    workspace.write("rowmill.yaml", text)
    job = workspace.job(limits="{concurrency: 3}", retry="{attempts: 3, longest_wait: 0.1, longest_hold: 1}")
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"]) == (3, 0)
    assert report["rows_failed"] <= 1
    assert "cannot connect" in report["stopped"]


def test_no_row_fails_if_the_provider_recovers_in_time(workspace: Any, provider: Any, cli: Any) -> None:
    workspace.csv(200)
    provider.script = lambda path, body, count: refusal(502) if 50 <= count < 85 else None
    report = cli.run(
        workspace.job(limits="{concurrency: 5}", retry="{attempts: 9, longest_wait: 0.02, longest_hold: 60}")
    )
    assert (report["exit_code"], report["rows_ok"], report["rows_failed"]) == (0, 200, 0)


class Billing:
    """A provider that bills what it answers, obeys max_tokens, and fails at random by a seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.billed = 0
        """Pico-dollars: a million for an input token, two for an output token."""

    async def __call__(self, path: str, body: Any, count: int) -> Any:
        chance = self.rng.random()
        if chance < 0.05:
            return refusal(500)
        if chance < 0.08:
            return refusal(429, headers={"retry-after-ms": "20"})
        input_tokens = self.rng.randint(1, len(body["messages"][-1]["content"]) + 4)
        output_tokens = self.rng.randint(0, body["max_tokens"])
        self.billed += input_tokens * 10**6 + output_tokens * 2 * 10**6
        if chance < 0.12:
            # Answered and billed, but the reply is malformed.
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
            "usage": {
                "prompt_tokens": input_tokens,
                "completion_tokens": output_tokens,
                "total_tokens": input_tokens + output_tokens,
            },
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
def test_what_the_server_bills_never_exceeds_the_budget(workspace: Any, provider: Any, seed: int) -> None:
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
        process = run(job)
        while process.poll() is None and len(provider.seen) < before + bill.rng.randint(20, 120):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.ended()
        assert bill.billed <= budget
    report = wait_for_report(run(job))
    assert report["exit_code"] == 3
    assert bill.billed <= budget
    assert "rows are left" in report["stopped"]
    assert "of the budget of $0.020000" in report["stopped"]
    again = wait_for_report(run(job))
    assert (again["exit_code"], again["run_id"]) == (3, report["run_id"])
    assert bill.billed <= budget


@pytest.mark.parametrize("seed", [4, 5])
def test_concurrent_and_killed_jobs_never_exceed_the_daily_budget(workspace: Any, provider: Any, seed: int) -> None:
    write_limits(workspace, provider, "{}", "budget: {usd_per_day: 0.02}\n" + noon())
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
        processes = [run(one), run(two)]
        while len(provider.seen) < before + 100 and any(process.poll() is None for process in processes):
            time.sleep(0.005)
        processes[0].send_signal(signal.SIGKILL)
        for process in processes:
            process.ended()
        assert bill.billed <= budget
    report = wait_for_report(run(one))
    assert report["exit_code"] == 3
    assert "the day's budget of $0.02" in report["stopped"]
    assert bill.billed <= budget


def test_a_paused_provider_does_not_delay_another(workspace: Any, provider: Any, cli: Any) -> None:
    paused = type(provider)()
    try:
        workspace.write(
            "rowmill.yaml",
            f'providers: {{test: {{base_url: "{provider.base_url}"}}, held: {{base_url: "{paused.base_url}"}}}}\n',
        )
        workspace.csv(400)
        # It refuses until the other provider has answered all of its rows.
        paused.script = lambda path, body, count: (
            refusal(429, headers={"retry-after": "2"}) if len(provider.answered) < 201 else None
        )
        steps = """
  - {name: a, endpoint: chat, provider: held, model: m, messages: [{user: "{{ text }}"}], when: id < 200}
  - {name: b, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }} too"}], when: id >= 200}
"""
        retry = "{attempts: 3, longest_wait: 5, longest_hold: 60}"
        report = cli.run(workspace.job(steps=steps, limits="{concurrency: 8}", retry=retry))
        assert (report["exit_code"], report["rows_ok"], report["stopped"]) == (0, 400, None)
        assert report["retries"] <= 20
    finally:
        paused.close()


def test_a_dead_provider_does_not_delay_the_rows_of_another(
    workspace: Any, provider: Any, cli: Any, time_passes: Callable[[float], None]
) -> None:
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
    job = workspace.job(
        steps=steps, limits="{concurrency: 8}", retry="{attempts: 3, longest_wait: 2, longest_hold: 60}"
    )

    def give_up_when_the_others_are_done() -> None:
        while len(provider.answered) < 201:
            time.sleep(0.005)
        time_passes(60)

    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(give_up_when_the_others_are_done)
        report = cli.run(job)
        waiting.result()
    assert report["exit_code"] == 3
    assert "dead has answered nothing" in report["stopped"]
    assert report["rows_ok"] == 201


def test_two_concurrent_runs_use_the_daily_budget_almost_whole_and_never_exceed_it(
    workspace: Any, provider: Any
) -> None:
    write_limits(workspace, provider, "{}", "budget: {usd_per_day: 0.02}\n" + noon())
    workspace.csv(2000)
    provider.latency = 0.02
    same = {"limits": "{concurrency: 20}"}
    # 10 tokens in and 5 out of at most 20: $0.00002 each, so 1,000 of the 4,000 rows.
    jobs = [
        workspace.job("one", **same),
        workspace.job("two", sink="{parquet: out2}", steps=TWO_STEPS.replace("{{ text }}", "too {{ text }}"), **same),
    ]
    reports = [wait_for_report(process) for process in [run(job) for job in jobs]]
    assert [one["exit_code"] for one in reports] == [3, 3]
    assert 950 <= len(provider.answered) <= 1000
