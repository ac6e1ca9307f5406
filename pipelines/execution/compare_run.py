"""`run --compare`: new answers for the first rows beside those in the sink; the sink itself is left as it is."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import duckdb

from connectors.errors import JobError
from connectors.sql import quoted_list
from pipelines.config.job import load_job
from pipelines.config.overrides import NONE, Overrides
from pipelines.config.workspace import find_workspace
from pipelines.execution.invocation import invoke
from pipelines.formatting import harmless
from pipelines.preparation.prepared_job import prepared
from pipelines.preparation.row_selection import key_text
from pipelines.runtime.services import opened_ledger

Rows = dict[str, dict[str, Any]]
"""Key as text -> the outputs of its row."""


def compare_run(path: Path, overrides: Overrides, log: Literal["plain", "json"], quiet: bool) -> dict[str, Any]:
    """The report of `run` with `compare`: for each row its key, old and new outputs (None where there are none).

    The answers are paid for once: a later run that asks the same finds them in the ledger. They stand in the usage
    table of a job of their own, `<name>-compare`.
    """
    if overrides.limit is None:
        raise JobError("--compare: asks for every row anew without a limit; add --limit N, e.g. --limit 20")
    if overrides.sink is not None:
        raise JobError("--compare: writes nothing, so --sink has no meaning; leave one of them out")
    written = load_job(path)
    workspace = find_workspace(path)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name) / "compared"
        aside = (f"name={written.job.name}-compare", "sink.write=merge", "sink.deleted=keep", "audits=[]")
        there = replace(overrides, sink=str(place), assignments=(*overrides.assignments, *aside))
        report = invoke(path, there, True, None, log, quiet)
        new = _outputs(path, there)
        old = _outputs(path, NONE)
    with opened_ledger(workspace) as ledger:
        ledger.write("delete from commits where job = ?", (report["job"],))
    report["compare"] = [{"key": key, "old": old.get(key), "new": outputs} for key, outputs in new.items()]
    report["tables"] = {}
    return report


def _outputs(path: Path, overrides: Overrides) -> Rows:
    """What the sink of the job holds."""
    loaded = load_job(path, overrides)
    with prepared(loaded, find_workspace(path)) as ready, duckdb.connect() as db:
        if not ready.sink.present():
            return {}
        ready.sink.attach(db)
        try:
            columns = db.execute(f"select * from {ready.sink.results_sql()} limit 0").description or ()
            names = [name for name in ready.shape.outputs if name in {str(column[0]) for column in columns}]
            chosen = ", ".join(filter(None, (f"{key_text(ready.shape.key)} as _key", quoted_list(names))))
            rows = db.sql(f"select {chosen} from {ready.sink.results_sql()} order by _key").to_arrow_table().to_pylist()
        finally:
            ready.sink.detach(db)
    return {row.pop("_key"): row for row in rows}


def in_words(report: dict[str, Any]) -> str:
    """Old and new side by side, for people; long texts are cut."""
    lines = [f"{report['job']}: {len(report['compare'])} rows; nothing was written"]
    changed = 0
    for row in report["compare"]:
        lines.append(harmless(str(row["key"])))
        old = row["old"] or {}
        for name, value in row["new"].items():
            same = name in old and old[name] == value
            changed += not same
            before = _short(old[name]) if name in old else "(none)"
            lines.append(f"  {name}: {_short(value)}" if same else f"  {name}: {before}  ->  {_short(value)}")
    lines.append(f"{changed} of {sum(len(row['new']) for row in report['compare'])} values differ")
    return "\n".join(lines)


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 8:
        return f"[{len(value)} values]"
    text = harmless(str(value))
    return text if len(text) <= 100 else f"{text[:97]}..."
