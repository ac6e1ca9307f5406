"""Distributions of answers as cards of a page: a chart with titled axes, and what it does not show in a sentence."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any

from pipelines.formatting import format_count
from pipelines.reporting.column_summaries import ColumnSummary, Histogram, ValueCounts
from pipelines.reporting.page.axes import Tick, format_tick, number_ticks, tick_at
from pipelines.reporting.page.bar_chart import BarChart, Series, bar_chart, label_ticks
from pipelines.reporting.page.page_values import Card, Cards, fact, format_number
from pipelines.reporting.page.value_bars import ValueBar, ValueBars

MAX_CARDS = 24
MAX_LABELLED_VALUES = 12
"""Whole numbers of a smaller range have a label below each bar."""
MAX_LABEL_CHARACTERS = 40
MIN_FREQUENT_SHARE = 0.01
"""Of the texts of a column: a text that is less frequent is not worth naming."""
AXIS_TITLES = {
    "value": "value",
    "characters": "length in characters",
    "items": "items in the list",
    "entries": "entries",
    "bytes": "size in bytes",
    "norm": "length of the vector (its norm)",
    "seconds since 1970": "time (UTC)",
}
FAMILY_NAMES = {
    "boolean": "true or false",
    "list": "list",
    "vector": "vector",
    "record": "record",
    "other": "",
}
"""Names of families that are not their own."""
COUNTED_TITLES = {
    "rows": ("value", "rows"),
    "elements": ("element", "times"),
    "fields": ("field", "rows with a value"),
    "files": ("kind of file", "rows"),
}


def distribution_cards(columns: Iterable[ColumnSummary]) -> tuple[Cards, int] | None:
    """Return a card for each column that has a distribution, and how many there was no room for; None without any."""
    cards = [_card(column) for column in columns if column.distributions]
    return (Cards(cards[:MAX_CARDS]), max(0, len(cards) - MAX_CARDS)) if cards else None


def _card(column: ColumnSummary) -> Card:
    family = FAMILY_NAMES.get(column.family, column.family)
    kind = f"{family} of {column.numbers:,} numbers" if column.numbers is not None else family
    blocks: list[Any] = [_drawn(column, one) for one in column.distributions]
    notes = [note for note in (_range(column), _absent(column), _frequent(column), _extremes(column)) if note]
    if column.rows < column.table_rows:
        notes.append(f"Of the first {column.rows:,} rows of {column.table_rows:,}.")
    return Card(column.name, kind, [*blocks, *notes])


def _drawn(column: ColumnSummary, distribution: ValueCounts | Histogram) -> BarChart | ValueBars:
    if isinstance(distribution, ValueCounts):
        return _value_bars(column, distribution)
    return _histogram(column, distribution)


def _value_bars(column: ColumnSummary, values: ValueCounts) -> ValueBars:
    present = column.rows - column.nulls
    whole = column.rows if values.counted == "rows" else present
    if values.counted == "elements":
        whole = sum(count for _, count in values.counts) + values.other_count
    names = short_names([label for label, _ in values.counts])
    listed = [
        (name or "(empty text)", label, count, "plain")
        for name, (label, count) in zip(names, values.counts, strict=True)
    ]
    if values.other_count:
        listed.append((format_count(values.other_values, "other value"), "(others)", values.other_count, "absent"))
    if values.counted == "rows" and column.nulls:
        listed.append(("(no value)", "(no value)", column.nulls, "absent"))
    bars = [
        ValueBar(
            shown,
            fact(f"values.{column.name}.{'' if values.counted == 'rows' else f'{values.counted}.'}{label}", count),
            _percent(count, whole),
            round(100 * count / whole, 2) if whole else 0.0,
            css_class,
        )
        for shown, label, count, css_class in listed
    ]
    value_title, count_title = COUNTED_TITLES[values.counted]
    caption = f"Of {format_count(whole, 'element' if values.counted == 'elements' else 'row')}"
    return ValueBars(caption, value_title, count_title, bars)


def _histogram(column: ColumnSummary, histogram: Histogram) -> BarChart:
    """Draw the ranges, and one more bar at an end for values beyond it."""
    low, width, count = histogram.low, histogram.width, len(histogram.counts)
    high = low + width * count
    is_time = histogram.quantity == "seconds since 1970"
    is_single = histogram.is_whole and width == 1
    name = _moment_namer(high - low) if is_time else format_number
    unit = "" if histogram.quantity in ("value", "norm") or is_time else f" {histogram.quantity}"
    edges = [low + place * width for place in range(count)]
    labels = [
        f"{name(edge)}{unit}" if is_single or count == 1
        else f"{name(edge)} to {name(edge + width - 1 if histogram.is_whole else edge + width)}{unit}"
        for edge in edges
    ]  # fmt: skip
    values = [*histogram.counts]
    before = 1 if histogram.below else 0
    if histogram.below:
        values.insert(0, histogram.below)
        labels.insert(0, f"less than {name(low)}{unit}")
    if histogram.above:
        values.append(histogram.above)
        labels.append(f"{'more than' if not is_single else 'over'} {name(high - 1 if is_single else high)}{unit}")
    inside = [0.0 if place < before or place >= before + count else float(n) for place, n in enumerate(values)]
    beyond = [float(n) - shown for n, shown in zip(values, inside, strict=True)]
    series = [Series("rows", inside)]
    if any(beyond):
        series.append(Series("rows, beyond this range", beyond, "absent"))
    fullest = labels[values.index(max(values))]
    rows = format_count(sum(values), "row")
    summary = f"{column.name}: {AXIS_TITLES[histogram.quantity]} of {rows}; most of them {fullest}"
    ticks = _ticks(histogram, labels, before, len(values), is_time)
    return bar_chart(series, labels, ticks, AXIS_TITLES[histogram.quantity], "rows", summary)


def _ticks(histogram: Histogram, labels: Sequence[str], before: int, bars: int, is_time: bool) -> Sequence[Tick]:
    low, width, count = histogram.low, histogram.width, len(histogram.counts)
    if count == 1 or (histogram.is_whole and width == 1 and bars <= MAX_LABELLED_VALUES):
        names = [format_tick(low + place - before) for place in range(bars)]
        if before:
            names[0] = f"<{format_tick(low)}"
        if histogram.above:
            names[-1] = f">{format_tick(low + count - 1)}"
        return label_ticks(names)
    high = low + width * count
    if is_time:
        name = _moment_namer(high - low)
        inner = [tick_at(share, name(low + share * (high - low))) for share in (0.0, 0.5, 1.0)]
    else:
        inner = list(number_ticks(low, high))
    shift = 0.5 if histogram.is_whole and width == 1 else 0.0
    return [
        tick_at((before + tick.place / 100 * count + shift) / bars, tick.text)
        for tick in inner
        if tick.place < 100 or not shift
    ]


def _range(column: ColumnSummary) -> str:
    """Median and extremes, unless each value is shown with its count."""
    median = next((one.median for one in column.distributions if isinstance(one, Histogram)), None)
    if median is None:
        return ""
    if column.family == "vector":
        zeros = f"{format_count(column.zero_vectors, 'vector')} of zeros only. " if column.zero_vectors else ""
        return f"{zeros}Median norm {format_number(median)}."
    if column.family == "time":
        return f"From {column.least} to {column.most}."
    unit = f" {column.unit}" if column.unit else ""
    return f"Median {_number(median)}, from {_number(column.least)} to {_number(column.most)}{unit}."


def _absent(column: ColumnSummary) -> str:
    is_shown = any(isinstance(one, ValueCounts) and one.counted == "rows" for one in column.distributions)
    if not column.nulls or is_shown:
        return ""
    return f"No value in {format_count(column.nulls, 'row')} ({_percent(column.nulls, column.rows)})."


def _frequent(column: ColumnSummary) -> str:
    """The most frequent texts: an answer that is always the same is seldom a good one."""
    if column.family != "text" or not isinstance(column.distributions[0], Histogram):
        return ""
    present = column.rows - column.nulls
    about = "about " if column.is_distinct_estimated else ""
    different = "" if column.distinct is None else f"{about}{column.distinct:,} of {present:,} texts are different."
    often = [(text, count) for text, count in column.frequent if count >= MIN_FREQUENT_SHARE * present and count > 2]
    if not often:
        return different.capitalize()
    named = ", ".join(f"“{_cut(text)}” ({count:,} times)" for text, count in often[:2])
    return f"{different.capitalize()} Most frequent: {named}."


def _extremes(column: ColumnSummary) -> str:
    beyond = sum(one.below + one.above for one in column.distributions if isinstance(one, Histogram))
    return f"Grey: {format_count(beyond, 'row')} far from the others." if beyond else ""


def _moment_namer(span: float) -> Any:
    form = "%Y-%m-%d" if span >= 2 * 86_400 else "%m-%d %H:%M" if span >= 600 else "%H:%M:%S"
    return lambda value: datetime.fromtimestamp(value, UTC).strftime(form)


def _number(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return "–" if value is None else format_number(float(value))


def _percent(count: int, whole: int) -> str:
    """Format a share; what is not nothing is never 0 %."""
    share = 100 * count / whole if whole else 0.0
    return "<0.1 %" if 0 < share < 0.05 else f"{share:.1f} %"


def short_names(labels: Sequence[str]) -> Sequence[str]:
    """Cut labels so that they stay different: those with the same beginning by what follows it."""
    names = [_cut(label) for label in labels]
    alike: dict[str, list[str]] = {}
    for name, label in zip(names, labels, strict=True):
        alike.setdefault(name, []).append(" ".join(label.split()))
    return [
        name if len(alike[name]) == 1 else _cut_after(" ".join(label.split()), _same_beginning(alike[name]))
        for name, label in zip(names, labels, strict=True)
    ]


def _same_beginning(texts: Sequence[str]) -> int:
    """Return how many characters all texts begin with."""
    return sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False)))


def _cut_after(text: str, same: int) -> str:
    """Cut the middle of a text, so that what follows its first `same` characters is shown."""
    begin = max(MAX_LABEL_CHARACTERS // 4, same - MAX_LABEL_CHARACTERS // 4)
    return f"{text[: MAX_LABEL_CHARACTERS // 4]}…{_cut(text[begin:])}"


def _cut(text: str) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= MAX_LABEL_CHARACTERS else f"{one_line[:MAX_LABEL_CHARACTERS]}…"
