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
ERROR_HEADINGS = ("step", "class", "http", "attempts", "message")


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
            "started": _age(now - datetime.fromisoformat(row["started"])),
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

    groups = [
        {
            "rows": group["rows"],
            "step": group["step"],
            "class": group["error_class"],
            "http": group["http_status"],
            "message": group["message"],
        }
        for group in failed.groups
    ]
    # The columns of the key, then these five; a key column of the same name keeps its own heading.
    names = list(failed.rows[0])
    keys = names[:-5]
    facts = [name if short in keys else short for name, short in zip(names[-5:], ERROR_HEADINGS, strict=True)]
    rows = [dict(zip([*keys, *facts], row.values(), strict=True)) for row in failed.rows]
    more = failed.total - len(rows)
    shown_key = single_line(failed.rows[0][keys[0]]) if len(keys) == 1 else "KEY"
    commands = {"next": f"rowmill show {path} {shown_key}", "": f"rowmill retry {path}"}
    return Group(
        Text(f"{job}: {format_count(failed.total, 'row')} failed", style="bold"),
        "",
        DataTable(groups, wrapped="message"),
        "",
        DataTable(rows, wrapped=facts[-1]),
        *([f"… and {more:,} more (--limit N)"] if more else []),
        "",
        fact_list(commands.items()),
    )


def format_usage(rows: Sequence[Mapping[str, Any]]) -> "RenderableType":
    """Draw requests, tokens and cost by group, with a total if there are several groups."""
    from rich.console import Group

    headings = {"input_tokens": "tokens in", "output_tokens": "tokens out"}
    table = [{headings.get(name, name): value for name, value in row.items() if name != "unpriced"} for row in rows]
    by, *counted = table[0]
    total = {by: "total", **{name: sum(row[name] or 0 for row in table) for name in counted}}
    unpriced = sum(row["unpriced"] for row in rows)
    parts: list[RenderableType] = [DataTable(table, total=total if len(table) > 1 else None)]
    if unpriced:
        requests = format_count(unpriced, "request")
        parts += ["", f"not in the cost: {requests} without a price; add it to `prices:` in rowmill.yaml"]
    return Group(*parts)


def _state(row: Mapping[str, Any]) -> str:
    if row["state"] != "running":
        return "killed" if row["exit_code"] is None else STATES.get(row["exit_code"], "killed")
    if not row["rows"]:
        return "running"
    # Of the rows that the next column counts.
    return f"running {format_percent(row['rows'] - row['rows_left'], row['rows'])}"


def _note(row: Mapping[str, Any]) -> str:
    left = None if row["seconds_left"] is None else f"about {format_duration(row['seconds_left'])} left"
    bottleneck = row["bound_by"] and f"bound by {row['bound_by']}"
    notes = filter(None, (row["held"] or row["stopped"] or left, bottleneck))
    return "\n".join(map(escape_control_characters, notes))


def _age(age: timedelta) -> str:
    seconds = max(0, int(age.total_seconds()))
    for unit, factor in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= factor:
            return f"{seconds // factor} {unit} ago"
    return "just now"
