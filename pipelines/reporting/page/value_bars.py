"""Horizontal bars for values that have names: each with its number of rows and its share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pipelines.reporting.page.page_values import Fact


@dataclass(frozen=True, slots=True)
class ValueBar:
    """One value; `percent` is the length of its bar. `css_class`: plain, failed or none."""

    label: str
    count: Fact
    share: str
    percent: float
    css_class: str = "plain"


@dataclass(frozen=True, slots=True)
class ValueBars:
    """Bars one below the other; the titles are those of their columns."""

    kind: ClassVar[str] = "bars"
    caption: str
    value_title: str
    count_title: str
    bars: Sequence[ValueBar]
