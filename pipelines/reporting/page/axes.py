"""Axes of charts: round steps, tick labels and their places in percent of the axis."""

import math
from collections.abc import Sequence

from msgspec import Struct

from pipelines.formatting import format_duration

MAX_TICKS = 5
"""Intervals between ticks, so that labels fit on a telephone."""
_STEPS = (1, 2, 5, 10)
_SECONDS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400)


class Tick(Struct, frozen=True):
    """A label of an axis; `place` in percent from its beginning: from the left, or from the top."""

    place: float
    text: str
    anchor: str = "middle"
    """As in SVG."""


def round_step(span: float, most: int) -> float:
    """Return the least of 1, 2, 5, 10, 20 … (0.1, 0.2 …) of which at most `most` fit into the span."""
    size = 10.0 ** math.floor(math.log10(span / most)) if span > 0 else 1.0
    return next(size * step for step in _STEPS if size * step * most >= span * (1 - 1e-9))


def format_tick(value: float, step: float = 0.0) -> str:
    """Format a number on an axis: 0.5, 20, 1.5k, 3M. Neighbours at the distance `step` get different labels."""
    if abs(value) >= 1e12 or (value and abs(value) < 1e-6):
        return f"{value:.3g}"
    units = (("bn", 1e9), ("M", 1e6), ("k", 1e3))
    unit, factor = next((one for one in units if abs(value) >= one[1]), ("", 1.0))
    decimals = min(9, max(0, -math.floor(math.log10(step / factor) + 1e-9))) if step else 3
    text = f"{value / factor:.{decimals}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text}{unit}"


def count_ticks(most: float, is_whole: bool = True) -> tuple[float, Sequence[Tick]]:
    """Return (the upper end of an axis from 0, its ticks from the top); `is_whole`: no fractions between ticks."""
    step = round_step(most or 1, 3)
    step = max(1.0, step) if is_whole else step
    count = max(1, math.ceil((most or 1) / step - 1e-9))
    ticks = [
        Tick(round(100 * (1 - place / count), 2), format_tick(place * step, step), "end") for place in range(count + 1)
    ]
    return count * step, ticks


def number_ticks(low: float, high: float) -> Sequence[Tick]:
    """Return ticks at round numbers from `low` to `high`."""
    if high <= low:
        return (Tick(0.0, format_tick(low), "start"),)
    step = round_step(high - low, MAX_TICKS)
    values = [place * step for place in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return [tick_at((value - low) / (high - low), format_tick(value, step)) for value in values]


def duration_ticks(seconds: float) -> Sequence[Tick]:
    """Return ticks at round times from 0."""
    if seconds < MAX_TICKS:
        step = round_step(seconds, MAX_TICKS)
    else:
        days = math.ceil(seconds / MAX_TICKS / 86_400) * 86_400
        step = next((step for step in _SECONDS if step * MAX_TICKS >= seconds), days)
    count = math.floor(seconds / step + 1e-9)
    names = [
        f"{place * step:.3g} s" if step < 60 and seconds < 100 else format_duration(place * step)
        for place in range(count + 1)
    ]
    return [tick_at(place * step / seconds, name) for place, name in enumerate(names)]


def tick_at(share: float, text: str) -> Tick:
    """Return a tick of a horizontal axis; a label at an end stays within the chart."""
    return Tick(round(100 * share, 2), text, "start" if share < 0.01 else "end" if share > 0.96 else "middle")
