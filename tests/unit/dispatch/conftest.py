"""Fixtures for the tests of dispatch: a ledger in a file, and the parts of a dispatcher around it."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from connectors.contracts import BaseEndpoint, Provider
from connectors.records import NO_USAGE, Call, Reply, Request, RowError, Usage
from connectors.transport.client import RequestError
from pipelines.dispatch.counters import RunCounters, StepCounters
from pipelines.dispatch.dispatch_state import DispatchState
from pipelines.dispatch.online_dispatcher import OnlineDispatcher
from pipelines.dispatch.pending_requests import PendingRequests
from pipelines.dispatch.request_types import DailyBudget, RetryLimits, Route
from pipelines.ledger.ledger import Ledger
from pipelines.limits.provider_limiter import ProviderLimiter
from pipelines.pricing.prices import Price
from pipelines.pricing.run_budget import RunBudget


class EchoEndpoint(BaseEndpoint):
    """An endpoint whose request and answer are bytes as they are; `group_size` requests share an exchange."""

    def __init__(self, group_size: int = 1, tokens: int | None = None) -> None:
        """`tokens`: output of each request, at a pico-dollar each; None: a reply states no usage."""
        self.group_size = group_size
        self.tokens = tokens

    def group_requests(self, requests: Sequence[Request]) -> Iterator[tuple[Request, ...]]:
        for start in range(0, len(requests), self.group_size):
            yield tuple(requests[start : start + self.group_size])

    def call(self, group: Sequence[Request]) -> Call:
        return Call("POST", "/", b",".join(request.body for request in group))

    def answers(self, group: Sequence[Request], reply: Reply) -> Sequence[bytes | RowError]:
        return [reply.body] * len(group)

    def usage(self, group: Sequence[Request], reply: Reply) -> Usage:
        return NO_USAGE if self.tokens is None else Usage(input_tokens=0, output_tokens=self.tokens * len(group))

    def merge_parts(self, request: Request, answers: Sequence[bytes]) -> bytes:
        return b"+".join(answers)


class ScriptedTransport:
    """A transport that records what the ledger holds when a request leaves, and replies when it is released."""

    def __init__(self, ledger: Ledger, reply: Callable[[Call], Reply | RequestError] | None = None) -> None:
        self._ledger = ledger
        self._reply = reply
        self.entries: list[tuple[int, int]] = []
        """For each request: exchanges pending and exchanges settled in the ledger when it left."""
        self.sent: list[bytes] = []
        self.is_released = asyncio.Event()

    async def send(self, provider: Provider, call: Call) -> Reply:
        ((pending, settled),) = self._ledger.query(
            "select (select count(*) from noted), (select count(*) from exchanges)"
        )
        self.entries.append((pending, settled))
        self.sent.append(call.body or b"")
        await self.is_released.wait()
        reply = Reply(200, {}, b"answered", 1.0) if self._reply is None else self._reply(call)
        if isinstance(reply, RequestError):
            raise reply
        return reply

    async def close(self) -> None:
        """Nothing is open."""


@dataclass
class Dispatch:
    """A dispatcher with its ledger, and one route to submit requests on."""

    ledger: Ledger
    transport: ScriptedTransport
    budget: RunBudget
    retry_limits: RetryLimits = field(default_factory=lambda: RetryLimits(first_wait=0.001))
    concurrency: int = 1
    daily_budget: DailyBudget | None = None
    max_cost: int = 0
    group_size: int = 1
    tokens: int | None = None
    max_failed_share: float | None = None
    state: DispatchState = field(default_factory=DispatchState)

    def __post_init__(self) -> None:
        self.counters = RunCounters(steps={"answer": StepCounters()})
        self.pending = PendingRequests(self.ledger, self.counters, self.state, "run", self.max_failed_share)
        self.dispatcher = OnlineDispatcher(
            self.pending,
            self.ledger,
            self.transport,
            self.budget,
            self.retry_limits,
            self.concurrency,
            self.daily_budget,
        )
        self.route = make_route(
            self.ledger.register_route("run", "job", "answer", "test", "chat", "m"), self.max_cost, self.group_size
        )
        if self.tokens is not None:
            self.route.endpoint = EchoEndpoint(self.group_size, self.tokens)
            self.route.price = Price(input_per_million=0, output_per_million=10**6)


def make_route(route_id: int = 1, max_cost: int = 0, group_size: int = 1, provider: str = "test") -> Route:
    """Return a route to a provider without limits, at a fixed maximum cost of a request."""
    endpoint: Any = EchoEndpoint(group_size)
    limiters = (ProviderLimiter(None, None, None, 900, 60), ProviderLimiter(None, None, None, 900, 60))
    return Route("answer", endpoint, Provider(provider, "http://x"), limiters, None, lambda _: max_cost, route_id, True)


def make_requests(count: int) -> list[Request]:
    """Return different requests, one a row; the body of each is its index."""
    return [Request(bytes([index]) * 16, b"%d" % index, 0, None, (str(index),)) for index in range(count)]


def with_parts(request: Request, parts: Sequence[Request]) -> Request:
    """Return the same request, to be sent in parts."""
    return replace(request, parts=tuple(parts))


async def wait_for(condition: Callable[[], object]) -> None:
    """Let the event loop run until the condition holds, at most ten seconds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - nothing signals it
            await asyncio.sleep(0.001)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "ledger.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def transport(ledger: Ledger) -> ScriptedTransport:
    return ScriptedTransport(ledger)
