"""Rows as a table of plain text that fits a terminal: what is too much for a line goes onto one below it."""

import re
from collections.abc import Iterator, Mapping, Sequence

from pipelines.amounts import money

_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d\+00:00")
_GAP = "  "


def table_words(rows: Sequence[Mapping[str, object]], width: int) -> str:
    """One line a row, numbers to the right. Where the columns do not fit, the last of them are told below the row, each
    with its name; columns that hold nothing are left out."""
    names = [name for name in rows[0] if any(row[name] not in (None, "") for row in rows)] or list(rows[0])
    table = [[_head(name) for name in names], *([_shown(name, row[name]) for name in names] for row in rows)]
    right = [name == "size" or all(isinstance(row[name], int | float | None) for row in rows) for name in names]
    widths = [max(len(cells[place]) for cells in table) for place in range(len(names))]
    fit = len(names)
    while fit > 1 and sum(widths[:fit]) + len(_GAP) * (fit - 1) > width:
        fit -= 1
    lines: list[str] = []
    for number, cells in enumerate(table):
        inner = (
            cell.rjust(wide) if to_the_right else cell.ljust(wide)
            for cell, wide, to_the_right in zip(cells[:fit], widths[:fit], right[:fit], strict=True)
        )
        lines.append(_GAP.join(inner).rstrip())
        if number:
            lines += _below(table[0][fit:], cells[fit:], width)
    return "\n".join(lines)


def _below(heads: Sequence[str], cells: Sequence[str], width: int) -> Iterator[str]:
    line = ""
    for told in (f"{head} {cell}" for head, cell in zip(heads, cells, strict=True) if cell):
        if line and len(line) + len(told) > width - 5:
            yield f"  {line}"
            line = ""
        line = f"{line} · {told}" if line else told
    if line:
        yield f"  {line}"


def _head(name: str) -> str:
    return "cost" if name == "cost_usd" else name.replace("_", " ")


def harmless(text: str) -> str:
    """What others wrote, in one line: characters that a terminal obeys or that turn its direction are shown escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def minutes(text: str) -> str:
    """A moment, as all of a text, to the minute: 2026-11-24 15:00Z."""
    return _MOMENT.sub(r"\1 \2Z", text)


def _shown(name: str, value: object) -> str:
    if value is None:
        return ""
    if name == "cost_usd" and isinstance(value, int | float):
        return money(float(value))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:,.6f}".rstrip("0").rstrip(".")
    if isinstance(value, int):
        return f"{value:,}"
    return minutes(harmless(" ".join(str(value).split())))
