"""Queries of the report: each figure comes from one query over the job's tables or its ledger."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb
import orjson
import pyarrow as pa

from connectors.sql import identifier, identifier_list
from pipelines.analysis.results import Results, open_results
from pipelines.config.loaded_job import LoadedJob
from pipelines.ledger.ledger_file import open_ledger_file
from pipelines.pricing.prices import usd
from pipelines.runtime.run_records import NEWEST_FIRST
from pipelines.runtime.run_report import ControlEvent

Facts = Mapping[str, Any]

MAX_BARS = 60
"""Bars of a chart over time."""
SAMPLE_ROWS = 12
MAX_RUNS = 20
MAX_FREQUENT_VALUES = 4
"""Most frequent values shown for a column."""
MAX_MESSAGES = 3
"""Example messages for each error class."""
HIDDEN_COLUMNS = ("_run_id", "_row_fingerprint")


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """Everything that the report shows."""

    results: Results
    totals: Facts
    """rows, rows_failed, requests, requests_failed, retries, tokens, cost_usd, unpriced, p50, p95 ..."""
    steps: Sequence[Facts]
    run: Facts
    """The last run's requests over time: run_id, seconds, bucket_seconds, counts."""
    latencies: Sequence[tuple[float, float, int]]
    """(from, to, exchanges) in milliseconds; each step doubles."""
    errors: Sequence[Facts]
    exchange_errors: Sequence[Facts]
    """Failed requests, including those that succeeded later."""
    columns: Sequence[Facts]
    samples: pa.Table
    runs: Sequence[Facts]
    text: str
    """The job file."""


def report_facts(loaded: LoadedJob) -> ReportFacts:
    """Read the job's tables; JobError if there are none yet."""
    results = open_results(loaded)
    with results.duckdb() as db:
        order = identifier_list(results.job.key) if results.job.key else "1"
        run_id = _first_row(db, "select run_id from usage order by started_at desc limit 1").get("run_id")
        return ReportFacts(
            results=results,
            totals=_totals(db),
            steps=_rows(db, _STEPS),
            run=_over_time(db, run_id),
            latencies=_latencies(db),
            errors=_errors(db),
            exchange_errors=_rows(db, _EXCHANGE_ERRORS),
            columns=_columns(db),
            samples=db.sql(f"select * from results order by {order} limit {SAMPLE_ROWS}").to_arrow_table(),
            runs=_runs(results),
            text=loaded.path.read_text(encoding="utf-8"),
        )


_TOTALS = """
select count(*) as requests, count(error_class) as requests_failed, count(*) filter (attempt > 1) as retries,
    coalesce(sum(input_tokens), 0)::bigint as input_tokens, coalesce(sum(output_tokens), 0)::bigint as output_tokens,
    coalesce(sum(cached_tokens), 0)::bigint as cached_tokens, sum(cost_usd) as cost_usd,
    count(*) filter (cost_usd is null) as unpriced, count(distinct run_id) as runs,
    quantile_cont(latency_ms, 0.5) as p50, quantile_cont(latency_ms, 0.95) as p95
from usage
"""
_STEPS = """
select step, endpoint, provider, model, count(*) as requests, count(error_class) as failed,
    coalesce(sum(cached_tokens), 0)::bigint as cached_tokens,
    coalesce(sum(input_tokens), 0)::bigint as input_tokens, coalesce(sum(output_tokens), 0)::bigint as output_tokens,
    sum(cost_usd) as cost_usd, quantile_cont(latency_ms, 0.5) as p50, quantile_cont(latency_ms, 0.95) as p95,
    quantile_cont(latency_ms, 0.99) as p99, max(latency_ms) as slowest
from usage group by all order by min(started_at), step
"""
_EXCHANGE_ERRORS = """
select error_class, http_status, count(*) as requests, min(started_at) as first, max(started_at) as last
from usage where error_class is not null group by all order by requests desc, error_class
"""


def _totals(db: duckdb.DuckDBPyConnection) -> Facts:
    rows = _first_row(db, "select (select count(*) from results) as rows, (select count(*) from errors) as rows_failed")
    return {**rows, **_first_row(db, _TOTALS)}


def _over_time(db: duckdb.DuckDBPyConnection, run_id: Any) -> Facts:
    """Requests that ended in each of at most MAX_BARS intervals."""
    ended = "epoch_us(started_at) / 1e6 + coalesce(latency_ms, 0) / 1e3"
    span = _first_row(
        db,
        f"select min(epoch_us(started_at)) / 1e6 as begin, max({ended}) as end, count(*) as requests, "
        "sum(latency_ms) / 1e3 as waited from usage where run_id = ?",
        [run_id],
    )
    if not span["requests"]:
        return {"run_id": None, "requests": 0, "seconds": 0.0, "bucket_seconds": 1.0, "counts": [], "in_flight": 0.0}
    seconds = max(span["end"] - span["begin"], 0.001)
    bucket = max(seconds / MAX_BARS, min(0.5, seconds / 12))
    counts = [0] * (int(seconds / bucket) + 1)
    for place, count in db.execute(
        f"select cast(floor(({ended} - ?) / ?) as integer), count(*) from usage where run_id = ? group by 1",
        [span["begin"], bucket, run_id],
    ).fetchall():
        counts[min(place, len(counts) - 1)] += count
    return {
        "run_id": run_id,
        "begin": datetime.fromtimestamp(span["begin"], UTC),
        "requests": span["requests"],
        "seconds": seconds,
        "bucket_seconds": bucket,
        "counts": counts,
        "in_flight": (span["waited"] or 0) / seconds,
    }


def _latencies(db: duckdb.DuckDBPyConnection) -> list[tuple[float, float, int]]:
    found = db.execute(
        "select cast(floor(log2(greatest(latency_ms, 1))) as integer) as power, count(*) from usage "
        "where latency_ms is not null group by 1 order by 1"
    ).fetchall()
    of_power = dict(found)
    powers = range(min(of_power), max(of_power) + 1) if of_power else ()
    return [(2.0**power, 2.0 ** (power + 1), of_power.get(power, 0)) for power in powers]


def _errors(db: duckdb.DuckDBPyConnection) -> list[Facts]:
    names = {column[0] for column in db.sql("describe errors").fetchall()}
    # If a key column has the same name, the errors table calls its own column `error_<name>`.
    own = {name: f"error_{name}" if f"error_{name}" in names else name for name in ("error_class", "step", "message")}
    groups = _rows(
        db,
        f"select {own['step']} as step, {own['error_class']} as error_class, count(*) as rows, "
        f"list_slice(list(distinct left({own['message']}, 300) order by left({own['message']}, 300)), "
        f"1, {MAX_MESSAGES}) as messages from errors group by all order by rows desc, error_class",
    )
    return list(groups)


def _columns(db: duckdb.DuckDBPyConnection) -> list[Facts]:
    described = [(str(row[0]), str(row[1])) for row in db.sql("describe results").fetchall()]
    return [_profile(db, name, kind) for name, kind in described if name not in HIDDEN_COLUMNS]


def _profile(db: duckdb.DuckDBPyConnection, name: str, kind: str) -> Facts:
    column = identifier(name)
    profile: dict[str, Any] = {"name": name, "type": kind}
    profile |= _first_row(db, f"select count(*) as rows, count(*) filter ({column} is null) as nulls from results")
    if kind.endswith("]"):
        return profile | _first_row(
            db, f"select min(len({column})) as least, max(len({column})) as most, 'items' as unit from results"
        )
    if kind.startswith(("STRUCT", "MAP", "UNION", "BLOB")):
        return profile
    profile |= _first_row(db, f"select count(distinct {column}) as distinct_values from results")
    if kind == "VARCHAR":
        profile |= _first_row(
            db,
            f"select min(length({column})) as least, max(length({column})) as most, 'characters' as unit from results",
        )
    else:
        profile |= _first_row(db, f"select min({column}) as least, max({column}) as most, '' as unit from results")
        if kind in ("BIGINT", "INTEGER", "SMALLINT", "TINYINT", "HUGEINT", "FLOAT", "DOUBLE") or "DECIMAL" in kind:
            profile |= _first_row(db, f"select avg({column}) as mean from results")
    top = db.execute(
        f"select cast({column} as VARCHAR), count(*) as n from results where {column} is not null "
        f"group by 1 having n > 1 order by n desc, 1 limit {MAX_FREQUENT_VALUES}"
    ).fetchall()
    return profile | {"top": top}


def _runs(results: Results) -> list[Facts]:
    path = results.workspace.state / "ledger.sqlite"
    if not path.exists():
        return []
    with closing(open_ledger_file(path)) as db:
        found = db.execute(
            "select r.run_id, r.started_at, r.ended_at, r.exit_code, r.stopped, r.report, count(e.seq), sum(e.cost), "
            "sum(e.seq is not null and e.cost is null) from runs r left join legs l on l.run_id = r.run_id "
            "left join exchanges e on e.leg = l.id where r.job = ? group by r.run_id "
            f"order by {NEWEST_FIRST} limit ?",
            (results.job.name, MAX_RUNS),
        ).fetchall()
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
                "rows_ok": last.get("rows_ok"),
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
    rows: list[Facts] = db.sql(sql, params=list(values)).to_arrow_table().to_pylist()
    return rows
