"""`rowmill try --html`: one self-contained HTML page about an experiment, in the looks of the report."""

from datetime import UTC, datetime
from pathlib import Path

from connectors.errors import JobError
from pipelines.config.loaded_job import LoadedJob
from pipelines.experiments.experiment import CombinationResult, ExperimentReport
from pipelines.experiments.experiment_text import format_interval, format_share, short_settings
from pipelines.formatting import format_money, money_decimals
from pipelines.reporting.page.page_values import Figures, Table, fact, table
from pipelines.reporting.page.scatter_chart import ChartPoint, ScatterChart, scatter_chart
from pipelines.reporting.report_page import Section, State, render_sections


def write_page(report: ExperimentReport, loaded: LoadedJob, out: Path) -> None:
    """Write the page; JobError if the file cannot be written."""
    page = render_experiment(report, loaded, datetime.now(UTC))
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as exc:
        raise JobError(out, f"cannot be written ({exc.strerror})", "choose another file with --html") from exc


def render_experiment(report: ExperimentReport, loaded: LoadedJob, now: datetime) -> str:
    """Return the page: figures, a table of the combinations, quality against cost, and their settings in full."""
    rows = report.results[0].rows if report.results else 0
    figures = Figures(
        {
            "combinations": fact("combinations", len(report.results)),
            "rows in the sample": fact("rows", rows),
            "requests sent": fact("requests", report.requests),
            "paid now": fact("cost_usd", report.cost_usd, format_money(report.cost_usd)),
        }
    )
    chart = _chart(report)
    sections = [
        Section("Experiment", [figures]),
        Section("Combinations", [_results_table(report)] if report.results else []),
        Section("Quality and cost", [] if chart is None else [chart]),
        Section("Settings", [_settings_table(report)] if report.results else []),
    ]
    state = None if report.stopped is None else State("stopped", "bad", report.stopped)
    title = f"Experiment on {report.job}"
    return render_sections(title, loaded.job.description, state, sections, now, loaded.workspace.zone)


def _results_table(report: ExperimentReport) -> Table:
    decimals = money_decimals(result.usd_per_1000 for result in report.results)
    keys = list(short_settings(report.results[0].combination.labels))
    rows = [
        (
            f"{result.combination.number}",
            "unbeaten" if result.is_unbeaten else "",
            *short_settings(result.combination.labels).values(),
            fact(f"right.{result.combination.number}", result.right, format_share(result.right) or "–"),
            format_interval(result) or "–",
            *([] if result.requests is None else [fact(f"requests.{result.combination.number}", result.requests)]),
            fact(
                f"usd_per_1000.{result.combination.number}",
                result.usd_per_1000,
                format_money(result.usd_per_1000, decimals),
            ),
            fact(f"latency_ms.{result.combination.number}", result.latency_ms, _milliseconds(result.latency_ms)),
            fact(f"errors.{result.combination.number}", result.errors),
        )
        for result in report.results
    ]
    requests = [] if report.results[0].requests is None else ["requests"]
    heads = (
        *("no.", "", *keys, "right", "95 % interval", *requests),
        *("cost per 1,000 rows", "median latency", "failed rows"),
    )
    first = len(keys) + 2
    caption = "Unbeaten: no other combination is at least as good and as cheap, and better in one of the two"
    return table(heads, rows, caption, frozenset(range(first, len(heads))))


def _settings_table(report: ExperimentReport) -> Table:
    rows = [
        (f"{result.combination.number}", setting.key, setting.file or "", str(setting.value))
        for result in report.results
        for setting in result.combination.settings
    ]
    return table(("no.", "key", "file", "value"), rows, "The settings of each combination in full", frozenset())


def _chart(report: ExperimentReport) -> ScatterChart | None:
    points = [point for result in report.results if (point := _point(result)) is not None]
    if not any(point.x for point in points):
        return None  # Without a price, or on a free provider, the table says it all.
    best = max(points, key=lambda point: point.y)
    return scatter_chart(
        points,
        "cost per 1,000 rows, US dollars",
        "right answers, percent",
        f"Quality against cost of {len(points)} combinations; combination {best.name} is best with {best.y:.1f} %",
        "Each point is a combination by its number, the line its 95 % interval; filled: unbeaten",
    )


def _point(result: CombinationResult) -> ChartPoint | None:
    if result.right is None or result.low is None or result.high is None or result.usd_per_1000 is None:
        return None
    name = str(result.combination.number)
    settings = ", ".join(f"{key}: {value}" for key, value in short_settings(result.combination.labels).items())
    title = f"{name} ({settings}): {100 * result.right:.1f} %, {format_money(result.usd_per_1000)} for 1,000 rows"
    low, high = 100 * result.low, 100 * result.high
    return ChartPoint(result.usd_per_1000, 100 * result.right, low, high, name, title, result.is_unbeaten)


def _milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f} ms"
