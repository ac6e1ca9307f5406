"""Trial runs: a job's answers under other settings, in tables of their own that are removed afterwards."""

import tempfile
from pathlib import Path
from typing import Any

import duckdb
from msgspec import Struct
from msgspec.structs import replace

from connectors.sql import identifier_list, key_text
from pipelines.config.loaded_job import LoadedJob
from pipelines.execution.invocation import run_invocation
from pipelines.preparation.prepared_job import prepare_job
from pipelines.runtime.run_options import RunOptions
from pipelines.runtime.run_report import RunReport
from pipelines.runtime.services import open_workspace_ledger

RowOutputs = dict[str, dict[str, Any]]
"""Key as text -> the outputs of its row, those of `select` and `fold` steps too."""


class TrialRun(Struct, frozen=True):
    """A finished trial: how it ended, and the outputs of the rows that did not fail."""

    report: RunReport
    outputs: RowOutputs


def trial_job(loaded: LoadedJob, suffix: str, folder: Path) -> LoadedJob:
    """Return the job with its flags under the name `<name>-<suffix>`, with its tables in `folder`.

    Its answers are paid for once: a later run with the same requests finds them in the ledger.
    """
    overrides = loaded.overrides
    name = loaded.job.name if loaded.written is None else loaded.written.name
    assignments = (f"name={name}-{suffix}", "sink.write=merge", "sink.deleted=keep", "audits=[]")
    return loaded.with_overrides(replace(overrides, sink=str(folder / "trial"), over=(*overrides.over, *assignments)))


def run_trial(loaded: LoadedJob, suffix: str, options: RunOptions) -> TrialRun:
    """Run the job with its flags as a trial; usage has its exchanges under the job `<name>-<suffix>`."""
    with tempfile.TemporaryDirectory() as name:
        trial = trial_job(loaded, suffix, Path(name))
        report = run_invocation(trial, replace(options, is_trial=True))
        outputs = read_outputs(trial)
    with open_workspace_ledger(loaded.workspace) as ledger:
        for table in ("commits", "childless_rows"):
            ledger.write(f"delete from {table} where job = ?", (report.job,))
    return TrialRun(replace(report, tables={}), outputs)


def read_outputs(loaded: LoadedJob) -> RowOutputs:
    """Return the outputs of every row in the job's sink."""
    with prepare_job(loaded) as ready, duckdb.connect() as db:
        if not ready.sink.exists():
            return {}
        ready.sink.attach(db)
        try:
            columns = db.execute(f"select * from {ready.sink.results_sql()} limit 0").description or ()
            names = [name for name in ready.computed_columns if name in {str(column[0]) for column in columns}]
            chosen = ", ".join(filter(None, (f"{key_text(ready.shape.key)} as _key", identifier_list(names))))
            rows = db.sql(f"select {chosen} from {ready.sink.results_sql()} order by _key").to_arrow_table().to_pylist()
        finally:
            ready.sink.detach(db)
    return {row.pop("_key"): row for row in rows}
