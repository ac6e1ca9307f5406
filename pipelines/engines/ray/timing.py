"""Where the time went on Ray: each worker tells what its senders waited for, the driver adds it up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipelines.dispatch.counters import SenderTimes
from pipelines.engines.ray.limits import JOB
from pipelines.limits.provider_limiter import ProviderLimiter
from pipelines.monitoring.bottleneck import RemoteTimings


@dataclass(frozen=True, slots=True)
class Waits:
    """What a worker tells of one limit."""

    seconds: Mapping[str, float]
    """See Allowance.waits."""
    stated: tuple[float | None, float | None]
    """Requests and tokens a minute, as they are kept to."""
    found: float | None
    """See Allowance.found_per_minute."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What a worker's senders waited for beside the network, and its CPU; seconds, each since it began."""

    limits: Mapping[str, Waits] = field(default_factory=dict)
    ledger: float = 0.0
    budget: float = 0.0
    cpu: float = 0.0


class Looked(ProviderLimiter):
    """A limit of the whole cluster as the workers tell of it: to be looked at only."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None, slots: int | None) -> None:
        super().__init__(requests_per_minute, tokens_per_minute, slots, 0.0, 0.0)
        self._found_by_all: float | None = None

    @property
    def learned_requests_per_minute(self) -> float | None:
        """See Allowance."""
        return self._found_by_all

    def hear(self, told: Sequence[Waits]) -> None:
        """What all workers tell of it."""
        self.wait_seconds = {kind: sum(one.seconds[kind] for one in told) for kind in self.wait_seconds}
        found = [one.found for one in told if one.found is not None]
        self._found_by_all = sum(found) if found else None
        for one in told:
            self.update_from_headers(one.stated)


def waits_of(allowances: Mapping[str, ProviderLimiter]) -> Mapping[str, Waits]:
    """What a worker has to tell of its limits."""
    return {
        name: Waits(
            dict(one.wait_seconds), (one.requests_per_minute, one.tokens_per_minute), one.learned_requests_per_minute
        )
        for name, one in allowances.items()
    }


def add_up(
    told: Sequence[tuple[SenderTimes, Spent]],
    limits: Mapping[str, Looked],
    times: SenderTimes,
    elsewhere: RemoteTimings,
) -> None:
    """What all workers tell, those that have died included, goes into `limits`, `times` and `elsewhere`."""
    for name, limit in limits.items():
        limit.hear([spent.limits[name] for _, spent in told if name in spent.limits])
    of_job = limits[JOB].wait_seconds
    # A worker has more senders than requests that it may have in flight at the moment: those that wait are surplus.
    surplus, of_job["slots"] = of_job["slots"], 0.0
    times.limit_seconds = max(0.0, sum(one.limit_seconds for one, _ in told) - surplus)
    times.network_seconds = sum(one.network_seconds for one, _ in told)
    times.other_seconds = sum(one.other_seconds for one, _ in told)
    elsewhere.ledger_seconds = sum(spent.ledger for _, spent in told)
    elsewhere.cpu_seconds = sum(spent.cpu for _, spent in told) / elsewhere.workers
