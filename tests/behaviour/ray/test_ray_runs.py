"""Runs on a Ray cluster: the tables of the local engine, its guarantees, its limits and its budget."""

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.runs.test_packing import HostileServer, answers, expected, packed_job
from tests.conftest import ReadTable, ScriptedProvider, Workspace

pytestmark = pytest.mark.ray
Read = Callable[..., list[dict[str, Any]]]

TWO_STEPS = """
  - {name: loud, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }}"}]}
  - name: vector
    endpoint: embeddings
    provider: test
    model: e
    dimensions: 3
    input: "{{ loud }}"
    when: id % 7 <> 0
"""


def without(rows: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in names} for row in rows]


def test_the_tables_are_those_of_the_local_engine(
    workspace: Any, provider: Any, ray_run: Any, cli: Any, read: Read
) -> None:
    workspace.csv(2000)
    provider.script = lambda path, body, count: (
        refused() if "messages" in body and body["messages"][-1]["content"] == "text 33" else None
    )
    on_ray = ray_run(workspace.job("on-ray", steps=TWO_STEPS, sink="{parquet: on-ray, columns: [text]}")).ended()
    local = cli.run(workspace.job("local", steps=TWO_STEPS, sink="{parquet: local, columns: [text]}"))
    assert {name: on_ray[name] for name in ("rows", "rows_ok", "rows_failed", "exit_code")} == {
        "rows": 2000, "rows_ok": 1999, "rows_failed": 1, "exit_code": 1,
    }  # fmt: skip
    assert local["rows_reused"] == local["rows_ok"] == 1999
    for table, own in (("results", ("_run_id",)), ("errors", ("run_id", "failed_at", "request_id", "details"))):
        one, other = (read(workspace.folder / sink, table, order="id") for sink in ("on-ray", "local"))
        assert without(one, *own) == without(other, *own)
    usage = read(workspace.folder / "on-ray", "usage")
    assert len(usage) == on_ray["requests"] == len(provider.seen)
    assert sum(row["cost_usd"] or 0 for row in usage) == pytest.approx(on_ray["cost_usd"])


def refused() -> Any:
    from aiohttp import web

    return web.json_response({"error": {"message": "no", "type": "t", "param": None, "code": None}}, status=400)


def test_equal_requests_on_different_workers_are_sent_once(workspace: Any, provider: Any, ray_run: Any) -> None:
    workspace.write("rows.csv", "id,text\n" + "".join(f"{n},text {n % 300}\n" for n in range(6000)))
    provider.latency = 0.05
    report = ray_run(workspace.job(limits="{concurrency: 16}")).ended()
    assert (report["rows_ok"], report["requests"]) == (6000, 300)
    assert max(Counter(provider.prompts()).values()) == 1


def test_requests_in_flight_are_limited_for_the_job_and_not_for_each_worker(
    workspace: Any, provider: Any, ray_run: Any
) -> None:
    workspace.csv(4000)
    provider.latency = 0.03
    report = ray_run(workspace.job(limits="{concurrency: 12}")).ended()
    assert report["rows_ok"] == 4000
    assert 9 <= provider.most_in_flight <= 12


def test_a_killed_worker_loses_no_row_and_its_requests_in_flight_stay_unknown(
    workspace: Any, provider: Any, ray_run: Any, asked_by: Any, read: Read
) -> None:
    rows, fatal = 4000, 600
    workspace.csv(rows)
    provider.latency = 0.1

    def kill_sender(path: str, body: Any, count: int) -> None:
        if count == fatal:
            asked_by(provider.peers[count]).send_signal(signal.SIGKILL)

    provider.script = kill_sender
    report = ray_run(workspace.job(limits="{concurrency: 40}")).ended()
    assert (report["exit_code"], report["rows_ok"]) == (0, rows)
    assert [row["id"] for row in read(workspace.folder / "out", order="id")] == list(range(1, rows + 1))
    usage = read(workspace.folder / "out", "usage")
    unknown = [row for row in usage if row["error_class"] == "unknown"]
    assert len(unknown) <= 40
    text = provider.prompts()[fatal]
    assert [text.removeprefix("text ")] in [row["keys"] for row in unknown]
    # 10 tokens in are counted as sent, and 20 out may come: unknown stays at the most that it can cost.
    assert all(row["cost_usd"] >= 20 * 2e-6 for row in unknown)
    assert len(usage) - len(unknown) == rows == report["requests"] - len(unknown)
    assert len(provider.seen) <= rows + len(unknown)


def test_a_run_after_a_killed_driver_pays_nothing_twice(
    workspace: Any, provider: Any, ray_run: Any, read: Read
) -> None:
    rows, concurrency, kills = 3000, 20, 3
    workspace.csv(rows)
    provider.latency = 0.05
    job = workspace.job(limits=f"{{concurrency: {concurrency}}}")
    for kill in range(kills):
        run = ray_run(job)
        run.wait_for(provider, 400 * (kill + 1))
        run.kill()
    report = ray_run(job).ended()
    assert (report["exit_code"], report["rows_ok"]) == (0, rows)
    assert [row["id"] for row in read(workspace.folder / "out", order="id")] == list(range(1, rows + 1))
    usage = read(workspace.folder / "out", "usage")
    unknown = [row for row in usage if row["error_class"] == "unknown"]
    assert len([row for row in usage if row["http_status"] == 200]) == rows
    assert len(unknown) <= kills * concurrency
    assert len(provider.seen) <= rows + kills * concurrency


def test_a_local_run_may_follow_a_killed_one_on_ray(workspace: Any, provider: Any, ray_run: Any, cli: Any) -> None:
    rows = 2000
    workspace.csv(rows)
    provider.latency = 0.05
    job = workspace.job(limits="{concurrency: 20}")
    run = ray_run(job)
    run.wait_for(provider, 400)
    run.kill()
    assert cli.run(job)["rows_ok"] == rows
    assert len(provider.seen) <= rows + 20


def test_an_interrupted_run_stores_the_answers_in_flight(
    workspace: Any, provider: Any, ray_run: Any, read: Read
) -> None:
    rows = 3000
    workspace.csv(rows)
    provider.latency = 0.1
    job = workspace.job(limits="{concurrency: 40}")
    run = ray_run(job)
    run.wait_for(provider, 500)
    run.process.send_signal(signal.SIGINT)
    first = run.ended()
    assert (first["exit_code"], first["stopped"]) == (130, "interrupted")
    assert len(provider.seen) == len(provider.answered) == first["requests"] == first["rows_ok"] < rows
    second = ray_run(job).ended()
    assert (second["run_id"], second["requests"]) == (first["run_id"], rows - first["rows_ok"])
    assert len(provider.seen) == rows
    assert not [row for row in read(workspace.folder / "out", "usage") if row["error_class"]]


def test_the_limit_of_requests_per_minute_holds_for_all_workers_together(
    workspace: Any, provider: Any, ray_run: Any
) -> None:
    seconds: list[float] = []
    provider.script = lambda path, body, count: seconds.append(time.monotonic())
    workspace.csv(1200)
    file = workspace.folder / "rowmill.yaml"
    file.write_text(file.read_text().replace('v1"}', 'v1", limits: {requests_per_minute: 6000}}'))
    assert ray_run(workspace.job(limits="{concurrency: 50}")).ended()["rows_ok"] == 1200
    seconds.sort()
    for place, at in enumerate(seconds):
        within = sum(1 for later in seconds[place : place + 400] if later - at < 2)
        # A quarter of a second's worth may leave at once.
        assert within <= 100 * (2 + 0.25) + 4
    assert seconds[-1] - seconds[0] > 1200 / 100 * 0.95


def test_the_budget_holds_for_all_workers_together_and_is_used_up(workspace: Any, provider: Any, ray_run: Any) -> None:
    provider.latency = 0.02
    provider.tokens = (10, 20)
    workspace.csv(3000)
    # Each costs 50 millionths of a dollar, as much as is reserved for it except for its input.
    report = ray_run(workspace.job(budget="{usd: 0.05}", limits="{concurrency: 40}")).ended()
    assert report["exit_code"] == 3
    assert report["stopped"].startswith("budget")
    assert report["cost_usd"] <= 0.05
    assert report["cost_usd"] == pytest.approx(len(provider.seen) * 50e-6)
    assert report["cost_usd"] > 0.05 * 0.97
    more = ray_run(workspace.folder / "job.yaml").ended()
    assert more["requests"] <= 1


def test_too_many_failures_of_all_workers_together_stop_the_run(workspace: Any, provider: Any, ray_run: Any) -> None:
    provider.script = lambda path, body, count: refused() if count % 2 else None
    provider.latency = 0.02
    workspace.csv(5000)
    report = ray_run(workspace.job(limits="{concurrency: 20, failed_share: 0.2}")).ended()
    assert report["exit_code"] == 3
    assert report["stopped"].startswith("failed_share")


def test_a_denied_key_stops_all_workers(workspace: Any, provider: Any, ray_run: Any) -> None:
    from aiohttp import web

    problem = {"error": {"message": "Incorrect API key", "type": "t", "param": None, "code": "invalid_api_key"}}
    provider.script = lambda path, body, count: web.json_response(problem, status=401)
    workspace.csv(2000)
    report = ray_run(workspace.job(limits="{concurrency: 20}")).ended()
    assert report["exit_code"] == 3
    assert report["stopped"].startswith("access_denied")
    assert len(provider.seen) <= 40


def test_a_key_reaches_the_workers_but_is_in_no_file(
    workspace: Any, provider: Any, ray_run: Any, ray_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEY", "sk-very-secret-0123456789")
    file = workspace.folder / "rowmill.yaml"
    file.write_text(file.read_text().replace('v1"}', 'v1", api_key_env: TEST_KEY}'))
    workspace.csv(300)
    assert ray_run(workspace.job()).ended()["rows_ok"] == 300
    assert {headers["Authorization"] for headers in provider.headers} == {"Bearer sk-very-secret-0123456789"}
    found = subprocess.run(
        ["grep", "-rla", "sk-very-secret", str(ray_files), str(workspace.folder)], capture_output=True, text=True
    )
    assert found.stdout == ""


def test_a_second_run_has_nothing_to_do_and_needs_no_cluster(
    workspace: Any, provider: Any, ray_run: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.csv(50)
    job = workspace.job()
    assert ray_run(job).ended()["rows_ok"] == 50
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    report = cli.run(job, "--engine", "ray")
    assert (report["rows_reused"], report["requests"]) == (50, 0)
    assert "ray" not in sys.modules


def test_the_message_for_an_address_without_a_cluster_is_one_line(
    workspace: Any, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    workspace.csv(5)
    assert cli("run", workspace.job(), "--engine", "ray", "--quiet") == 2
    assert cli.err.startswith("RAY_ADDRESS: no cluster to use at 127.0.0.1:1")


@pytest.mark.parametrize("rows", [30, 200])
def test_one_fault_of_the_first_rows_of_all_workers_is_the_set_ups(
    workspace: Any, provider: Any, ray_run: Any, read: Read, rows: int
) -> None:
    workspace.csv(rows)
    provider.script = lambda path, body, count: refused()
    report = ray_run(workspace.job()).ended()
    assert (report["exit_code"], report["stopped"].startswith("setup: each of the first ")) == (3, True)
    assert {row["error_class"] for row in read(workspace.folder / "out", "errors")} == {"setup"}
    assert len(provider.seen) == report["requests"] <= 80


def test_workers_send_packs_and_every_row_has_its_own_answer(
    workspace: Workspace, provider: ScriptedProvider, ray_run: Any, read: ReadTable
) -> None:
    provider.script = HostileServer(2, 0.05)
    workspace.csv(2000)
    report = ray_run(packed_job(workspace, "{rows: 20, verify: 0.05}")).ended()
    assert (report["exit_code"], report["rows_ok"], report["pack_agreement"]) == (0, 2000, 1.0)
    assert answers(read, workspace) == expected(2000)
    assert report["requests"] == len(provider.seen) < 800
