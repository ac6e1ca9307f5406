"""The report of a run from its counters, and the closing summary that people read."""

from collections.abc import Mapping

from pipelines.execution.job_run import Ended
from pipelines.formatting import escape_control_characters, hanging
from pipelines.pricing.prices import usd
from pipelines.runtime.run_report import RunReport, StepReport

WIDTH = 80
"""Columns of the closing words, where a line can be broken."""


def run_report(job: str, run_id: str | None, ended: Ended, tables: Mapping[str, str]) -> RunReport:
    """The report of an invocation; its cost is None if an exchange's price is not known."""
    tally = ended.tally
    steps = [
        StepReport(name, step.exchanges, None if tally.unpriced else usd(step.cost))
        for name, step in tally.steps.items()
    ]
    return RunReport(
        job=job,
        run_id=run_id,
        rows=tally.rows,
        rows_ok=tally.rows_ok,
        rows_reused=tally.rows_reused,
        rows_failed=tally.rows_failed,
        rows_left=tally.rows_left,
        requests=tally.requests,
        retries=tally.retries,
        input_tokens=tally.input_tokens,
        output_tokens=tally.output_tokens,
        cost_usd=None if tally.unpriced else usd(tally.cost),
        seconds=round(tally.seconds, 3),
        stopped=ended.stopped,
        exit_code=ended.exit_code,
        tables=dict(tables),
        steps=steps if len(steps) > 1 else (),
        times=ended.times,
    )


def format_report(report: RunReport, path: str) -> str:
    """The closing summary of a run: rows, requests and cost, the bottleneck, the tables, the next command."""
    lines: list[str] = []
    rows, ok, reused, failed = report.rows or 0, report.rows_ok or 0, report.rows_reused, report.rows_failed
    if not report.requests and report.stopped is None:
        failures = f", {failed:,} failed" if failed else ""
        lines.append(f"{report.job}: nothing to send; {_count(ok, 'row')} of {rows:,} done already{failures}.")
    else:
        lines.append(
            f"{report.job}: {ok:,} of {_count(rows, 'row')} done"
            + (f" ({reused:,} without a request)" if reused else "")
            + (f", {failed:,} failed" if failed else "")
            + (f", {report.rows_left:,} left" if report.rows_left else "")
            + f" in {report.seconds or 0:.1f} s."
        )
        cost = "cost not known (no price for the model)" if report.cost_usd is None else f"${report.cost_usd:.6f}"
        lines.append(
            f"  {_count(report.requests or 0, 'request')} ({report.retries or 0:,} retries), "
            f"{report.input_tokens or 0:,} tokens in, {report.output_tokens or 0:,} out, {cost}"
        )
        for step in report.steps:
            paid = "" if step.cost_usd is None else f", ${step.cost_usd:.6f}"
            lines.append(f"    {step.step}: {_count(step.requests, 'request')}{paid}")
    if bottleneck := (report.times or {}).get("bound_by"):
        lines += hanging(f"bound by: {bottleneck}", 2, WIDTH)
    for audit in report.audits:
        lines.append(f"  audit {'passed' if audit.passed else 'FAILED'}: {audit.name}")
    if report.stopped is not None:
        lines.append(f"  stopped: {escape_control_characters(report.stopped)}")
    for table, place in (report.tables or {}).items():
        lines.append(f"  {table:<8} {place}")
    lines.append(f"  next: {_next_command(report, path)}")
    return "\n".join(lines)


def _next_command(report: RunReport, path: str) -> str:
    if report.stopped is not None:
        return f"rowmill run {path}   (continues this run)"
    if report.rows_failed:
        return f"rowmill errors {path}"
    return f"rowmill report {path}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
