"""Several jobs: what becomes of those that read one that broke, and of all where their starter is killed."""

import signal
import sqlite3
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.job_graph import GraphJob
from pipelines.execution.multi_job import run_jobs
from pipelines.runtime.locks import is_running
from tests.support.forked import COMMAND, Forked

WITHOUT_REPORT = "the process ended without a report"


@pytest.mark.parametrize(
    ("ended", "code", "stopped"),
    [
        (1, 3, WITHOUT_REPORT), (0, 3, WITHOUT_REPORT), (2, 2, WITHOUT_REPORT), (9, 9, WITHOUT_REPORT),
        (130, 130, "interrupted"),
    ],
)  # fmt: skip
def test_a_job_that_breaks_without_a_word_stops_what_depends_on_it(
    monkeypatch: pytest.MonkeyPatch, ended: int, code: int, stopped: str
) -> None:
    monkeypatch.setattr(
        "pipelines.execution.multi_job.rowmill_command", lambda: [sys.executable, "-c", f"raise SystemExit({ended})"]
    )
    result: dict[str, Any] = {}
    jobs = [GraphJob(Path("a.yaml"), "a", ()), GraphJob(Path("b.yaml"), "b", ("a",))]
    run_jobs(jobs, [], lambda job, report: result.update({job.name: (report.exit_code, report.stopped)}))
    assert result == {
        "a": (code, stopped),
        "b": (3, f"not run: job a, whose results it reads, ended with exit code {code}"),
    }


@pytest.mark.parametrize("command", [["run"], ["schedule", "run"]], ids=" ".join)
def test_jobs_end_as_on_sigterm_when_their_starter_is_killed(
    workspace: Any, provider: Any, command: Sequence[str]
) -> None:
    from tests.behaviour.scheduling.test_schedule import missed_job

    workspace.csv(100)
    names = ("one", "two")
    steps = '[{name: a, endpoint: chat, provider: test, model: m, messages: [{user: "%s {{ text }}"}]}]'
    limited = {"schedule": '"* * * * *"', "limits": "{concurrency: 2}"}
    paths = [workspace.job(name, steps=steps % name, sink=f"{{parquet: out-{name}}}", **limited) for name in names]
    for path in paths:
        missed_job(path)
    provider.latency = 0.2
    starter = Forked(COMMAND, *command, *paths)
    while any(sum(name in prompt for prompt in provider.prompts()) < 4 for name in names):
        assert starter.poll() is None
        time.sleep(0.005)
    starter.send_signal(signal.SIGKILL)
    starter.ended()
    while any(is_running(workspace.folder / ".rowmill", name) for name in names):
        time.sleep(0.01)
    with closing(sqlite3.connect(workspace.folder / ".rowmill" / "ledger.sqlite")) as db:
        ends = db.execute("select job, exit_code, stopped from runs order by job").fetchall()
        unknown = db.execute("select count(*) from exchanges where error_class = 'unknown'").fetchall()
    # What was in flight has landed.
    assert (ends, unknown) == ([(name, 130, "interrupted") for name in names], [(0,)])
    assert len(provider.answered) == len(provider.seen) < 200
