"""`rowmill report`: one self-contained HTML page about a job; `report.html` is its template."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

from msgspec import Struct

from connectors.templating.row_values import row_values
from pipelines.analysis.results_key import results_key
from pipelines.config.loaded_job import LoadedJob
from pipelines.formatting import format_count, format_duration, format_money
from pipelines.reporting.cache_savings import cache_savings
from pipelines.reporting.column_summaries import ColumnSummary
from pipelines.reporting.distribution_cards import distribution_cards
from pipelines.reporting.error_causes import error_cause
from pipelines.reporting.page.axes import duration_ticks
from pipelines.reporting.page.bar_chart import BarChart, Series, bar_chart, label_ticks
from pipelines.reporting.page.page_templates import content_hash, page_environment, stylesheet
from pipelines.reporting.page.page_values import (
    Card,
    Cards,
    Fact,
    Figures,
    Heading,
    Items,
    Panel,
    Panels,
    Share,
    Table,
    fact,
    format_number,
    table,
    time,
)
from pipelines.reporting.page.scatter_chart import ScatterChart
from pipelines.reporting.report_queries import ReportFacts, report_facts
from pipelines.reporting.result_values import result_value
from pipelines.reporting.status_format import STATES
from pipelines.reporting.time_breakdown import time_breakdown

FOLDER = Path(__file__).parent


class JobFileText(Struct, frozen=True):
    """The text of the job file."""

    kind: ClassVar[str] = "source"
    text: str


Block = str | Table | Figures | Panels | Cards | Heading | BarChart | ScatterChart | JobFileText


class Section(Struct, frozen=True):
    """A titled part of the page."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


class State(Struct, frozen=True):
    """How the last run ended."""

    text: str
    css_class: str
    reason: str = ""


def write_report(loaded: LoadedJob, out: Path) -> None:
    """Write the page; JobError if the job has no tables yet."""
    out.write_text(render_page(report_facts(loaded), datetime.now(UTC)), encoding="utf-8")


def render_page(facts: ReportFacts, now: datetime) -> str:
    """Render the whole page."""
    job = facts.results.job
    zone = facts.results.workspace.zone
    sections = (
        Section("Summary", [_summary(facts)]),
        Section("Answers", _answers(facts)),
        Section("Failed rows", _errors(facts, zone)),
        Section("Cost", _costs(facts)),
        Section("Speed", [*_over_time(facts), *time_breakdown(facts.runs)]),
        Section("Columns", [_columns(facts)]),
        Section("Runs", _runs(facts, zone)),
        Section("Job file", [JobFileText(facts.text)]),
    )
    return render_sections(job.name, job.description, _state(facts), sections, now, zone)


def render_sections(
    title: str, description: str, state: State | None, sections: Sequence[Section], now: datetime, zone: ZoneInfo
) -> str:
    """Render a page of sections, without those that have nothing to show."""
    style = stylesheet()
    return page_environment(FOLDER).render_template(
        "report.html",
        title=title,
        description=description,
        state=state,
        made_at=time(now, zone),
        sections=[section for section in sections if section.blocks],
        style=style,
        style_hash=content_hash(style),
    )


def _state(facts: ReportFacts) -> State | None:
    if not facts.runs:
        return None
    if facts.live is not None:
        is_paused = facts.live.get("paused_since") is not None
        return State("paused" if is_paused else "running", "warn", facts.live.get("held") or "")
    last = facts.runs[0]
    code = last["exit_code"]
    css_class = "good" if code == 0 else "warn" if code in (1, 130) else "bad"
    return State(_run_state(code), css_class, last["stopped"] or "")


def _run_state(exit_code: int | None) -> str:
    """As `rowmill status` names it."""
    return "killed" if exit_code is None else STATES.get(exit_code, "killed")


def _summary(facts: ReportFacts) -> Panels:
    return Panels((_quality_panel(facts), _cost_panel(facts), _speed_panel(facts)))


def _quality_panel(facts: ReportFacts) -> Panel:
    totals = facts.totals
    rows, failed = totals["rows_ok"], totals["rows_failed"]
    is_fanned_out = results_key(facts.results.job).child_index is not None
    every = rows + failed
    share = None if not every else rows / every
    shown = "no rows yet" if share is None else f"{_floor_percent(rows, every)} %"
    label = (
        "" if share is None else f"of {format_count(every, 'row')} {'are done' if is_fanned_out else 'have a result'}"
    )
    left = (
        facts.live["rows"] - facts.live["rows_done"]
        if facts.live
        else (facts.runs[0]["rows_left"] if facts.runs else 0)
    )
    is_killed = facts.live is None and bool(facts.runs) and facts.runs[0]["exit_code"] is None
    so_far = " so far" if left or is_killed else ""
    have, are = ("has", "is") if every == 1 else ("have", "are")
    outcome = f"{are} done" if is_fanned_out else f"{have} a result"
    label = "" if share is None else f"of {format_count(every, 'row')}{so_far} {outcome}"
    shown_facts: dict[str, Any] = {
        "rows done" if is_fanned_out else "rows with a result": fact("rows", rows),
        "failed rows": fact("rows_failed", failed),
    }
    if is_fanned_out:
        shown_facts["results of these rows"] = fact("results", totals["results"])
    if left:
        shown_facts["rows left"] = fact("rows_left", left)
    shown_facts |= {
        "requests": fact("requests", totals["requests"]),
        "failed requests": fact("requests_failed", totals["requests_failed"]),
    }
    agreement = next((run["pack_agreement"] for run in facts.runs if run["pack_agreement"] is not None), None)
    if agreement is not None:
        shown_facts["same answer alone as in a pack"] = fact("pack_agreement", agreement, f"{100 * agreement:.1f} %")
    audits = facts.runs[0]["audits"] if facts.runs else ()
    if audits:
        passed = sum(bool(audit["passed"]) for audit in audits)
        shown_facts["audits of the last run"] = f"{passed} of {len(audits)} passed"
    note = ""
    if facts.errors:
        worst = facts.errors[0]
        cause = error_cause(worst["cause"])
        count = format_count(worst["rows"], "row")
        note = f"Most frequent: {cause.title}, {count}. What to do: {cause.remedy}."
    elif is_killed:
        note = "The last run was killed: rows may be left. The next run continues it."
    css_class = "good" if share == 1 and not so_far else "bad" if share is not None and not rows else ""
    return Panel("Is it good?", fact("rows_share", share, shown), label, shown_facts, note, css_class)


def _cost_panel(facts: ReportFacts) -> Panel:
    totals = facts.totals
    shown: dict[str, Any] = {}
    if totals["cost_usd"] and not totals["unpriced"]:
        if totals["rows_ok"]:
            each = totals["cost_usd"] / totals["rows_ok"]
            shown["a row"] = fact("cost_usd_per_row", each, _format_small_money(each))
            shown["1,000 rows"] = fact("cost_usd_per_1000", 1000 * each, format_money(1000 * each))
        day = totals["cost_usd"] / totals["days"]
        suffix = "" if totals["days"] == 1 else f" (mean of {totals['days']:,} days)"
        shown["a day"] = fact("cost_usd_per_day", day, format_money(day), suffix)
    shown["tokens in"] = fact("input_tokens", totals["input_tokens"])
    shown["tokens out"] = fact("output_tokens", totals["output_tokens"])
    shown |= _cache_figures(facts)
    note = ""
    if totals["unpriced"] and totals["cost_usd"] is not None:
        note = f"{format_count(totals['unpriced'], 'request')} have no known price and are not in the cost."
    label = "in all" if totals["cost_usd"] is not None else ""
    return Panel("What did it cost?", _cost("cost_usd", totals["cost_usd"], totals["unpriced"]), label, shown, note)


def _speed_panel(facts: ReportFacts) -> Panel:
    totals, run, live = facts.totals, facts.run, facts.live
    record = next((one for one in facts.runs if one["run_id"] == run["run_id"]), None)
    seconds = (record or {}).get("seconds")
    shown: dict[str, Any] = {}
    times = (record or {}).get("times") or {}
    bound_by = times.get("bound_by")
    if live is not None:
        share = live.get("share_done")
        figure = fact("share_done", share, "starting" if share is None else f"{_floor_percent(share, 1)} %")
        label = "done, the run is going on"
        if live.get("seconds_left") is not None:
            shown["time left"] = fact(
                "seconds_left", live["seconds_left"], f"about {format_duration(live['seconds_left'])}"
            )
        bound_by = live.get("bound_by") or bound_by
    elif seconds is None:
        figure, label = (
            fact("run.time", None, "–"),
            "no request was sent" if not run["requests"] else "the run was killed",
        )
    else:
        figure, label = fact("run.time", seconds, _format_seconds(seconds)), "for the last run"
        done = run["rows"]
        if done and seconds:
            shown["rows a second"] = fact("run.rows_per_second", done / seconds, format_number(done / seconds))
            left = (record or {}).get("rows_left")
            if left:
                needed = left * seconds / done
                shown["time for the rows left"] = fact("run.seconds_left", needed, f"about {format_duration(needed)}")
    if run["requests"]:
        mean = run["requests"] / run["seconds"]
        shown["requests a second"] = fact("run.requests_per_second", mean, format_number(mean))
    if totals["p50"] is not None:
        shown["median latency"] = fact("p50", totals["p50"], _format_milliseconds(totals["p50"]))
        shown["95 % of requests within"] = fact("p95", totals["p95"], _format_milliseconds(totals["p95"]))
    note = f"Bottleneck: {bound_by}." if bound_by else ""
    return Panel("How long did it take?", figure, label, shown, note)


def _cache_figures(facts: ReportFacts) -> Mapping[str, Fact]:
    """Return the share of input tokens that providers had cached, and what that saved; nothing without any."""
    cached, tokens = facts.totals["cached_tokens"], facts.totals["input_tokens"]
    if not cached or not tokens:
        return {}
    share = fact("cached_share", cached / tokens, f"{100 * cached / tokens:.1f} %")
    saved = cache_savings(facts.results.workspace, facts.cached, facts.results.job.delivery == "batch")
    savings = {} if saved is None else {"saved by the cache": fact("cache_savings_usd", saved, format_money(saved))}
    return {"input from the provider's cache": share, **savings}


def _answers(facts: ReportFacts) -> Sequence[Cards | Table | Heading | str]:
    """The distribution of each output, and the first rows."""
    blocks: list[Cards | Table | Heading | str] = []
    found = distribution_cards(facts.columns)
    if found is not None:
        cards, more = found
        blocks.append(cards)
        if more:
            blocks.append(f"{format_count(more, 'more column')}: see the table of columns.")
    rows: Sequence[Mapping[str, Any]] = row_values(facts.samples)
    if rows:
        names = facts.samples.column_names
        values = [[result_value(facts.results, name, row[name]) for name in names] for row in rows]
        caption = f"The first {len(rows):,} of {format_count(facts.totals['results'], 'result')}"
        blocks.append(Table(caption, names, values, frozenset(), has_samples=True))
    return blocks or ("No row has a result yet.",)


def _errors(facts: ReportFacts, zone: ZoneInfo) -> Sequence[Table | str]:
    if not facts.errors and not facts.exchange_errors:
        return ("No row and no request has failed.",)
    blocks: list[Table | str] = []
    if facts.errors:
        failed = facts.totals["rows_failed"]
        causes = [
            (
                f"{error_cause(group['cause']).title} ({group['cause']})",
                group["step"] or "source",
                _failed_share(fact(f"errors.{group['cause']}.{group['step']}", group["rows"]), group["rows"] / failed),
                error_cause(group["cause"]).remedy,
                Items(tuple(str(message) for message in group["messages"]), is_list=True),
            )
            for group in facts.errors
        ]
        heads: Sequence[str] = ("cause", "step", "rows", "what to do", "messages of the provider or of Rowmill")
        is_fanned_out = results_key(facts.results.job).child_index is not None
        detail = "; a row whose children failed for several causes counts for each" if is_fanned_out else ""
        blocks.append(table(heads, causes, f"Failed rows by cause{detail}", frozenset({2})))
    else:
        blocks.append("No row has failed: failed requests succeeded when they were sent again.")
    if facts.checks:
        checks = [
            (check["condition"], check["step"], fact(f"checks.{check['step']}.{check['condition']}", check["rows"]),
             check["message"] or "")
            for check in facts.checks
        ]  # fmt: skip
        heads = ("condition", "step", "rows", "message of the repair turn")
        blocks.append(table(heads, checks, "Failed checks; a row may fail several", frozenset({2})))
    if facts.exchange_errors:
        requests = [
            (
                f"{error_cause(one['error_class']).title} ({one['error_class']})",
                one["http_status"],
                fact(f"exchange_errors.{one['error_class']}.{one['http_status']}", one["requests"]),
                time(one["first"], zone),
                time(one["last"], zone),
            )
            for one in facts.exchange_errors
        ]
        heads = ("cause", "HTTP status", "requests", "first", "last")
        blocks.append(table(heads, requests, "Failed requests, including those sent again", frozenset({1, 2})))
    return blocks


def _costs(facts: ReportFacts) -> Sequence[Table | Cards]:
    return (*_cost_by_day(facts), *_steps(facts))


def _cost_by_day(facts: ReportFacts) -> Sequence[Cards]:
    """Cost by day, if there are several days with a known cost."""
    priced = [day for day in facts.days if day["cost_usd"] is not None]
    if len(priced) < 2 or not any(day["cost_usd"] for day in priced):
        return ()
    labels = [day["day"] for day in priced]
    costs = [day["cost_usd"] for day in priced]
    summary = f"Cost by day, {format_money(sum(costs) / len(costs))} on average, at most {format_money(max(costs))}"
    ticks = label_ticks([label[5:] for label in labels])
    title = "day (month-day, UTC)"
    chart = bar_chart([Series("US dollars", costs)], labels, ticks, title, "US dollars", summary, is_whole=False)
    return (Cards([Card("Cost by day", "days with requests", [chart], is_wide=True)]),)


def _steps(facts: ReportFacts) -> Sequence[Table]:
    if not facts.steps:
        return ()
    heads = (
        *("step", "endpoint", "model (provider)", "requests", "failed", "tokens in", "tokens out", "cost"),
        *("median", "95 % within", "99 % within"),
    )
    rows = []
    for step in facts.steps:
        name = f"{step['step']}.{step['provider']}.{step['model']}"
        counts = (fact(f"{count}.{name}", step[count]) for count in ("requests", "failed", *_TOKENS))
        latencies = (fact(f"{p}.{name}", step[p], _format_milliseconds(step[p])) for p in ("p50", "p95", "p99"))
        cost = fact(f"cost_usd.{name}", step["cost_usd"], format_money(step["cost_usd"]))
        model = f"{step['model']} ({step['provider']})"
        rows.append((step["step"], step["endpoint"], model, *counts, cost, *latencies))
    return (
        table(
            heads, rows, "Requests of each step, their cost, and the latency of their answers", frozenset(range(3, 11))
        ),
    )


_TOKENS = ("input_tokens", "output_tokens")


def _over_time(facts: ReportFacts) -> Sequence[Cards]:
    """Requests a second over the last run, and requests by latency; failed ones on top of answered ones."""
    run = facts.run
    if not run["requests"]:
        return ()
    bucket = run["bucket_seconds"]
    duration = _format_seconds(run["seconds"])
    labels = [_format_seconds(place * bucket) for place in range(len(run["answered"]))]
    series = [
        Series("requests a second, answered", [count / bucket for count in run["answered"]]),
        Series("requests a second, failed", [count / bucket for count in run["failed"]], "failed"),
    ]
    mean = run["requests"] / run["seconds"]
    caption = (
        fact("run.requests", run["requests"], suffix=" requests in "),
        fact("run.seconds", run["seconds"], duration, ", "),
        fact("run.in_flight", run["in_flight"], suffix=" in flight on average"),
    )
    failures = sum(run["failed"])
    summary = f"Requests a second, {format_number(mean)} on average, over {duration}; {failures:,} failed"
    ticks = duration_ticks(bucket * len(labels))
    chart = bar_chart(
        series, labels, ticks, "time since the start", "requests a second", summary, caption, is_whole=False
    )
    cards = [Card("Requests over time", "the last run that sent any", [chart], is_wide=True)]
    if facts.latencies:
        answered = [float(count) for *_, count, _ in facts.latencies]
        failed = [float(count) for *_, count in facts.latencies]
        labels = [f"{_format_milliseconds(low)} to {_format_milliseconds(high)}" for low, high, *_ in facts.latencies]
        both = [a + b for a, b in zip(answered, failed, strict=True)]
        summary = f"Requests by latency: most of them {labels[both.index(max(both))]}"
        series = [Series("requests, answered", answered), Series("requests, failed", failed, "failed")]
        ticks = label_ticks([f"≤{_format_milliseconds(high)}" for _, high, *_ in facts.latencies])
        title = "time until the reply was complete"
        chart = bar_chart(series, labels, ticks, title, "requests", summary)
        cards.append(Card("Latency", "all runs", [chart]))
    return (Cards(cards),)


def _columns(facts: ReportFacts) -> Table:
    rows = []
    for column in facts.columns:
        name = column.name
        frequent: list[Fact | str] = []
        for text, count in column.frequent:
            counted = fact(f"top.{name}.{text}", count, suffix=")")
            frequent += [f"{' · ' if frequent else ''}{text[:40]} (", counted]
        about = "about " if column.is_distinct_estimated else ""
        distinct = fact(
            f"distinct.{name}", column.distinct, None if column.distinct is None else f"{about}{column.distinct:,}"
        )
        rows.append(
            (
                name,
                column.kind[:40],
                fact(f"nulls.{name}", column.nulls),
                distinct,
                _range(column),
                "" if column.mean is None else fact(f"mean.{name}", float(column.mean)),
                Items(tuple(frequent)),
            )
        )
    heads = ("column", "type", "without a value", "different values", "smallest – largest", "mean", "most frequent")
    partial = [column for column in facts.columns if column.rows < column.table_rows]
    first = f"; of {', '.join(c.name for c in partial)} only the first rows" if partial else ""
    return table(heads, rows, f"Columns of the results{first}", frozenset({2, 3, 5}))


def _range(column: ColumnSummary) -> Items:
    """Smallest and largest value with their unit."""
    if column.least is None:
        return Items(())
    ends: list[Fact | str] = []
    pairs = (("least", column.least), ("most", column.most))
    for end, value in pairs if column.least != column.most else pairs[:1]:
        text = format_number(value) if isinstance(value, float) else str(value)
        ends += [*([" – "] if ends else []), fact(f"{end}.{column.name}", value, text)]
    return Items((*ends, f" {column.unit}".rstrip()))


def _failed_share(value: Fact, share: float) -> Share:
    return Share(value, round(100 * share, 1), "failed")


def _floor_percent(part: float, whole: float) -> str:
    """Format a share; 100 only if nothing is missing."""
    return "100" if part >= whole else f"{min(99.9, 100 * part / whole):.3g}"


def _format_small_money(usd: float) -> str:
    """Format the cost of one row with two digits that matter."""
    return format_money(usd) if usd >= 0.001 else f"${usd:.2g}" if usd >= 0.0001 else f"${usd:.7f}".rstrip("0")


def _format_seconds(seconds: float) -> str:
    digits = 2 if seconds < 2 else 1
    return f"{seconds:.{digits}f} s" if seconds < 20 else format_duration(seconds)


def _runs(facts: ReportFacts, zone: ZoneInfo) -> Sequence[str | Table]:
    if not facts.runs:
        return ()
    rows = [
        (
            time(run["started"], zone),
            "running" if facts.live is not None and place == 0 else _run_state(run["exit_code"]),
            *(fact(f"runs.{run['run_id']}.{name}", run[name]) for name in ("rows_ok", "rows_failed", "requests")),
            fact(f"runs.{run['run_id']}.cost_usd", run["cost_usd"], format_money(run["cost_usd"])),
            "" if run["seconds"] is None else format_duration(run["seconds"]),
            ", ".join(f"{audit['name']}: {'passed' if audit['passed'] else 'failed'}" for audit in run["audits"]),
        )
        for place, run in enumerate(facts.runs)
    ]
    heads = ("started", "state", "rows done", "failed rows", "requests", "cost", "duration", "audits")
    events = [f"Last invocation: {event}." for event in facts.runs[0]["control"]]
    return (
        table(
            heads,
            rows,
            f"The last {format_count(len(rows), 'run')}" if len(rows) > 1 else "The only run",
            frozenset({2, 3, 4, 5, 6}),
        ),
        *events,
    )


def _cost(name: str, cost: float | None, unpriced: int) -> Fact:
    if cost is None:
        return fact(name, None, "not known" if unpriced else "$0.00")
    return fact(name, cost, format_money(cost))


def _format_milliseconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f} ms" if value < 10_000 else f"{value / 1000:,.1f} s"
