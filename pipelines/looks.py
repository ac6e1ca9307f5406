"""Looks at what was done: runs, errors and usage as rows, read from the ledger and the sink."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import orjson

from connectors.ledger import Ledger
from connectors.prices import usd
from connectors.sql_text import quoted_list
from connectors.tables import failure_names
from pipelines.jobfile import load_job
from pipelines.prepare import prepared
from pipelines.runs import running
from pipelines.workspace import Workspace, find_workspace

Rows = list[dict[str, object]]


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
        ((requests, cost),) = ledger.query(
            "select count(*), sum(e.cost) from exchanges e join legs l on l.id = e.leg where l.run_id = ?", (run_id,)
        )
        rows.append(
            {
                "job": job_name,
                "run_id": run_id,
                "state": "running" if running(ledger.path.parent, job_name) else state,
                "started": moment(started_at),
                "ended": None if ended_at is None else moment(ended_at),
                "exit_code": exit_code,
                "rows": told.get("rows"),
                "rows_ok": told.get("rows_ok"),
                "rows_failed": told.get("rows_failed"),
                "requests": requests,
                "cost_usd": None if cost is None else usd(cost),
                "stopped": stopped,
            }
        )
    ledger.close()
    return rows


def errors(job: Path, limit: int) -> tuple[Rows, int]:
    """(the first rows of the errors table, how many there are)."""
    loaded = load_job(job)
    with prepared(loaded, find_workspace(job)) as ready, duckdb.connect() as db:
        if not ready.sink.present():
            return [], 0
        ready.sink.attach(db)
        source = ready.sink.errors_sql()
        names = failure_names(ready.shape.key)
        shown = [
            *ready.shape.key,
            *(names[name] for name in ("step", "error_class", "http_status", "attempts", "message")),
        ]
        relation = db.sql(
            f"select {quoted_list(shown)} from {source} order by {names['failed_at']}, {names['step']} limit {limit}"
        )
        rows: Rows = relation.to_arrow_table().to_pylist()
        ((total,),) = db.sql(f"select count(*) from {source}").fetchall()
        ready.sink.detach(db)
        return rows, int(total)


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
