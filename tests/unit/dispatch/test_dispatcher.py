"""Every dispatcher implements the same protocol and inherits nothing."""

import pytest

from pipelines.batch.dispatcher import BatchDispatcher
from pipelines.dispatch.dispatcher import DispatchControl, Dispatcher
from pipelines.dispatch.online_dispatcher import OnlineDispatcher
from pipelines.engines.ray.deduplicating_dispatcher import DeduplicatingDispatcher
from pipelines.engines.ray.driver import WorkerPool


def test_mypy_accepts_each_class_for_its_protocol() -> None:
    def full(kind: type[Dispatcher]) -> type[Dispatcher]:
        return kind

    def control(kind: type[DispatchControl]) -> type[DispatchControl]:
        return kind

    assert full(OnlineDispatcher) is OnlineDispatcher
    assert full(BatchDispatcher) is BatchDispatcher
    assert full(DeduplicatingDispatcher) is DeduplicatingDispatcher
    assert control(WorkerPool) is WorkerPool


@pytest.mark.parametrize("kind", [OnlineDispatcher, BatchDispatcher, DeduplicatingDispatcher, WorkerPool])
def test_a_dispatcher_inherits_nothing(kind: type) -> None:
    assert kind.__bases__ == (object,)
