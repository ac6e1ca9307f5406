"""Runs and errors as a person reads them: one line a job, errors by class before single rows."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from pipelines.formatting import escape_control_characters, format_money, hanging
from pipelines.monitoring.progress import format_time_left
from pipelines.reporting.status_queries import FailedRows

ENDS = {
    0: "done",
    1: "some failed",
    2: "mistake",
    3: "stopped",
    4: "locked",
    5: "audit failed",
    130: "interrupted",
}
"""By exit code."""


def format_status(rows: Sequence[Mapping[str, Any]], now: datetime, width: int = 80) -> str:
    """A line for each job; below it why it stopped, what holds it, or what comes next."""
    table = [("job", "state", "rows done", "failed", "cost", "begun")]
    below: list[list[str | None]] = [[]]
    for row in rows:
        done = "" if row["rows"] is None else f"{row['rows_ok']:,}/{row['rows']:,}"
        failed = "" if row["rows_failed"] is None else f"{row['rows_failed']:,}"
        begun = _ago(now - datetime.fromisoformat(row["started"]))
        table.append(
            (
                row["job"],
                _state(row),
                done,
                failed,
                "" if row["cost_usd"] is None else format_money(row["cost_usd"]),
                begun,
            )
        )
        left = None if row["seconds_left"] is None else f"about {format_time_left(row['seconds_left'])} left"
        bound = f"bound by: {row['bound_by']}" if row["bound_by"] else None
        below.append([row["held"] or row["stopped"] or left, bound])
    lines: list[str] = []
    for cells, why in zip(_aligned(table, frozenset({2, 3, 4})), below, strict=True):
        lines.append(cells)
        lines += [line for told in why if told for line in hanging(escape_control_characters(told), 2, width)]
    return "\n".join(lines)


def format_errors(failed: FailedRows, job: str, width: int) -> str:
    """First how many rows failed and why, then the first of them."""
    lines = [f"{failed.total:,} rows failed" if failed.total != 1 else "1 row failed", ""]
    told = ("step", "error_class", "http_status", "message")
    groups: list[tuple[str, ...]] = [("rows", "step", "class", "http", "message")]
    groups += [(f"{group['rows']:,}", *(_text(group[name]) for name in told)) for group in failed.groups]
    lines += [line[:width] for line in _aligned(groups, frozenset({0}))]
    names = list(failed.rows[0])
    rows = [tuple(names), *(tuple(_text(row[name]) for name in names) for row in failed.rows)]
    lines += ["", *(line if len(line) <= width else line[: width - 1] + "…" for line in _aligned(rows, frozenset()))]
    if failed.total > len(failed.rows):
        lines.append(f"… and {failed.total - len(failed.rows):,} more (--limit N)")
    key = _text(failed.rows[0][names[0]]) if len(names) == 6 else "KEY"
    lines += ["", f"next: rowmill show {job} {key or 'KEY'}", f"      rowmill retry {job}"]
    return "\n".join(lines)


def _state(row: Mapping[str, Any]) -> str:
    if row["state"] != "running":
        return ENDS.get(row["exit_code"], "cut short") if row["exit_code"] is not None else "cut short"
    share = "" if row["share_done"] is None else f" {100 * row['share_done']:.0f} %"
    return f"running{share}"


def _ago(past: Any) -> str:
    seconds = max(0, int(past.total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return "just now"


def _text(value: Any) -> str:
    return "" if value is None else escape_control_characters(" ".join(str(value).split()))


def _aligned(rows: Sequence[Sequence[str]], to_the_right: frozenset[int]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.rjust(width) if column in to_the_right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
