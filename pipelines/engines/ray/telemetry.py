"""Telemetry on Ray: workers note their exchanges, the driver hears of them with each report and tells its observer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from connectors.contracts import Provider
from pipelines.dispatch.request_types import BatchStage, ExchangeObserver, RouteInfo
from pipelines.ledger.entries import SettledExchange

Seen = tuple[str, str, float | SettledExchange]
"""Step, name of the provider, and the seconds that a request waited or how an exchange ended."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What a worker has to tell, numbered from `first` on."""

    first: int = 0
    seen: Sequence[Seen] = ()


@dataclass(frozen=True, slots=True)
class Way:
    """Which step asked, and whom."""

    step: str
    provider: Provider


class Recorder:
    """The observer of a worker: it keeps what it is told until the driver has it."""

    def __init__(self) -> None:
        self._first = 0
        self._seen: list[Seen] = []

    def record_wait(self, lane: RouteInfo, seconds: float) -> None:
        """See Observer, as for all of these."""
        self._seen.append((lane.step, lane.provider.name, seconds))

    def record_exchange(self, lane: RouteInfo, ended: SettledExchange) -> None:
        # Without rows and answers: they are large, and nobody's business.
        self._seen.append((lane.step, lane.provider.name, replace(ended, keys=b"", message=None, answers=())))

    def record_batch_stage(self, lane: RouteInfo, stage: BatchStage) -> None:
        """Batches need no workers."""
        raise AssertionError(stage)

    def since(self, number: int) -> Heard:
        """What came from this number on; what came before it is heard, and dropped."""
        del self._seen[: max(0, number - self._first)]
        self._first = max(self._first, number)
        return Heard(self._first, tuple(self._seen))


def tell(observer: ExchangeObserver, providers: Mapping[str, Provider], heard: Heard, number: int) -> int:
    """Tell what comes from this number on, as reports may come twice; the number after the last."""
    for step, name, told in heard.seen[number - heard.first :]:
        way = Way(step, providers[name])
        if isinstance(told, SettledExchange):
            observer.record_exchange(way, told)
        else:
            observer.record_wait(way, told)
    return max(number, heard.first + len(heard.seen))
