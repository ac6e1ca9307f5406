"""What the fan-out carries: lanes, packs of requests, outcomes; and how a reply to a pack is read."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, tzinfo
from typing import Any, Literal, Protocol

from connectors.contracts import Endpoint, MalformedReply, Provider
from connectors.records import NO_USAGE, ROW_ERROR_CLASSES, Reply, Request, RowError, Usage, record
from connectors.transport.client import RequestError
from connectors.transport.error_replies import request_id, row_error
from pipelines.dispatch.read_buffer import EARLY_READ_BYTES, LARGE_ANSWER_BYTES, ReadBuffer
from pipelines.ledger.entries import PendingExchange, SettledExchange, StoredAnswer
from pipelines.limits.provider_limiter import ProviderLimiter
from pipelines.pricing.prices import Price, cost


@dataclass(slots=True)
class Route:
    """One step on its way to one provider, or to the members of a pool."""

    step: str
    endpoint: Endpoint
    provider: Provider
    limiters: Sequence[ProviderLimiter]
    """The provider's own and the job's: both are asked."""
    price: Price | None
    max_cost: Callable[[Request], int | None]
    """The most that a request can cost, in pico-dollars; None where nothing bounds it."""
    route_id: int
    is_last_step: bool
    """Whether it is the job's last step: an answer there is a row settled."""
    mean_output_tokens: float = 200.0
    """What an answer took on average, for the allowance of tokens."""
    pool: "Choice | None" = None
    """Whose members share the work, each with what stands above for itself; None: there is one provider."""

    @property
    def members(self) -> "Sequence[Route]":
        """The providers that are asked: of a pool those that are not left out."""
        return (self,) if self.pool is None else self.pool.present


class Choice(Protocol):
    """A pool's members, each a lane of its own."""

    @property
    def present(self) -> Sequence[Route]:
        """Those that are still asked."""

    async def pick(self, avoid: Route | None) -> Route | None:
        """The one to ask next; None where none is left."""

    def leave_out(self, member: Route, error: RowError) -> bool:
        """Ask this one nothing more; whether others are left."""


class RunLedger(Protocol):
    """What a run's requests ask of the ledger: pipelines.ledger.ledger.Ledger itself, or on Ray what stands for it."""

    def next_exchange_id(self) -> int:
        """See Ledger, as for all of these."""

    def record_pending(self, noted: PendingExchange, day: tuple[str, int] | None = None) -> Awaitable[bool]: ...

    def cancel_pending(self, noted: PendingExchange, day: str | None = None) -> Awaitable[None]: ...

    def settle(self, ended: SettledExchange, day: str | None = None) -> asyncio.Future[None]: ...

    async def store_answer(self, fingerprint: bytes, leg: int, request: bytes, reply: bytes) -> None: ...

    def lookup(self, fingerprints: Sequence[bytes]) -> dict[bytes, StoredAnswer]: ...

    def register_route(self, run_id: str, job: str, step: str, provider: str, endpoint: str, model: str) -> int: ...

    async def write_queued(self, sql: str, values: Sequence[Any]) -> None: ...


class DispatchControl(Protocol):
    """What a run and those who watch it know of the fan-out: the one of this process, or on Ray that of the workers."""

    stopped: str | None
    waiting_for: str | None
    left_running: int
    observer: "ExchangeObserver | None"
    failure: Exception | None

    def start(self) -> None:
        """See pipelines.dispatch.dispatcher.OnlineDispatcher, as for all of these."""

    async def close(self, grace: float) -> None: ...

    def cancel(self) -> None: ...

    def stop(self, reason: str) -> None: ...

    async def wait_for_capacity(self) -> None: ...


class RouteInfo(Protocol):
    """Which step asks, and whom: a Lane."""

    @property
    def step(self) -> str: ...

    @property
    def provider(self) -> Provider: ...


StageName = Literal["upload", "create", "wait", "fetch", "clean"]


@dataclass(frozen=True, slots=True)
class BatchStage:
    """A batch has gone through a stage of its life, which began at `began_at` and ends now."""

    name: StageName
    mark: str
    batch_id: str | None
    """The provider's; None before it is created."""
    lines: int
    """Not settled yet when the stage began."""
    noted_at: int
    """When the batch was noted, by this invocation or another: microseconds since 1970, UTC."""
    began_at: int
    status: str | None = None
    """The provider's word for how it ended, once it has."""
    error: str | None = None
    """Its class, where the stage failed or was broken off."""


class ExchangeObserver(Protocol):
    """Who wants to know of every exchange, such as telemetry."""

    def record_wait(self, lane: RouteInfo, seconds: float) -> None:
        """A request has waited so long for its allowances."""

    def record_exchange(self, lane: RouteInfo, ended: SettledExchange) -> None:
        """An exchange is in the ledger."""

    def record_batch_stage(self, lane: RouteInfo, stage: BatchStage) -> None:
        """A batch has gone through a stage."""


@record
class Outcome:
    """How one request ended: the answer that is kept, or why there is none."""

    answer: bytes | None
    error: RowError | None
    attempts: int
    run_id: str
    at: int
    """Microseconds since 1970, UTC."""
    was_sent: bool
    """Whether it took an exchange of this invocation."""


@dataclass(slots=True)
class RequestGroup:
    """Requests that are sent in one exchange, and how often that was tried."""

    route: Route
    requests: tuple[Request, ...]
    attempts: int = 0
    """Exchanges that count against retry.attempts: 429s and probes of a dead provider do not."""
    exchanges: int = 0
    failed_member: Route | None = None
    """The member of a pool that failed it last."""


@dataclass(slots=True)
class Exchange:
    """A pack on its way to a provider, and what it holds until it is in the ledger."""

    pack: RequestGroup
    member: Route
    """Who is asked: the pack's lane, of a pool the member that was picked."""
    tokens: int
    """Reserved of the allowances."""
    worst: int | None
    """Pico-dollars set aside in the purse."""
    taken: list[tuple[ProviderLimiter, int]] = field(default_factory=list)
    """Allowances with their permits."""
    in_flight: bool = False
    settled: SettledExchange | None = None
    """How it ended, once its reply is there."""

    @property
    def large(self) -> bool:
        """Whether its answers take much memory until they are written."""
        answers = () if self.settled is None else self.settled.answers
        return sum(len(reply) for _, _, reply, _ in answers if reply is not None) > LARGE_ANSWER_BYTES


@dataclass(slots=True)
class Submission:
    """A set of requests that somebody waits for."""

    pending: set[bytes]
    read_buffer: ReadBuffer
    outcomes: dict[bytes, Outcome] = field(default_factory=dict)
    unread_bytes: int = 0
    """Of the answers in `outcomes`; they count as unread once it is due."""
    done: asyncio.Event = field(default_factory=asyncio.Event)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it should be read: it has landed, or is heavy."""
    is_abandoned: bool = False
    """Whether nobody waits for the rest of it."""

    def resolve(self, mark: bytes, outcome: Outcome) -> None:
        """One outcome more."""
        if self.is_abandoned:
            return
        self.outcomes[mark] = outcome
        self.pending.discard(mark)
        size = 0 if outcome.answer is None else len(outcome.answer)
        self.unread_bytes += size
        if self.ready.is_set():
            self.read_buffer.add(size)
        elif not self.pending or self.unread_bytes >= EARLY_READ_BYTES:
            self.ready.set()
            self.read_buffer.add(self.unread_bytes)
        if not self.pending:
            self.done.set()

    def end(self) -> None:
        """No more will land."""
        if not self.ready.is_set():
            self.read_buffer.add(self.unread_bytes)
        self.ready.set()
        self.done.set()

    def drain(self) -> tuple[dict[bytes, Outcome], int]:
        """What has landed since it was last asked, and its bytes: to be told to `unread` when they have been read."""
        if not self.ready.is_set():
            self.read_buffer.add(self.unread_bytes)
        taken = self.outcomes, self.unread_bytes
        self.outcomes, self.unread_bytes = {}, 0
        if not self.done.is_set():
            self.ready.clear()
        return taken


@dataclass(frozen=True, slots=True)
class RetryLimits:
    """How often and how long a request is tried again; seconds."""

    attempts: int = 6
    longest_wait: float = 60
    longest_hold: float = 900
    first_wait: float = 0.5


@dataclass(frozen=True, slots=True)
class DailyBudget:
    """The workspace's budget a day, over all jobs."""

    limit: int
    """Pico-dollars."""
    zone: tzinfo

    def today(self) -> str:
        """The date where the day begins and ends."""
        return datetime.now(self.zone).date().isoformat()


def read_reply(
    pack: RequestGroup, reply: Reply | None, failure: RequestError | None
) -> tuple[Sequence[bytes | RowError], RowError | None, Usage]:
    """(answers, error of the whole exchange, usage) of what came back."""
    if reply is None:
        assert failure is not None
        return (), RowError(failure.error_class, str(failure)), NO_USAGE
    if not 200 <= reply.status < 300:
        return (), row_error(reply), NO_USAGE
    endpoint = pack.route.endpoint
    try:
        return endpoint.answers(pack.requests, reply), None, endpoint.usage(pack.requests, reply)
    except MalformedReply as exc:
        named = request_id(reply.headers)
        problem = exc.error or RowError("malformed_reply", str(exc), reply.status, request_id=named)
        return (), problem, NO_USAGE


def settlement(
    noted: PendingExchange,
    pack: RequestGroup,
    reply: Reply | None,
    failure: RequestError | None,
    answers: Sequence[bytes | RowError],
    error: RowError | None,
    usage: Usage,
    cost: int | None,
) -> SettledExchange:
    """How a noted exchange ended, with what is kept of it."""
    return SettledExchange(
        noted.exchange_id, noted.route_id, noted.attempt, noted.keys, noted.fingerprints, noted.started_at,
        http_status=None if reply is None else reply.status,
        error_class=None if error is None else error.error_class,
        usage=usage,
        cost=cost,
        reserved=noted.max_cost or 0,
        latency_ms=reply.latency_ms if reply is not None else failure.latency_ms if failure else None,
        first_token_ms=None if reply is None else reply.first_token_ms,
        request_id=None if reply is None else request_id(reply.headers),
        message=None if error is None else error.message,
        answers=to_keep(pack, answers, error),
    )  # fmt: skip


def headed(reply: Reply | None) -> Reply | None:
    """Without a large body: what is kept of that waits for the ledger, and both are too much."""
    return replace(reply, body=b"") if reply is not None and len(reply.body) > LARGE_ANSWER_BYTES else reply


def to_keep(
    pack: RequestGroup, answers: Sequence[bytes | RowError], error: RowError | None
) -> tuple[tuple[bytes, bytes, bytes | None, RowError | None], ...]:
    """(fingerprint, request, reply, error of the row's own) of what the ledger keeps for good."""
    if error is not None:
        alone = len(pack.requests) == 1 and error.error_class in ROW_ERROR_CLASSES
        return ((pack.requests[0].fingerprint, pack.requests[0].body, None, error),) if alone else ()
    return tuple(
        (request.fingerprint, request.body, None, answer)
        if isinstance(answer, RowError)
        else (request.fingerprint, request.body, answer, None)
        for request, answer in zip(pack.requests, answers, strict=True)
    )


def paid(
    lane: Route,
    reply: Reply | None,
    failure: RequestError | None,
    error: RowError | None,
    usage: Usage,
    worst: int | None,
) -> int | None:
    """What the exchange cost; its worst case where the provider may have billed what we never saw."""
    if failure is not None:
        return worst if failure.is_billable else 0
    if reply is not None and reply.status >= 300:
        return 0
    if error is not None and usage is NO_USAGE:
        return worst
    spent = cost(lane.price, usage)
    # A reply that does not tell what it used is no free one.
    return worst if spent is None and lane.price is not None else spent


def total(amounts: Iterable[int | None]) -> int | None:
    """The sum; None where one is not known."""
    added = 0
    for amount in amounts:
        if amount is None:
            return None
        added += amount
    return added


def expected(request: Request, usual: float) -> float:
    """Output tokens that an answer is likely to take."""
    return usual if request.output_bound is None else min(usual, request.output_bound)
