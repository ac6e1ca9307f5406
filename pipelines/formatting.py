"""Tables, money, times and bytes as people read them; `rich` draws, and is imported when it is needed."""

import io
import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table

UNLIMITED_COLUMNS = 100_000
"""The width of output that no terminal shows: nothing is wrapped or cut."""
MIN_WRAPPED_COLUMNS = 24
"""A column whose text may wrap is never narrower."""
HEADINGS = {
    "cost_usd": "cost",
    "input_tokens": "tokens in",
    "output_tokens": "tokens out",
    "error_class": "class",
    "http_status": "http",
}
"""Headings of columns; other columns have their name, with spaces."""


def render(content: "RenderableType", width: int = UNLIMITED_COLUMNS, is_terminal: bool = False) -> str:
    """Draw content as text, in colour for a terminal."""
    from rich.console import Console

    console = Console(
        file=io.StringIO(),
        width=width,
        force_terminal=is_terminal,
        color_system="auto" if is_terminal else None,
        markup=False,
        emoji=False,
        highlight=False,
    )
    with console.capture() as captured:
        console.print(content)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def print_out(content: "RenderableType") -> None:
    """Print content on stdout: within the width of a terminal; if it is none, plain and uncut unless COLUMNS is set."""
    is_terminal = sys.stdout.isatty()
    has_width = is_terminal or "COLUMNS" in os.environ
    width = shutil.get_terminal_size().columns if has_width else UNLIMITED_COLUMNS
    encoding = sys.stdout.encoding or "utf-8"
    text = render(content, width, is_terminal).encode(encoding, "replace").decode(encoding)
    print(text, flush=True)  # noqa: T201


class DataTable:
    """A table of rows; if it is wider than the terminal, a block of lines for each row.

    Numbers and sizes are right-aligned, columns without a value are left out, `cost_usd` is money of one precision.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, object]],
        wrapped: str = "",
        total: Mapping[str, object] | None = None,
        decimals: int | None = None,
    ) -> None:
        """`wrapped`: a column of text that may wrap. `total`: a row below the others. `decimals`: of `cost_usd`."""
        every = [*rows, *([] if total is None else [total])]
        names = list(rows[0])
        self._names = [name for name in names if any(row.get(name) not in (None, "") for row in every)] or names
        if decimals is None:
            decimals = money_decimals(row.get("cost_usd") for row in every)
        self._cells = [[_format_cell(name, row.get(name), decimals) for name in self._names] for row in every]
        self._headings = [_format_heading(name) for name in self._names]
        self._wrapped = wrapped
        self._has_total = total is not None

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        yield self._table() if self._min_width() <= options.max_width else self._blocks()

    def _min_width(self) -> int:
        from rich.cells import cell_len

        widths = [max(map(cell_len, column)) for column in zip(self._headings, *self._cells, strict=True)]
        if self._wrapped in self._names:
            place = self._names.index(self._wrapped)
            widths[place] = min(widths[place], MIN_WRAPPED_COLUMNS)
        return sum(widths) + 2 * (len(widths) - 1)

    def _table(self) -> "Table":
        table = new_table(footer=self._has_total)
        body = self._cells[:-1] if self._has_total else self._cells
        for place, name in enumerate(self._names):
            is_number = all(_NUMBER.fullmatch(cells[place]) for cells in self._cells if cells[place])
            table.add_column(
                self._headings[place],
                footer=self._cells[-1][place] if self._has_total else "",
                justify="right" if is_number else "left",
                no_wrap=name != self._wrapped,
                overflow="fold",
            )
        for cells in body:
            table.add_row(*cells)
        return table

    def _blocks(self) -> "RenderableType":
        from rich.console import Group
        from rich.padding import Padding
        from rich.text import Text

        blocks: list[RenderableType] = []
        for first, *others in self._cells:
            facts = [fact for fact in zip(self._headings[1:], others, strict=True) if fact[1]]
            blocks += [Text(first, style="bold"), Padding(fact_list(facts), (0, 0, 0, 2))]
        return Group(*blocks)


def new_table(footer: bool = False) -> "Table":
    """Return an empty table in the style of all screens: a rule below the headings and one above a footer."""
    from rich import box
    from rich.table import Table

    return Table(
        box=box.SIMPLE if footer else box.SIMPLE_HEAD,
        show_edge=False,
        show_footer=footer,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
        footer_style="bold",
        border_style="dim",
    )


def fact_list(facts: Iterable[tuple[str, str]], is_cut: bool = False) -> "Table":
    """Draw a name and a value a line; a value that is too long wraps below itself, or is cut on a terminal."""
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    rows = list(facts)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True, min_width=max((cell_len(name) for name, _ in rows), default=0))
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value, no_wrap=True, overflow="ellipsis") if is_cut else value)
    return table


def money_decimals(amounts: Iterable[object]) -> int:
    """Return how many decimals the amounts of one screen have, so that small ones keep two digits that matter."""
    known = [abs(amount) for amount in amounts if isinstance(amount, int | float) and amount]
    if not known:
        return 2
    wanted = next((decimals for decimals, least in ((2, 0.1), (4, 0.001)) if min(known) >= least), 6)
    allowed = next((decimals for decimals, most in ((2, 100), (4, 1)) if max(known) >= most), 6)
    return min(wanted, allowed)


def format_money(usd: float | None, decimals: int | None = None) -> str:
    """Format US dollars, never rounded down to nothing; without `decimals` as many as this amount needs."""
    if usd is None:
        return "not known"
    places = money_decimals([usd]) if decimals is None else decimals
    least = 10**-places
    return f"<${least:.{places}f}" if 0 < usd < least / 2 else f"${usd:,.{places}f}"


def format_duration(seconds: float) -> str:
    """Format seconds no finer than an estimate can be: `40 s`, `2 min 50 s`, `12 min`, `3 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60 // 10 * 10:02d} s"
    if whole < 5400:
        return f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_bytes(amount: float) -> str:
    """Format a number of bytes: `311.9 MB`."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if amount >= factor:
            return f"{amount / factor:,.1f} {unit}"
    return f"{amount:,.0f} bytes"


def format_percent(done: int, total: int) -> str:
    """Format a part of a total: `42 %`; 100 % only if nothing is left."""
    return f"{100 if done >= total else min(99, round(100 * done / total))} %"


def format_count(number: int, noun: str) -> str:
    """Format a number of things: `1 row`, `3,000 rows`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def escape_control_characters(text: str) -> str:
    """Escape the characters of foreign text that a terminal obeys or that change the direction of writing."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def single_line(value: object) -> str:
    """Return a value of foreign text in one line, without control characters; empty for None."""
    return "" if value is None else escape_control_characters(" ".join(str(value).split()))


_NUMBER = re.compile(r"[<~$]*[\d.,/]+( (%|s|ms|bytes|kB|MB|GB))?")
_ISO_TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d\+00:00")


def cut(text: str, characters: int) -> str:
    """Return the text, with an ellipsis at its end if it has more characters."""
    return text if len(text) <= characters else f"{text[: characters - 1]}…"


def shorten_times(text: str) -> str:
    """Shorten each ISO time in a text to the minute: 2026-11-24 15:00Z."""
    return _ISO_TIME.sub(r"\1 \2Z", text)


def _format_heading(name: str) -> str:
    return HEADINGS.get(name) or name.replace("_", " ")


def _format_cell(name: str, value: object, decimals: int) -> str:
    if name == "cost_usd" and isinstance(value, int | float):
        return format_money(float(value), decimals)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:,.6f}".rstrip("0").rstrip(".")
    if isinstance(value, int):
        return f"{value:,}"
    return shorten_times(single_line(value))
