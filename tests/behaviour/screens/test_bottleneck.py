"""The bottleneck of a run: the senders' time adds up, agrees with the usage table, and the advice fits."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pytest

from pipelines.monitoring.bottleneck import SENDER_STATES


def times_of(job: Path) -> dict[str, Any]:
    with closing(sqlite3.connect(job.parent / ".rowmill/ledger.sqlite")) as db:
        ((report,),) = db.execute("select report from runs order by started_at desc limit 1").fetchall()
    times: dict[str, Any] = json.loads(report)["times"]
    return times


def printed(cli: Any) -> str:
    """Return stdout as one line."""
    return " ".join(cli.out.split())


@pytest.fixture
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short runs have a bottleneck too."""
    monkeypatch.setattr("pipelines.monitoring.bottleneck.MIN_RUN_SECONDS", 0.0)


def test_the_senders_time_adds_up_and_the_network_is_that_of_the_usage_table(
    short_runs: None, workspace: Any, provider: Any, cli: Any
) -> None:
    workspace.csv(40)
    provider.latency = 0.04
    job = workspace.job(limits="{concurrency: 4}")
    assert cli("run", job) == 0
    text = printed(cli)
    assert "bound by answers that take " in text
    assert "ms, 4 at a time (" in text and "% of the time); raise limits.concurrency" in text
    times = times_of(job)
    assert sum(times[name] for name in SENDER_STATES) == pytest.approx(4 * times["sending"], rel=0.001)
    (waited,) = duckdb.sql(f"select sum(latency_ms) / 1000 from '{job.parent}/out/usage/*.parquet'").fetchall()[0]
    assert times["network"] == pytest.approx(waited, rel=0.001)
    assert times["network"] > 0.5 * 4 * times["sending"]
    assert cli("status", job) == 0
    assert "bound by answers that take " in printed(cli)


@pytest.mark.parametrize(
    ("limits", "at"),
    [
        ("{requests_per_minute: 3000}", "the limit of test, 3,000 requests a minute"),
        ("{tokens_per_minute: 48000}", "the limit of test, 48,000 tokens a minute"),
        ("{concurrency: 1}", "the limit of test, 1 request in flight"),
    ],
)
def test_the_limit_of_a_provider_is_named_with_its_number(
    short_runs: None, workspace: Any, provider: Any, cli: Any, limits: str, at: str
) -> None:
    workspace.write("rowmill.yaml", f'providers: {{test: {{base_url: "{provider.base_url}", limits: {limits}}}}}\n')
    workspace.csv(40)
    provider.latency = 0.02
    assert cli("run", workspace.job()) == 0
    assert f"bound by {at} (" in printed(cli)
    assert "rowmill.yaml" in cli.out


def test_the_limit_of_the_job_is_named_as_such(short_runs: None, workspace: Any, cli: Any) -> None:
    workspace.csv(40)
    assert cli("run", workspace.job(limits="{requests_per_minute: 3000}")) == 0
    assert "bound by the job's limit, 3,000 requests a minute (" in printed(cli)
    assert "raise it if the key allows more" in printed(cli)


def test_a_short_run_has_no_bottleneck(workspace: Any, cli: Any) -> None:
    workspace.csv(3)
    job = workspace.job()
    assert cli("run", job) == 0
    assert "bound by" not in cli.out
    assert times_of(job)["bound_by"] is None
    assert cli("run", job, "--json") == 0
    assert "times" not in json.loads(cli.out)
