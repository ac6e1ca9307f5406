"""A run that prints the median of the milliseconds that its requests waited for the ledger.

    python tests/bench/ledger_waits.py run JOB --quiet

A request waits twice: until it is noted, before it is sent, and until its answer is stored, before its row counts.
"""

import asyncio
import atexit
import statistics
import time
from collections.abc import Callable
from typing import Any

from pipelines.cli import main
from pipelines.ledger.ledger import Ledger

_waits: list[float] = []
_enqueue = Ledger._enqueue


def enqueue(ledger: Ledger, write: Callable[[Any], Any]) -> "asyncio.Future[Any]":
    """Queue a write as the ledger does, and measure until it is committed and its future resolved."""
    began, future = time.perf_counter(), _enqueue(ledger, write)
    future.add_done_callback(lambda _: _waits.append(time.perf_counter() - began))
    return future


if __name__ == "__main__":
    Ledger._enqueue = enqueue  # type: ignore[method-assign,assignment]
    atexit.register(lambda: print(f"{1000 * statistics.median(_waits):.2f}"))
    main()
