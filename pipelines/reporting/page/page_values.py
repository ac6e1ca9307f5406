"""Building blocks of pages: facts, times, shares, tables, panels and cards. `blocks.html` renders and escapes them."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

from msgspec import Struct


class Fact(Struct, frozen=True):
    """A figure that scripts find in the page by its name, with its exact value."""

    kind: ClassVar[str] = "fact"
    name: str
    exact: str
    text: str
    suffix: str = ""


class Share(Struct, frozen=True):
    """A fact drawn as a bar; `percent` is from 0 to 100."""

    kind: ClassVar[str] = "share"
    fact: Fact
    percent: float
    css_class: str = "plain"
    """plain or failed."""


class Time(Struct, frozen=True):
    """A moment in the workspace's time zone."""

    kind: ClassVar[str] = "time"
    iso: str
    text: str


class Items(Struct, frozen=True):
    """Several values in one cell: a bulleted list, or parts on one line."""

    kind: ClassVar[str] = "items"
    parts: tuple[Any, ...]
    is_list: bool = False


class Table(Struct, frozen=True):
    """A table; the first cell of each row is its head. `numbers`: indexes of right-aligned columns."""

    kind: ClassVar[str] = "table"
    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Any]]
    numbers: frozenset[int]
    has_samples: bool = False
    """Whether its cells are values of rows: long texts are cut to a few lines, pictures are small."""


class Figures(Struct, frozen=True):
    """Large figures with their names."""

    kind: ClassVar[str] = "figures"
    facts: Mapping[str, Fact]


class Panel(Struct, frozen=True):
    """A question with its answer: one large figure with what it counts, further facts by name, and a remark."""

    question: str
    figure: Fact
    label: str
    facts: Mapping[str, Any]
    note: str = ""
    css_class: str = ""
    """good or bad: how the figure is coloured."""


class Panels(Struct, frozen=True):
    """Panels side by side."""

    kind: ClassVar[str] = "panels"
    panels: Sequence[Panel]


class Card(Struct, frozen=True):
    """A titled block of a grid, such as the distribution of a column."""

    title: str
    subtitle: str
    blocks: Sequence[Any]
    """Charts, and paragraphs as text or as sequences of facts and text."""
    is_wide: bool = False
    """Whether it takes two columns."""


class Cards(Struct, frozen=True):
    """Cards in a grid that has as many columns as there is room for."""

    kind: ClassVar[str] = "cards"
    cards: Sequence[Card]


class Heading(Struct, frozen=True):
    """A title within a section."""

    kind: ClassVar[str] = "heading"
    text: str


def fact(name: str, value: Any, text: str | None = None, suffix: str = "") -> Fact:
    """A figure with its exact value; `text` is what people read, by default the value itself."""
    shown = "–" if value is None and text is None else text if text is not None else str(format_cell(value))
    return Fact(name, "" if value is None else str(value), shown, suffix)


def format_cell(value: Any) -> Any:
    """A plain value as text; other building blocks and None are returned as they are."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    return format_number(value) if isinstance(value, float) else value


def format_number(value: float) -> str:
    """Four significant digits."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]], caption: str, numbers: frozenset[int]) -> Table:
    """A table with its plain values formatted."""
    return Table(caption, heads, [[format_cell(value) for value in row] for row in rows], numbers)


def time(value: datetime, zone: ZoneInfo) -> Time:
    """A moment to the minute."""
    local = value.astimezone(zone)
    return Time(local.isoformat(timespec="seconds"), f"{local:%Y-%m-%d %H:%M %Z}")
