"""Status, errors and usage as rows, read from the ledger and the sink."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import duckdb
import orjson
from msgspec import Struct

from connectors.contracts import Sink
from connectors.error_classes import CHECK_FAILED
from connectors.sql import identifier, identifier_list, literal
from connectors.tables.schemas import FAILURE_COLUMNS, failure_names
from connectors.templating.row_values import row_values
from pipelines.analysis.results_key import ResultsKey, results_key
from pipelines.config.loaded_job import LoadedJob
from pipelines.config.workspace import Workspace
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.ledger_reader import LedgerReader, ReadableLedger
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


def ledger_reader(workspace: Workspace) -> LedgerReader | None:
    """Open the workspace's ledger for reading; None if nothing was ever run there."""
    path = workspace.state / "ledger.sqlite"
    return LedgerReader(path) if path.exists() else None


def job_statuses(workspace: Workspace, name: str | None = None) -> Rows:
    """Return the last run of each job of the workspace, or of the job with this name."""
    ledger = ledger_reader(workspace)
    if ledger is None:
        return []
    with ledger:
        rows: Rows = []
        for run in last_runs(ledger, name):
            under_way = is_running(workspace.state, run.job)
            live = read_heartbeat(workspace.state, run.job) if under_way else None
            ((requests, cost),) = ledger.query(
                f"select count(*), {COST} from exchanges e join legs l on l.id = e.leg where l.run_id = ?",
                (run.run_id,),
            )
            rows.append(job_status(run, under_way, live, requests, cost))
    return rows


class RecordedRun(Struct, frozen=True):
    """A run as the ledger has it."""

    job: str
    run_id: str
    state: str
    started_at: int
    """Microseconds since 1970, as `ended_at`."""
    ended_at: int | None
    exit_code: int | None
    stopped: str | None
    report: str | None
    """The report of its last invocation in JSON."""


def last_runs(ledger: ReadableLedger, name: str | None = None) -> Sequence[RecordedRun]:
    """Return the newest run of each job, or of the job with this name, in the order of the names."""
    rows = ledger.query(
        "select job, run_id, state, started_at, ended_at, exit_code, stopped, report from runs last "
        f"where run_id = (select run_id from runs r where r.job = last.job order by {NEWEST_FIRST} limit 1) "
        "and (? is null or job = ?) "
        "order by job",
        (name, name),
    )
    return [RecordedRun(*row) for row in rows]


def job_status(
    run: RecordedRun, under_way: bool, live: Mapping[str, Any] | None, requests: int, cost: int | None
) -> dict[str, Any]:
    """Return the status of a job by its newest run: of all its invocations `requests` and `cost`, in pico-dollars.

    `live`: the figures of an invocation that is `under_way`.
    """
    last: dict[str, Any] = {} if run.report is None else orjson.loads(run.report)
    live = live or {}
    return {
        "job": run.job,
        "run_id": run.run_id,
        "state": "running" if under_way else run.state,
        "started": iso_time(run.started_at),
        "ended": None if run.ended_at is None or under_way else iso_time(run.ended_at),
        "exit_code": None if under_way else run.exit_code,
        "rows": live.get("rows", last.get("rows")),
        "rows_ok": live["rows_done"] - live["rows_failed"] if live else last.get("rows_ok"),
        "rows_failed": live.get("rows_failed", last.get("rows_failed")),
        "rows_left": live["rows"] - live["rows_done"] if live else last.get("rows_left"),
        "rows_out": None if live else last.get("rows_out"),
        "requests": requests,
        "cost_usd": None if cost is None else usd(cost),
        "stopped": None if under_way else run.stopped,
        "share_done": live.get("share_done"),
        "seconds_left": live.get("seconds_left"),
        "held": live.get("held"),
        "paused_since": live.get("paused_since"),
        "bound_by": live.get("bound_by") or (last.get("times") or {}).get("bound_by"),
    }


class FailedRows(Struct, frozen=True):
    """The failed rows of a job."""

    rows: Rows
    """The earliest ones."""
    total: int
    """Errors in the table: of one row of the source, several children may have failed."""
    source_rows: int
    """Rows of the source that failed."""
    groups: Rows
    """Number of rows of the source by step, error class, status and cause, with their most frequent message.

    The cause is the error class, or the code of a failed check.
    """


def failed_rows(loaded: LoadedJob, limit: int) -> FailedRows:
    """Read the errors table of a job; failed checks are a group for each condition."""
    with prepare_job(loaded) as ready:
        if not ready.sink.exists():
            return FailedRows([], 0, 0, [])
        return read_errors(ready.sink, results_key(loaded.job), limit, by_check=True)


def read_errors(sink: Sink, results: ResultsKey, limit: int, by_check: bool = False) -> FailedRows:
    """Read the errors table of an existing sink. `by_check`: failed checks with other conditions are other groups."""
    with duckdb.connect() as db:
        sink.attach(db)
        source = sink.errors_sql()
        every = db.sql(f"select * from {source}").columns
        # The key comes first.
        key = every[: len(every) - FAILURE_COLUMNS]
        names = {name: identifier(actual) for name, actual in failure_names(key).items()}
        columns = ", ".join(names[name] for name in ("step", "error_class", "http_status", "attempts", "message"))
        rows: Rows = row_values(
            db.sql(
                f"select {identifier_list(key)}, {columns} from {source} "
                f"order by {names['failed_at']}, {names['step']} limit {limit}"
            ).to_arrow_table()
        )
        is_check = f"{names['code']} = {literal(CHECK_FAILED)}"
        # The message of a failed check is its condition.
        check = f"case when {is_check} then {names['message']} end" if by_check else "null"
        groups: Rows = (
            db.sql(
                "select * exclude (failed_check) from ("
                f"select {results.source_rows} as rows, {names['step']} as step, "
                f"{names['error_class']} as error_class, "
                f"{names['http_status']} as http_status, case when {is_check} "
                f"then {names['code']} else {names['error_class']} end as cause, mode({names['message']}) as message, "
                f"{check} as failed_check from {source} group by all) "
                "order by rows desc, error_class, step, message"
            )
            .to_arrow_table()
            .to_pylist()
        )
        ((total, source_rows),) = db.execute(f"select count(*), {results.source_rows} from {source}").fetchall()
        sink.detach(db)
    return FailedRows(rows, int(total), int(source_rows), groups)


def usage_totals(workspace: Workspace, name: str | None, by: str) -> Rows:
    """Sum up exchanges by job, step, model or day; those without a price are `unpriced` and not in `cost_usd`."""
    ledger = ledger_reader(workspace)
    if ledger is None:
        return []
    grouping = {
        "job": "l.job",
        "step": "l.job || '/' || l.step",
        "model": "l.model",
        "day": "date(e.started_at / 1e6, 'unixepoch')",
    }[by]
    with ledger:
        found = ledger.query(
            f"select {grouping}, count(*), count(e.error_class), sum(e.input_tokens), sum(e.output_tokens), "
            "sum(e.cost), sum(e.cost is null) from exchanges e join legs l on l.id = e.leg "
            "where ? is null or l.job = ? group by 1 order by 1",
            (name, name),
        )
    return [
        {
            by: group,
            "requests": count,
            "failed": failed,
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "cost_usd": None if cost is None else usd(cost),
            "unpriced": unpriced,
        }
        for group, count, failed, input_tokens, output_tokens, cost, unpriced in found
    ]


def iso_time(microseconds: int) -> str:
    """Format microseconds since 1970 as an ISO 8601 time in UTC, to the second."""
    return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat(timespec="seconds")
