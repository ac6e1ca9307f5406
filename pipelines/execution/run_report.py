"""The report of a run from its counters."""

from collections.abc import Mapping

from pipelines.execution.job_run import RunOutcome
from pipelines.pricing.prices import usd
from pipelines.runtime.run_report import RunReport, StepReport


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
        notes=tuple(counters.notes),
    )
