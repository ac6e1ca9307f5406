"""Built-in audit for drift: compares the rows of this run with those of earlier runs."""

from collections.abc import Iterator, Mapping

import duckdb
import pyarrow as pa

from connectors.sql import identifier, literal
from pipelines.config.job import Drift
from pipelines.preparation.prepared_job import PreparedJob

MIN_ROWS = 20
"""Rows that each side must have; shares of fewer rows mean nothing."""


def find_drift(db: duckdb.DuckDBPyConnection, bounds: Drift, ready: PreparedJob, run_id: str) -> list[str]:
    """Return one line for each column and measure that is out of bounds; none if a side has fewer than `MIN_ROWS` rows.

    The connection has the tables results and usage.
    """
    now = f"_run_id = {literal(run_id)}"
    ((rows_now, rows_before),) = db.execute(
        f"select count(*) filter ({now}), count(*) filter (not {now}) from results"
    ).fetchall()
    if min(rows_now, rows_before) < MIN_ROWS:
        return []
    fields = [ready.shape.results.field(name) for name in ready.shape.outputs]
    found: list[str] = []
    for field in fields:
        column = identifier(field.name)
        if bounds.null_share is not None:
            then, later = _before_and_now(db, f"avg(cast({column} is null as DOUBLE))", now)
            if abs(later - then) > bounds.null_share:
                found.append(f"{field.name}: share of nulls {then:.3f} before, {later:.3f} now")
        if bounds.enum_share is not None and field.name in _enum_columns(ready):
            found += _share_drift(db, field.name, now, bounds.enum_share)
        if bounds.length is not None and pa.types.is_string(field.type) and field.name not in _enum_columns(ready):
            then, later = _before_and_now(db, f"avg(length({column}))", now)
            if _has_drifted(then, later, bounds.length):
                found.append(f"{field.name}: length {then:.1f} before, {later:.1f} now")
    if bounds.cost_per_row is not None:
        found += _cost_drift(db, run_id, bounds.cost_per_row)
    return found


def _before_and_now(db: duckdb.DuckDBPyConnection, measure: str, now: str) -> tuple[float, float]:
    """(before, now) of an aggregate; null counts as 0."""
    ((then, later),) = db.execute(
        f"select {measure} filter (not {now}), {measure} filter ({now}) from results"
    ).fetchall()
    return float(then or 0), float(later or 0)


def _share_drift(db: duckdb.DuckDBPyConnection, name: str, now: str, bound: float) -> Iterator[str]:
    """Values of an enum column whose share of the non-null rows has changed by more than the bound."""
    column = identifier(name)
    for value, then, later in db.execute(
        f"select {column}, count(*) filter (not {now}) / sum(count(*) filter (not {now})) over (), "
        f"count(*) filter ({now}) / sum(count(*) filter ({now})) over () "
        f"from results where {column} is not null group by 1 order by 1"
    ).fetchall():
        # A side without any value has no shares; the measure of nulls reports it.
        if then is not None and later is not None and abs(later - then) > bound:
            yield f"{name} = {value}: share {then:.3f} before, {later:.3f} now"


def _cost_drift(db: duckdb.DuckDBPyConnection, run_id: str, bound: float) -> Iterator[str]:
    """Compare the mean cost of requested rows in this run with that of earlier runs that still have rows in results.

    Runs whose rows were all requested again since do not count.
    """
    now = f"run_id = {literal(run_id)}"
    # The amount reserved for an exchange with an unknown outcome is not a cost.
    paid = "from usage where error_class is distinct from 'unknown' and run_id in (select _run_id from results)"
    ((then, later, rows_then, rows_now),) = db.execute(
        f"select sum(cost_usd) filter (not {now}), sum(cost_usd) filter ({now}), "
        f"(select count(*) from (select distinct run_id, unnest(keys) {paid} and not {now})), "
        f"(select count(*) from (select distinct run_id, unnest(keys) {paid} and {now})) {paid}"
    ).fetchall()
    if then is None or later is None:
        return
    then, later = then / rows_then, later / rows_now
    if _has_drifted(then, later, bound):
        yield f"cost a row ${then:.6f} before, ${later:.6f} now"


def _has_drifted(then: float, later: float, bound: float) -> bool:
    """Whether the second value differs from the first by more than this share of the first."""
    return abs(later - then) > bound * then


def _enum_columns(ready: PreparedJob) -> frozenset[str]:
    """Columns whose declared type is an enum or a boolean."""
    found: set[str] = set()
    for step in ready.job.endpoint_steps:
        declared = getattr(step, "output", None)
        for name, spec in declared.items() if isinstance(declared, Mapping) else ():
            if isinstance(spec, Mapping) and ("enum" in spec or spec.get("type") == "boolean"):
                found.add(name)
    return frozenset(found)
