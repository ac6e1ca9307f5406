"""How far a run is: one calm line on a terminal, a plain line now and then elsewhere; always on stderr."""

import asyncio
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable

from connectors.prices import usd
from pipelines.watch import Watch

SECONDS_BETWEEN_LINES = 10.0
REFRESH_SECONDS = 0.5


def progress(job: str, quiet: bool) -> Callable[[Watch], Awaitable[None]]:
    """Something that follows a run until it is cancelled."""

    async def follow(watch: Watch) -> None:
        if quiet:
            return
        await (_live if sys.stderr.isatty() else _lines)(job, watch)

    return follow


def facts(watch: Watch, rate: float) -> dict[str, object]:
    """The figures of this moment, as the JSON log has them too. `rate`: rows finished a second, lately."""
    tally = watch.tally
    settled = tally.rows_ok + tally.rows_failed
    return {
        "rows": tally.rows,
        "rows_done": settled,
        "rows_failed": tally.rows_failed,
        "requests": tally.requests,
        "requests_per_second": round(tally.requests / max(tally.seconds, 1e-9), 1),
        "retries": tally.retries,
        "in_flight": tally.in_flight,
        "input_tokens": tally.input_tokens,
        "output_tokens": tally.output_tokens,
        "cost_usd": None if tally.unpriced else usd(tally.cost),
        "seconds_left": round(tally.rows_left / rate) if rate > 0 else None,
        "held": watch.held(),
    }


def line(job: str, told: dict[str, object]) -> str:
    """The figures in words."""
    rows, done = int(str(told["rows"])), int(str(told["rows_done"]))
    parts = [
        f"{job}  {done:,} of {rows:,} rows",
        f"{told['requests_per_second']} requests/s",
        f"{int(str(told['input_tokens'])) + int(str(told['output_tokens'])):,} tokens",
        "cost not known" if told["cost_usd"] is None else f"${told['cost_usd']:.4f}",
    ]
    if told["rows_failed"]:
        parts.append(f"{told['rows_failed']:,} failed")
    if told["retries"]:
        parts.append(f"{told['retries']:,} retries")
    left = told["seconds_left"]
    if told["held"]:
        parts.append(str(told["held"]))
    elif left is not None and done < rows:
        parts.append(f"{_clock(int(str(left)))} left")
    return " · ".join(parts)


async def _live(job: str, watch: Watch) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    pace = Pace()
    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        while True:
            live.update(
                Text(line(job, facts(watch, pace.rate(watch))), overflow="ellipsis", no_wrap=True), refresh=True
            )
            await asyncio.sleep(REFRESH_SECONDS)


async def _lines(job: str, watch: Watch) -> None:
    pace = Pace()
    while True:
        await asyncio.sleep(SECONDS_BETWEEN_LINES)
        print(line(job, facts(watch, pace.rate(watch))), file=sys.stderr, flush=True)  # noqa: T201


class Pace:
    """Rows a second over the last half minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def rate(self, watch: Watch) -> float:
        now = time.monotonic()
        done = watch.tally.rows_ok + watch.tally.rows_failed
        self._seen.append((now, done))
        while now - self._seen[0][0] > 30:
            self._seen.popleft()
        then, before = self._seen[0]
        return (done - before) / (now - then) if now > then else 0.0


def _clock(seconds: int) -> str:
    if seconds < 90:
        return f"{seconds} s"
    if seconds < 5400:
        return f"{seconds // 60} min"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
