"""Geometry of a bar chart in SVG; `report.html` draws it in the page's colours."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pipelines.reporting.page_values import Fact

WIDTH = 720
HEIGHT = 200
LEFT = 62
BOTTOM = 46
TOP = 16
MAX_BAR_WIDTH = 130.0
MAX_LABELLED_BARS = 5
"""Up to so many bars all have a label; of more, the first, middle and last."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar in SVG units, with its tooltip."""

    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True, slots=True)
class Label:
    """A text of an axis; `anchor` as in SVG."""

    x: float
    y: float
    text: str
    anchor: str = "middle"


@dataclass(frozen=True, slots=True)
class BarChart:
    """A chart with its axes; `summary` is read aloud, `caption` is a sequence of facts below it."""

    kind: ClassVar[str] = "chart"
    summary: str
    caption: Sequence[Fact | str]
    x_title: str
    y_title: str
    bars: Sequence[Bar]
    ticks: Sequence[Label]
    """Labels of the vertical axis; a grid line is drawn at each."""
    labels: Sequence[Label]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - 8


def bar_chart(
    values: Sequence[float],
    labels: Sequence[str],
    x_title: str,
    y_title: str,
    summary: str,
    caption: Sequence[Fact | str],
) -> BarChart:
    """Lay out one bar for each value. The axis titles name quantity and unit."""
    top = round_up(max(values, default=0) or 1)
    inner_width, inner_height = WIDTH - LEFT - 8, HEIGHT - BOTTOM - TOP
    width = min(MAX_BAR_WIDTH, inner_width / max(1, len(values)))
    gap = min(2.0, width * 0.2)
    bars = [
        Bar(
            round(LEFT + place * width + gap / 2, 1),
            round(TOP + inner_height * (1 - value / top), 1),
            round(width - gap, 1),
            round(inner_height * value / top, 1),
            f"{labels[place]}: {value:,.4g} {y_title}",
        )
        for place, value in enumerate(values)
    ]
    ticks = [
        Label(LEFT - 6, round(TOP + inner_height * (1 - share), 1), format_tick(share * top), "end")
        for share in (0, 0.5, 1)
    ]
    last = len(values) - 1
    is_crowded = len(values) > MAX_LABELLED_BARS
    labelled = sorted({0, len(values) // 2, last}) if is_crowded else range(len(values))
    below = [
        Label(
            round(LEFT + (place + 0.5) * width, 1),
            HEIGHT - BOTTOM + 16,
            labels[place],
            "middle" if not is_crowded else "start" if place == 0 else "end" if place == last else "middle",
        )
        for place in labelled
    ]
    return BarChart(summary, caption, x_title, y_title, bars, ticks, below)


def format_tick(value: float) -> str:
    """A number on an axis: 0.5, 20, 1.5k."""
    return f"{value / 1000:.3g}k" if value >= 1000 else f"{value:.3g}"


def round_up(value: float) -> float:
    """The next of 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 15 … ."""
    size = 1.0
    while size * 10 <= value:
        size *= 10
    while size > value * 10:
        size /= 10
    return next(size * step for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if size * step >= value)
