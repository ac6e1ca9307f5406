"""Run history of scheduled jobs for `rowmill schedule show`: outcome, cost and next due time."""

from collections.abc import Iterable
from datetime import UTC, datetime, tzinfo
from typing import Any

import orjson

from pipelines.pricing.prices import usd
from pipelines.reporting.status_queries import COST, ledger_reader
from pipelines.runtime.locks import is_running
from pipelines.runtime.run_records import NEWEST_FIRST
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
    """Return a row for each of the last runs of each job, newest first; a job that never ran has one row as well.

    Times are in the time zone of the job's workspace.
    """
    rows: list[dict[str, object]] = []
    for job in jobs:
        due = next_due(job.cron, now, job.zone)
        due_times = DueTimeStore(job.workspace).last_due_times(job.name)
        facts: dict[str, object] = {
            "job": job.name,
            "schedule": job.cron,
            "next": None if due is None else _local_time(due, job.zone),
        }
        skipped = (
            None
            if due_times is None or due_times[1] is None
            else f"{_local_time(due_times[1], job.zone)}: {due_times[2]}"
        )
        rows += [{**facts, **run, "skipped": skipped} for run in _runs(job, last)]
    return rows


def _runs(job: ScheduledJob, last: int) -> list[dict[str, object]]:
    records: list[tuple[Any, ...]] = []
    ledger = ledger_reader(job.workspace)
    if ledger is not None:
        with ledger:
            records = ledger.query(
                f"select run_id, started_at, ended_at, exit_code, stopped, report, (select {COST} from exchanges e "
                "join legs l on l.id = e.leg where l.run_id = r.run_id) from runs r where job = ? "
                f"order by {NEWEST_FIRST} limit ?",
                (job.name, last),
            )
    has_open_run = is_running(job.workspace.state, job.name)
    rows: list[dict[str, object]] = []
    for run_id, started, ended, code, stopped, report, cost in records or [(None,) * 7]:
        counts: dict[str, Any] = orjson.loads(report) if report else {}
        rows.append(
            {
                "run_id": run_id,
                "started": None if started is None else _local_time(_from_microseconds(started), job.zone),
                "ended": None if ended is None else _local_time(_from_microseconds(ended), job.zone),
                "how": _outcome(run_id, code, has_open_run and not rows),
                "exit_code": code,
                "rows_ok": counts.get("rows_ok"),
                "rows_failed": counts.get("rows_failed"),
                "cost_usd": None if cost is None else usd(cost),
                "stopped": stopped,
            }
        )
    return rows


def _outcome(run_id: str | None, code: int | None, is_open: bool) -> str:
    if run_id is None:
        return "never ran"
    if is_open:
        return "running"
    return "killed" if code is None else ENDS.get(code, str(code))


def _local_time(moment: datetime, zone: tzinfo) -> str:
    return moment.astimezone(zone).isoformat(timespec="seconds")


def _from_microseconds(microseconds: int) -> datetime:
    return datetime.fromtimestamp(microseconds / 1e6, UTC)
