"""Sums over the exchanges of a ledger, kept up to date by reading only what was added since the last look."""

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from statistics import quantiles
from typing import Any, TypeVar

from msgspec import Struct, field

from pipelines.ledger.ledger_reader import LedgerReader

Group = TypeVar("Group", bound=Hashable)

WINDOW_ROWS = 20_000
"""Exchanges that one query reads: a longer read would keep the run from shortening its write-ahead log."""
BUCKET_SECONDS = 2.0
"""Shortest interval of a timeline."""
MAX_BUCKETS = 1_000
"""Of a timeline; a longer one gets intervals of twice the length."""
MAX_LATENCIES = 20_000
"""Newest exchanges of a step that its percentiles count."""
PERCENTILES = (50, 95, 99)


class Totals(Struct):
    """Sums over exchanges; costs in pico-dollars."""

    requests: int = 0
    failed: int = 0
    retries: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    known_cost: int = 0
    unpriced: int = 0
    """Exchanges that have no known price: they are not in `known_cost`."""

    def add(self, other: "Totals") -> None:
        """Add the sums of other exchanges."""
        self.requests += other.requests
        self.failed += other.failed
        self.retries += other.retries
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.known_cost += other.known_cost
        self.unpriced += other.unpriced

    @property
    def cost(self) -> int | None:
        """The cost; None if the price of an exchange is not known."""
        return None if self.unpriced else self.known_cost


class Route(Struct, frozen=True):
    """What the exchanges of a row id in the ledger's table of routes have in common."""

    run_id: str
    job: str
    step: str
    provider: str
    endpoint: str
    model: str


class FailedExchanges(Struct):
    """Failed exchanges of one route, class and HTTP status."""

    requests: int
    first: int
    """Microseconds since 1970, as `last`."""
    last: int
    message: str
    """Of the first one."""


class Timeline(Struct):
    """Exchanges that ended in each interval of a run."""

    seconds: float = BUCKET_SECONDS
    buckets: dict[int, Totals] = field(default_factory=dict)
    """Number of intervals since 1970 -> sums."""

    def add(self, base_bucket: int, totals: Totals) -> None:
        """Add sums of an interval of BUCKET_SECONDS."""
        self._add(int(base_bucket * BUCKET_SECONDS // self.seconds), totals)
        if len(self.buckets) > MAX_BUCKETS:
            finer, self.buckets = self.buckets, {}
            self.seconds *= 2
            for place, sums in finer.items():
                self._add(place // 2, sums)

    def _add(self, place: int, totals: Totals) -> None:
        self.buckets.setdefault(place, Totals()).add(totals)


_NEWEST = """
with recursive writers (writer) as (
    select min(writer) from exchanges
    union all
    select (select min(e.writer) from exchanges e where e.writer > w.writer) from writers w where w.writer is not null
)
select writer, (select max(e.seq) from exchanges e where e.writer = w.writer) from writers w where writer is not null
"""
"""Each process that writes exchanges numbers its own from 1: (writer, its newest number), without reading the rest."""
_COLUMNS = """
count(*), count(e.error_class), sum(e.attempt > 1), coalesce(sum(e.input_tokens), 0),
coalesce(sum(e.output_tokens), 0), coalesce(sum(e.cost), 0), sum(e.cost is null)
"""
_SUMS = f"""
select e.leg, date(e.started_at / 1e6, 'unixepoch'),
    cast((e.started_at / 1e6 + coalesce(e.latency_ms, 0) / 1e3) / {BUCKET_SECONDS} as integer), {_COLUMNS}
from exchanges e where e.writer = ? and e.seq > ? and e.seq <= ? group by 1, 2, 3
"""
_FAILURES = """
select e.leg, e.error_class, e.http_status, count(*), max(e.started_at), min(e.seq)
from exchanges e where e.writer = ? and e.seq > ? and e.seq <= ? and e.error_class is not null group by 1, 2, 3
"""


class ExchangeTotals:
    """Sums over all exchanges of one ledger, by route and day, by failure, and over time."""

    def __init__(self) -> None:
        self._read: dict[int, int] = {}
        """Writer -> number of its last exchange that was read: exchanges are only ever added."""
        self._newest: dict[int, int] = {}
        """Writer -> number of its newest exchange."""
        self.routes: dict[int, Route] = {}
        self.days: dict[tuple[int, str], Totals] = {}
        """(row id of a route, UTC day) -> sums."""
        self.failures: dict[tuple[int, str, int | None], FailedExchanges] = {}
        """(row id of a route, class, HTTP status) -> failed exchanges."""
        self._timelines: dict[str, Timeline] = {}

    @property
    def share_read(self) -> float:
        """Share of the exchanges that the sums contain so far, from 0 to 1."""
        newest = sum(self._newest.values())
        return sum(self._read.values()) / newest if newest else 1.0

    def read(self, ledger: LedgerReader, seconds: float) -> None:
        """Read what was added, for about so many seconds; the rest is for the next call."""
        deadline = time.monotonic() + seconds
        self._newest = dict(ledger.query(_NEWEST))
        for writer, newest in self._newest.items():
            while (last := self._read.get(writer, 0)) < newest:
                end = min(last + WINDOW_ROWS, newest)
                self._add_sums(ledger.query(_SUMS, (writer, last, end)), ledger)
                self._add_failures(writer, ledger.query(_FAILURES, (writer, last, end)), ledger)
                self._read[writer] = end
                if time.monotonic() > deadline:
                    return

    def _add_sums(self, rows: Sequence[tuple[Any, ...]], ledger: LedgerReader) -> None:
        for route, day, bucket, *sums in rows:
            if route not in self.routes:
                self._read_routes(ledger)
            totals = Totals(*sums)
            self.days.setdefault((route, day), Totals()).add(totals)
            self._timelines.setdefault(self.routes[route].run_id, Timeline()).add(bucket, totals)

    def _add_failures(self, writer: int, rows: Sequence[tuple[Any, ...]], ledger: LedgerReader) -> None:
        for route, error_class, status, count, last, number in rows:
            known = self.failures.get((route, error_class, status))
            if known is None:
                ((first, message),) = ledger.query(
                    "select started_at, message from exchanges where writer = ? and seq = ?", (writer, number)
                )
                self.failures[route, error_class, status] = FailedExchanges(count, first, last, message or "")
            else:
                known.requests += count
                known.last = max(known.last, last)

    def _read_routes(self, ledger: LedgerReader) -> None:
        known = max(self.routes, default=0)
        for number, *values in ledger.query(
            "select id, run_id, job, step, provider, endpoint, model from legs where id > ?", (known,)
        ):
            self.routes[number] = Route(*values)

    def of_run(self, run_id: str) -> Totals:
        """Return the sums of a run."""
        return _total(totals for route, totals in self._by_route() if route.run_id == run_id)

    def by_run(self) -> Mapping[str, Totals]:
        """Return run id -> sums."""
        return self._grouped(lambda route, day: route.run_id)

    def by_day(self, job: str | None = None) -> Mapping[str, Totals]:
        """Return UTC day -> sums of a job, or of all; as `rowmill usage --by day`."""
        return dict(sorted(self._grouped(lambda route, day: day if job in (None, route.job) else None).items()))

    def by_step(self, run_id: str) -> Mapping[Route, Totals]:
        """Return route -> sums of a run, in the order in which the routes began."""
        return self._grouped(lambda route, day: route if route.run_id == run_id else None)

    def failures_of(self, run_id: str) -> Sequence[tuple[Route, str, int | None, FailedExchanges]]:
        """Return the failed exchanges of a run, the most frequent first."""
        found = [
            (self.routes[number], error_class, status, failed)
            for (number, error_class, status), failed in self.failures.items()
            if self.routes[number].run_id == run_id
        ]
        return sorted(found, key=lambda one: -one[3].requests)

    def timeline(self, run_id: str) -> Timeline:
        """Return the exchanges of a run over time."""
        return self._timelines.get(run_id, Timeline())

    def _by_route(self) -> Iterator[tuple[Route, Totals]]:
        for (number, _), totals in self.days.items():
            yield self.routes[number], totals

    def _grouped(self, group: Callable[[Route, str], Group | None]) -> dict[Group, Totals]:
        groups: dict[Group, Totals] = {}
        for (number, day), totals in self.days.items():
            name = group(self.routes[number], day)
            if name is not None:
                groups.setdefault(name, Totals()).add(totals)
        return groups


def _total(parts: Iterable[Totals]) -> Totals:
    total = Totals()
    for part in parts:
        total.add(part)
    return total


def latency_percentiles(ledger: LedgerReader, run_id: str) -> Mapping[Route, Sequence[float]]:
    """Return route -> the PERCENTILES of latency in milliseconds, over its newest MAX_LATENCIES exchanges of a run."""
    found: dict[Route, Sequence[float]] = {}
    for number, *values in ledger.query(
        "select id, run_id, job, step, provider, endpoint, model from legs where run_id = ?", (run_id,)
    ):
        latencies = ledger.query(
            "select latency_ms from (select latency_ms from exchanges where leg = ? "
            "order by writer desc, seq desc limit ?) where latency_ms is not null",
            (number, MAX_LATENCIES),
        )
        if latencies:
            found[Route(*values)] = _percentiles([ms for (ms,) in latencies])
    return found


def _percentiles(values: Sequence[float]) -> Sequence[float]:
    """Return the PERCENTILES of these values, between two of them by the straight line."""
    cuts = quantiles([*values] * 2 if len(values) == 1 else values, n=100, method="inclusive")
    return [cuts[percent - 1] for percent in PERCENTILES]
