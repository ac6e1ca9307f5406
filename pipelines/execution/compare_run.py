"""`run --compare`: new answers for the first rows next to those in the sink, which does not change."""

from typing import TYPE_CHECKING, Any

import orjson
from msgspec.structs import replace

from connectors.errors import JobError
from pipelines.config.loaded_job import LoadedJob
from pipelines.config.overrides import NONE
from pipelines.execution.trial_run import read_outputs, run_trial
from pipelines.formatting import DataTable, cut, format_count, single_line
from pipelines.runtime.run_options import RunOptions
from pipelines.runtime.run_report import ComparedRow, RunReport

if TYPE_CHECKING:
    from rich.console import RenderableType

MAX_VALUE_CHARACTERS = 60


def compare_run(loaded: LoadedJob, options: RunOptions) -> RunReport:
    """Run the first rows and return a report with `compared`: the key, old and new outputs of each row.

    The answers are paid for once: a later run with the same requests finds them in the ledger. They appear in the
    usage table of a separate job, `<name>-compare`.
    """
    overrides = loaded.overrides
    if overrides.limit is None:
        raise JobError("--compare", "requests every row again without a limit", "add --limit N, e.g. --limit 20")
    if overrides.sink is not None:
        raise JobError("--compare", "writes nothing, so --sink has no effect", "leave one of them out")
    trial = run_trial(loaded, "compare", options)
    old = read_outputs(loaded.with_overrides(NONE))
    return replace(trial.report, compared=[ComparedRow(key, old.get(key), row) for key, row in trial.outputs.items()])


def format_comparison(report: RunReport) -> "RenderableType":
    """Draw old and new outputs side by side, one a line; long texts are cut."""
    from rich.console import Group
    from rich.text import Text

    rows = report.compared or ()
    lines: list[dict[str, object]] = []
    for row in rows:
        old = row.old or {}
        for name, value in row.new.items():
            before = _short_value(old[name]) if name in old else "(none)"
            is_same = name in old and old[name] == value
            new, differs = _short_value(value), "" if is_same else "yes"
            lines.append({"key": row.key, "output": name, "differs": differs, "old": before, "new": new})
    changed = sum(line["differs"] == "yes" for line in lines)
    heading = Text(f"{report.job}: {format_count(len(rows), 'row')}; nothing was written", style="bold")
    table: list[RenderableType] = ["", DataTable(lines, wrapped="new")] if lines else []
    return Group(heading, *table, "", f"{changed} of {format_count(len(lines), 'value')} differ")


def _short_value(value: Any) -> str:
    if isinstance(value, list) and len(value) > 8:
        return f"[{len(value)} values]"
    is_nested = isinstance(value, list | dict)
    text = "null" if value is None else single_line(orjson.dumps(value, default=str).decode() if is_nested else value)
    return cut(text, MAX_VALUE_CHARACTERS)
