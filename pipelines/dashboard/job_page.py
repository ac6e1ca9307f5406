"""The page of one job: progress, rate and cost over time, steps, errors, steering, newest results, its runs."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from pipelines.analysis.results_key import results_key
from pipelines.control.run_settings import SETTABLE
from pipelines.dashboard.exchange_totals import Timeline, Totals
from pipelines.dashboard.job_facts import JobFacts
from pipelines.dashboard.rendering import Cause, Page, Part, part
from pipelines.dashboard.workspace_pages import cost_fact, job_address, job_state, rows_progress, runs_table
from pipelines.dashboard.workspace_reader import Snapshot, WatchedJob, WorkspaceReader
from pipelines.formatting import format_duration, format_money, money_decimals
from pipelines.pricing.prices import usd
from pipelines.reporting.error_causes import error_cause
from pipelines.reporting.page.bar_chart import BarChart, Series, bar_chart, label_ticks
from pipelines.reporting.page.page_values import Fact, Figures, Table, fact, format_number, table, time
from pipelines.reporting.status_format import format_age
from pipelines.reporting.status_queries import FailedRows
from pipelines.reporting.time_breakdown import time_breakdown

MAX_BARS = 60
MAX_GAP_SECONDS = 300.0
"""After a longer time without an answer the charts begin again."""
MIN_BARS = 3
"""Of a run that is shorter, nothing is drawn over time."""
MAX_RUNS = 10
MAX_MESSAGE_CHARACTERS = 300
LABELS = {
    "limits.requests_per_minute": ("Requests a minute", "no limit of the job"),
    "limits.tokens_per_minute": ("Tokens a minute", "no limit of the job"),
    "limits.concurrency": ("Requests in flight", ""),
    "budget.usd": ("Budget of the run, US dollars", "no budget"),
}


def job_page(
    reader: WorkspaceReader,
    snapshot: Snapshot,
    job: WatchedJob,
    facts: JobFacts,
    form_token: str | None,
    notice: str = "",
    refusal: str = "",
) -> Page:
    """Return the page of a job. `form_token`: None if the page is read-only; `refusal`: why a command was refused."""
    address = job_address(job.name)
    totals = Totals() if job.run is None else snapshot.totals.of_run(job.run.run_id)
    tables = facts.tables
    text = None if job.path is None else _job_file_text(job)
    parts = (
        part("notice", is_live=False, notice=notice, refusal=refusal),
        _head(snapshot, job, tables.failed),
        _steering(job, facts.control, address, form_token),
        part("figures", tiles=_figures(job, facts, totals)),
        part("charts", charts=_charts(reader, snapshot, job)),
        part("steps", steps=_steps(snapshot, job, facts)),
        part(
            "problems",
            failed=_failed_rows(tables.failed),
            requests=_failed_requests(reader, snapshot, job),
            is_running=job.is_running,
            tables_problem=tables.problem,
            errors_address=f"{address}/rows?table=errors",
        ),
        part(
            "newest",
            newest=tables.newest,
            results_address=f"{address}/rows",
            answers_address=f"{address}/answers",
            row_address=f"{address}/row",
            text="The results appear here after the first commit." if job.is_running else "",
        ),
        part("times", blocks=_times(job)),
        part("runs", runs=runs_table(reader, snapshot, job.name, MAX_RUNS)),
        part("file", text=text),
    )
    return Page(job.name, "job", parts, "/", 409 if refusal else 200)


def _head(snapshot: Snapshot, job: WatchedJob, failed: FailedRows) -> Part:
    status = job.status
    # A paused run has no bottleneck.
    is_slowed = status is not None and status["paused_since"] is None
    bound_by, _, remedy = str((status and is_slowed and status["bound_by"]) or "").partition("; ")
    has_failed = failed.groups and status is not None and not job.is_running and status["exit_code"] == 1
    return part(
        "head",
        name=job.name,
        job_state=job_state(job),
        description="" if job.loaded is None else job.loaded.job.description,
        file_problem=job.problem,
        bar=None if status is None else rows_progress(status, "rows done", with_failed=True),
        headline=_headline(snapshot, job),
        stopped=status and status["stopped"],
        stopped_css=job_state(job).css,
        worst=error_cause(str(failed.groups[0]["cause"])) if has_failed else None,
        held=status and status["held"],
        bottleneck=bound_by,
        remedy=remedy,
    )


def _headline(snapshot: Snapshot, job: WatchedJob) -> str:
    if job.run is None or job.status is None:
        where = f"rowmill run {job.path}" if job.path is not None else ""
        return f"It never ran. Start it with: {where}" if where and job.problem is None else ""
    began = datetime.fromtimestamp(job.run.started_at / 1e6, UTC)
    age = format_age(snapshot.at - began)
    if job.is_running:
        left = job.status["seconds_left"]
        # A paused run has no end in sight.
        if left is None or job.status["paused_since"] is not None:
            return f"Started {age}."
        return f"Started {age}. " + (f"About {format_duration(left)} left." if left >= 1 else "Nearly done.")
    if job.run.ended_at is None:
        return f"Started {age}; its process was killed. The next run continues it."
    ended = datetime.fromtimestamp(job.run.ended_at / 1e6, UTC)
    return f"Ended {format_age(snapshot.at - ended)}; it took {format_duration((ended - began).total_seconds())}."


def _figures(job: WatchedJob, facts: JobFacts, totals: Totals) -> Figures:
    status = job.status
    if status is None:
        return Figures({})
    live = facts.control or job.live or {}
    is_fanned_out = job.loaded is not None and results_key(job.loaded.job).child_index is not None
    shown: dict[str, Fact] = {
        "rows done" if is_fanned_out else "rows with a result": fact("rows_ok", status["rows_ok"]),
        "failed rows": fact("rows_failed", status["rows_failed"]),
    }
    if is_fanned_out:
        shown["results of these rows"] = fact("results", facts.tables.results)
    if job.is_running:
        rate, in_flight = live.get("requests_per_second"), live.get("in_flight")
        shown["requests a second"] = fact("requests_per_second", rate)
        shown["in flight"] = fact("in_flight", in_flight)
    shown |= {
        "requests": fact("requests", status["requests"]),
        "failed requests": fact("requests_failed", totals.failed),
        "tokens in": fact("input_tokens", totals.input_tokens),
        "tokens out": fact("output_tokens", totals.output_tokens),
        "cost of the run": cost_fact("cost_usd", totals),
    }
    budget = (facts.control or {}).get("budget")
    if budget is not None:
        text = f"{format_money(budget['spent_usd'])} of {format_money(budget['usd'])}"
        shown["budget used"] = fact("budget_usd", budget["usd"], text)
    return Figures(shown)


def _charts(reader: WorkspaceReader, snapshot: Snapshot, job: WatchedJob) -> Sequence[BarChart]:
    if job.run is None:
        return ()
    timeline = snapshot.totals.timeline(job.run.run_id)
    # The last interval is not over yet.
    places = sorted(timeline.buckets)[: -1 if job.is_running else None]
    shown = _last_stretch(places, timeline.seconds)
    if len(shown) < MIN_BARS:
        return ()
    spent = sum(timeline.buckets[place].known_cost for place in places[: len(places) - len(shown)])
    places = shown
    width = -(-(places[-1] - places[0] + 1) // MAX_BARS)
    bars = [Totals() for _ in range((places[-1] - places[0]) // width + 1)]
    for place in places:
        bars[(place - places[0]) // width].add(timeline.buckets[place])
    seconds = width * timeline.seconds
    labels = _labels(reader, timeline, places[0], width, len(bars))
    ticks = label_ticks(labels)
    costs = []
    for bar in bars:
        spent += bar.known_cost
        costs.append(usd(spent))
    mean = sum(bar.requests for bar in bars) / (seconds * len(bars))
    rate_text = f"Requests a second, {format_number(mean)} on average"
    cost_text = f"Cost so far, {format_money(costs[-1])}"
    rates = [
        Series("answers a second", [(bar.requests - bar.failed) / seconds for bar in bars]),
        Series("failed requests a second", [bar.failed / seconds for bar in bars], "failed"),
    ]
    charts = [bar_chart(rates, labels, ticks, "time", "requests a second", rate_text, (f"{rate_text}.",), False)]
    if spent:
        money = [Series("US dollars", costs)]
        charts.append(bar_chart(money, labels, ticks, "time", "US dollars", cost_text, (f"{cost_text}.",), False))
    return charts


def _last_stretch(places: list[int], seconds: float) -> list[int]:
    """Return the intervals since the last long gap: a run may go on hours after it was stopped."""
    longest = MAX_GAP_SECONDS / seconds
    for index in range(len(places) - 1, 0, -1):
        if places[index] - places[index - 1] > longest:
            return places[index:]
    return places


def _labels(reader: WorkspaceReader, timeline: Timeline, first: int, width: int, count: int) -> Sequence[str]:
    """Return the local time at which each interval begins."""
    zone, seconds = reader.workspace.zone, timeline.seconds
    moments = [datetime.fromtimestamp((first + place * width) * seconds, zone) for place in range(count)]
    is_long = moments[-1] - moments[0] > timedelta(hours=20)
    form = "%b %d %H:%M" if is_long else "%H:%M:%S" if moments[-1] - moments[0] < timedelta(minutes=10) else "%H:%M"
    return [moment.strftime(form) for moment in moments]


def _steps(snapshot: Snapshot, job: WatchedJob, facts: JobFacts) -> Table:
    found = {} if job.run is None else snapshot.totals.by_step(job.run.run_id)
    decimals = money_decimals(usd(totals.known_cost) for totals in found.values())
    rows = []
    for route, totals in found.items():
        name = f"{route.step}.{route.provider}.{route.model}"
        latencies = facts.latencies.get(route, (None, None, None))
        rows.append(
            (
                route.step,
                route.endpoint,
                f"{route.model} ({route.provider})",
                fact(f"requests.{name}", totals.requests),
                fact(f"failed.{name}", totals.failed),
                fact(f"retries.{name}", totals.retries),
                fact(f"input_tokens.{name}", totals.input_tokens),
                fact(f"output_tokens.{name}", totals.output_tokens),
                cost_fact(f"cost_usd.{name}", totals, decimals),
                *(
                    fact(f"{p}.{name}", value, _milliseconds(value))
                    for p, value in zip(("p50", "p95", "p99"), latencies, strict=True)
                ),
            )
        )
    heads = (
        *("step", "endpoint", "model (provider)", "requests", "failed", "retries", "tokens in", "tokens out", "cost"),
        *("median", "95 % within", "99 % within"),
    )
    caption = "Requests of each step in the newest run, and the latency of its newest answers"
    return table(heads, rows, caption, frozenset(range(3, 12)))


def _failed_rows(failed: FailedRows) -> Table:
    rows = []
    for group in failed.groups:
        name = str(group["cause"])
        cause = error_cause(name)
        rows.append(
            (
                Cause(cause.title, name),
                group["step"],
                group["http_status"],
                fact(f"errors.{name}.{group['step']}", group["rows"]),
                str(group["message"] or "")[:MAX_MESSAGE_CHARACTERS],
                cause.remedy,
            )
        )
    heads = ("cause", "step", "HTTP", "rows", "most frequent message", "what to do")
    return table(heads, rows, "Failed rows in the tables", frozenset({2, 3}))


def _failed_requests(reader: WorkspaceReader, snapshot: Snapshot, job: WatchedJob) -> Table:
    zone = reader.workspace.zone
    found = () if job.run is None else snapshot.totals.failures_of(job.run.run_id)
    rows = [
        (
            Cause(error_cause(error_class).title, error_class),
            route.step,
            status,
            fact(f"failed.{error_class}.{status}.{route.step}", failed.requests),
            failed.message[:MAX_MESSAGE_CHARACTERS],
            time(datetime.fromtimestamp(failed.first / 1e6, UTC), zone),
            time(datetime.fromtimestamp(failed.last / 1e6, UTC), zone),
        )
        for route, error_class, status, failed in found
    ]
    heads = ("cause", "step", "HTTP", "requests", "first message", "first", "last")
    caption = "Failed requests of the newest run, including those that were sent again"
    return table(heads, rows, caption, frozenset({2, 3}))


def _steering(job: WatchedJob, control: Mapping[str, Any] | None, address: str, form_token: str | None) -> Part:
    settings = [] if control is None else [_setting(key, control) for key in SETTABLE]
    return part(
        "steering",
        address=f"{address}/control",
        form_token=form_token,
        is_running=job.is_running,
        is_read_only=form_token is None,
        is_paused=control is not None and control["paused_since"] is not None,
        stopping=control and control["stopping"],
        settings=settings,
    )


def _setting(key: str, control: Mapping[str, Any]) -> Mapping[str, str]:
    section, _, name = key.partition(".")
    value = (control[section] or {}).get(name)
    label, placeholder = LABELS[key]
    return {"key": key, "label": label, "placeholder": placeholder, "value": "" if value is None else f"{value:g}"
            if isinstance(value, float) else str(value)}  # fmt: skip


def _times(job: WatchedJob) -> Sequence[str | Table | Figures]:
    """Return where the time of the last invocation went."""
    if job.run is None or job.run.report is None or job.is_running:
        return ()
    return time_breakdown([{"times": orjson.loads(job.run.report).get("times")}])


def _job_file_text(job: WatchedJob) -> str | None:
    try:
        return None if job.path is None else job.path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _milliseconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f} ms" if value < 10_000 else f"{value / 1000:,.1f} s"
