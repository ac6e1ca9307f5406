"""Status, errors and usage as rows, read from the ledger and the sink."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb
import orjson

from connectors.sql import identifier, identifier_list
from connectors.tables.schemas import failure_names
from connectors.templating.row_values import row_values
from pipelines.config.loaded_job import LoadedJob
from pipelines.config.workspace import Workspace
from pipelines.ledger.ledger import Ledger
from pipelines.monitoring.run_heartbeat import read_heartbeat
from pipelines.preparation.prepared_job import prepare_job
from pipelines.pricing.prices import usd
from pipelines.runtime.locks import is_running
from pipelines.runtime.run_records import NEWEST_FIRST

Rows = list[dict[str, object]]

COST = "case when count(*) = count(e.cost) then coalesce(sum(e.cost), 0) end"
"""SQL for the total cost of exchanges `e`: 0 if there are none, null if the price of one is not known."""


def existing_ledger(workspace: Workspace) -> Ledger | None:
    """Open the workspace's ledger; None if nothing was ever run there."""
    path = workspace.state / "ledger.sqlite"
    return Ledger(path, workspace.durability) if path.exists() else None


def job_statuses(workspace: Workspace, name: str | None = None) -> Rows:
    """Return the last run of each job of the workspace, or of the job with this name."""
    ledger = existing_ledger(workspace)
    if ledger is None:
        return []
    rows: Rows = []
    for job_name, run_id, state, started_at, ended_at, exit_code, stopped, report in ledger.query(
        "select job, run_id, state, started_at, ended_at, exit_code, stopped, report from runs last "
        f"where run_id = (select run_id from runs r where r.job = last.job order by {NEWEST_FIRST} limit 1) "
        "and (? is null or job = ?) "
        "order by job",
        (name, name),
    ):
        last: dict[str, Any] = {} if report is None else orjson.loads(report)
        under_way = is_running(ledger.path.parent, job_name)
        live = (read_heartbeat(ledger.path.parent, job_name) if under_way else None) or {}
        ((requests, cost),) = ledger.query(
            f"select count(*), {COST} from exchanges e join legs l on l.id = e.leg where l.run_id = ?", (run_id,)
        )
        rows.append(
            {
                "job": job_name,
                "run_id": run_id,
                "state": "running" if under_way else state,
                "started": iso_time(started_at),
                "ended": None if ended_at is None or under_way else iso_time(ended_at),
                "exit_code": None if under_way else exit_code,
                "rows": live.get("rows", last.get("rows")),
                "rows_ok": live["rows_done"] - live["rows_failed"] if live else last.get("rows_ok"),
                "rows_failed": live.get("rows_failed", last.get("rows_failed")),
                "rows_left": live["rows"] - live["rows_done"] if live else last.get("rows_left"),
                "requests": requests,
                "cost_usd": None if cost is None else usd(cost),
                "stopped": None if under_way else stopped,
                "share_done": live.get("share_done"),
                "seconds_left": live.get("seconds_left"),
                "held": live.get("held"),
                "paused_since": live.get("paused_since"),
                "bound_by": live.get("bound_by") or (last.get("times") or {}).get("bound_by"),
            }
        )
    ledger.close()
    return rows


@dataclass(frozen=True, slots=True)
class FailedRows:
    """The failed rows of a job."""

    rows: Rows
    """The earliest ones."""
    total: int
    groups: Rows
    """Number of rows by step, error class and status, with their most frequent message."""


def failed_rows(loaded: LoadedJob, limit: int) -> FailedRows:
    """Read the errors table of a job."""
    with prepare_job(loaded) as ready, duckdb.connect() as db:
        if not ready.sink.exists():
            return FailedRows([], 0, [])
        ready.sink.attach(db)
        source = ready.sink.errors_sql()
        names = {name: identifier(actual) for name, actual in failure_names(ready.shape.key).items()}
        columns = ", ".join(names[name] for name in ("step", "error_class", "http_status", "attempts", "message"))
        rows: Rows = row_values(
            db.sql(
                f"select {identifier_list(ready.shape.key)}, {columns} from {source} "
                f"order by {names['failed_at']}, {names['step']} limit {limit}"
            ).to_arrow_table()
        )
        groups: Rows = (
            db.sql(
                f"select count(*) as rows, {names['step']} as step, {names['error_class']} as error_class, "
                f"{names['http_status']} as http_status, mode({names['message']}) as message from {source} "
                "group by all order by rows desc, error_class, step"
            )
            .to_arrow_table()
            .to_pylist()
        )
        ready.sink.detach(db)
        return FailedRows(rows, sum(int(str(group["rows"])) for group in groups), groups)


def usage_totals(workspace: Workspace, name: str | None, by: str) -> Rows:
    """Sum up exchanges by job, step, model or day; those without a price are `unpriced` and not in `cost_usd`."""
    ledger = existing_ledger(workspace)
    if ledger is None:
        return []
    grouping = {
        "job": "l.job",
        "step": "l.job || '/' || l.step",
        "model": "l.model",
        "day": "date(e.started_at / 1e6, 'unixepoch')",
    }[by]
    rows: Rows = [
        {
            by: group,
            "requests": count,
            "failed": failed,
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "cost_usd": None if cost is None else usd(cost),
            "unpriced": unpriced,
        }
        for group, count, failed, input_tokens, output_tokens, cost, unpriced in ledger.query(
            f"select {grouping}, count(*), count(e.error_class), sum(e.input_tokens), sum(e.output_tokens), "
            "sum(e.cost), sum(e.cost is null) from exchanges e join legs l on l.id = e.leg "
            "where ? is null or l.job = ? group by 1 order by 1",
            (name, name),
        )
    ]
    ledger.close()
    return rows


def iso_time(microseconds: int) -> str:
    """Format microseconds since 1970 as an ISO 8601 time in UTC, to the second."""
    return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat(timespec="seconds")
