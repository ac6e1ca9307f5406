"""The values that dispatchers work with: routes, groups of requests, exchanges, outcomes and limits."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import datetime, tzinfo
from typing import Any, Literal, Protocol

from msgspec import Struct, field

from connectors.contracts import Endpoint, Provider
from connectors.endpoints.conversation.structured.structured_modes import StructuredMode
from connectors.records import Request, RowError, Values
from pipelines.dispatch.counters import RunCounters
from pipelines.dispatch.packing.packing import Packing
from pipelines.dispatch.read_buffer import LARGE_ANSWER_BYTES
from pipelines.ledger.entries import AnswerRecord, PendingExchange, SettledExchange, StoredAnswer, UnverifiedAnswer
from pipelines.limits.group_limits import GroupLimits
from pipelines.limits.provider_limiter import ProviderLimiter
from pipelines.pricing.prices import Price
from pipelines.pricing.run_budget import Reservation


class Route(Struct):
    """A step's way to one provider, or to the members of a pool: endpoint, limiters and price."""

    step: str
    endpoint: Endpoint
    provider: Provider
    limiters: Sequence[ProviderLimiter]
    """The provider's own, and the job's: a request needs a permit of both."""
    price: Price | None
    max_cost: Callable[[Request], int | None]
    """The most that a request can cost, in pico-dollars; None if nothing bounds it."""
    route_id: int
    """Its number in the ledger."""
    is_last_step: bool
    """Whether an answer here settles the row."""
    settles_rows: bool = True
    """Whether its rows are source rows; children are counted with theirs."""
    model: str = ""
    """As the job names it."""
    rung: int = 0
    """The place among the step's rungs of the one that it is for; 0: the step as declared."""
    is_model_proven: bool = True
    """Whether the ledger has an answer of this provider and model."""
    is_step_proven: bool = True
    """Whether it has one of this step, too."""
    mean_output_tokens: float = 200.0
    """Of recent answers, for the token limit."""
    packing: Packing | None = None
    """How rows share requests; None: the endpoint decides."""
    pool: "RoutePool | None" = None
    """The pool whose members share the work, each with a route; None for a single provider."""
    group_limits: "GroupLimits[RequestGroup] | None" = None
    """What the provider takes in one exchange; None if every request is alone."""

    @property
    def members(self) -> "Sequence[Route]":
        """The providers that are asked: the members of a pool that are not excluded, or this one."""
        return (self,) if self.pool is None else self.pool.active_members

    def groups(self, requests: Sequence[Request]) -> "Iterator[RequestGroup]":
        """Yield the requests in groups that share one exchange."""
        groups = self.endpoint.group_requests(requests) if self.packing is None else self.packing.groups(requests)
        return (RequestGroup(self, group) for group in groups)

    def record_exchange(self, counters: RunCounters, settled: SettledExchange) -> None:
        """Count an exchange that has ended, and learn from it how long answers are."""
        counters.record_exchange(self.step, settled.usage, settled.cost)
        if settled.usage.output_tokens is not None:
            tokens = settled.usage.output_tokens / max(1, len(settled.fingerprints) // 16)
            self.mean_output_tokens += (tokens - self.mean_output_tokens) / 20


class RoutePool(Protocol):
    """Several providers that share a step's work; see provider_pool.ProviderPool."""

    @property
    def active_members(self) -> Sequence[Route]:
        """The members that are still asked."""

    async def pick(self, avoid: Route | None) -> Route | None:
        """Return the member to ask next; None if none is left."""

    def exclude(self, member: Route, error: RowError) -> bool:
        """Ask this member nothing more; return whether others are left."""


class RunLedger(Protocol):
    """What a run's requests need of the ledger: ledger.Ledger itself, or its remote counterpart on Ray."""

    def next_exchange_id(self) -> int:
        """See Ledger, as for all of these."""

    def record_pending(self, pending: PendingExchange, day: tuple[str, int] | None = None) -> Awaitable[bool]: ...

    def cancel_pending(self, pending: PendingExchange, day: str | None = None) -> Awaitable[None]: ...

    def settle(self, settled: SettledExchange, day: str | None = None) -> asyncio.Future[None]: ...

    async def store_answer(self, fingerprint: bytes, route_id: int, request: bytes, reply: bytes) -> None: ...

    def lookup(self, fingerprints: Sequence[bytes]) -> dict[bytes, StoredAnswer]: ...

    def register_route(self, run_id: str, job: str, step: str, provider: str, endpoint: str, model: str) -> int: ...

    def has_answers(self, job: str, step: str, provider: str, model: str) -> tuple[bool, bool]: ...

    def last_answers(self, job: str, step: str, requests: Sequence[bytes]) -> dict[tuple[bytes, str], bytes]: ...

    def packed_answers(self, fingerprints: Sequence[bytes]) -> dict[bytes, bytes]: ...

    async def write_queued(self, sql: str, values: Sequence[Any]) -> None: ...


class RouteInfo(Protocol):
    """The step and the provider of a request, as observers need them; a Route has both."""

    @property
    def step(self) -> str: ...

    @property
    def provider(self) -> Provider: ...


StageName = Literal["upload", "create", "wait", "fetch", "clean"]


class BatchStage(Struct, frozen=True):
    """A stage of a batch that ends now."""

    name: StageName
    mark: str
    batch_id: str | None
    """The provider's; None before the batch is created."""
    lines: int
    """Not settled yet when the stage began."""
    noted_at: int
    """When the batch was recorded, by this invocation or another: microseconds since 1970, UTC."""
    began_at: int
    status: str | None = None
    """The provider's word for how the batch ended, once it has."""
    error: str | None = None
    """The class of the error that ended the stage."""


class ExchangeObserver(Protocol):
    """Is informed of every exchange, such as telemetry."""

    def record_wait(self, route: RouteInfo, seconds: float) -> None:
        """A request has waited for its permits."""

    def record_exchange(self, route: RouteInfo, settled: SettledExchange) -> None:
        """An exchange is in the ledger."""

    def record_batch_stage(self, route: RouteInfo, stage: BatchStage) -> None:
        """A stage of a batch has ended."""


class Outcome(Struct, frozen=True):
    """How one request ended: the answer that is stored, or why there is none."""

    answer: bytes | None
    error: RowError | None
    attempts: int
    run_id: str
    at: int
    """Microseconds since 1970, UTC."""
    was_sent: bool
    """Whether it took an exchange of this invocation."""
    values: Values | None = None
    """Of the answer, if `read_by` has read them already."""
    read_by: Endpoint | None = None
    """Another step may wait for the same answer, and read other values from it."""


class RequestGroup(Struct):
    """Requests that share one HTTP exchange, and how often they were sent."""

    route: Route
    requests: tuple[Request, ...]
    attempts: int = 0
    """Exchanges that count against retry.attempts: not 429s, nor probes of a provider that is down."""
    exchanges: int = 0
    is_verification: bool = False
    """Whether it requests a row alone that has a packed answer already: its first exchange is no retry."""
    is_divided: bool = False
    """Whether it is half of a group that did not fit what is left of a budget."""
    failed_member: Route | None = None
    """The member of a pool that failed it last."""
    is_moved: bool = False
    """Whether a member refused it that had answered nothing, and another one is asked."""
    has_renewed_key: bool = False
    """Whether it was refused last with a key that has been renewed since: a second refusal counts."""

    pack_mode: StructuredMode | None = None
    """The structured mode in which the schema of its pack was requested last."""
    _packed: Request | None = None

    @property
    def is_packed(self) -> bool:
        """Whether its rows are items of one conversation."""
        return self.route.packing is not None and len(self.requests) > 1

    @property
    def has_media(self) -> bool:
        """Whether its call contains files of its rows."""
        for request in self.requests:
            if request.media:
                return not self.is_packed
        return False

    @property
    def is_above_pack_size(self) -> bool:
        """Whether packs have become smaller since it was made."""
        packing = self.route.packing
        return packing is not None and len(self.requests) > packing.agreement.rows

    @property
    def packed(self) -> Request:
        """The packed request as it is sent."""
        assert self.route.packing is not None
        if self._packed is None:
            self.pack_mode = self.route.packing.mode
            self._packed = self.route.packing.request(self.requests)
        return self._packed

    @property
    def billed_requests(self) -> Sequence[Request]:
        """The requests whose tokens are billed: the packed one, or all of them."""
        return (self.packed,) if self.is_packed else self.requests

    def unverified_changes(self, answers: Sequence[AnswerRecord]) -> Sequence[UnverifiedAnswer]:
        """Return the packed answers that begin or end to wait for single ones; `answers`: what the ledger stores."""
        packing = self.route.packing
        return () if packing is None else packing.unverified_changes(self.requests, answers)

    def repack(self, problem: RowError) -> bool:
        """Request the schema of packed answers in a simpler mode if `problem` refuses it; return whether it does."""
        if not self.is_packed or self.route.packing is None:
            return False
        if not self.route.packing.record_refused(problem, self.pack_mode):
            return False
        self._packed = None
        return True

    def unanswered(self, results: Sequence[bytes | RowError | None]) -> "Sequence[RequestGroup]":
        """Return the groups in which the requests without a result are sent again."""
        packing = self.route.packing
        if packing is None or None not in results:
            return ()
        left = [request for request, result in zip(self.requests, results, strict=True) if result is None]
        groups = packing.smaller_groups(left, len(self.requests))
        return [
            RequestGroup(self.route, group, is_verification=True)
            if packing.is_unverified(group)
            else RequestGroup(self.route, group, exchanges=self.exchanges)
            for group in groups
        ]

    def halves(self, attempts: int = 0) -> "Sequence[RequestGroup]":
        """Return two groups with half of the requests each, to find the one that is refused or those that fit."""
        middle = len(self.requests) // 2
        return [self._part(half, attempts) for half in (self.requests[:middle], self.requests[middle:])]

    def first_alone(self, count: int) -> "tuple[Sequence[RequestGroup], RequestGroup | None]":
        """Return a group for each of the first `count` requests, and one of all others if there are any."""
        rest = self.requests[count:]
        return [self._part((one,)) for one in self.requests[:count]], self._part(rest) if rest else None

    def _part(self, requests: tuple[Request, ...], attempts: int = 0) -> "RequestGroup":
        """Return a group of some of the requests, for another member of the pool if there is one."""
        return RequestGroup(self.route, requests, attempts, exchanges=self.exchanges, failed_member=self.failed_member)


class Exchange(Struct):
    """A group in flight to a provider, and what it holds until its outcome is in the ledger."""

    group: RequestGroup
    member: Route
    """Who is asked: the group's route, or the member that its pool has picked."""
    tokens: int
    """Taken from the limiters."""
    reservation: Reservation
    permits: list[tuple[ProviderLimiter, int]] = field(default_factory=list)
    is_in_flight: bool = False
    is_answered: bool = False
    """Whether its reply is here, and waits for the ledger."""
    settled: SettledExchange | None = None
    """How it ended, once its reply is there."""

    @property
    def is_large(self) -> bool:
        """Whether its answers take much memory until they are written."""
        size = 0
        for _, _, reply, _ in () if self.settled is None else self.settled.answers:
            size += 0 if reply is None else len(reply)
        return size > LARGE_ANSWER_BYTES


class RetryLimits(Struct, frozen=True):
    """How often a request is sent again, and how long that may take; seconds."""

    attempts: int = 6
    longest_wait: float = 60
    longest_hold: float = 900
    first_wait: float = 0.5


class DailyBudget(Struct, frozen=True):
    """The workspace's budget for a day, over all jobs."""

    limit: int
    """Pico-dollars."""
    zone: tzinfo

    def today(self) -> str:
        """Return the date in the budget's time zone."""
        return datetime.now(self.zone).date().isoformat()


def total_cost(costs: Iterable[int | None]) -> int | None:
    """Return the sum; None if one of the costs is unknown."""
    total = 0
    for cost in costs:
        if cost is None:
            return None
        total += cost
    return total


def expected_output_tokens(request: Request, mean: float) -> float:
    """Return the output tokens that an answer probably takes; `mean`: of recent answers."""
    return mean if request.output_bound is None else min(mean, request.output_bound)


def expected_group_tokens(requests: Sequence[Request], mean: float) -> int:
    """Return the output tokens that the answers of a group probably take together."""
    if len({request.output_bound for request in requests}) == 1:
        return round(len(requests) * expected_output_tokens(requests[0], mean))
    return round(sum(expected_output_tokens(request, mean) for request in requests))
