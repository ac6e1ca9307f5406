"""The event loop that runs go through: uvloop's where there is one."""

import asyncio
import gc
import signal
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_loop(work: Coroutine[Any, Any, T]) -> T:
    """What the work returns; KeyboardInterrupt where Ctrl-C or SIGTERM came while the loop was taken down after it."""
    if threading.current_thread() is not threading.main_thread():
        return _run(work)
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    async def whole() -> T:
        try:
            return await work
        finally:
            # What is raised into a loop that is being taken down leaves it running for ever.
            for number in before:
                signal.signal(number, lambda number, _: came.append(number))

    try:
        result = _run(whole())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt
    return result


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        import uvloop
    except ImportError:
        # There is no uvloop for Windows; asyncio's own loop does the same, a little slower.
        return asyncio.run(work)
    result: T = uvloop.run(work)
    return result


RARELY = (20_000, 20, 50)
"""Objects, and rounds, until it looks. Usually after 700: what the modules hold would be walked again and again, a
tenth of the CPU time of a run."""


def look_rarely() -> None:
    """From now on, in this process."""
    gc.set_threshold(*RARELY)
