"""Money, time and bytes as people read them."""

import re
from collections.abc import Iterator, Mapping, Sequence


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most so many columns, cut at spaces."""
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return lines


def hanging(text: str, indent: int, width: int) -> list[str]:
    """The same, indented; all lines but the first two columns further."""
    lines = wrapped(text, width - indent - 2)
    return [f"{' ' * (indent + 2 * bool(place))}{line}" for place, line in enumerate(lines)]


def format_money(usd: float | None) -> str:
    """US dollars to two digits that say something, never rounded down to nothing; `not known` for None."""
    if usd is None:
        return "not known"
    if usd == 0 or usd >= 100:
        return f"${usd:,.0f}" if usd else "$0"
    if usd >= 0.1:
        return f"${usd:,.2f}"
    return f"${usd:.4f}" if usd >= 0.001 else f"${usd:.6f}"


def format_duration(seconds: float) -> str:
    """Seconds in words: `40 s`, `12 min`, `3 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:02.0f} min"


def format_bytes(amount: float) -> str:
    """Bytes in words."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if amount >= factor:
            return f"{amount / factor:,.1f} {unit}"
    return f"{amount:,.0f} bytes"


_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d\+00:00")
_GAP = "  "


def format_table(rows: Sequence[Mapping[str, object]], width: int) -> str:
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


def escape_control_characters(text: str) -> str:
    """What others wrote, in one line: characters that a terminal obeys or that turn its direction are shown escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def format_times(text: str) -> str:
    """A moment, as all of a text, to the minute: 2026-11-24 15:00Z."""
    return _MOMENT.sub(r"\1 \2Z", text)


def _shown(name: str, value: object) -> str:
    if value is None:
        return ""
    if name == "cost_usd" and isinstance(value, int | float):
        return format_money(float(value))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:,.6f}".rstrip("0").rstrip(".")
    if isinstance(value, int):
        return f"{value:,}"
    return format_times(escape_control_characters(" ".join(str(value).split())))
