"""Looks at what was done: runs, errors and usage as rows, read from the ledger and the sink."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import orjson

from connectors.sql import quoted, quoted_list
from connectors.tables.schemas import failure_names
from pipelines.config.job import load_job
from pipelines.config.workspace import Workspace, find_workspace
from pipelines.ledger.ledger import Ledger
from pipelines.monitoring.run_heartbeat import read_running
from pipelines.preparation.prepared_job import prepared
from pipelines.pricing.prices import usd
from pipelines.runtime.locks import running

Rows = list[dict[str, object]]

COST = "case when count(*) = count(e.cost) then coalesce(sum(e.cost), 0) end"
"""SQL for what exchanges `e` cost together: nothing where there are none, null where one's price is not known."""


def ledger_of(workspace: Workspace) -> Ledger | None:
    """The workspace's ledger, if anything was ever run there."""
    path = workspace.state / "ledger.sqlite"
    return Ledger(path) if path.exists() else None


def status(job: Path | None) -> Rows:
    """The last run of each job, or of one."""
    ledger = ledger_of(find_workspace(job or Path.cwd()))
    if ledger is None:
        return []
    name = None if job is None else load_job(job).job.name
    rows: Rows = []
    for job_name, run_id, state, started_at, ended_at, exit_code, stopped, report in ledger.query(
        "select job, run_id, state, started_at, ended_at, exit_code, stopped, report from runs r "
        "where started_at = (select max(started_at) from runs s where s.job = r.job) and (? is null or job = ?) "
        "order by job",
        (name, name),
    ):
        told: dict[str, Any] = {} if report is None else orjson.loads(report)
        under_way = running(ledger.path.parent, job_name)
        live = (read_running(ledger.path.parent, job_name) if under_way else None) or {}
        ((requests, cost),) = ledger.query(
            f"select count(*), {COST} from exchanges e join legs l on l.id = e.leg where l.run_id = ?", (run_id,)
        )
        rows.append(
            {
                "job": job_name,
                "run_id": run_id,
                "state": "running" if under_way else state,
                "started": moment(started_at),
                "ended": None if ended_at is None or under_way else moment(ended_at),
                "exit_code": None if under_way else exit_code,
                "rows": live.get("rows", told.get("rows")),
                "rows_ok": live["rows_done"] - live["rows_failed"] if live else told.get("rows_ok"),
                "rows_failed": live.get("rows_failed", told.get("rows_failed")),
                "rows_left": live["rows"] - live["rows_done"] if live else told.get("rows_left"),
                "requests": requests,
                "cost_usd": None if cost is None else usd(cost),
                "stopped": None if under_way else stopped,
                "share_done": live.get("share_done"),
                "seconds_left": live.get("seconds_left"),
                "held": live.get("held"),
                "bound_by": live.get("bound_by") or (told.get("times") or {}).get("bound_by"),
            }
        )
    ledger.close()
    return rows


@dataclass(frozen=True, slots=True)
class Failed:
    """The errors of a job."""

    rows: Rows
    """The first ones."""
    total: int
    groups: Rows
    """How many rows failed in which step with which class, and the message that most of them have."""


def errors(job: Path, limit: int) -> Failed:
    """What stands in the errors table."""
    loaded = load_job(job)
    with prepared(loaded, find_workspace(job)) as ready, duckdb.connect() as db:
        if not ready.sink.present():
            return Failed([], 0, [])
        ready.sink.attach(db)
        source = ready.sink.errors_sql()
        names = {name: quoted(actual) for name, actual in failure_names(ready.shape.key).items()}
        shown = ", ".join(names[name] for name in ("step", "error_class", "http_status", "attempts", "message"))
        rows: Rows = (
            db.sql(
                f"select {quoted_list(ready.shape.key)}, {shown} from {source} "
                f"order by {names['failed_at']}, {names['step']} limit {limit}"
            )
            .to_arrow_table()
            .to_pylist()
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
        return Failed(rows, sum(int(str(group["rows"])) for group in groups), groups)


def usage(job: Path | None, by: str) -> Rows:
    """Exchanges added up; cost_usd leaves out exchanges without a price, `unpriced` counts them."""
    workspace = find_workspace(job or Path.cwd())
    ledger = ledger_of(workspace)
    if ledger is None:
        return []
    name = None if job is None else load_job(job).job.name
    what = {
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
            "input_tokens": given,
            "output_tokens": made,
            "cost_usd": None if cost is None else usd(cost),
            "unpriced": unpriced,
        }
        for group, count, failed, given, made, cost, unpriced in ledger.query(
            f"select {what}, count(*), count(e.error_class), sum(e.input_tokens), sum(e.output_tokens), sum(e.cost), "
            "sum(e.cost is null) from exchanges e join legs l on l.id = e.leg where ? is null or l.job = ? "
            "group by 1 order by 1",
            (name, name),
        )
    ]
    ledger.close()
    return rows


def moment(microseconds: int) -> str:
    """ISO 8601, UTC, to the second."""
    return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat(timespec="seconds")
