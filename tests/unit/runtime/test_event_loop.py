"""The event loop of a run: results, errors and late signals."""

import asyncio
import gc
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from pipelines.runtime.event_loop import GC_THRESHOLD, reduce_gc, run_loop


@pytest.fixture
def gc_threshold() -> Iterator[None]:
    """Restore the threshold of this process."""
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


async def answer() -> int:
    await asyncio.sleep(0)
    return 42


def test_the_result_is_returned_from_any_thread() -> None:
    results: list[int] = [run_loop(answer())]
    thread = threading.Thread(target=lambda: results.append(run_loop(answer())))
    thread.start()
    thread.join()
    assert results == [42, 42]


def test_an_error_passes_through_and_the_signal_handlers_are_restored() -> None:
    async def failing() -> None:
        raise ValueError("broken")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="broken"):
        run_loop(failing())
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_during_the_shutdown_of_the_loop_is_raised_after_it() -> None:
    async def lingering() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    async def work() -> None:
        task = asyncio.create_task(lingering())
        await asyncio.sleep(0)
        assert not task.done()

    with pytest.raises(KeyboardInterrupt):
        run_loop(work())
    assert run_loop(answer()) == 42


@pytest.mark.usefixtures("gc_threshold")
def test_the_garbage_collector_runs_less_often() -> None:
    reduce_gc()
    assert gc.get_threshold() == GC_THRESHOLD
