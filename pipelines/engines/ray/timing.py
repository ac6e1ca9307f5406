"""Where the time went on Ray: each worker tells what its senders waited for, the driver adds it up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipelines.dispatch.counters import Times
from pipelines.engines.ray.limits import JOB
from pipelines.limits.provider_limiter import Allowance
from pipelines.monitoring.bottleneck import Elsewhere


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


class Looked(Allowance):
    """A limit of the whole cluster as the workers tell of it: to be looked at only."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None, slots: int | None) -> None:
        super().__init__(requests_per_minute, tokens_per_minute, slots, 0.0, 0.0)
        self._found_by_all: float | None = None

    @property
    def found_per_minute(self) -> float | None:
        """See Allowance."""
        return self._found_by_all

    def hear(self, told: Sequence[Waits]) -> None:
        """What all workers tell of it."""
        self.waits = {kind: sum(one.seconds[kind] for one in told) for kind in self.waits}
        found = [one.found for one in told if one.found is not None]
        self._found_by_all = sum(found) if found else None
        for one in told:
            self.learn(one.stated)


def waits_of(allowances: Mapping[str, Allowance]) -> Mapping[str, Waits]:
    """What a worker has to tell of its limits."""
    return {
        name: Waits(dict(one.waits), (one.requests_per_minute, one.tokens_per_minute), one.found_per_minute)
        for name, one in allowances.items()
    }


def add_up(
    told: Sequence[tuple[Times, Spent]], limits: Mapping[str, Looked], times: Times, elsewhere: Elsewhere
) -> None:
    """What all workers tell, those that have died included, goes into `limits`, `times` and `elsewhere`."""
    for name, limit in limits.items():
        limit.hear([spent.limits[name] for _, spent in told if name in spent.limits])
    of_job = limits[JOB].waits
    # A worker has more senders than requests that it may have in flight at the moment: those that wait are surplus.
    surplus, of_job["slots"] = of_job["slots"], 0.0
    times.limits = max(0.0, sum(one.limits for one, _ in told) - surplus)
    times.network = sum(one.network for one, _ in told)
    times.beside = sum(one.beside for one, _ in told)
    elsewhere.ledger = sum(spent.ledger for _, spent in told)
    elsewhere.cpu = sum(spent.cpu for _, spent in told) / elsewhere.workers
