"""The screens of `rowmill status`, `errors` and `usage`."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from pipelines.formatting import (
    DataTable,
    escape_control_characters,
    fact_list,
    format_count,
    format_duration,
    format_percent,
    single_line,
)
from pipelines.reporting.status_queries import FailedRows

if TYPE_CHECKING:
    from rich.console import RenderableType

STATES = {
    0: "done",
    1: "some failed",
    2: "error",
    3: "stopped",
    4: "locked",
    5: "audit failed",
    130: "interrupted",
}
"""By exit code."""
MAX_GROUPS = 20
"""Causes of failed rows in one table: the message of a check that a value breaks may differ for every row."""
NON_KEY_COLUMNS = 5
"""Columns of a failed row after those of its key: step, class, status, attempts, message."""


def format_status(rows: Sequence[Mapping[str, Any]], now: datetime) -> "RenderableType":
    """Draw one row a job; below the table why it stopped, what it waits for, and what limits it."""
    from rich.console import Group

    table = [
        {
            "job": row["job"],
            "state": _state(row),
            "rows done": "" if row["rows"] is None else f"{row['rows_ok']:,}/{row['rows']:,}",
            "failed": row["rows_failed"],
            "cost_usd": row["cost_usd"],
            "started": format_age(now - datetime.fromisoformat(row["started"])),
        }
        for row in rows
    ]
    notes = {row["job"]: note for row in rows if (note := _note(row))}
    below: list[RenderableType] = ["", fact_list(notes.items())] if notes else []
    return Group(DataTable(table), *below)


def format_errors(failed: FailedRows, job: str, path: str) -> "RenderableType":
    """Draw how many rows failed by step and class, then the first failed rows, then the next commands."""
    from rich.console import Group
    from rich.text import Text

    names = list(failed.rows[0])
    keys = names[:-NON_KEY_COLUMNS]
    more = failed.total - len(failed.rows)
    shown_key = single_line(failed.rows[0][keys[0]]) if len(keys) == 1 else "KEY"
    # A terminal has the messages, and no room for the cause next to the class.
    groups = [{name: value for name, value in group.items() if name != "cause"} for group in failed.groups]
    commands = {"next": f"rowmill show {path} {shown_key}", "": f"rowmill retry {path}"}
    unnamed = sum(int(str(group["rows"])) for group in groups[MAX_GROUPS:])
    return Group(
        Text(f"{job}: {format_count(failed.source_rows, 'row')} failed", style="bold"),
        "",
        DataTable(groups[:MAX_GROUPS], wrapped="message"),
        *([f"… and {format_count(unnamed, 'row')} of other causes"] if unnamed else []),
        "",
        DataTable(failed.rows, wrapped=names[-1]),
        *([f"… and {more:,} more (--limit N)"] if more else []),
        "",
        fact_list(commands.items()),
    )


def format_usage(rows: Sequence[Mapping[str, Any]]) -> "RenderableType":
    """Draw requests, tokens and cost by group, with a total if there are several groups."""
    from rich.console import Group

    table = [{name: value for name, value in row.items() if name != "unpriced"} for row in rows]
    by, *counted = table[0]
    known = {name: [row[name] for row in table if row[name] is not None] for name in counted}
    total = {by: "total", **{name: sum(values) if values else None for name, values in known.items()}}
    unpriced = sum(row["unpriced"] for row in rows)
    parts: list[RenderableType] = [DataTable(table, total=total if len(table) > 1 else None)]
    if unpriced:
        requests = format_count(unpriced, "request")
        parts += ["", f"not in the cost: {requests} without a price; add it to `prices:` in rowmill.yaml"]
    return Group(*parts)


def _state(row: Mapping[str, Any]) -> str:
    if row["state"] != "running":
        return "killed" if row["exit_code"] is None else STATES.get(row["exit_code"], "killed")
    state = "running" if row["paused_since"] is None else "paused"
    if not row["rows"]:
        return state
    # Of the rows that the next column counts.
    return f"{state} {format_percent(row['rows'] - row['rows_left'], row['rows'])}"


def _note(row: Mapping[str, Any]) -> str:
    left = None if row["seconds_left"] is None else f"about {format_duration(row['seconds_left'])} left"
    bottleneck = row["bound_by"] and f"bound by {row['bound_by']}"
    notes = filter(None, (row["held"] or row["stopped"] or left, bottleneck))
    return "\n".join(map(escape_control_characters, notes))


def format_age(age: timedelta) -> str:
    """Format how long ago something was: `5 min ago`."""
    if age < -timedelta(minutes=1):
        return "in the future"  # The clock was wrong then, or is now.
    seconds = max(0, int(age.total_seconds()))
    for unit, factor in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= factor:
            return f"{seconds // factor} {unit} ago"
    return "just now"
