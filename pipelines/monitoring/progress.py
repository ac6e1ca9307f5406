"""Progress of a run on stderr: a bar on a terminal, a plain line now and then elsewhere."""

import asyncio
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from pipelines.dispatch.counters import RunCounters
from pipelines.formatting import format_duration, format_money, format_percent
from pipelines.monitoring.run_view import FollowRun, RunView
from pipelines.pricing.prices import usd

if TYPE_CHECKING:
    from rich.console import Group

SECONDS_BETWEEN_LINES = 10.0
REFRESH_SECONDS = 0.5
WINDOW_SECONDS = 30.0
"""Rates are averages over this time."""
MIN_WINDOW_SECONDS = 2.0
"""Without this much time since the first answer there is no estimate of the time left."""
MAX_LINE_COLUMNS = 200
"""Of a plain line."""
COST_DECIMALS = 4


def progress_display(job: str, is_quiet: bool) -> FollowRun:
    """Return what shows the progress of a run until it is cancelled."""

    async def follow(view: RunView) -> None:
        if is_quiet:
            return
        has_cursor = sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        await (_show_bar if has_cursor else _print_lines)(job, view)

    return follow


async def _show_bar(job: str, view: RunView) -> None:
    """Redraw the bar in place. This task is the only one that draws: rich starts no thread."""
    from rich.console import Console
    from rich.live import Live

    meter, console = ThroughputMeter(), Console(file=sys.stderr, markup=False, emoji=False, highlight=False)
    with Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False) as live:
        # A run that is killed must not leave a terminal without a cursor.
        console.show_cursor(True)
        while True:
            live.update(progress_bar(job, progress_figures(view, meter.measure(view)), console.width), refresh=True)
            await asyncio.sleep(REFRESH_SECONDS)


async def _print_lines(job: str, view: RunView) -> None:
    meter, last = ThroughputMeter(), time.monotonic()
    while True:
        await asyncio.sleep(min(1.0, SECONDS_BETWEEN_LINES))
        throughput = meter.measure(view)
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            line = format_progress(job, progress_figures(view, throughput), MAX_LINE_COLUMNS)
            print(line, file=sys.stderr, flush=True)  # noqa: T201


def progress_bar(job: str, figures: Mapping[str, Any], width: int) -> "Group":
    """Draw a bar with the rows done, and below it rate, cost, errors and the time left."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    bar = Table.grid(padding=(0, 1), expand=True)
    bar.add_column(no_wrap=True, style="bold", max_width=width // 3)
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True)
    rows = figures["rows"]
    # A job without rows is complete.
    done = figures["rows_done"] if rows else 1
    drawn = ProgressBar(rows or 1, done, complete_style="cyan", finished_style="green")
    bar.add_row(job, drawn, _rows_done(figures))
    facts = _fitting(_facts(figures), width)
    return Group(bar, Text(facts or "starting", no_wrap=True, overflow="ellipsis"))


def format_progress(job: str, figures: Mapping[str, Any], width: int) -> str:
    """Format the same as one line; the least important figures are left out if it is too long."""
    text = _fitting({"rows": f"{job}  {_rows_done(figures)}", **_facts(figures)}, width)
    return text if len(text) <= width else text[: width - 1] + "…"


def _rows_done(figures: Mapping[str, Any]) -> str:
    rows, done = figures["rows"], figures["rows_done"]
    percent = f" ({format_percent(done, rows)})" if rows else ""
    return f"{done:,} of {rows:,} rows{percent}"


def _facts(figures: Mapping[str, Any]) -> dict[str, str]:
    """The figures other than rows, by name, in the order in which they are shown."""
    cost, failed, retries = figures["cost_usd"], figures["rows_failed"], figures["retries"]
    left = figures["held"] or ""
    if not left and figures["seconds_left"] is not None and figures["rows_done"] < figures["rows"]:
        left = f"{format_duration(figures['seconds_left'])} left"
    return {
        "rate": f"{figures['requests_per_second']:,.0f} requests/s",
        "tokens": f"{format_large_number(figures['input_tokens'] + figures['output_tokens'])} tokens",
        "cost": "cost not known" if cost is None else format_money(cost, COST_DECIMALS),
        "failed": f"{failed:,} failed" if failed else "",
        "retries": f"{retries:,} retries" if retries else "",
        "left": left,
    }


def _fitting(facts: Mapping[str, str], width: int) -> str:
    """Join as many of the facts as fit into a line, the most important ones."""
    fitting = dict(facts)
    for unimportant in ("", "tokens", "retries", "rate", "cost"):
        fitting.pop(unimportant, None)
        line = " · ".join(fact for fact in fitting.values() if fact)
        if len(line) <= width:
            break
    return line


class Throughput(Struct, frozen=True):
    """Rates of a run over the last half minute; both 0 before there are enough answers."""

    requests_per_second: float = 0.0
    """Exchanges that ended."""
    work_per_second: float = 0.0
    """Seconds of the senders' time that went into ended exchanges, per second."""


class ThroughputMeter:
    """Measures the rates of a run over a sliding window."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._samples: deque[tuple[float, int, float]] = deque()

    def measure(self, view: RunView) -> Throughput:
        """Take a sample, about once a second, and return the rates of the window."""
        now, work = self._now(), _work_done(view.counters)
        exchanges = sum(step.exchanges for step in view.counters.steps.values())
        # The window begins with the first answer: before it, connections were opened and nothing could end.
        if not exchanges:
            return Throughput()
        self._samples.append((now, exchanges, work))
        while now - self._samples[0][0] > WINDOW_SECONDS:
            self._samples.popleft()
        first, first_exchanges, first_work = self._samples[0]
        seconds = now - first
        if seconds < MIN_WINDOW_SECONDS:
            return Throughput()
        return Throughput((exchanges - first_exchanges) / seconds, (work - first_work) / seconds)


def progress_figures(view: RunView, throughput: Throughput) -> dict[str, object]:
    """Return the current figures of a run, as `--log json` and the heartbeat file have them."""
    counters = view.counters
    in_steps = 0 if counters.has_children else sum(step.failed for step in counters.steps.values())
    failed = max(counters.rows_failed, counters.failed_locally + in_steps)
    done, left = _work_done(counters), _work_left(counters)
    paused_since = view.dispatcher.state.paused_since
    return {
        "rows": counters.rows,
        "rows_done": counters.rows_finished,
        "rows_failed": failed,
        "share_done": round(done / (done + left), 3) if done + left else None,
        "requests": counters.requests,
        "requests_per_second": round(throughput.requests_per_second, 1),
        "retries": counters.retries,
        "in_flight": counters.in_flight - counters.answered,
        "input_tokens": counters.input_tokens,
        "output_tokens": counters.output_tokens,
        "cost_usd": None if counters.unpriced else usd(counters.cost),
        "seconds_left": round(left / throughput.work_per_second) if throughput.work_per_second > 0 else None,
        "held": view.hold_reason(),
        "paused_since": None if paused_since is None else paused_since.isoformat(timespec="seconds"),
    }


def _work_done(counters: RunCounters) -> float:
    """Seconds that ended exchanges took of their senders; if that is not measured, as for a batch, their number."""
    steps = counters.steps.values()
    return sum(step.busy_seconds for step in steps) or float(sum(step.exchanges for step in steps))


def _work_left(counters: RunCounters) -> float:
    """The work of the exchanges that are still to end, in the same unit.

    Each exchange counts as much as those of its step took so far: under a rate limit all take equally long; if answers
    are waited for, those of slow steps count more.
    """
    steps = counters.steps.values()
    exchanges = sum(step.exchanges for step in steps)
    average = _work_done(counters) / exchanges if exchanges else 1.0
    rows, left = float(counters.rows - counters.rows_done_before), 0.0
    for step in steps:
        of_step = step.busy_seconds / step.exchanges if step.exchanges and step.busy_seconds else average
        left += of_step * step.exchanges_left(rows)
        rows -= step.failed
    return left


def format_large_number(number: int) -> str:
    """Format a large number in about four characters: 1.2M."""
    for letter, factor in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= factor:
            return f"{number / factor:.{1 if number < 100 * factor else 0}f}{letter}"
    return str(number)
