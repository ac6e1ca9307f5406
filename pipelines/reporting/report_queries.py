"""Queries of the report: each figure comes from one query over the job's tables or its ledger."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import duckdb
import orjson
import pyarrow as pa
from msgspec import Struct

from connectors.error_classes import CHECK_FAILED
from connectors.sql import identifier, identifier_list, literal
from connectors.tables.schemas import failure_names
from connectors.templating.row_values import row_values
from pipelines.analysis.output_columns import HIDDEN_COLUMNS, allowed_values, output_columns
from pipelines.analysis.results import Results, open_results
from pipelines.analysis.results_key import ResultsKey, results_key
from pipelines.config.job import Job
from pipelines.config.loaded_job import LoadedJob
from pipelines.ledger.ledger_reader import LedgerReader
from pipelines.monitoring.run_heartbeat import read_heartbeat
from pipelines.pricing.prices import usd
from pipelines.reporting.column_summaries import ColumnSummary, summarize_columns
from pipelines.runtime.run_records import NEWEST_FIRST
from pipelines.runtime.run_report import ControlEvent

Facts = Mapping[str, Any]

MAX_BARS = 60
"""Bars of a chart over time."""
SAMPLE_ROWS = 12
MAX_RUNS = 20
MAX_MESSAGES = 3
"""Example messages for each cause."""
MAX_DAYS = 60


class ReportFacts(Struct, frozen=True):
    """Everything that the report shows."""

    results: Results
    totals: Facts
    """rows_ok, rows_failed, results, errors, requests, requests_failed, retries, tokens, cost_usd, unpriced, p50 ...

    `rows_ok` and `rows_failed` are rows of the source, `results` and `errors` rows of those tables: after an `each`
    a row of the source has several.
    """
    steps: Sequence[Facts]
    cached: Sequence[Facts]
    """provider, model, service_tier and cached_tokens."""
    days: Sequence[Facts]
    """day, requests, cost_usd and unpriced of the last days (UTC) with requests."""
    run: Facts
    """The requests of the last run that sent any, over time: run_id, seconds, bucket_seconds, answered, failed.

    `rows`: rows of the source that got their present result or error in that run.
    """
    live: Facts | None
    """The heartbeat of a run in progress."""
    latencies: Sequence[tuple[float, float, int, int]]
    """(from, to, answered, failed) in milliseconds; each step doubles."""
    errors: Sequence[Facts]
    """Failed rows by cause and step; the cause is the error class, or the code of a failed check."""
    checks: Sequence[Facts]
    """Failed checks: step, condition, message, rows."""
    exchange_errors: Sequence[Facts]
    """Failed requests, including those that succeeded later."""
    columns: Sequence[ColumnSummary]
    samples: pa.Table
    runs: Sequence[Facts]
    text: str
    """The job file."""


def report_facts(loaded: LoadedJob) -> ReportFacts:
    """Read the job's tables; JobError if there are none yet."""
    results = open_results(loaded)
    with results.open_tables() as db:
        names = db.sql("select * from results limit 0").columns
        outputs = {name: allowed_values(results.job, name) for name in output_columns(results.job, names)}
        shown = identifier_list(name for name in names if name not in HIDDEN_COLUMNS)
        order = identifier_list(results.job.key) if results.job.key else "1"
        key, runs = results_key(results.job), _runs(results)
        live = read_heartbeat(results.workspace.state, results.job.name)
        run_id = _first_row(db, "select run_id from usage order by started_at desc limit 1").get("run_id")
        return ReportFacts(
            results=results,
            totals={**_rows_done(db, key, live, runs), **_first_row(db, _TOTALS)},
            steps=_rows(db, _STEPS),
            cached=_cached(db),
            days=_rows(db, _DAYS)[::-1],
            run=_over_time(db, key, run_id),
            live=live,
            latencies=_latencies(db),
            errors=_errors(db, key),
            checks=_failed_checks(db, key, results.job),
            exchange_errors=_rows(db, _EXCHANGE_ERRORS),
            columns=summarize_columns(db, outputs, HIDDEN_COLUMNS),
            samples=db.sql(f"select {shown} from results order by {order} limit {SAMPLE_ROWS}").to_arrow_table(),
            runs=runs,
            text=loaded.path.read_text(encoding="utf-8"),
        )


_TOTALS = """
select count(*) as requests, count(error_class) as requests_failed, count(*) filter (attempt > 1) as retries,
    coalesce(sum(input_tokens), 0)::bigint as input_tokens, coalesce(sum(output_tokens), 0)::bigint as output_tokens,
    coalesce(sum(cached_tokens), 0)::bigint as cached_tokens, sum(cost_usd) as cost_usd,
    count(*) filter (cost_usd is null) as unpriced, count(distinct run_id) as runs,
    count(distinct date_trunc('day', started_at)) as days,
    quantile_cont(latency_ms, 0.5) as p50, quantile_cont(latency_ms, 0.95) as p95
from usage
"""
_STEPS = """
select step, endpoint, provider, model, count(*) as requests, count(error_class) as failed,
    coalesce(sum(input_tokens), 0)::bigint as input_tokens, coalesce(sum(output_tokens), 0)::bigint as output_tokens,
    sum(cost_usd) as cost_usd, quantile_cont(latency_ms, 0.5) as p50, quantile_cont(latency_ms, 0.95) as p95,
    quantile_cont(latency_ms, 0.99) as p99, max(latency_ms) as slowest
from usage group by all order by min(started_at), step
"""
_DAYS = f"""
select strftime(started_at, '%Y-%m-%d') as day, count(*) as requests, sum(cost_usd) as cost_usd,
    count(*) filter (cost_usd is null) as unpriced
from usage group by 1 order by 1 desc limit {MAX_DAYS}
"""
_EXCHANGE_ERRORS = """
select error_class, http_status, count(*) as requests, min(started_at) as first, max(started_at) as last
from usage where error_class is not null group by all order by requests desc, error_class
"""


def _cached(db: duckdb.DuckDBPyConnection) -> Sequence[Facts]:
    # Tables of earlier versions gain the column with the next run.
    has_tier = "service_tier" in db.sql("select * from usage limit 0").columns
    tier = "service_tier" if has_tier else "null as service_tier"
    return _rows(
        db,
        f"select provider, model, {tier}, sum(cached_tokens)::bigint as cached_tokens "
        "from usage where cached_tokens > 0 group by all order by all",
    )


def _rows_done(
    db: duckdb.DuckDBPyConnection, key: ResultsKey, live: Facts | None, runs: Sequence[Facts]
) -> Mapping[str, int]:
    """Return rows_ok, rows_failed, results and errors."""
    found = _first_row(db, "select (select count(*) from results) as results, (select count(*) from errors) as errors")
    if key.child_index is None:
        return {**found, "rows_ok": found["results"], "rows_failed": found["errors"]}
    source = identifier_list(key.source)
    # A failed row keeps the children that it had before.
    done = _first_row(
        db,
        f"select (select count(*) from (select distinct {source} from errors)) as rows_failed, (select count(*) from "
        f"(select {source} from results except select {source} from errors)) as rows_ok",
    )
    # The tables do not have the rows that made no child.
    last = live["rows_done"] - live["rows_failed"] if live else runs[0]["rows_ok"] if runs else None
    return {**found, **done, "rows_ok": max(done["rows_ok"], last or 0)}


def _over_time(db: duckdb.DuckDBPyConnection, key: ResultsKey, run_id: Any) -> Facts:
    """Requests that ended in each of at most MAX_BARS intervals."""
    ended = "epoch_us(started_at) / 1e6 + coalesce(latency_ms, 0) / 1e3"
    span = _first_row(
        db,
        f"select min(epoch_us(started_at)) / 1e6 as begin, max({ended}) as end, count(*) as requests, "
        "sum(latency_ms) / 1e3 as waited from usage where run_id = ?",
        [run_id],
    )
    if not span["requests"]:
        return {"run_id": None, "requests": 0, "seconds": 0.0, "bucket_seconds": 1.0, "answered": [], "failed": []}
    seconds = max(span["end"] - span["begin"], 0.001)
    bucket = max(seconds / MAX_BARS, min(0.5, seconds / 12))
    answered = [0] * (int(seconds / bucket) + 1)
    failed = [0] * len(answered)
    for place, requests, failures in db.execute(
        f"select cast(floor(({ended} - ?) / ?) as integer), count(*), count(error_class) from usage where run_id = ? "
        "group by 1",
        [span["begin"], bucket, run_id],
    ).fetchall():
        answered[min(place, len(answered) - 1)] += requests - failures
        failed[min(place, len(answered) - 1)] += failures
    own, source = _own_columns(db), identifier_list(key.source)
    ((rows,),) = db.execute(
        f"select count(*) from (select {source} from results where _run_id = ? "
        f"union select {source} from errors where {own['run_id']} = ?)",
        [run_id, run_id],
    ).fetchall()
    return {
        "run_id": run_id,
        "rows": rows,
        "begin": datetime.fromtimestamp(span["begin"], UTC),
        "requests": span["requests"],
        "seconds": seconds,
        "bucket_seconds": bucket,
        "answered": answered,
        "failed": failed,
        "in_flight": (span["waited"] or 0) / seconds,
    }


def _latencies(db: duckdb.DuckDBPyConnection) -> list[tuple[float, float, int, int]]:
    found = db.execute(
        "select cast(floor(log2(greatest(latency_ms, 1))) as integer) as power, count(*), count(error_class) "
        "from usage where latency_ms is not null group by 1 order by 1"
    ).fetchall()
    of_power = {power: (requests - failures, failures) for power, requests, failures in found}
    powers = range(min(of_power), max(of_power) + 1) if of_power else ()
    return [(2.0**power, 2.0 ** (power + 1), *of_power.get(power, (0, 0))) for power in powers]


def _own_columns(db: duckdb.DuckDBPyConnection) -> Mapping[str, str]:
    """By name, the SQL of the columns of the errors table that are not the key's."""
    names = set(db.sql("select * from errors limit 0").columns)
    return {name: identifier(f"error_{name}" if f"error_{name}" in names else name) for name in failure_names(())}


def _errors(db: duckdb.DuckDBPyConnection, key: ResultsKey) -> Sequence[Facts]:
    own = _own_columns(db)
    message = f"left({own['message']}, 300)"
    return _rows(
        db,
        f"select {own['step']} as step, case when {own['code']} = {literal(CHECK_FAILED)} then {own['code']} "
        f"else {own['error_class']} end as cause, {key.source_rows} as rows, "
        f"list_slice(list(distinct {message} order by {message}), 1, {MAX_MESSAGES}) as messages "
        "from errors group by all order by rows desc, cause",
    )


def _failed_checks(db: duckdb.DuckDBPyConnection, key: ResultsKey, job: Job) -> Sequence[Facts]:
    """Count the rows in errors that fail each check of the job file; a row may fail several."""
    own = _own_columns(db)
    failed = f"from errors where {own['code']} = {literal(CHECK_FAILED)} and {own['step']} = ?"
    found: list[Facts] = []
    for step in job.endpoint_steps:
        for check in step.check:
            condition = " ".join(check.that.split())
            # The message lists the conditions, each with its own message and the error of a value that breaks it.
            begins, ends = "(the answer fails the check |; )", "( \\(|: |; |$)"
            ((rows,),) = db.execute(
                f"select {key.source_rows} {failed} and regexp_matches({own['message']}, ? || regexp_escape(?) || ?)",
                [step.name, begins, condition, ends],
            ).fetchall()
            if rows:
                found.append({"step": step.name, "condition": condition, "message": check.message, "rows": rows})
    return sorted(found, key=lambda check: -check["rows"])


def _runs(results: Results) -> list[Facts]:
    path = results.workspace.state / "ledger.sqlite"
    if not path.exists():
        return []
    with LedgerReader(path) as ledger:
        found = ledger.query(
            "select r.run_id, r.started_at, r.ended_at, r.exit_code, r.stopped, r.report, count(e.seq), sum(e.cost), "
            "sum(e.seq is not null and e.cost is null) from runs r left join legs l on l.run_id = r.run_id "
            "left join exchanges e on e.leg = l.id where r.job = ? group by r.run_id "
            f"order by {NEWEST_FIRST} limit ?",
            (results.job.name, MAX_RUNS),
        )
    runs: list[Facts] = []
    for run_id, started, ended, code, stopped, report, requests, cost, unpriced in found:
        last: dict[str, Any] = orjson.loads(report) if report else {}
        runs.append(
            {
                "run_id": run_id,
                "started": datetime.fromtimestamp(started / 1e6, UTC),
                "seconds": None if ended is None else (ended - started) / 1e6,
                "exit_code": code,
                "stopped": stopped,
                "rows": last.get("rows"),
                "rows_ok": last.get("rows_ok"),
                "rows_left": last.get("rows_left"),
                "rows_reused": last.get("rows_reused"),
                "rows_failed": last.get("rows_failed"),
                "requests": requests,
                "cost_usd": None if unpriced else usd(cost or 0),
                "audits": last.get("audits") or (),
                "pack_agreement": last.get("pack_agreement"),
                "times": last.get("times"),
                "control": [str(ControlEvent.from_json(event)) for event in last.get("control", ())],
            }
        )
    return runs


def _first_row(db: duckdb.DuckDBPyConnection, sql: str, values: Sequence[Any] = ()) -> dict[str, Any]:
    rows = _rows(db, sql, values)
    return dict(rows[0]) if rows else {}


def _rows(db: duckdb.DuckDBPyConnection, sql: str, values: Sequence[Any] = ()) -> list[Facts]:
    # Through Arrow: DuckDB's own conversion of timestamps with a time zone needs another package.
    return [*row_values(db.sql(sql, params=list(values)).to_arrow_table())]
