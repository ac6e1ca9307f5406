"""Time breakdown on Ray: each worker reports what its senders waited for, and the driver adds it up."""

from collections.abc import Mapping, Sequence

from msgspec import Struct, field

from pipelines.dispatch.counters import SenderTimes
from pipelines.engines.ray.limits import JOB
from pipelines.limits.provider_limiter import ProviderLimiter
from pipelines.monitoring.bottleneck import RemoteTimings


class LimitWaits(Struct, frozen=True):
    """What a worker reports about one limit."""

    seconds: Mapping[str, float]
    """See ProviderLimiter.wait_seconds."""
    stated: tuple[float | None, float | None]
    """Requests and tokens a minute that are kept to."""
    learned_per_minute: float | None
    """See ProviderLimiter.learned_requests_per_minute."""


class WorkerTimings(Struct, frozen=True):
    """What a worker's senders waited for besides the network, and its CPU time; seconds since it began."""

    limits: Mapping[str, LimitWaits] = field(default_factory=dict)
    ledger: float = 0.0
    budget: float = 0.0
    cpu: float = 0.0


class ObservedLimit(ProviderLimiter):
    """A limit of the whole cluster as the workers report it, for displays only."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None, slots: int | None) -> None:
        super().__init__(requests_per_minute, tokens_per_minute, slots, 0.0, 0.0)
        self._learned_per_minute: float | None = None

    @property
    def learned_requests_per_minute(self) -> float | None:
        """See ProviderLimiter."""
        return self._learned_per_minute

    def update(self, waits: Sequence[LimitWaits]) -> None:
        """Take over what all workers report."""
        self.wait_seconds = {kind: sum(one.seconds[kind] for one in waits) for kind in self.wait_seconds}
        learned = [one.learned_per_minute for one in waits if one.learned_per_minute is not None]
        self._learned_per_minute = sum(learned) if learned else None
        for one in waits:
            self.update_from_headers(one.stated)


def limit_waits(limiters: Mapping[str, ProviderLimiter]) -> Mapping[str, LimitWaits]:
    """Return what a worker reports about its limits."""
    return {
        name: LimitWaits(
            dict(limiter.wait_seconds),
            (limiter.requests_per_minute, limiter.tokens_per_minute),
            limiter.learned_requests_per_minute,
        )
        for name, limiter in limiters.items()
    }


def add_up(
    reports: Sequence[tuple[SenderTimes, WorkerTimings]],
    limits: Mapping[str, ObservedLimit],
    times: SenderTimes,
    remote: RemoteTimings,
) -> None:
    """Sum the reports of all workers, dead ones included, into `limits`, `times` and `remote`."""
    for name, limit in limits.items():
        limit.update([timings.limits[name] for _, timings in reports if name in timings.limits])
    job_waits = limits[JOB].wait_seconds
    # A worker has more senders than it may have requests in flight at the moment: those that wait are surplus.
    surplus, job_waits["slots"] = job_waits["slots"], 0.0
    times.limit_seconds = max(0.0, sum(one.limit_seconds for one, _ in reports) - surplus)
    times.network_seconds = sum(one.network_seconds for one, _ in reports)
    times.other_seconds = sum(one.other_seconds for one, _ in reports)
    remote.ledger_seconds = sum(timings.ledger for _, timings in reports)
    remote.cpu_seconds = sum(timings.cpu for _, timings in reports) / remote.workers
