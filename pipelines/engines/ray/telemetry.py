"""Telemetry on Ray: workers record their exchanges, and the driver passes them to its observer with each report."""

from collections.abc import Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from connectors.contracts import Provider
from pipelines.dispatch.request_types import BatchStage, ExchangeObserver, RouteInfo
from pipelines.ledger.entries import SettledExchange

TelemetryRecord = tuple[str, str, float | SettledExchange]
"""Step, name of the provider, and the seconds that a request waited or how an exchange ended."""


class TelemetryBatch(Struct, frozen=True):
    """The records of a worker, numbered from `first` on."""

    first: int = 0
    records: Sequence[TelemetryRecord] = ()


class RouteLabel(Struct, frozen=True):
    """The step and the provider of an exchange."""

    step: str
    provider: Provider


class TelemetryRecorder:
    """The observer of a worker: it holds the records until the driver has them."""

    def __init__(self) -> None:
        self._first = 0
        self._records: list[TelemetryRecord] = []

    def record_wait(self, route: RouteInfo, seconds: float) -> None:
        """See ExchangeObserver, as for all of these."""
        self._records.append((route.step, route.provider.name, seconds))

    def record_exchange(self, route: RouteInfo, settled: SettledExchange) -> None:
        # Without keys and answers: they are large, and confidential.
        self._records.append((route.step, route.provider.name, replace(settled, keys=b"", message=None, answers=())))

    def record_batch_stage(self, route: RouteInfo, stage: BatchStage) -> None:
        """Never called: batches do not need workers."""
        raise AssertionError(stage)

    def since(self, number: int) -> TelemetryBatch:
        """Return the records from this number on, and drop those before it, which the driver has."""
        del self._records[: max(0, number - self._first)]
        self._first = max(self._first, number)
        return TelemetryBatch(self._first, tuple(self._records))


def observe(observer: ExchangeObserver, providers: Mapping[str, Provider], batch: TelemetryBatch, number: int) -> int:
    """Pass the records from `number` on to the observer, as reports may repeat them; return the next number."""
    for step, name, record in batch.records[number - batch.first :]:
        route = RouteLabel(step, providers[name])
        if isinstance(record, SettledExchange):
            observer.record_exchange(route, record)
        else:
            observer.record_wait(route, record)
    return max(number, batch.first + len(batch.records))
