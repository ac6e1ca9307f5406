"""The bottleneck that a time breakdown names, and its advice."""

import time

import pytest

from pipelines.dispatch.counters import RunCounters, SenderTimes
from pipelines.limits.provider_limiter import ProviderLimiter
from pipelines.monitoring.bottleneck import SENDER_STATES, TimeBreakdown
from pipelines.pricing.run_budget import RunBudget


def breakdown_of(counters: RunCounters, delivery: str = "online", **limiters: ProviderLimiter) -> TimeBreakdown:
    job_limiter = ProviderLimiter(None, None, None, 900, 60)
    return TimeBreakdown(counters, 10, delivery, {"": job_limiter, **limiters}, RunBudget(None, 0), lambda: 0.0)


def figures_of(**changed: float) -> dict[str, float]:
    """Figures of ten senders in ten seconds."""
    idle = dict.fromkeys((*SENDER_STATES, "reading", "setting_out", "cpu", "loop", "lag_mean_ms"), 0.0)
    return {**idle, "senders": 10, "seconds": 10.0, "sending": 10.0, **changed}


def bottleneck(breakdown: TimeBreakdown, **changed: float) -> str:
    return str(breakdown.bottleneck(figures_of(**changed)))


BUSY = RunCounters(requests=1000)


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
    assert bottleneck(breakdown_of(BUSY), idle=80, network=20).endswith(
        "nothing to raise: on average, 2 of 10 requests were in flight"
    )
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
    dead = ProviderLimiter(None, None, None, 900, 60)
    dead.wait_seconds["hold"] = 90.0
    assert bottleneck(breakdown_of(BUSY, dead=dead), limits=90) == (
        "dead, which fails or does not answer (90 % of the time); "
        "see whether it works and can be reached, or add a provider (a pool)"
    )
    pool = breakdown_of(BUSY, one=ProviderLimiter(None, None, None, 900, 60))
    assert bottleneck(pool, limits=90).startswith("the pool's members, all busy or paused")


def test_a_pause_is_no_time_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    breakdown = breakdown_of(RunCounters(requests=1000, times=SenderTimes(network_seconds=40.0)))
    clock[0] = 4.0
    breakdown.record_pause(True)
    clock[0] = 3600.0
    assert breakdown.paused_seconds == 3596.0
    breakdown.record_pause(False)
    clock[0] = 3602.0
    figures = breakdown.to_json()
    assert (figures["seconds"], figures["sending"], figures["paused"], figures["idle"]) == (6.0, 6.0, 3596.0, 20.0)
    assert figures["bound_by"].startswith("answers that take 40 ms, 10 at a time (67 % of the time)")


def test_senders_are_those_of_the_whole_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    breakdown = breakdown_of(BUSY)
    clock[0] = 5.0
    breakdown.set_concurrency(30)
    clock[0] = 10.0
    assert breakdown.to_json()["senders"] == 20
