"""`rowmill schedule show`: what ran, how it ended, what it cost, and what is next."""

from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime, tzinfo
from typing import Any

import orjson

from pipelines.ledger.ledger_file import open_ledger_file
from pipelines.pricing.prices import usd
from pipelines.reporting.status_queries import COST
from pipelines.runtime.locks import is_running
from pipelines.schedule.scheduler import DueTimeStore, ScheduledJob, next_due

ENDS = {
    0: "done",
    1: "some rows failed",
    2: "mistake",
    3: "stopped",
    4: "locked",
    5: "an audit failed",
    130: "interrupted",
}


def schedule_rows(jobs: Iterable[ScheduledJob], last: int, now: datetime) -> list[dict[str, object]]:
    """One row for each of the last runs of each job, newest first; a job that never ran has one row as well. Times are
    of the job's workspace."""
    rows: list[dict[str, object]] = []
    for job in jobs:
        due = next_due(job.cron, now, job.zone)
        told = DueTimeStore(job.workspace).last_due_times(job.name)
        facts: dict[str, object] = {
            "job": job.name,
            "schedule": job.cron,
            "next": None if due is None else _local(due, job.zone),
        }
        skipped = None if told is None or told[1] is None else f"{_local(told[1], job.zone)}: {told[2]}"
        rows += [{**facts, **run, "skipped": skipped} for run in _runs(job, last)]
    return rows


def _runs(job: ScheduledJob, last: int) -> list[dict[str, object]]:
    found: list[tuple[Any, ...]] = []
    path = job.workspace.state / "ledger.sqlite"
    if path.exists():
        with closing(open_ledger_file(path)) as db:
            found = db.execute(
                f"select run_id, started_at, ended_at, exit_code, stopped, report, (select {COST} from exchanges e "
                "join legs l on l.id = e.leg where l.run_id = r.run_id) from runs r where job = ? "
                "order by started_at desc limit ?",
                (job.name, last),
            ).fetchall()
    under_way = is_running(job.workspace.state, job.name)
    rows: list[dict[str, object]] = []
    for run_id, started, ended, code, stopped, report, cost in found or [(None,) * 7]:
        told: dict[str, Any] = orjson.loads(report) if report else {}
        rows.append(
            {
                "run_id": run_id,
                "started": None if started is None else _local(_moment(started), job.zone),
                "ended": None if ended is None else _local(_moment(ended), job.zone),
                "how": _how(run_id, code, under_way and not rows),
                "exit_code": code,
                "rows_ok": told.get("rows_ok"),
                "rows_failed": told.get("rows_failed"),
                "cost_usd": None if cost is None else usd(cost),
                "stopped": stopped,
            }
        )
    return rows


def _how(run_id: str | None, code: int | None, under_way: bool) -> str:
    if run_id is None:
        return "never ran"
    if under_way:
        return "running"
    return "killed" if code is None else ENDS.get(code, str(code))


def _local(moment: datetime, zone: tzinfo) -> str:
    return moment.astimezone(zone).isoformat(timespec="seconds")


def _moment(microseconds: int) -> datetime:
    return datetime.fromtimestamp(microseconds / 1e6, UTC)
