"""Geometry of a scatter chart in SVG with an interval at each point; `report.html` draws it in the page's colours."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pipelines.reporting.bar_chart import Label, format_tick, round_up

WIDTH = 720
HEIGHT = 340
LEFT = 62
RIGHT = WIDTH - 24
BOTTOM = 50
TOP = 16


@dataclass(frozen=True, slots=True)
class ChartPoint:
    """A value to draw, with the interval of its vertical coordinate."""

    x: float
    y: float
    low: float
    high: float
    name: str
    title: str
    """Its tooltip."""
    is_marked: bool


@dataclass(frozen=True, slots=True)
class PlacedPoint:
    """A point in SVG units."""

    x: float
    y: float
    low: float
    high: float
    name: str
    title: str
    css_class: str


@dataclass(frozen=True, slots=True)
class ScatterChart:
    """A chart with its axes; `summary` is read aloud, `caption` stands below it."""

    kind: ClassVar[str] = "scatter"
    summary: str
    caption: str
    x_title: str
    y_title: str
    points: Sequence[PlacedPoint]
    x_ticks: Sequence[Label]
    y_ticks: Sequence[Label]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def scatter_chart(points: Sequence[ChartPoint], x_title: str, y_title: str, summary: str, caption: str) -> ScatterChart:
    """Lay out points; both axes begin at 0. The axis titles name quantity and unit."""
    x_top = round_up(max((point.x for point in points), default=0) or 1)
    y_top = round_up(max((point.high for point in points), default=0) or 1)

    def x_place(value: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * value / x_top, 1)

    def y_place(value: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value / y_top, 1)

    placed = [
        PlacedPoint(
            x_place(point.x), y_place(point.y), y_place(point.low), y_place(point.high), point.name, point.title,
            "marked" if point.is_marked else "plain",
        )
        for point in points
    ]  # fmt: skip
    shares = (0, 0.25, 0.5, 0.75, 1)
    x_ticks = [Label(x_place(share * x_top), HEIGHT - BOTTOM + 16, format_tick(share * x_top)) for share in shares]
    y_ticks = [Label(LEFT - 6, y_place(share * y_top), format_tick(share * y_top), "end") for share in shares]
    return ScatterChart(summary, caption, x_title, y_title, placed, x_ticks, y_ticks)
