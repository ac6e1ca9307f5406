"""The ready audit for drift: the rows of this run against those of the runs before."""

from collections.abc import Iterator, Mapping

import duckdb
import pyarrow as pa

from connectors.sql import literal, quoted
from pipelines.config.job import Drift
from pipelines.preparation.prepared_job import PreparedJob

FEWEST = 20
"""Rows that both sides must have: fewer tell nothing of shares."""


def drifted(db: duckdb.DuckDBPyConnection, bounds: Drift, ready: PreparedJob, run_id: str) -> list[str]:
    """What is out of bounds, one line for each column and measure; nothing where either side has too few rows. The
    connection has the tables results and usage."""
    now = f"_run_id = {literal(run_id)}"
    ((rows_now, rows_before),) = db.execute(
        f"select count(*) filter ({now}), count(*) filter (not {now}) from results"
    ).fetchall()
    if min(rows_now, rows_before) < FEWEST:
        return []
    fields = [ready.shape.results.field(name) for name in ready.shape.outputs]
    found: list[str] = []
    for field in fields:
        column = quoted(field.name)
        if bounds.null_share is not None:
            then, later = _both(db, f"avg(cast({column} is null as DOUBLE))", now)
            if abs(later - then) > bounds.null_share:
                found.append(f"{field.name}: share of nulls {then:.3f} before, {later:.3f} now")
        if bounds.enum_share is not None and field.name in _enums(ready):
            found += _shares(db, field.name, now, bounds.enum_share)
        if bounds.length is not None and pa.types.is_string(field.type) and field.name not in _enums(ready):
            then, later = _both(db, f"avg(length({column}))", now)
            if _apart(then, later, bounds.length):
                found.append(f"{field.name}: length {then:.1f} before, {later:.1f} now")
    if bounds.cost_per_row is not None:
        found += _cost(db, run_id, bounds.cost_per_row)
    return found


def _both(db: duckdb.DuckDBPyConnection, measure: str, now: str) -> tuple[float, float]:
    """(before, now) of an aggregate; 0 where it is null."""
    ((then, later),) = db.execute(
        f"select {measure} filter (not {now}), {measure} filter ({now}) from results"
    ).fetchall()
    return float(then or 0), float(later or 0)


def _shares(db: duckdb.DuckDBPyConnection, name: str, now: str, bound: float) -> Iterator[str]:
    """The values of an enum column whose share of the rows that have one has moved too far."""
    column = quoted(name)
    for value, then, later in db.execute(
        f"select {column}, count(*) filter (not {now}) / sum(count(*) filter (not {now})) over (), "
        f"count(*) filter ({now}) / sum(count(*) filter ({now})) over () "
        f"from results where {column} is not null group by 1 order by 1"
    ).fetchall():
        # A side without any value has no shares; that is the measure of nulls to tell.
        if then is not None and later is not None and abs(later - then) > bound:
            yield f"{name} = {value}: share {then:.3f} before, {later:.3f} now"


def _cost(db: duckdb.DuckDBPyConnection, run_id: str, bound: float) -> Iterator[str]:
    """The mean over the rows that were asked, by this run and by those before that still have rows in the results:
    what a run has paid for rows that were asked anew since is no cost of those that are there."""
    now = f"run_id = {literal(run_id)}"
    # What is reserved for an exchange whose outcome nobody saw is no cost either.
    paid = "from usage where error_class is distinct from 'unknown' and run_id in (select _run_id from results)"
    ((then, later, rows_then, rows_now),) = db.execute(
        f"select sum(cost_usd) filter (not {now}), sum(cost_usd) filter ({now}), "
        f"(select count(*) from (select distinct run_id, unnest(keys) {paid} and not {now})), "
        f"(select count(*) from (select distinct run_id, unnest(keys) {paid} and {now})) {paid}"
    ).fetchall()
    if then is None or later is None:
        return
    then, later = then / rows_then, later / rows_now
    if _apart(then, later, bound):
        yield f"cost a row ${then:.6f} before, ${later:.6f} now"


def _apart(then: float, later: float, bound: float) -> bool:
    """Whether the later one differs from the former by more than this share of it."""
    return abs(later - then) > bound * then


def _enums(ready: PreparedJob) -> frozenset[str]:
    """The columns whose declared type has an enum, or true and false only."""
    found: set[str] = set()
    for step in ready.job.steps:
        declared = getattr(step, "output", None)
        for name, spec in declared.items() if isinstance(declared, Mapping) else ():
            if isinstance(spec, Mapping) and ("enum" in spec or spec.get("type") == "boolean"):
                found.add(name)
    return frozenset(found)
