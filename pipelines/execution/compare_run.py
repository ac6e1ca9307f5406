"""`run --compare`: new answers for the first rows next to those in the sink, which does not change."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb

from connectors.errors import JobError
from connectors.sql import identifier_list
from pipelines.config.loaded_job import LoadedJob
from pipelines.config.overrides import NONE
from pipelines.execution.invocation import run_invocation
from pipelines.formatting import escape_control_characters
from pipelines.preparation.prepared_job import prepare_job
from pipelines.preparation.row_selection import key_text
from pipelines.runtime.run_options import RunOptions
from pipelines.runtime.run_report import ComparedRow, RunReport
from pipelines.runtime.services import open_workspace_ledger

Rows = dict[str, dict[str, Any]]
"""Key as text -> the outputs of its row."""


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
    written = loaded.with_overrides(NONE)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name) / "compared"
        assignments = (f"name={written.job.name}-compare", "sink.write=merge", "sink.deleted=keep", "audits=[]")
        compared = loaded.with_overrides(
            replace(overrides, sink=str(place), assignments=(*overrides.assignments, *assignments))
        )
        report = run_invocation(compared, options)
        new = _outputs(compared)
        old = _outputs(written)
    with open_workspace_ledger(loaded.workspace) as ledger:
        ledger.write("delete from commits where job = ?", (report.job,))
    return replace(report, tables={}, compared=[ComparedRow(key, old.get(key), row) for key, row in new.items()])


def _outputs(loaded: LoadedJob) -> Rows:
    """Return the outputs of every row in the job's sink."""
    with prepare_job(loaded) as ready, duckdb.connect() as db:
        if not ready.sink.exists():
            return {}
        ready.sink.attach(db)
        try:
            columns = db.execute(f"select * from {ready.sink.results_sql()} limit 0").description or ()
            names = [name for name in ready.shape.outputs if name in {str(column[0]) for column in columns}]
            chosen = ", ".join(filter(None, (f"{key_text(ready.shape.key)} as _key", identifier_list(names))))
            rows = db.sql(f"select {chosen} from {ready.sink.results_sql()} order by _key").to_arrow_table().to_pylist()
        finally:
            ready.sink.detach(db)
    return {row.pop("_key"): row for row in rows}


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
