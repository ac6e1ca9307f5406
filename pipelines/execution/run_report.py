"""The report of a run from its counters."""

from collections.abc import Mapping

from pipelines.dispatch.counters import StepCounters
from pipelines.execution.job_run import RunOutcome
from pipelines.pricing.prices import usd
from pipelines.runtime.run_report import RunReport, StepReport

MIN_NOTED_REPAIRS = 3
"""Repair turns of a step from which the summary names them, if they are more than half of its answers."""


def run_report(job: str, run_id: str | None, ended: RunOutcome, tables: Mapping[str, str]) -> RunReport:
    """The report of an invocation; its cost is None if an exchange's price is not known."""
    counters = ended.counters
    steps = [
        StepReport(name, step.exchanges, None if counters.unpriced else usd(step.cost))
        for name, step in counters.steps.items()
    ]
    return RunReport(
        job=job,
        run_id=run_id,
        rows=counters.rows,
        rows_ok=counters.rows_ok,
        rows_reused=counters.rows_reused,
        rows_failed=counters.rows_failed,
        rows_left=counters.rows_left,
        rows_out=counters.rows_ok,
        requests=counters.requests,
        retries=counters.retries,
        input_tokens=counters.input_tokens,
        output_tokens=counters.output_tokens,
        cost_usd=None if counters.unpriced else usd(counters.cost),
        seconds=round(counters.seconds, 3),
        stopped=ended.stopped,
        exit_code=ended.exit_code,
        tables=dict(tables),
        steps=steps if len(steps) > 1 else (),
        times=ended.times,
        notes=(*counters.notes, *filter(None, map(_repair_note, counters.steps, counters.steps.values()))),
        pack_agreement=counters.pack_agreed / counters.pack_verified if counters.pack_verified else None,
        pack_verified=counters.pack_verified,
    )


def _repair_note(name: str, step: StepCounters) -> str | None:
    """Return the advice for a step whose provider seems to ignore its schema."""
    if step.schema_repairs < MIN_NOTED_REPAIRS or 2 * step.schema_repairs <= step.answered:
        return None
    found = f"{name}: {step.schema_repairs:,} of {step.answered:,} answers did not fit the schema at first"
    return f"{found}; if the provider ignores it, add `structured: prompt` to the step"
