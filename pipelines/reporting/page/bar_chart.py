"""Bar charts in percent of their area, so that labels keep their size at every width; `blocks.html` draws them."""

import math
import re
from collections.abc import Sequence
from typing import ClassVar

from msgspec import Struct

from pipelines.reporting.page.axes import Tick, count_ticks
from pipelines.reporting.page.page_values import Fact

MAX_BAR_WIDTH = 18.0
"""In percent: one or two bars must not fill the area."""
NARROW_AREA = 260
"""Pixels of the area on a telephone."""
CHARACTER_WIDTH = 7
"""Pixels of a character of a label, at most."""
_PLURAL = re.compile(r"^(row|request)s\b")


class Series(Struct, frozen=True):
    """Values of one kind, one for each bar. `css_class`: plain, failed or none."""

    name: str
    """As in the legend and in tooltips, such as `failed requests a second`."""
    values: Sequence[float]
    css_class: str = "plain"


class Bar(Struct, frozen=True):
    """One bar in percent of the area, with its tooltip."""

    x: float
    y: float
    width: float
    height: float
    css_class: str
    title: str


class BarChart(Struct, frozen=True):
    """Vertical bars with their axes; `summary` is read aloud, `caption` is a sequence of facts below the chart."""

    kind: ClassVar[str] = "chart"
    summary: str
    caption: Sequence[Fact | str]
    x_title: str
    y_title: str
    bars: Sequence[Bar]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    legend: Sequence[Series]
    """Empty if there is one series."""


def bar_chart(
    series: Sequence[Series],
    labels: Sequence[str],
    x_ticks: Sequence[Tick],
    x_title: str,
    y_title: str,
    summary: str,
    caption: Sequence[Fact | str] = (),
    is_whole: bool = True,
) -> BarChart:
    """Lay out bars, those of several series one on top of the other. The axis titles name quantity and unit.

    `labels`: what each bar is about, for its tooltip. `is_whole`: the values are counts.
    """
    count = len(labels)
    top, y_ticks = count_ticks(max(map(sum, zip(*(one.values for one in series), strict=True)), default=0), is_whole)
    step = min(MAX_BAR_WIDTH, 100 / max(1, count))
    gap = step * (0.1 if count <= 30 else 0.05)
    bars: list[Bar] = []
    for place, label in enumerate(labels):
        below = 0.0
        for one in series:
            value = one.values[place]
            if value or len(series) == 1:
                height = 100 * value / top
                x, y = place * step + gap / 2, 100 - below - height
                name = _PLURAL.sub(r"\1", one.name) if value == 1 and is_whole else one.name
                title = f"{label}: {value:,.4g} {name}"
                bars.append(Bar(round(x, 3), round(y, 3), round(step - gap, 3), round(height, 3), one.css_class, title))
                below += height
    legend = [one for one in series if any(one.values)] if len(series) > 1 else ()
    return BarChart(summary, caption, x_title, y_title, bars, x_ticks, y_ticks, legend if len(legend) > 1 else ())


def label_ticks(labels: Sequence[str]) -> Sequence[Tick]:
    """Return a tick below the middle of each bar; only every so many if there are more than fit side by side."""
    step = min(MAX_BAR_WIDTH, 100 / max(1, len(labels)))
    longest = max(map(len, labels), default=0) + 1
    every = max(1, math.ceil(longest * CHARACTER_WIDTH / (step / 100 * NARROW_AREA)))
    return [Tick(round((place + 0.5) * step, 2), text) for place, text in enumerate(labels) if place % every == 0]
