"""The pages about the whole workspace: jobs with their progress, runs and cost by day, schedules."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any
from urllib.parse import quote

import orjson

from connectors.errors import RowmillError
from pipelines.dashboard.exchange_totals import Totals
from pipelines.dashboard.rendering import Link, Page, Part, Progress, State, part
from pipelines.dashboard.workspace_reader import Snapshot, WatchedJob, WorkspaceReader
from pipelines.formatting import format_duration, format_money, format_percent, money_decimals
from pipelines.pricing.prices import usd
from pipelines.reporting.page.bar_chart import BarChart, Series, bar_chart, label_ticks
from pipelines.reporting.page.page_values import Fact, Figures, Table, fact, table, time
from pipelines.reporting.status_format import STATES, format_age
from pipelines.runtime.run_records import NEWEST_FIRST

CHART_DAYS = 30
MAX_DAYS = 60
"""Days in the table of costs."""
MAX_RUNS = 100
MIN_WORK_PERCENT = 5.0
"""The share of the work is named if it is so much above that of the rows."""
MAX_NEXT = 6
"""Next runs on the page of all jobs."""
_STATE_CSS = {0: "good", 1: "bad", 2: "bad", 3: "stop", 4: "stop", 5: "bad", 130: "stop"}
"""By exit code."""


def overview_page(reader: WorkspaceReader, snapshot: Snapshot) -> Page:
    """Return the page of all jobs."""
    return Page(
        "Jobs",
        "home",
        (
            part(
                "overview",
                tiles=_tiles(reader, snapshot),
                folder=reader.workspace.folder.name,
                problem=snapshot.problem,
                share_read=snapshot.totals.share_read,
            ),
            part("jobs", jobs=_jobs_table(snapshot, reader)),
            part("days", chart_of_days=_chart_of_days(snapshot), days=None),
            part("next", schedule=_next_table(reader, snapshot)),
        ),
        "/",
    )


def runs_page(reader: WorkspaceReader, snapshot: Snapshot) -> Page:
    """Return the page of runs and cost by day."""
    return Page(
        "Runs and cost",
        "history",
        (
            Part("title", '<h1 class="unseen">Runs and cost</h1>', is_live=False),
            part("days", chart_of_days=_chart_of_days(snapshot), days=_days_table(snapshot)),
            part("runs", runs=runs_table(reader, snapshot, None, MAX_RUNS)),
        ),
        "/runs",
    )


def _next_table(reader: WorkspaceReader, snapshot: Snapshot) -> Table | None:
    """Return when the next jobs are due; None without any."""
    jobs = [job for job in _scheduled(snapshot) if job.next_due is not None][:MAX_NEXT]
    rows = [
        (Link(job.name, job_address(job.name)), time(due, reader.workspace.zone), _time_until(due, snapshot))
        for job in jobs
        if (due := job.next_due) is not None
    ]
    return table(("job", "next run", "in"), rows, "The next runs", frozenset()) if rows else None


def _scheduled(snapshot: Snapshot) -> Sequence[WatchedJob]:
    """Return the jobs with a schedule, the next first."""
    return sorted((job for job in snapshot.jobs if job.cron), key=lambda job: job.next_due or snapshot.at)


def _time_until(due: datetime, snapshot: Snapshot) -> str:
    return format_duration(max(0.0, (due - snapshot.at).total_seconds()))


def schedule_page(reader: WorkspaceReader, snapshot: Snapshot) -> Page:
    """Return the page of schedules."""
    rows = [
        (
            Link(job.name, job_address(job.name)),
            None if job.next_due is None else time(job.next_due, reader.workspace.zone),
            None if job.next_due is None else _time_until(job.next_due, snapshot),
            job.cron,
            job_state(job),
            None if job.status is None else format_age(snapshot.at - datetime.fromisoformat(job.status["started"])),
            job.skipped,
        )
        for job in _scheduled(snapshot)
    ]
    heads = ("job", "next", "in", "schedule", "last run", "started", "last skipped")
    caption = f"Jobs with a schedule, in the time zone {reader.workspace.settings.time_zone}"
    schedule = table(heads, rows, caption, frozenset())
    return Page(
        "Schedule",
        "history",
        (
            Part("title", '<h1 class="unseen">Schedule</h1>', is_live=False),
            part("schedule", schedule=schedule),
        ),
        "/schedule",
    )


def job_address(name: str) -> str:
    """Return the address of a job's page."""
    return f"/jobs/{quote(name, safe='')}"


def job_state(job: WatchedJob) -> State:
    """Return the state of a job's newest run, in the words of `rowmill status`."""
    if job.status is None:
        return State("file is broken", "bad") if job.problem else State("never ran", "idle")
    if job.is_running:
        return State("running", "busy") if job.status["paused_since"] is None else State("paused", "wait")
    return run_state(job.status["exit_code"])


def run_state(exit_code: int | None) -> State:
    """Return how a run ended."""
    if exit_code is None:
        return State("killed", "bad")
    return State(STATES.get(exit_code, "killed"), _STATE_CSS.get(exit_code, "bad"))


def rows_progress(status: Mapping[str, Any], label: str, with_failed: bool = False) -> Progress | None:
    """Return a bar of the rows done; None if no rows were counted. `with_failed`: its text names the failed rows."""
    rows = status["rows"]
    if rows is None:
        return None
    done, failed = rows - (status["rows_left"] or 0), status["rows_failed"] or 0
    text = f"{done:,} of {rows:,}" + (f" ({format_percent(done, rows)})" if rows else "")
    work = 100 * (status["share_done"] or 0.0)
    if rows and work > 100 * done / rows + MIN_WORK_PERCENT:
        text += f", {work:.0f} % of the work"
    spoken = f"{text}, {failed:,} failed"
    shown = spoken if with_failed and failed else text
    return Progress(done, min(failed, done), rows, shown, f"{label}: {spoken}", round(work, 1))


def job_note(job: WatchedJob) -> tuple[str, str]:
    """Return what a reader should know of a job, in one line, and its class: what failed or what it waits for."""
    if job.problem is not None:
        return job.problem, "bad"
    if job.status is None:
        return "", ""
    if job.status["held"]:
        return str(job.status["held"]), "wait"
    if job.status["stopped"]:
        return str(job.status["stopped"]), "wait" if job_state(job).css == "stop" else "bad"
    return (f"bound by {job.status['bound_by']}", "") if job.is_running and job.status["bound_by"] else ("", "")


def _tiles(reader: WorkspaceReader, snapshot: Snapshot) -> Figures:
    running = [job for job in snapshot.jobs if job.is_running]
    active = [job for job in running if job.live is not None and job.live.get("paused_since") is None]
    rate = sum((job.live or {}).get("requests_per_second", 0.0) for job in active)
    failed = sum((job.status["rows_failed"] or 0) for job in snapshot.jobs if job.status is not None)
    today = snapshot.totals.by_day().get(f"{snapshot.at:%Y-%m-%d}", Totals())
    facts = {
        "running jobs": fact("running", len(running)),
        "requests a second": fact("requests_per_second", rate, f"{rate:,.0f}" if rate >= 10 else f"{rate:.3g}"),
        "failed rows, newest runs": fact("rows_failed", failed),
        "cost today (UTC)": cost_fact("cost_today_usd", today),
    }
    budget = reader.workspace.budget
    if budget is not None:
        spent = _spent_of_budget(reader, snapshot.at)
        text = f"{format_money(spent)} of {format_money(budget.usd_per_day)}"
        facts["budget of the day"] = fact("budget_today_usd", spent, text)
    return Figures(facts)


def _spent_of_budget(reader: WorkspaceReader, now: datetime) -> float:
    """Return what is spent or reserved of the workspace's daily budget, in US dollars."""
    day = now.astimezone(reader.workspace.zone).date().isoformat()
    try:
        ledger = reader.open_ledger()
        if ledger is None:
            return 0.0
        with ledger:
            ((spent,),) = ledger.query("select coalesce((select spent from days where day = ?), 0)", (day,))
    except RowmillError:
        # The page shows why the ledger cannot be read.
        return 0.0
    return usd(spent)


def cost_fact(name: str, totals: Totals, decimals: int | None = None) -> Fact:
    """Return a cost; if the price of an exchange is not known, what is known with a mark."""
    known = usd(totals.known_cost)
    if totals.unpriced == 0:
        return fact(name, known, format_money(known, decimals))
    if totals.known_cost:
        return fact(name, None, f"{format_money(known, decimals)} + {totals.unpriced:,} without a price")
    return fact(name, None, "not known")


def _jobs_table(snapshot: Snapshot, reader: WorkspaceReader) -> Table:
    decimals = money_decimals(job.status["cost_usd"] for job in snapshot.jobs if job.status is not None)
    order = sorted(snapshot.jobs, key=_order)
    rows = [_job_row(job, snapshot, decimals) for job in order]
    heads = ("job", "state", "progress", "failed rows", "requests/s", "cost", "time left", "started")
    return table(heads, rows, "Jobs and their newest runs", frozenset({3, 4, 5, 6}))


def _order(job: WatchedJob) -> tuple[bool, bool, int, str]:
    """Sort running jobs first, then broken files, then jobs by their newest run; jobs that never ran last."""
    return (not job.is_running, job.problem is None, 0 if job.run is None else -job.run.started_at, job.name)


def _job_row(job: WatchedJob, snapshot: Snapshot, decimals: int) -> Sequence[Any]:
    note, css = job_note(job)
    name, status = Link(job.name, job_address(job.name), note, css), job.status
    if status is None:
        return (name, job_state(job), None, None, None, None, None, None)
    live = job.live or {}
    is_paused = status["paused_since"] is not None
    rate, left = (None, None) if is_paused else (live.get("requests_per_second"), status["seconds_left"])
    cost = status["cost_usd"]
    return (
        name,
        job_state(job),
        rows_progress(status, f"rows done of {job.name}"),
        fact(f"rows_failed.{job.name}", status["rows_failed"]),
        None if rate is None else fact(f"requests_per_second.{job.name}", rate, f"{rate:,.1f}"),
        fact(f"cost_usd.{job.name}", cost, format_money(cost, decimals)),
        None if left is None else format_duration(left),
        format_age(snapshot.at - datetime.fromisoformat(status["started"])),
    )


def _chart_of_days(snapshot: Snapshot) -> BarChart | None:
    days = snapshot.totals.by_day()
    if not days:
        return None
    last = max(snapshot.at.date(), date.fromisoformat(max(days)))
    first = max(date.fromisoformat(min(days)), last - timedelta(days=CHART_DAYS - 1))
    # Fewer than a week would be few wide bars.
    first = min(first, last - timedelta(days=6))
    shown = [first + timedelta(days=place) for place in range((last - first).days + 1)]
    costs = [usd(days.get(day.isoformat(), Totals()).known_cost) for day in shown]
    labels = [f"{day:%b} {day.day}" for day in shown]
    total = sum(costs)
    if not total:
        return None
    summary = f"Cost by day, {format_money(total)} in {len(shown)} days"
    caption = (fact("cost_of_days_usd", total, format_money(total)), f" in the last {len(shown)} days")
    series = [Series("US dollars", costs)]
    return bar_chart(series, labels, label_ticks(labels), "day (UTC)", "US dollars", summary, caption, is_whole=False)


def _days_table(snapshot: Snapshot) -> Table | None:
    days = snapshot.totals.by_day()
    if not days:
        return None
    decimals = money_decimals(usd(totals.known_cost) for totals in days.values())
    rows = [
        (
            day,
            fact(f"requests.{day}", totals.requests),
            fact(f"failed.{day}", totals.failed),
            fact(f"input_tokens.{day}", totals.input_tokens),
            fact(f"output_tokens.{day}", totals.output_tokens),
            cost_fact(f"cost_usd.{day}", totals, decimals),
        )
        for day, totals in sorted(days.items(), reverse=True)[:MAX_DAYS]
    ]
    heads = ("day (UTC)", "requests", "failed requests", "tokens in", "tokens out", "cost")
    return table(heads, rows, "Requests, tokens and cost by day", frozenset({1, 2, 3, 4, 5}))


def runs_table(reader: WorkspaceReader, snapshot: Snapshot, job: str | None, count: int) -> Table:
    """Return the newest runs of a job, or of all jobs."""
    totals = snapshot.totals.by_run()
    running = {one.run.run_id: job_state(one) for one in snapshot.jobs if one.is_running and one.run is not None}
    found = _newest_runs(reader, job, count)
    decimals = money_decimals(usd(totals[run_id].known_cost) for run_id, *_ in found if run_id in totals)
    rows: list[Sequence[Any]] = []
    for run_id, name, started, ended, code, stopped, report in found:
        counts = orjson.loads(report) if report else {}
        sums, under_way = totals.get(run_id, Totals()), run_id in running
        began = datetime.fromtimestamp(started / 1e6, UTC)
        seconds = None if ended is None or under_way else (ended - started) / 1e6
        rows.append(
            (
                time(began, reader.workspace.zone),
                *(() if job is not None else (Link(name, job_address(name)),)),
                running[run_id] if under_way else run_state(code),
                fact(f"rows_ok.{run_id}", None if under_way else counts.get("rows_ok")),
                fact(f"rows_failed.{run_id}", None if under_way else counts.get("rows_failed")),
                fact(f"requests.{run_id}", sums.requests),
                cost_fact(f"cost_usd.{run_id}", sums, decimals),
                None if seconds is None else format_duration(seconds),
                None if under_way else stopped,
            )
        )
    heads = [
        "started",
        "job",
        "state",
        "rows with a result",
        "failed rows",
        "requests",
        "cost",
        "time",
        "why it stopped",
    ]
    if job is not None:
        heads.remove("job")
    first = heads.index("rows with a result")
    return table(heads, rows, f"The last {len(rows):,} runs", frozenset(range(first, first + 5)))


def _newest_runs(reader: WorkspaceReader, job: str | None, count: int) -> Sequence[tuple[Any, ...]]:
    try:
        ledger = reader.open_ledger()
        if ledger is None:
            return ()
        with ledger:
            return ledger.query(
                "select run_id, job, started_at, ended_at, exit_code, stopped, report from runs r "
                f"where ? is null or job = ? order by {NEWEST_FIRST} limit ?",
                (job, job, count),
            )
    except RowmillError:
        # The overview shows why the ledger cannot be read.
        return ()
