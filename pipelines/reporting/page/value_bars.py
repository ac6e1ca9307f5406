"""Horizontal bars for values that have names: each with its number of rows and its share."""

from collections.abc import Sequence
from typing import ClassVar

from msgspec import Struct

from pipelines.reporting.page.page_values import Fact


class ValueBar(Struct, frozen=True):
    """One value; `percent` is the length of its bar. `css_class`: plain, failed or none."""

    label: str
    count: Fact
    share: str
    percent: float
    css_class: str = "plain"


class ValueBars(Struct, frozen=True):
    """Bars one below the other; the titles are those of their columns."""

    kind: ClassVar[str] = "bars"
    caption: str
    value_title: str
    count_title: str
    bars: Sequence[ValueBar]
