"""Audits: SQL over a job's tables after a run, and the built-in audit for drift; no audit can open a file."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from connectors.errors import DataError, JobError, Stopped, did_you_mean
from connectors.sql import (
    USER_QUERY_MEMORY_LIMIT,
    first_line,
    lock_down,
    parse_sql,
    parser_connection,
    query_connection,
)
from connectors.tables.schemas import usage_schema
from pipelines.config.job import Audit
from pipelines.config.sql_predicate import expression_nodes
from pipelines.execution.drift import find_drift
from pipelines.preparation.prepared_job import PreparedJob
from pipelines.runtime.run_report import AuditResult

TABLES = ("results", "usage", "errors")
FUNCTIONS = frozenset({"unnest", "range", "generate_series"})
"""Functions that give a table and open nothing."""


def check_audits(ready: PreparedJob) -> None:
    """Raise JobError with file and line if an audit's SQL is not one query over the job's tables."""
    if all(audit.sql is None for audit in ready.job.audits):
        return
    shape = ready.shape
    empty = {"results": shape.results, "usage": usage_schema(), "errors": shape.errors}
    with query_connection(ready.scratch, USER_QUERY_MEMORY_LIMIT) as db:
        for name, schema in empty.items():
            db.register(name, schema.empty_table())
        _close(db, ready, files=False)
        for place, audit in enumerate(ready.job.audits):
            if audit.sql is None:
                continue
            where = ready.loaded.locate("audits", place, "sql")
            _check_query(audit.sql, where)
            try:
                _count(db, audit.sql)
            except duckdb.Error as exc:
                raise JobError(where, first_line(exc), "fix the query") from exc


def run_audits(ready: PreparedJob, run_id: str) -> list[AuditResult]:
    """Run the job's audits on its tables; their SQL reads the run's id by getvariable('run_id')."""
    if not ready.job.audits:
        return []
    try:
        with _tables(ready, run_id) as db:
            return [_result(db, audit, ready, run_id) for audit in ready.job.audits]
    except (duckdb.Error, DataError, Stopped) as exc:
        # The run is over and paid for: unreadable tables fail its audits, not its report.
        words = first_line(exc) if isinstance(exc, duckdb.Error) else str(exc)
        return [AuditResult(audit.name, None, audit.max, (words,)) for audit in ready.job.audits]


def _result(db: duckdb.DuckDBPyConnection, audit: Audit, ready: PreparedJob, run_id: str) -> AuditResult:
    try:
        if audit.drift is not None:
            found = find_drift(db, audit.drift, ready, run_id)
            return AuditResult(audit.name, len(found), audit.max, tuple(found))
        return AuditResult(audit.name, _count(db, audit.sql or ""), audit.max)
    except duckdb.Error as exc:
        return AuditResult(audit.name, None, audit.max, (first_line(exc),))


def _count(db: duckdb.DuckDBPyConnection, sql: str) -> int:
    ((count,),) = db.execute(f"select count(*) from (\n{sql.strip().rstrip(';')}\n)").fetchall()
    return int(count)


@contextmanager
def _tables(ready: PreparedJob, run_id: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that can read the sink's tables as results, usage and errors, and nothing else."""
    sink = ready.sink
    with query_connection(ready.scratch, USER_QUERY_MEMORY_LIMIT) as db:
        sink.attach(db)
        db.execute(f"create view results as select * exclude (_part) from {sink.results_sql()}")
        db.execute(f"create view usage as select * from {sink.usage_sql()}")
        db.execute(f"create view errors as select * from {sink.errors_sql()}")
        db.execute("set variable run_id = ?", [run_id])
        _close(db, ready, files=True)
        yield db
        sink.detach(db)


def _close(db: duckdb.DuckDBPyConnection, ready: PreparedJob, files: bool) -> None:
    paths = ready.sink.paths() if files else ()
    folders = [path for path in paths if isinstance(path, Path) and path.is_dir()]
    lock_down(db, folders, [path for path in paths if path not in folders])


def _check_query(sql: str, where: str) -> None:
    """Allow one SELECT over the three tables. A locked connection alone could read the sink's files directly."""
    with parser_connection() as db:
        parsed = parse_sql(db, sql, where, "write one query, e.g. select * from results where topic is null")
    if len(parsed["statements"]) != 1:
        raise JobError(where, "is more than one query", "write one for each audit")
    named = frozenset(_cte_names(parsed))
    for node in expression_nodes(parsed):
        kind = node.get("type")
        if kind == "TABLE_FUNCTION":
            name = str(node.get("function", {}).get("function_name", "")).lower()
            if name not in FUNCTIONS:
                raise JobError(where, f"{name}() is not allowed here", "an audit reads results, usage and errors only")
        elif kind == "BASE_TABLE":
            name = str(node.get("table_name", ""))
            if node.get("schema_name") or node.get("catalog_name") or name.lower() not in {*TABLES, *named}:
                raise JobError(where, f"no table {name} here", did_you_mean(name, TABLES))


def _cte_names(node: Any) -> Iterator[str]:
    """Names of common table expressions."""
    if isinstance(node, list):
        for inner in node:
            yield from _cte_names(inner)
    elif isinstance(node, Mapping):
        for entry in (node.get("cte_map") or {}).get("map", ()):
            yield str(entry["key"]).lower()
        for inner in node.values():
            yield from _cte_names(inner)
