"""The closing summary of a run: rows, requests, cost, the bottleneck, the tables, the next command."""

from typing import TYPE_CHECKING

from pipelines.formatting import (
    DataTable,
    escape_control_characters,
    fact_list,
    format_count,
    format_money,
    money_decimals,
)
from pipelines.runtime.run_report import RunReport

if TYPE_CHECKING:
    from rich.console import RenderableType


def format_report(report: RunReport, path: str, database: str | None = None) -> "RenderableType":
    """Draw the closing summary of the job file at `path`. `database`: the DuckDB file with the tables; None: none."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    facts: dict[str, str] = {}
    is_idle = not report.requests and report.stopped is None
    decimals = money_decimals([report.cost_usd, *(step.cost_usd for step in report.steps)])
    if not is_idle:
        retries = f", {report.retries:,} of them retries" if report.retries else ""
        facts["requests"] = f"{report.requests or 0:,}{retries}"
        facts["tokens"] = f"{report.input_tokens or 0:,} in, {report.output_tokens or 0:,} out"
        is_known = report.cost_usd is not None
        facts["cost"] = format_money(report.cost_usd, decimals) if is_known else "not known (no price for the model)"
    if report.pack_agreement is not None:
        verified = format_count(report.pack_verified, "verified row")
        facts["pack agreement"] = f"{100 * report.pack_agreement:.1f} % of {verified} had the same answer alone"
    if bottleneck := (report.times or {}).get("bound_by"):
        facts["bound by"] = str(bottleneck)
    for audit in report.audits:
        facts[f"audit {audit.name}"] = "passed" if audit.passed else "FAILED"
    if report.stopped is not None:
        facts["stopped"] = escape_control_characters(report.stopped)
    notes = [("note", escape_control_characters(note)) for note in (*map(str, report.control), *report.notes)]
    parts: list[RenderableType] = [
        Text(_headline(report, is_idle), style="bold"),
        Padding(fact_list([*facts.items(), *notes]), (0, 0, 0, 2)),
    ]
    if report.steps and not is_idle:
        rows = [{"step": step.step, "requests": step.requests, "cost_usd": step.cost_usd} for step in report.steps]
        parts += ["", Padding(DataTable(rows, decimals=decimals), (0, 0, 0, 2), expand=False)]
    places = {name: f"{place} in {database}" if database else place for name, place in (report.tables or {}).items()}
    places["next"] = _next_command(report, path)
    return Group(*parts, "", Padding(fact_list(places.items()), (0, 0, 0, 2)))


def _headline(report: RunReport, is_idle: bool) -> str:
    rows, done = report.rows or 0, report.rows_ok or 0
    failed = f", {report.rows_failed:,} failed" if report.rows_failed else ""
    if is_idle:
        return f"{report.job}: nothing to send; {done:,} of {format_count(rows, 'row')} done already{failed}"
    reused = f" ({report.rows_reused:,} without a request)" if report.rows_reused else ""
    left = f", {report.rows_left:,} left" if report.rows_left else ""
    seconds = f"{report.seconds or 0:.1f} s"
    return f"{report.job}: {done:,} of {format_count(rows, 'row')} done{reused}{failed}{left} in {seconds}"


def _next_command(report: RunReport, path: str) -> str:
    if report.stopped is not None:
        return f"rowmill run {path}   (continues this run)"
    return f"rowmill errors {path}" if report.rows_failed else f"rowmill report {path}"
