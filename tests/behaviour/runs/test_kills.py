"""Runs that are killed: nothing is lost, nothing whose answer was kept is asked again."""

import asyncio
import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.forked import Forked, ended, run

Read = Callable[..., list[dict[str, Any]]]
CONCURRENCY = 20
TWO_STEPS = """
  - {name: loud, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }}"}]}
  - {name: vector, endpoint: embeddings, provider: test, model: e, dimensions: 3, input: "{{ loud }}"}
"""


def wait_for(provider: Any, count: int, process: Forked) -> None:
    """Until the provider has answered so many requests, or the run has ended."""
    while len(provider.answered) < count and process.poll() is None:
        time.sleep(0.002)


def killed_until_done(
    provider: Any, job: Path, rows: int, kills: int, seed: int, signals: tuple[signal.Signals, ...]
) -> int:
    """Kill the run so many times at random moments, then let it end; how many kills hit a run under way."""
    dice = random.Random(seed)
    hits = 0
    for _ in range(kills):
        before = len(provider.answered)
        process = run(job)
        wait_for(provider, before + dice.randint(0, max(1, rows // kills)), process)
        time.sleep(dice.uniform(0, 0.02))
        if process.poll() is None:
            process.send_signal(dice.choice(signals))
            hits += 1
        ended(process)
    code, out = ended(run(job))
    assert code == 0
    assert json.loads(out)["rows_ok"] == rows
    return hits


@pytest.mark.parametrize(
    ("steps", "sink"),
    [("", "{parquet: out}"), (TWO_STEPS, "{parquet: out}")],
    ids=["one step", "two steps"],
)
def test_after_kills_every_row_has_one_result_and_no_stored_answer_is_requested_again(
    workspace: Any, provider: Any, read: Read, steps: str, sink: str
) -> None:
    rows, kills = 400, 4
    workspace.csv(rows)
    provider.latency = 0.01
    changes = {"steps": steps} if steps else {}
    job = workspace.job(limits=f"{{concurrency: {CONCURRENCY}}}", sink=sink, **changes)
    hits = killed_until_done(provider, job, rows, kills, seed=1, signals=(signal.SIGKILL,))
    results = read(workspace.folder / "out", order="id")
    assert [row["id"] for row in results] == list(range(1, rows + 1))
    assert [row["loud" if steps else "answer"] for row in results] == [f"TEXT {n}" for n in range(1, rows + 1)]
    asked = Counter(provider.prompts())
    assert len(asked) == rows
    assert sum(asked.values()) <= rows + hits * CONCURRENCY
    usage = read(workspace.folder / "out", "usage")
    answered = [row for row in usage if row["http_status"] == 200]
    unknown = [row for row in usage if row["error_class"] == "unknown"]
    assert len(answered) + len(unknown) == len(usage)
    assert len(answered) <= len(provider.seen) <= len(usage)
    assert len(unknown) <= hits * CONCURRENCY
    if not steps:
        # What the ledger has as answered was asked once; only what it never saw was asked again.
        assert len(answered) == rows


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_lands_what_is_in_flight_and_is_continued(
    workspace: Any, provider: Any, read: Read, number: signal.Signals
) -> None:
    rows = 300
    workspace.csv(rows)
    provider.latency = 0.05
    job = workspace.job(limits=f"{{concurrency: {CONCURRENCY}}}")
    process = run(job)
    wait_for(provider, 100, process)
    process.send_signal(number)
    code, out = ended(process)
    first = json.loads(out)
    assert (code, first["stopped"]) == (130, "interrupted")
    assert len(provider.seen) == len(provider.answered) == first["requests"] == first["rows_ok"]
    assert len(read(workspace.folder / "out")) == first["rows_ok"]
    code, out = ended(run(job))
    second = json.loads(out)
    assert (code, second["run_id"], second["requests"]) == (0, first["run_id"], rows - first["rows_ok"])
    assert len(provider.seen) == rows


def test_a_second_signal_leaves_at_once_and_loses_nothing(workspace: Any, provider: Any, read: Read) -> None:
    rows = 100
    workspace.csv(rows)
    free = threading.Event()

    async def held(*asked: Any) -> None:
        await asyncio.to_thread(free.wait, 60)

    provider.script = held
    job = workspace.job(limits="{concurrency: 10}")
    process = run(job)
    while len(provider.seen) < 10:
        time.sleep(0.005)
    # Signals that arrive together count as one.
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    code, out, _ = process.ended()
    assert (code, out, provider.answered) == (130, "", [])
    free.set()
    code, out = ended(run(job))
    assert (code, json.loads(out)["rows_ok"]) == (0, rows)
    unknown = [row for row in read(workspace.folder / "out", "usage") if row["error_class"] == "unknown"]
    assert len(unknown) == 10


def test_two_runs_of_one_job_at_once_are_refused(workspace: Any, provider: Any, cli: Any) -> None:
    workspace.csv(5)
    free = threading.Event()

    async def held(*asked: Any) -> None:
        await asyncio.to_thread(free.wait, 30)

    provider.script = held
    job = workspace.job()
    process = run(job)
    while not provider.seen:
        time.sleep(0.005)
    assert cli("run", job, "--json") == 4
    assert json.loads(cli.out)["exit_code"] == 4
    assert "another run of this job is under way" in cli.err
    free.set()
    assert ended(process)[0] == 0
    assert cli("run", job, "--quiet") == 0
