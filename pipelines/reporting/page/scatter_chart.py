"""Scatter charts in percent of their area, with an interval at each point; `blocks.html` draws them."""

from collections.abc import Sequence
from typing import ClassVar

from msgspec import Struct

from pipelines.reporting.page.axes import Tick, count_ticks, number_ticks


class ChartPoint(Struct, frozen=True):
    """A value to draw, with the interval of its vertical coordinate."""

    x: float
    y: float
    low: float
    high: float
    name: str
    title: str
    """Its tooltip."""
    is_marked: bool


class PlacedPoint(Struct, frozen=True):
    """A point in percent of the area."""

    x: float
    y: float
    low: float
    high: float
    name: str
    title: str
    css_class: str


class ScatterChart(Struct, frozen=True):
    """Points with their axes; `summary` is read aloud, `caption` is below the chart."""

    kind: ClassVar[str] = "scatter"
    summary: str
    caption: str
    x_title: str
    y_title: str
    points: Sequence[PlacedPoint]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]


def scatter_chart(points: Sequence[ChartPoint], x_title: str, y_title: str, summary: str, caption: str) -> ScatterChart:
    """Lay out points; both axes begin at 0. The axis titles name quantity and unit."""
    x_top, _ = count_ticks(max((point.x for point in points), default=0), is_whole=False)
    y_top, y_ticks = count_ticks(max((point.high for point in points), default=0), is_whole=False)

    def y_place(value: float) -> float:
        return round(100 * (1 - value / y_top), 2)

    placed = [
        PlacedPoint(
            round(100 * point.x / x_top, 2), y_place(point.y), y_place(point.low), y_place(point.high), point.name,
            point.title, "marked" if point.is_marked else "plain",
        )
        for point in points
    ]  # fmt: skip
    return ScatterChart(summary, caption, x_title, y_title, placed, number_ticks(0, x_top), y_ticks)
