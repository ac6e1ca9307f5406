"""`rowmill report`: one page that tells what a job did, with nothing in it that has to be fetched."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from pipelines.config.loaded_job import LoadedJob
from pipelines.formatting import format_duration, format_money
from pipelines.reporting.html import Safe, fact, figures, number, shown_value, table
from pipelines.reporting.report_queries import HIDDEN, ReportFacts, report_facts
from pipelines.reporting.status_format import STATES
from pipelines.reporting.svg_bars import bars
from pipelines.reporting.time_breakdown import where_the_time_went

SHORT = 60
"""Characters of a value that needs no line of its own."""
STYLE = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")


def report(loaded: LoadedJob, out: Path) -> None:
    """Write the page; JobError where the job has no tables yet."""
    out.write_text(page(report_facts(loaded), datetime.now(UTC)), encoding="utf-8")


def page(facts: ReportFacts, now: datetime) -> str:
    """The whole page."""
    job = facts.results.job
    zone = facts.results.workspace.zone
    parts = [
        ("Figures", _figures(facts)),
        ("Steps", _steps(facts)),
        ("Over time", _over_time(facts, zone)),
        ("Where the time went", where_the_time_went(facts.runs)),
        ("Errors", _errors(facts, zone)),
        ("Results", _samples(facts)),
        ("Columns", _columns(facts)),
        ("Runs", _runs(facts, zone)),
        ("Job file", Safe(f"<details><summary>What was run</summary><pre>{escape(facts.text)}</pre></details>")),
    ]
    parts = [(title, content) for title, content in parts if content]
    links = "".join(f'<a href="#{_anchor(title)}">{title}</a>' for title, _ in parts)
    sections = "".join(
        f'<section id="{_anchor(title)}" aria-labelledby="h-{_anchor(title)}">'
        f'<h2 id="h-{_anchor(title)}">{title}</h2>{content}</section>'
        for title, content in parts
    )
    description = f"<p>{escape(job.description)}</p>" if job.description else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; media-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{escape(job.name)} · Rowmill report</title><style>{STYLE}</style></head><body>"
        f"<header><h1>{escape(job.name)}</h1>{description}{_state(facts)}"
        f'<p class="made">Made by Rowmill, {_moment(now, zone)}</p>'
        f'<nav aria-label="Sections">{links}</nav></header><main>{sections}</main></body></html>\n'
    )


def _state(facts: ReportFacts) -> str:
    if not facts.runs:
        return ""
    last = facts.runs[0]
    code = last["exit_code"]
    words = STATES.get(code, "cut short") if code is not None else "cut short, or under way"
    why = f": {escape(str(last['stopped']))}" if last["stopped"] else ""
    return f'<p class="state"><span class="{"good" if code == 0 else "bad"}">{words}</span>{why}</p>'


def _figures(facts: ReportFacts) -> Safe:
    told = facts.totals
    shown = {
        "rows with a result": fact("rows", told["rows"]),
        "rows failed": fact("rows_failed", told["rows_failed"]),
        "requests": fact("requests", told["requests"]),
        "of these failed": fact("requests_failed", told["requests_failed"]),
        "tokens in": fact("input_tokens", told["input_tokens"]),
        "tokens out": fact("output_tokens", told["output_tokens"]),
        "cost": _cost("cost_usd", told["cost_usd"], told["unpriced"]),
    }
    if told["cost_usd"] and told["rows"] and not told["unpriced"]:
        each = 1000 * told["cost_usd"] / told["rows"]
        shown["for 1,000 rows"] = fact("cost_usd_per_1000", each, format_money(each))
    if told["p50"] is not None:
        shown["median latency"] = fact("p50", told["p50"], _milliseconds(told["p50"]))
        shown["95 % within"] = fact("p95", told["p95"], _milliseconds(told["p95"]))
    note = ""
    if told["unpriced"] and told["cost_usd"] is not None:
        note = f"<p>{told['unpriced']:,} requests have no known price; the cost leaves them out.</p>"
    return Safe(figures(shown) + note)


def _steps(facts: ReportFacts) -> Safe | None:
    if not facts.steps:
        return None
    heads = (
        "step", "endpoint", "model (provider)", "requests", "failed", "tokens in", "tokens out", "cost", "median",
        "95 %", "99 %",
    )  # fmt: skip
    rows = [
        (
            step["step"], step["endpoint"], f"{step['model']} ({step['provider']})",
            *(fact(f"{name}.{whose}", step[name]) for name in ("requests", "failed", "input_tokens", "output_tokens")),
            fact(f"cost_usd.{whose}", step["cost_usd"], format_money(step["cost_usd"])),
            *(fact(f"{name}.{whose}", step[name], _milliseconds(step[name])) for name in ("p50", "p95", "p99")),
        )
        for step in facts.steps
        for whose in (f"{step['step']}.{step['provider']}.{step['model']}",)
    ]  # fmt: skip
    return table(heads, rows, "What each step asked, and how long answers took", frozenset(range(3, 11)))


def _over_time(facts: ReportFacts, zone: ZoneInfo) -> Safe | None:
    run = facts.run
    if not run["requests"]:
        return None
    bucket = run["bucket_seconds"]
    rates = [count / bucket for count in run["counts"]]
    digits = 2 if run["seconds"] < 2 else 1 if run["seconds"] < 20 else 0
    took = f"{run['seconds']:.{digits}f} s" if run["seconds"] < 20 else format_duration(run["seconds"])
    ticks = [
        f"{place * bucket:.{digits}f} s" if run["seconds"] < 100 else format_duration(place * bucket)
        for place in range(len(rates))
    ]
    mean = run["requests"] / run["seconds"]
    told = (
        (fact("run.requests", run["requests"]), " requests in "),
        (fact("run.seconds", run["seconds"], took), ": "),
        (fact("run.requests_per_second", mean), " a second, "),
        (fact("run.in_flight", run["in_flight"]), " in flight on average"),
    )
    caption = Safe("Last run, " + "".join(figure + words for figure, words in told))
    summary = f"Requests a second, {number(mean)} on average, over {took}"
    charts = _figure(bars(rates, ticks, "requests a second", summary), caption)
    if facts.latencies:
        counts = [count for *_, count in facts.latencies]
        names = [f"to {_milliseconds(most)}" for _, most, _ in facts.latencies]
        summary = f"How many requests took how long: most of them {names[counts.index(max(counts))]}"
        drawn = bars([float(count) for count in counts], names, "requests", summary)
        charts += _figure(drawn, Safe("How many requests took how long, all runs"))
    return Safe(charts)


def _errors(facts: ReportFacts, zone: ZoneInfo) -> Safe:
    if not facts.errors and not facts.exchange_errors:
        return Safe("<p>No row has failed, and no request.</p>")
    made = ""
    if facts.errors:
        rows = [
            (
                group["error_class"],
                group["step"],
                fact(f"errors.{group['error_class']}.{group['step']}", group["rows"]),
                Safe("<ul>" + "".join(f"<li>{escape(str(text))}</li>" for text in group["messages"]) + "</ul>"),
            )
            for group in facts.errors
        ]
        made += table(("class", "step", "rows", "examples"), rows, "Rows that failed", frozenset({2}))
    else:
        made += "<p>No row has failed: what failed at first was asked again.</p>"
    if facts.exchange_errors:
        told = [
            (
                one["error_class"],
                one["http_status"],
                fact(f"exchange_errors.{one['error_class']}.{one['http_status']}", one["requests"]),
                _moment(one["first"], zone),
                _moment(one["last"], zone),
            )
            for one in facts.exchange_errors
        ]
        heads = ("class", "HTTP", "requests", "first", "last")
        made += table(heads, told, "Requests that failed, also those tried again", frozenset({1, 2}))
    return Safe(made)


def _samples(facts: ReportFacts) -> Safe | None:
    rows: Sequence[Mapping[str, Any]] = facts.samples.to_pylist()
    names = [name for name in facts.samples.column_names if name not in HIDDEN]
    if not rows:
        return None
    made = "".join(
        '<li class="row"><dl>'
        + "".join(_value(name, shown_value(facts.results, name, row[name])) for name in names)
        + "</dl></li>"
        for row in rows
    )
    return Safe(f'<p>The first {len(rows):,} of {facts.totals["rows"]:,} rows.</p><ol class="rows">{made}</ol>')


def _value(name: str, shown: Safe) -> str:
    """A column of a row; what is short stands beside others."""
    short = len(shown) <= SHORT and "<figure" not in shown
    return f"<div{'' if short else ' class=long'}><dt>{escape(name)}</dt><dd>{shown}</dd></div>"


def _columns(facts: ReportFacts) -> Safe:
    rows = []
    for column in facts.columns:
        name, top = column["name"], ""
        for text, count in column.get("top", ()):
            counted = fact(f"top.{name}.{text}", count)
            top += f"{' · ' if top else ''}{escape(str(text)[:40])} ({counted})"
        mean = column.get("mean")
        rows.append(
            (
                name,
                str(column["type"])[:40],
                fact(f"nulls.{name}", column["nulls"]),
                fact(f"distinct.{name}", column.get("distinct_values")),
                _span(column),
                "" if mean is None else fact(f"mean.{name}", float(mean)),
                Safe(top),
            )
        )
    heads = ("column", "type", "nulls", "distinct", "from – to", "mean", "most frequent")
    return table(heads, rows, "What the results hold", frozenset({2, 3, 5}))


def _span(column: Mapping[str, Any]) -> Safe:
    """From the least to the most, with its unit."""
    if column.get("least") is None:
        return Safe("")
    ends = [
        fact(f"{end}.{column['name']}", value, number(value) if isinstance(value, float) else str(value))
        for end, value in (("least", column["least"]), ("most", column["most"]))
    ]
    whole = ends[0] + (" – " + ends[1] if column["least"] != column["most"] else "")
    return Safe(f"{whole} {column['unit']}".strip())


def _runs(facts: ReportFacts, zone: ZoneInfo) -> Safe | None:
    if not facts.runs:
        return None
    rows = [
        (
            _moment(run["started"], zone),
            "cut short" if run["exit_code"] is None else STATES.get(run["exit_code"], str(run["exit_code"])),
            *(fact(f"runs.{run['run_id']}.{name}", run[name]) for name in ("rows_ok", "rows_failed", "requests")),
            fact(f"runs.{run['run_id']}.cost_usd", run["cost_usd"], format_money(run["cost_usd"])),
            "" if run["seconds"] is None else format_duration(run["seconds"]),
            ", ".join(f"{audit['name']}: {'passed' if audit['passed'] else 'failed'}" for audit in run["audits"]),
        )
        for run in facts.runs
    ]
    heads = ("begun", "ended", "rows done", "rows failed", "requests", "cost", "time", "audits")
    return table(heads, rows, f"The last {len(rows):,} runs", frozenset({2, 3, 4, 5, 6}))


def _figure(drawn: str, caption: Safe) -> str:
    return f'<figure class="chart">{drawn}<figcaption>{caption}</figcaption></figure>'


def _cost(name: str, cost: float | None, unpriced: int) -> Safe:
    if cost is None:
        return fact(name, None, "not known" if unpriced else "$0")
    return fact(name, cost, format_money(cost))


def _milliseconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f} ms" if value < 10_000 else f"{value / 1000:,.1f} s"


def _moment(value: datetime, zone: ZoneInfo) -> Safe:
    local = value.astimezone(zone)
    return Safe(f'<time datetime="{local.isoformat(timespec="seconds")}">{local:%Y-%m-%d %H:%M %Z}</time>')


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")
