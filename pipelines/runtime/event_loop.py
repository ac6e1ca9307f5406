"""The event loop of a run: uvloop if it is installed, with signals and garbage collection set up for it."""

import asyncio
import gc
import signal
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from pipelines.runtime.interrupts import SIGNALS

T = TypeVar("T")

GC_THRESHOLD = (20_000, 20, 50)
"""Allocations, and rounds, until the garbage collector runs. The default of 700 allocations walks the modules'
objects again and again: a tenth of the CPU time of a run."""


def run_loop(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of the work; KeyboardInterrupt if Ctrl-C or SIGTERM arrived while the loop was shut down."""
    if threading.current_thread() is not threading.main_thread():
        return _run(work)
    late_signals: list[int] = []
    handlers = {number: signal.getsignal(number) for number in SIGNALS}

    async def with_late_signals() -> T:
        try:
            return await work
        finally:
            # An exception raised into a loop that is being shut down leaves it running for ever.
            for number in handlers:
                signal.signal(number, lambda number, _: late_signals.append(number))

    try:
        result = _run(with_late_signals())
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if late_signals:
        raise KeyboardInterrupt
    return result


def reduce_gc() -> None:
    """Run the garbage collector of this process less often."""
    gc.set_threshold(*GC_THRESHOLD)


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        import uvloop
    except ImportError:
        # uvloop does not support Windows; asyncio's own loop is a little slower.
        return asyncio.run(work)
    result: T = uvloop.run(work)
    return result
