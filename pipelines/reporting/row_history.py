"""A row's whole story: its requests as sent, the replies, what each exchange cost, and where the row stands now."""

from typing import Any

import duckdb
import orjson

from connectors.errors import DataError
from connectors.records import Request, RowError
from pipelines.config.loaded_job import LoadedJob
from pipelines.ledger.ledger import Ledger
from pipelines.preparation.prepared_job import PreparedJob, prepare_job
from pipelines.preparation.row_selection import key_text
from pipelines.pricing.prices import usd
from pipelines.reporting.status_queries import iso_time
from pipelines.runtime.services import open_workspace_ledger

LONGEST_LIST = 8
"""Numbers of a vector that are shown."""


def row_history(loaded: LoadedJob, key: str) -> dict[str, Any]:
    """The row, each step's request and reply, every exchange that named its key, its result and its errors."""
    workspace = loaded.workspace
    with open_workspace_ledger(workspace) as ledger, prepare_job(loaded, ledger) as ready:
        ready.selection.load_sink_state(ready.sink if ready.sink.exists() else None)
        row = ready.selection.lookup(key)
        history = _exchanges(ledger, ready.job.name, key)
        result, errors = _standing(ready, key)
        if row is None and not history and result is None:
            raise DataError(loaded.path, f"no row has the key {key}", f"keys are those of {', '.join(ready.shape.key)}")
        return {
            "job": ready.job.name,
            "key": key,
            "row": None if row is None else _readable(row.to_pylist()[0]),
            "steps": [] if row is None else _steps(ready, ledger, row.to_pylist()[0], result, key),
            "exchanges": history,
            "cost_usd": _sum(history),
            "result": result,
            "errors": errors,
        }


def _steps(ready: PreparedJob, ledger: Ledger, row: dict[str, Any], result: Any, key: str) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    values = {**(result or {}), **row}
    for step in ready.steps:
        missing = sorted(name for name in step.endpoint.input_columns if name not in values)
        if missing:
            told.append({"step": step.model.name, "request": None, "why": f"waits for {', '.join(missing)}"})
            continue
        asked = step.endpoint.request(values, key)
        if isinstance(asked, RowError):
            told.append({"step": step.model.name, "request": None, "why": asked.message})
            continue
        told.extend(_turns(ledger, step.model.name, step.endpoint, asked))
    return told


def _turns(ledger: Ledger, name: str, endpoint: Any, asked: Request | None) -> list[dict[str, Any]]:
    """The request and, where its answer did not fit, the turn that asked to mend it."""
    told: list[dict[str, Any]] = []
    while asked is not None:
        kept = ledger.get_with_request(asked.fingerprint)
        sent = asked.body if kept is None or kept.request is None else kept.request
        told.append(
            {
                "step": name,
                "fingerprint": asked.fingerprint.hex(),
                "request": orjson.loads(sent),
                "reply": None if kept is None or kept.reply is None else shorten_reply(kept.reply),
                "error": None if kept is None or kept.error is None else kept.error.message,
                "run_id": None if kept is None else kept.run_id,
                "at": None if kept is None else iso_time(kept.at),
            }
        )
        again: Request | None = None
        if kept is not None and kept.reply is not None:
            problem = endpoint.values(kept.reply)
            if isinstance(problem, RowError):
                told[-1]["error"] = problem.message
                again = endpoint.repair(asked, kept.reply, problem)
        asked = again
    return told


def shorten_reply(reply: bytes) -> Any:
    """A kept reply for people: JSON as it is, a vector as its length and first numbers."""
    try:
        return orjson.loads(reply)
    except orjson.JSONDecodeError:
        if len(reply) % 4:
            return f"{len(reply):,} bytes"
        import numpy as np

        numbers = np.frombuffer(reply, dtype="<f4")
        return {"length": len(numbers), "first": [round(float(n), 6) for n in numbers[:LONGEST_LIST]]}


def _exchanges(ledger: Ledger, job: str, key: str) -> list[dict[str, Any]]:
    names = (
        "run_id", "step", "model", "attempt", "http_status", "error_class", "message", "cost_usd", "started_at",
        "latency_ms", "request_id",
    )  # fmt: skip
    found = [
        dict(zip(names, row, strict=True))
        for row in ledger.query(
            "select l.run_id, l.step, l.model, e.attempt, e.http_status, e.error_class, e.message, e.cost, "
            "e.started_at, e.latency_ms, e.request_id from exchanges e join legs l on l.id = e.leg "
            "where l.job = ? and instr(e.keys, ?) "
            "and exists (select 1 from json_each(e.keys) k where k.value = ?) order by e.started_at",
            (job, orjson.dumps(key).decode(), key),
        )
    ]
    for exchange in found:
        exchange["started_at"] = iso_time(exchange["started_at"])
        if exchange["cost_usd"] is not None:
            exchange["cost_usd"] = usd(exchange["cost_usd"])
    return found


def _standing(ready: PreparedJob, key: str) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """(the row's result, its errors) as they stand in the sink."""
    if not ready.sink.exists():
        return None, []
    text = key_text(ready.shape.key)
    with duckdb.connect() as db:
        ready.sink.attach(db)
        results = db.sql(f"select * from {ready.sink.results_sql()} where {text} = ?", params=[key]).to_arrow_table()
        errors = db.sql(f"select * from {ready.sink.errors_sql()} where {text} = ?", params=[key]).to_arrow_table()
        ready.sink.detach(db)
    rows = [_readable(row) for row in results.to_pylist()]
    return (rows[0] if rows else None), [_readable(row) for row in errors.to_pylist()]


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    """Without inner columns; long lists of numbers shortened."""
    hidden = ("_part", "_key", "_in_errors")
    return {name: _short(value) for name, value in row.items() if name not in hidden}


def _short(value: Any) -> Any:
    if isinstance(value, list) and len(value) > LONGEST_LIST and all(isinstance(one, float) for one in value):
        return {"length": len(value), "first": [round(one, 6) for one in value[:LONGEST_LIST]]}
    return value


def _sum(history: list[dict[str, Any]]) -> float | None:
    costs = [exchange["cost_usd"] for exchange in history]
    return None if None in costs else sum(costs)
