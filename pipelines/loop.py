"""The event loop that runs go through: uvloop's where there is one."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_loop(work: Coroutine[Any, Any, T]) -> T:
    """What the work returns."""
    try:
        import uvloop
    except ImportError:
        # There is no uvloop for Windows; asyncio's own loop does the same, a little slower.
        return asyncio.run(work)
    result: T = uvloop.run(work)
    return result
