"""`rowmill report`: one self-contained HTML page about a job; `report.html` is its template, `report.css` its style."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

import minijinja

from pipelines.config.loaded_job import LoadedJob
from pipelines.formatting import format_duration, format_money
from pipelines.reporting.bar_chart import BarChart, bar_chart
from pipelines.reporting.cache_savings import cache_savings
from pipelines.reporting.page_values import (
    Fact,
    Figures,
    Items,
    Table,
    fact,
    format_number,
    table,
    time,
)
from pipelines.reporting.report_queries import HIDDEN_COLUMNS, ReportFacts, report_facts
from pipelines.reporting.result_values import EmbeddedFile, EmbeddedFiles, Text, result_value
from pipelines.reporting.scatter_chart import ScatterChart
from pipelines.reporting.status_format import STATES
from pipelines.reporting.time_breakdown import time_breakdown

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class SampleRows:
    """The first rows of the results, column by column."""

    kind: ClassVar[str] = "rows"
    summary: str
    rows: Sequence[Sequence[tuple[str, Text | EmbeddedFile | EmbeddedFiles]]]


@dataclass(frozen=True, slots=True)
class JobFileText:
    """The text of the job file."""

    kind: ClassVar[str] = "source"
    text: str


@dataclass(frozen=True, slots=True)
class Section:
    """A titled part of the page."""

    title: str
    blocks: Sequence[str | Table | Figures | BarChart | ScatterChart | SampleRows | JobFileText]

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


@dataclass(frozen=True, slots=True)
class State:
    """How the last run ended."""

    text: str
    css_class: str
    reason: str


def write_report(loaded: LoadedJob, out: Path) -> None:
    """Write the page; JobError if the job has no tables yet."""
    out.write_text(render_page(report_facts(loaded), datetime.now(UTC)), encoding="utf-8")


def render_page(facts: ReportFacts, now: datetime) -> str:
    """The whole page. minijinja escapes every value, since the template's name ends with .html."""
    job = facts.results.job
    zone = facts.results.workspace.zone
    sections = (
        Section("Figures", _figures(facts)),
        Section("Steps", _steps(facts)),
        Section("Over time", _over_time(facts)),
        Section("Where the time went", time_breakdown(facts.runs)),
        Section("Errors", _errors(facts, zone)),
        Section("Results", _samples(facts)),
        Section("Columns", [_columns(facts)]),
        Section("Runs", _runs(facts, zone)),
        Section("Job file", [JobFileText(facts.text)]),
    )
    return render_sections(job.name, job.description, _state(facts), sections, now, zone)


def render_sections(
    title: str, description: str, state: State | None, sections: Sequence[Section], now: datetime, zone: ZoneInfo
) -> str:
    """Render a page of sections, without those that have nothing to show."""
    environment = minijinja.Environment(templates={"report.html": (FOLDER / "report.html").read_text(encoding="utf-8")})
    return environment.render_template(
        "report.html",
        title=title,
        description=description,
        state=state,
        made_at=time(now, zone),
        sections=[section for section in sections if section.blocks],
        style=(FOLDER / "report.css").read_text(encoding="utf-8"),
    )


def _state(facts: ReportFacts) -> State | None:
    if not facts.runs:
        return None
    last = facts.runs[0]
    code = last["exit_code"]
    text = STATES.get(code, "cut short") if code is not None else "cut short, or running"
    return State(text, "good" if code == 0 else "bad", f": {last['stopped']}" if last["stopped"] else "")


def _figures(facts: ReportFacts) -> Sequence[Figures | str]:
    totals = facts.totals
    shown = {
        "rows with a result": fact("rows", totals["rows"]),
        "failed rows": fact("rows_failed", totals["rows_failed"]),
        "requests": fact("requests", totals["requests"]),
        "failed requests": fact("requests_failed", totals["requests_failed"]),
        "input tokens": fact("input_tokens", totals["input_tokens"]),
        "output tokens": fact("output_tokens", totals["output_tokens"]),
        **_cache_figures(facts),
        "cost": _cost("cost_usd", totals["cost_usd"], totals["unpriced"]),
    }
    if totals["cost_usd"] and totals["rows"] and not totals["unpriced"]:
        each = 1000 * totals["cost_usd"] / totals["rows"]
        shown["cost per 1,000 rows"] = fact("cost_usd_per_1000", each, format_money(each))
    agreement = next((run["pack_agreement"] for run in facts.runs if run["pack_agreement"] is not None), None)
    if agreement is not None:
        shown["pack agreement"] = fact("pack_agreement", agreement, f"{100 * agreement:.1f} %")
    if totals["p50"] is not None:
        shown["median latency"] = fact("p50", totals["p50"], _format_milliseconds(totals["p50"]))
        shown["95th percentile"] = fact("p95", totals["p95"], _format_milliseconds(totals["p95"]))
    if totals["unpriced"] and totals["cost_usd"] is not None:
        return (
            Figures(shown),
            f"{totals['unpriced']:,} requests have no known price and are not included in the cost.",
        )
    return (Figures(shown),)


def _cache_figures(facts: ReportFacts) -> Mapping[str, Fact]:
    """Return the share of input tokens that providers had cached, and what that saved; nothing without any."""
    cached, tokens = facts.totals["cached_tokens"], facts.totals["input_tokens"]
    if not cached or not tokens:
        return {}
    share = fact("cached_share", cached / tokens, f"{100 * cached / tokens:.1f} %")
    saved = cache_savings(facts.results.workspace, facts.steps)
    savings = {} if saved is None else {"saved by the cache": fact("cache_savings_usd", saved, format_money(saved))}
    return {"input from the provider's cache": share, **savings}


def _steps(facts: ReportFacts) -> Sequence[Table]:
    if not facts.steps:
        return ()
    heads = (
        *("step", "endpoint", "model (provider)", "requests", "failed", "input tokens", "output tokens", "cost"),
        *("median", "95 %", "99 %"),
    )
    rows = []
    for step in facts.steps:
        name = f"{step['step']}.{step['provider']}.{step['model']}"
        counts = (fact(f"{count}.{name}", step[count]) for count in ("requests", "failed", *_TOKENS))
        latencies = (fact(f"{p}.{name}", step[p], _format_milliseconds(step[p])) for p in ("p50", "p95", "p99"))
        cost = fact(f"cost_usd.{name}", step["cost_usd"], format_money(step["cost_usd"]))
        model = f"{step['model']} ({step['provider']})"
        rows.append((step["step"], step["endpoint"], model, *counts, cost, *latencies))
    return (table(heads, rows, "Requests of each step and latency of their answers", frozenset(range(3, 11))),)


_TOKENS = ("input_tokens", "output_tokens")


def _over_time(facts: ReportFacts) -> Sequence[BarChart]:
    run = facts.run
    if not run["requests"]:
        return ()
    bucket = run["bucket_seconds"]
    rates = [count / bucket for count in run["counts"]]
    digits = 2 if run["seconds"] < 2 else 1 if run["seconds"] < 20 else 0
    duration = f"{run['seconds']:.{digits}f} s" if run["seconds"] < 20 else format_duration(run["seconds"])
    labels = [
        f"{place * bucket:.{digits}f} s" if run["seconds"] < 100 else format_duration(place * bucket)
        for place in range(len(rates))
    ]
    mean = run["requests"] / run["seconds"]
    caption = (
        "Last run, ",
        fact("run.requests", run["requests"], suffix=" requests in "),
        fact("run.seconds", run["seconds"], duration, ": "),
        fact("run.requests_per_second", mean, suffix=" a second, "),
        fact("run.in_flight", run["in_flight"], suffix=" in flight on average"),
    )
    summary = f"Requests a second, {format_number(mean)} on average, over {duration}"
    charts = [bar_chart(rates, labels, "time since the start", "requests a second", summary, caption)]
    if facts.latencies:
        counts = [float(count) for *_, count in facts.latencies]
        labels = [f"to {_format_milliseconds(upper)}" for _, upper, _ in facts.latencies]
        summary = f"Requests by latency: most of them {labels[counts.index(max(counts))]}"
        charts.append(bar_chart(counts, labels, "latency", "requests", summary, ("Requests by latency, all runs",)))
    return charts


def _errors(facts: ReportFacts, zone: ZoneInfo) -> Sequence[Table | str]:
    if not facts.errors and not facts.exchange_errors:
        return ("No row and no request has failed.",)
    blocks: list[Table | str] = []
    if facts.errors:
        rows = [
            (
                group["error_class"],
                group["step"],
                fact(f"errors.{group['error_class']}.{group['step']}", group["rows"]),
                Items(tuple(str(message) for message in group["messages"]), is_list=True),
            )
            for group in facts.errors
        ]
        blocks.append(table(("class", "step", "rows", "examples"), rows, "Failed rows", frozenset({2})))
    else:
        blocks.append("No row has failed: failed requests succeeded when they were sent again.")
    if facts.exchange_errors:
        requests = [
            (
                one["error_class"],
                one["http_status"],
                fact(f"exchange_errors.{one['error_class']}.{one['http_status']}", one["requests"]),
                time(one["first"], zone),
                time(one["last"], zone),
            )
            for one in facts.exchange_errors
        ]
        heads = ("class", "HTTP", "requests", "first", "last")
        blocks.append(table(heads, requests, "Failed requests, including those sent again", frozenset({1, 2})))
    return blocks


def _samples(facts: ReportFacts) -> Sequence[SampleRows]:
    rows: Sequence[Mapping[str, Any]] = facts.samples.to_pylist()
    names = [name for name in facts.samples.column_names if name not in HIDDEN_COLUMNS]
    if not rows:
        return ()
    values = [[(name, result_value(facts.results, name, row[name])) for name in names] for row in rows]
    return (SampleRows(f"The first {len(rows):,} of {facts.totals['rows']:,} rows.", values),)


def _columns(facts: ReportFacts) -> Table:
    rows = []
    for column in facts.columns:
        name = column["name"]
        frequent: list[Fact | str] = []
        for text, count in column.get("top", ()):
            counted = fact(f"top.{name}.{text}", count, suffix=")")
            frequent += [f"{' · ' if frequent else ''}{str(text)[:40]} (", counted]
        mean = column.get("mean")
        rows.append(
            (
                name,
                str(column["type"])[:40],
                fact(f"nulls.{name}", column["nulls"]),
                fact(f"distinct.{name}", column.get("distinct_values")),
                _range(column),
                "" if mean is None else fact(f"mean.{name}", float(mean)),
                Items(tuple(frequent)),
            )
        )
    heads = ("column", "type", "nulls", "distinct", "min – max", "mean", "most frequent")
    return table(heads, rows, "Columns of the results", frozenset({2, 3, 5}))


def _range(column: Mapping[str, Any]) -> Items:
    """Minimum and maximum with their unit."""
    if column.get("least") is None:
        return Items(())
    ends: list[Fact | str] = []
    for end in ("least", "most") if column["least"] != column["most"] else ("least",):
        value = column[end]
        text = format_number(value) if isinstance(value, float) else str(value)
        ends += [*([" – "] if ends else []), fact(f"{end}.{column['name']}", value, text)]
    return Items((*ends, f" {column['unit']}".rstrip()))


def _runs(facts: ReportFacts, zone: ZoneInfo) -> Sequence[str | Table]:
    if not facts.runs:
        return ()
    rows = [
        (
            time(run["started"], zone),
            "cut short" if run["exit_code"] is None else STATES.get(run["exit_code"], str(run["exit_code"])),
            *(fact(f"runs.{run['run_id']}.{name}", run[name]) for name in ("rows_ok", "rows_failed", "requests")),
            fact(f"runs.{run['run_id']}.cost_usd", run["cost_usd"], format_money(run["cost_usd"])),
            "" if run["seconds"] is None else format_duration(run["seconds"]),
            ", ".join(f"{audit['name']}: {'passed' if audit['passed'] else 'failed'}" for audit in run["audits"]),
        )
        for run in facts.runs
    ]
    heads = ("started", "state", "rows done", "failed rows", "requests", "cost", "time", "audits")
    events = [f"Last invocation: {event}." for event in facts.runs[0]["control"]]
    return (table(heads, rows, f"The last {len(rows):,} runs", frozenset({2, 3, 4, 5, 6})), *events)


def _cost(name: str, cost: float | None, unpriced: int) -> Fact:
    if cost is None:
        return fact(name, None, "not known" if unpriced else "$0")
    return fact(name, cost, format_money(cost))


def _format_milliseconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f} ms" if value < 10_000 else f"{value / 1000:,.1f} s"
