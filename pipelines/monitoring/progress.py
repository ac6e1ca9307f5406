"""How far a run is: one calm line on a terminal, a plain line now and then elsewhere; always on stderr."""

import asyncio
import shutil
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.dispatch.counters import RunCounters
from pipelines.monitoring.run_view import RunView
from pipelines.pricing.prices import usd

SECONDS_BETWEEN_LINES = 10.0
REFRESH_SECONDS = 0.5
WINDOW_SECONDS = 30.0
WARM_SECONDS = 2.0
"""Before there have been answers for so long, nothing is said of the time left."""


def progress_display(job: str, quiet: bool) -> Callable[[RunView], Awaitable[None]]:
    """Something that follows a run until it is cancelled."""

    async def follow(watch: RunView) -> None:
        if quiet:
            return
        await (_live if sys.stderr.isatty() else _lines)(job, watch)

    return follow


@dataclass(frozen=True, slots=True)
class Throughput:
    """How fast a run is, lately; both 0 while there is too little to tell."""

    requests_per_second: float = 0.0
    """Exchanges ended a second."""
    work_per_second: float = 0.0
    """Seconds that its senders were taken up by ended exchanges, a second."""


def progress_figures(watch: RunView, speed: Throughput) -> dict[str, object]:
    """The figures of this moment, as the JSON log has them too."""
    tally = watch.tally
    failed = max(tally.rows_failed, sum(step.failed for step in tally.steps.values()))
    ended, left = work_done_and_left(tally)
    return {
        "rows": tally.rows,
        "rows_done": tally.rows_landed,
        "rows_failed": failed,
        "share_done": round(ended / (ended + left), 3) if ended + left else None,
        "requests": tally.requests,
        "requests_per_second": round(speed.requests_per_second, 1),
        "retries": tally.retries,
        "in_flight": tally.in_flight,
        "input_tokens": tally.input_tokens,
        "output_tokens": tally.output_tokens,
        "cost_usd": None if tally.unpriced else usd(tally.cost),
        "seconds_left": round(left / speed.work_per_second) if speed.work_per_second > 0 else None,
        "held": watch.hold_reason(),
    }


def work_done_and_left(tally: RunCounters) -> tuple[float, float]:
    """What is done and what is left, of all steps: exchanges, each weighed by how long those of its step take up a
    sender. Where a limit paces them they all take as long, where answers are waited for slow steps weigh more."""
    steps = tally.steps.values()
    exchanges, busy = sum(step.exchanges for step in steps), _busy(tally)
    usual = busy / exchanges if exchanges else 1.0
    rows, left = float(tally.rows - tally.begun_with), 0.0
    for step in steps:
        each = step.busy / step.exchanges if step.exchanges and step.busy else usual
        left += each * step.exchanges_left(rows)
        rows -= step.failed
    return busy, left


def _busy(tally: RunCounters) -> float:
    """Seconds; where nobody measures them, as in a batch, every exchange counts as one."""
    steps = tally.steps.values()
    return sum(step.busy for step in steps) or float(sum(step.exchanges for step in steps))


def format_progress(job: str, told: Mapping[str, Any], width: int) -> str:
    """The figures in words, in one line of at most so many columns: what matters least goes first."""
    rows, done = told["rows"], told["rows_done"]
    share = "" if told["share_done"] is None else f" ({100 * told['share_done']:.0f} %)"
    tokens = told["input_tokens"] + told["output_tokens"]
    parts = {
        "rows": f"{job}  {done:,} of {rows:,} rows{share}",
        "speed": f"{told['requests_per_second']:,.0f} requests/s",
        "tokens": f"{format_large_number(tokens)} tokens",
        "cost": "cost not known" if told["cost_usd"] is None else f"${told['cost_usd']:.4f}",
        "failed": f"{told['rows_failed']:,} failed" if told["rows_failed"] else "",
        "retries": f"{told['retries']:,} retries" if told["retries"] else "",
        "left": "",
    }
    if told["held"]:
        parts["left"] = str(told["held"])
    elif told["seconds_left"] is not None and done < rows:
        parts["left"] = f"{format_time_left(told['seconds_left'])} left"
    for unwanted in ("", "tokens", "retries", "speed", "cost"):
        parts.pop(unwanted, None)
        text = " · ".join(part for part in parts.values() if part)
        if len(text) <= width:
            return text
    return text[: width - 1] + "…"


async def _live(job: str, watch: RunView) -> None:
    """Writes over one line, in one write, and only where it has changed: nothing flickers."""
    pace, shown = ThroughputMeter(), ""
    try:
        while True:
            speed = pace.measure(watch)
            text = format_progress(job, progress_figures(watch, speed), shutil.get_terminal_size().columns - 1)
            if text != shown:
                _write(f"\r{text}\x1b[K")
                shown = text
            await asyncio.sleep(REFRESH_SECONDS)
    finally:
        _write("\r\x1b[K")


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


async def _lines(job: str, watch: RunView) -> None:
    pace, last = ThroughputMeter(), time.monotonic()
    while True:
        await asyncio.sleep(min(1.0, SECONDS_BETWEEN_LINES))
        speed = pace.measure(watch)
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            _write(format_progress(job, progress_figures(watch, speed), 200) + "\n")


class ThroughputMeter:
    """How fast a run was over the last half minute."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._seen: deque[tuple[float, int, float]] = deque()

    def measure(self, watch: RunView) -> Throughput:
        """To be asked for about once a second."""
        now = self._now()
        ended = sum(step.exchanges for step in watch.tally.steps.values())
        # From the first answer on: until it came, connections were opened and nothing could end.
        if not ended:
            return Throughput()
        self._seen.append((now, ended, _busy(watch.tally)))
        while now - self._seen[0][0] > WINDOW_SECONDS:
            self._seen.popleft()
        then, before, busy = self._seen[0]
        if now - then < WARM_SECONDS:
            return Throughput()
        return Throughput((ended - before) / (now - then), (_busy(watch.tally) - busy) / (now - then))


def format_time_left(seconds: int) -> str:
    """Seconds in words, no finer than they can be known."""
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 600:
        return f"{seconds // 60} min {seconds % 60 // 10 * 10:02d} s"
    if seconds < 5400:
        return f"{seconds // 60} min"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def format_large_number(number: int) -> str:
    """A large number in four characters or so: 1.2M."""
    for letter, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.{1 if number < 100 * size else 0}f}{letter}"
    return str(number)
