"""An experiment as a table on the terminal."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson

from pipelines.experiments.experiment import CombinationResult, ExperimentReport
from pipelines.formatting import DataTable, cut, format_count, format_money, money_decimals, single_line

if TYPE_CHECKING:
    from rich.console import RenderableType

MAX_SETTING_CHARACTERS = 40
UNBEATEN = "*"


def format_experiment(report: ExperimentReport, path: str) -> "RenderableType":
    """Draw the combinations, one a line, and what to do next."""
    from rich.console import Group
    from rich.text import Text

    rows = report.results[0].rows if report.results else 0
    paid = "cost not known" if report.cost_usd is None else f"{format_money(report.cost_usd)} paid"
    heading = f"{report.job}: {format_count(len(report.results), 'combination')} on {format_count(rows, 'row')}; "
    blocks: list[RenderableType] = [Text(f"{heading}{format_count(report.requests, 'request')} sent, {paid}")]
    if report.results:
        decimals = money_decimals(result.usd_per_1000 for result in report.results)
        blocks.append(DataTable([_row(result, decimals) for result in report.results]))
        blocks.append(Text(f"{UNBEATEN} no other combination is at least as good and as cheap"))
    if report.stopped is not None:
        blocks.append(Text(f"stopped: {report.stopped}"))
    elif report.results:
        best = next(result for result in report.results if result.is_unbeaten).combination.number
        blocks.append(Text(f"write one into the job file: the same command with --promote {best} (or another number)"))
    return Group(*blocks)


def short_settings(labels: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings in a form for narrow columns: keys without `steps.`, long values cut."""
    return {key.removeprefix("steps."): short_value(value) for key, value in labels.items()}


def format_share(share: float | None) -> str:
    """Format a share from 0 to 1 in percent; empty for None."""
    return "" if share is None else f"{100 * share:.1f} %"


def format_interval(result: CombinationResult) -> str:
    """Format the 95 % interval: `83.1 to 90.4 %`; empty without one."""
    if result.low is None or result.high is None:
        return ""
    return f"{100 * result.low:.1f} to {100 * result.high:.1f} %"


def _row(result: CombinationResult, decimals: int) -> dict[str, object]:
    return {
        "no.": f"{result.combination.number}{UNBEATEN if result.is_unbeaten else ' '}",
        **short_settings(result.combination.labels),
        "right": format_share(result.right),
        "95 % interval": format_interval(result),
        **({} if result.requests is None else {"requests": result.requests}),
        "cost/1,000 rows": format_money(result.usd_per_1000, decimals),
        "median latency": "" if result.latency_ms is None else f"{result.latency_ms:,.0f} ms",
        "failed": result.errors,
    }


def short_value(value: Any) -> str:
    """Return the value of a setting in one line, cut if it is long."""
    # Other values than texts as `--over` takes them, in JSON.
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return cut(single_line(text), MAX_SETTING_CHARACTERS)
