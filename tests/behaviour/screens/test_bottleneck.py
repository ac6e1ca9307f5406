"""What bounds a run: the senders' time adds up, agrees with the usage table, and the verdict names what to do."""

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
    told: dict[str, Any] = json.loads(report)["times"]
    return told


def clock_of(tally: RunCounters, delivery: str = "online", **allowances: ProviderLimiter) -> TimeBreakdown:
    of_job = ProviderLimiter(None, None, None, 900, 60)
    return TimeBreakdown(tally, 10, delivery, {"": of_job, **allowances}, RunBudget(None, 0), lambda: 0.0)


def facts(**told: float) -> dict[str, float]:
    """Of ten senders in ten seconds."""
    usual = dict.fromkeys((*SENDER_STATES, "reading", "setting_out", "cpu", "loop", "lag_mean_ms"), 0.0)
    return {**usual, "senders": 10, "seconds": 10.0, "sending": 10.0, **told}


def words(clock: TimeBreakdown, **told: float) -> str:
    return str(clock.bottleneck(facts(**told)))


def unbroken(cli: Any) -> str:
    """What was printed, as one line."""
    return " ".join(cli.out.split())


BUSY = RunCounters(requests=1000)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also runs of moments are judged."""
    monkeypatch.setattr("pipelines.monitoring.bottleneck.MIN_RUN_SECONDS", 0.0)


def test_the_senders_time_adds_up_and_the_network_is_that_of_the_usage_table(
    soon: None, workspace: Any, provider: Any, cli: Any
) -> None:
    workspace.csv(40)
    provider.latency = 0.04
    job = workspace.job(limits="{concurrency: 4}")
    assert cli("run", job) == 0
    assert "  bound by: answers that take " in cli.out
    words = unbroken(cli)
    assert "ms, 4 at a time (" in words and "% of the time); raise limits.concurrency" in words
    times = times_of(job)
    assert sum(times[name] for name in SENDER_STATES) == pytest.approx(4 * times["sending"], rel=0.001)
    (waited,) = duckdb.sql(f"select sum(latency_ms) / 1000 from '{job.parent}/out/usage/*.parquet'").fetchall()[0]
    assert times["network"] == pytest.approx(waited, rel=0.001)
    assert times["network"] > 0.5 * 4 * times["sending"]
    assert cli("status", job) == 0
    assert "  bound by: answers that take " in cli.out


@pytest.mark.parametrize(
    ("limits", "at"),
    [
        ("{requests_per_minute: 3000}", "the limit of test, 3,000 requests a minute"),
        ("{tokens_per_minute: 48000}", "the limit of test, 48,000 tokens a minute"),
        ("{concurrency: 1}", "the limit of test, 1 request in flight"),
    ],
)
def test_a_provider_s_limit_is_named_with_its_number(
    soon: None, workspace: Any, provider: Any, cli: Any, limits: str, at: str
) -> None:
    workspace.write("rowmill.yaml", f'providers: {{test: {{base_url: "{provider.base_url}", limits: {limits}}}}}\n')
    workspace.csv(40)
    provider.latency = 0.02
    assert cli("run", workspace.job()) == 0
    assert f"bound by: {at} (" in unbroken(cli)
    assert "rowmill.yaml" in cli.out


def test_the_job_s_own_limit_is_named_as_such(soon: None, workspace: Any, cli: Any) -> None:
    workspace.csv(40)
    assert cli("run", workspace.job(limits="{requests_per_minute: 3000}")) == 0
    assert "bound by: the job's limit, 3,000 requests a minute (" in unbroken(cli)
    assert "raise it if the key allows more" in unbroken(cli)


def test_of_a_short_run_nothing_is_said(workspace: Any, cli: Any) -> None:
    workspace.csv(3)
    job = workspace.job()
    assert cli("run", job) == 0
    assert "bound by" not in cli.out
    assert times_of(job)["bound_by"] is None
    assert cli("run", job, "--json") == 0
    assert "times" not in json.loads(cli.out)


def test_what_weighs_most_is_the_bound() -> None:
    assert words(clock_of(BUSY), network=80) == (
        "answers that take 80 ms, 10 at a time (80 % of the time); raise limits.concurrency"
    )
    assert words(clock_of(BUSY), network=50, turn=40, cpu=4.0).startswith("this process, which has one core (90 % of")
    assert words(clock_of(BUSY), network=90, loop=9.0, cpu=9.0).startswith("this process, which has one core (90 % of")
    local = ProviderLimiter(None, None, None, 900, 60)
    assert "rowmill serve" in words(clock_of(BUSY, local=local), network=90, cpu=9.0, lag_mean_ms=20.0)
    assert words(clock_of(BUSY), ledger=60, network=30).startswith("the ledger's disk (60 % of the time)")
    assert words(clock_of(BUSY), budget=60).startswith("the budget, of which every request in flight")
    assert words(clock_of(BUSY), network=30, sending=4.0).startswith("writing what came last to the sink (60 % of")
    assert words(clock_of(BUSY), idle=90, reading=9.0).startswith("reading the source (90 %")
    assert words(clock_of(BUSY), idle=90, setting_out=9.0).startswith("rows being rendered, and their files fetched")
    assert words(clock_of(BUSY), idle=80, network=20).endswith("nothing to raise: 2 of 10 senders were busy")
    assert words(clock_of(BUSY), idle=80, limits=12, network=8).startswith("the pool's members, all busy or held (60 %")
    assert words(clock_of(BUSY, "batch"), idle=90).startswith("the provider's Batch API (90 %")
    retried = RunCounters(requests=1000, retries=400)
    assert words(clock_of(retried), idle=90).startswith("waits before 400 failed requests were tried again")


def test_of_limits_the_one_that_was_waited_for_longest_is_named() -> None:
    paced, stated = ProviderLimiter(600, None, None, 900, 60), ProviderLimiter(600, 1000, None, 900, 60)
    stated.update_from_headers((300, None))
    for one, kind in ((paced, "requests"), (stated, "requests"), (stated, "hold"), (stated, "tokens")):
        for other in (paced, stated):
            other.wait_seconds = dict.fromkeys(other.wait_seconds, 0.1)
        one.wait_seconds[kind] = 90.0
        told = words(clock_of(RunCounters(requests=99, rate_limited=7), paced=paced, stated=stated), limits=90)
        if one is paced:
            assert told.startswith("the limit of paced, 600 requests a minute (90 % of the time); raise it in rowmill")
        elif kind == "requests":
            assert told.startswith(
                "the limit of stated, 300 requests a minute (90 % of the time); ask for a higher one"
            )
        elif kind == "tokens":
            assert told.startswith("the limit of stated, 1,000 tokens a minute (90 % of the time); raise it in rowmill")
        else:
            assert told.startswith("stated, which refused 7 requests and asks to wait (90 % of the time)")
    pool = clock_of(BUSY, one=ProviderLimiter(None, None, None, 900, 60))
    assert words(pool, limits=90).startswith("the pool's members, all busy or held")
