"""The fan-out with a ledger of its own: what stands there when a request leaves, and what is not sent any more."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest

from connectors.contracts import Provider
from connectors.records import NO_USAGE, Call, Reply, Request, Usage
from pipelines.dispatch.counters import StepCounters, RunCounters
from pipelines.dispatch.dispatcher import OnlineDispatcher
from pipelines.dispatch.request_types import DailyBudget, Route, RetryLimits
from pipelines.ledger.ledger import Ledger
from pipelines.limits.provider_limiter import ProviderLimiter
from pipelines.pricing.run_budget import RunBudget


class Endpoint:
    """One request a row, one answer a request."""

    def group_requests(self, requests: Sequence[Request]) -> Iterator[tuple[Request, ...]]:
        return ((request,) for request in requests)

    def call(self, pack: Sequence[Request]) -> Call:
        return Call("POST", "/", pack[0].body)

    def answers(self, pack: Sequence[Request], reply: Reply) -> Sequence[bytes]:
        return [reply.body]

    def usage(self, pack: Sequence[Request], reply: Reply) -> Usage:
        return NO_USAGE


class Scripted:
    """A transport that looks at the ledger whenever a request leaves, and answers when it is told to."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.seen: list[tuple[int, int]] = []
        """For each request: exchanges noted, and exchanges settled, when it left."""
        self.sent: list[bytes] = []
        self.answer = asyncio.Event()

    async def send(self, provider: Provider, call: Call) -> Reply:
        ((noted, settled),) = self._ledger.query(
            "select (select count(*) from noted), (select count(*) from exchanges)"
        )
        self.seen.append((noted, settled))
        self.sent.append(call.body or b"")
        await self.answer.wait()
        return Reply(200, {}, b"answered", 1.0)

    async def close(self) -> None:
        """There is nothing to close."""


class Stopping:
    """An observer who stops the run as soon as an exchange is in the ledger."""

    def __init__(self, fanout: OnlineDispatcher) -> None:
        self._fanout = fanout

    def record_wait(self, *told: object) -> None:
        """Nothing to do."""

    def record_exchange(self, *told: object) -> None:
        self._fanout.stop("enough")

    def record_batch_stage(self, *told: object) -> None:
        """Nothing to do."""


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    opened = Ledger(tmp_path / "ledger.sqlite")
    yield opened
    opened.close()


def lane_of(ledger: Ledger, worst: int = 0) -> Route:
    leg = ledger.register_route("run", "job", "answer", "test", "chat", "m")
    endpoint: Any = Endpoint()
    own, of_job = ProviderLimiter(None, None, None, 900, 60), ProviderLimiter(None, None, None, 900, 60)
    return Route("answer", endpoint, Provider("test", "http://x"), (own, of_job), None, lambda _: worst, leg, True)


def fanout_of(ledger: Ledger, transport: Scripted, concurrency: int, day: DailyBudget | None = None) -> OnlineDispatcher:
    tally = RunCounters(steps={"answer": StepCounters()})
    return OnlineDispatcher(ledger, transport, RunBudget(None, 0), tally, RetryLimits(), concurrency, "run", day)


def requests_of(count: int) -> list[Request]:
    return [Request(bytes([place]) * 16, b"%d" % place, 0, None, (str(place),)) for place in range(count)]


async def until(reached: Any) -> None:
    """Let the loop turn until it has come to that, at most ten seconds."""
    async with asyncio.timeout(10):
        while not reached():  # noqa: ASYNC110 - nobody tells it
            await asyncio.sleep(0.001)


async def test_no_request_leaves_before_the_answer_that_its_sender_had_is_in_the_ledger(ledger: Ledger) -> None:
    transport = Scripted(ledger)
    transport.answer.set()
    fanout = fanout_of(ledger, transport, 1)
    fanout.start()
    wave = await fanout.submit(lane_of(ledger), requests_of(5), lambda answer: True)
    await wave.done.wait()
    await fanout.close(10)
    assert transport.seen == [(1, 0), (1, 1), (1, 2), (1, 3), (1, 4)]
    assert [outcome.answer for outcome in wave.outcomes.values()] == [b"answered"] * 5


async def test_what_is_on_its_way_into_the_ledger_lands_though_all_is_broken_off(ledger: Ledger) -> None:
    transport = Scripted(ledger)
    fanout = fanout_of(ledger, transport, 3)
    fanout.start()
    wave = await fanout.submit(lane_of(ledger), requests_of(3), lambda answer: True)
    await until(lambda: len(transport.sent) == 3)
    transport.answer.set()
    # Their senders have seen the answers now, and the ledger has not told that it has them.
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(fanout._settling) == 3
    await fanout.close(0)
    assert sorted(wave.outcomes) == [bytes([place]) * 16 for place in range(3)]
    assert ledger.query("select count(*) from noted") == [(0,)]


async def test_a_request_that_waits_for_the_days_budget_is_not_sent_once_the_run_has_stopped(ledger: Ledger) -> None:
    transport = Scripted(ledger)
    fanout = fanout_of(ledger, transport, 2, DailyBudget(10, UTC))
    refused: list[int] = []
    real = ledger.record_pending

    def note(noted: Any, day: Any = None) -> "asyncio.Future[bool]":
        told = real(noted, day)
        told.add_done_callback(lambda told: refused.append(noted.exchange_id) if told.result() is False else None)
        return told

    ledger.record_pending = note  # type: ignore[method-assign]

    fanout.observer = Stopping(fanout)
    fanout.start()
    await fanout.submit(lane_of(ledger, worst=10), requests_of(2), lambda answer: True)
    await until(lambda: refused)
    transport.answer.set()
    await until(lambda: fanout.stopped)
    await fanout.close(10)
    assert transport.sent == [b"0"]
    assert fanout.stopped == "enough"


async def test_what_is_noted_while_the_run_stops_is_not_sent_and_costs_nothing(ledger: Ledger) -> None:
    transport = Scripted(ledger)
    transport.answer.set()
    fanout = fanout_of(ledger, transport, 1, DailyBudget(100, UTC))
    fanout.observer = Stopping(fanout)
    fanout.start()
    wave = await fanout.submit(lane_of(ledger, worst=10), requests_of(3), lambda answer: True)
    await until(lambda: fanout.stopped)
    await fanout.close(10)
    assert transport.sent == [b"0"]
    assert len(wave.outcomes) == 1
    assert ledger.query("select count(*) from noted") == [(0,)]
    assert ledger.query("select spent from days") == [(0,)]


async def test_a_ledger_that_cannot_be_written_ends_the_run(ledger: Ledger) -> None:
    transport = Scripted(ledger)
    fanout = fanout_of(ledger, transport, 2)
    fanout.start()
    wave = await fanout.submit(lane_of(ledger), requests_of(4), lambda answer: True)
    await until(lambda: len(transport.sent) == 2)
    ledger.write("drop table exchanges")
    transport.answer.set()
    await wave.done.wait()
    await fanout.close(10)
    assert wave.outcomes == {}
    assert "no such table: exchanges" in str(fanout.failure)
    assert fanout.stopped == "OperationalError: no such table: exchanges"


async def test_a_cancelled_exchange_counts_as_spent_at_its_maximum_cost(ledger: Ledger) -> None:
    transport = Scripted(ledger)
    budget = RunBudget(100, 0)
    fanout = OnlineDispatcher(
        ledger, transport, budget, RunCounters(steps={"answer": StepCounters()}), RetryLimits(), 1, "run"
    )
    fanout.start()
    await fanout.submit(lane_of(ledger, worst=40), requests_of(1), lambda answer: True)
    await until(lambda: transport.sent)
    await fanout.close(0)
    assert (budget.spent, budget.reserved) == (40, 0)
    assert ledger.query("select error_class, cost from exchanges") == [("unknown", 40)]
