"""`run --compare`: new answers for the first rows next to those in the sink, which does not change."""

from dataclasses import replace
from typing import Any

from connectors.errors import JobError
from pipelines.config.loaded_job import LoadedJob
from pipelines.config.overrides import NONE
from pipelines.execution.trial_run import read_outputs, run_trial
from pipelines.formatting import escape_control_characters
from pipelines.runtime.run_options import RunOptions
from pipelines.runtime.run_report import ComparedRow, RunReport


def compare_run(loaded: LoadedJob, options: RunOptions) -> RunReport:
    """Run the first rows and return a report with `compared`: the key, old and new outputs of each row.

    The answers are paid for once: a later run with the same requests finds them in the ledger. They appear in the
    usage table of a separate job, `<name>-compare`.
    """
    overrides = loaded.overrides
    if overrides.limit is None:
        raise JobError("--compare", "requests every row again without a limit", "add --limit N, e.g. --limit 20")
    if overrides.sink is not None:
        raise JobError("--compare", "writes nothing, so --sink has no meaning", "leave one of them out")
    trial = run_trial(loaded, "compare", options)
    old = read_outputs(loaded.with_overrides(NONE))
    return replace(trial.report, compared=[ComparedRow(key, old.get(key), row) for key, row in trial.outputs.items()])


def format_comparison(report: RunReport) -> str:
    """Old and new outputs side by side; long texts are cut."""
    rows = report.compared or ()
    lines = [f"{report.job}: {len(rows)} rows; nothing was written"]
    changed = 0
    for row in rows:
        lines.append(escape_control_characters(row.key))
        old = row.old or {}
        for name, value in row.new.items():
            same = name in old and old[name] == value
            changed += not same
            before = _short_value(old[name]) if name in old else "(none)"
            lines.append(
                f"  {name}: {_short_value(value)}" if same else f"  {name}: {before}  ->  {_short_value(value)}"
            )
    lines.append(f"{changed} of {sum(len(row.new) for row in rows)} values differ")
    return "\n".join(lines)


def _short_value(value: Any) -> str:
    if isinstance(value, list) and len(value) > 8:
        return f"[{len(value)} values]"
    text = escape_control_characters(str(value))
    return text if len(text) <= 100 else f"{text[:97]}..."
