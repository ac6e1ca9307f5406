"""The bottleneck of a run: the senders' time adds up, agrees with the usage table, and the advice fits."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pytest

from pipelines.dispatch.counters import RunCounters
from pipelines.limits.provider_limiter import ProviderLimiter
from pipelines.monitoring.bottleneck import SENDER_STATES, TimeBreakdown
from pipelines.pricing.run_budget import RunBudget


def times_of(job: Path) -> dict[str, Any]:
    with closing(sqlite3.connect(job.parent / ".rowmill/ledger.sqlite")) as db:
        ((report,),) = db.execute("select report from runs order by started_at desc limit 1").fetchall()
    times: dict[str, Any] = json.loads(report)["times"]
    return times


def breakdown_of(counters: RunCounters, delivery: str = "online", **limiters: ProviderLimiter) -> TimeBreakdown:
    job_limiter = ProviderLimiter(None, None, None, 900, 60)
    return TimeBreakdown(counters, 10, delivery, {"": job_limiter, **limiters}, RunBudget(None, 0), lambda: 0.0)


def figures_of(**changed: float) -> dict[str, float]:
    """Figures of ten senders in ten seconds."""
    idle = dict.fromkeys((*SENDER_STATES, "reading", "setting_out", "cpu", "loop", "lag_mean_ms"), 0.0)
    return {**idle, "senders": 10, "seconds": 10.0, "sending": 10.0, **changed}


def bottleneck(breakdown: TimeBreakdown, **changed: float) -> str:
    return str(breakdown.bottleneck(figures_of(**changed)))


def printed(cli: Any) -> str:
    """Return stdout as one line."""
    return " ".join(cli.out.split())


BUSY = RunCounters(requests=1000)


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


def test_what_takes_most_of_the_time_is_the_bottleneck() -> None:
    assert bottleneck(breakdown_of(BUSY), network=80) == (
        "answers that take 80 ms, 10 at a time (80 % of the time); raise limits.concurrency"
    )
    assert bottleneck(breakdown_of(BUSY), network=50, turn=40, cpu=4.0).startswith(
        "this process, which has one core (90 % of"
    )
    assert bottleneck(breakdown_of(BUSY), network=90, loop=9.0, cpu=9.0).startswith(
        "this process, which has one core (90 % of"
    )
    local = ProviderLimiter(None, None, None, 900, 60)
    assert "rowmill serve" in bottleneck(breakdown_of(BUSY, local=local), network=90, cpu=9.0, lag_mean_ms=20.0)
    assert bottleneck(breakdown_of(BUSY), ledger=60, network=30).startswith("the ledger's disk (60 % of the time)")
    assert bottleneck(breakdown_of(BUSY), budget=60).startswith("the budget, from which every request in flight")
    assert bottleneck(breakdown_of(BUSY), network=30, sending=4.0).startswith("the last commit to the sink (60 % of")
    assert bottleneck(breakdown_of(BUSY), idle=90, reading=9.0).startswith("reading the source (90 %")
    assert bottleneck(breakdown_of(BUSY), idle=90, setting_out=9.0).startswith(
        "rendering rows and fetching their files"
    )
    assert bottleneck(breakdown_of(BUSY), idle=80, network=20).endswith("nothing to raise: 2 of 10 senders were busy")
    assert bottleneck(breakdown_of(BUSY), idle=80, limits=12, network=8).startswith(
        "the pool's members, all busy or paused (60 %"
    )
    assert bottleneck(breakdown_of(BUSY, "batch"), idle=90).startswith("the provider's Batch API (90 %")
    retried = RunCounters(requests=1000, retries=400)
    assert bottleneck(breakdown_of(retried), idle=90).startswith("back-off before 400 retries")


def test_the_limit_with_the_longest_waits_is_named() -> None:
    paced, stated = ProviderLimiter(600, None, None, 900, 60), ProviderLimiter(600, 1000, None, 900, 60)
    stated.update_from_headers((300, None))
    for one, kind in ((paced, "requests"), (stated, "requests"), (stated, "hold"), (stated, "tokens")):
        for other in (paced, stated):
            other.wait_seconds = dict.fromkeys(other.wait_seconds, 0.1)
        one.wait_seconds[kind] = 90.0
        text = bottleneck(breakdown_of(RunCounters(requests=99, rate_limited=7), paced=paced, stated=stated), limits=90)
        if one is paced:
            assert text.startswith("the limit of paced, 600 requests a minute (90 % of the time); raise it in rowmill")
        elif kind == "requests":
            assert text.startswith(
                "the limit of stated, 300 requests a minute (90 % of the time); ask for a higher limit"
            )
        elif kind == "tokens":
            assert text.startswith("the limit of stated, 1,000 tokens a minute (90 % of the time); raise it in rowmill")
        else:
            assert text.startswith("stated, which refused 7 requests and asks to wait (90 % of the time)")
    pool = breakdown_of(BUSY, one=ProviderLimiter(None, None, None, 900, 60))
    assert bottleneck(pool, limits=90).startswith("the pool's members, all busy or paused")
