"""The history of one row: its requests as sent, the replies, the cost of each exchange, its current result."""

from collections.abc import Collection
from typing import Any

import orjson
import pyarrow as pa

from connectors.endpoints.conversation.conversation_endpoint import ConversationEndpoint
from connectors.errors import DataError
from connectors.records import ROW_PROBLEM, TEXT_PREFIX, Request, RowError
from connectors.sql import query_connection
from connectors.templating.row_values import row_values
from connectors.transport.bounded_json import parse_json
from pipelines.config.loaded_job import LoadedJob
from pipelines.ledger.ledger_reader import ReadableLedger
from pipelines.ledger.projection import childless_rows
from pipelines.preparation.prepared_job import PreparedJob, PreparedStep, prepare_job
from pipelines.preparation.row_selection import key_text
from pipelines.pricing.prices import usd
from pipelines.reporting.status_queries import iso_time
from pipelines.runtime.services import open_workspace_ledger

SHOWN_NUMBERS = 8
"""Of a vector."""


def row_history(loaded: LoadedJob, key: str) -> dict[str, Any]:
    """Return the row, the request and reply of each step, every exchange with its key, its result and its errors."""
    with open_workspace_ledger(loaded.workspace) as ledger:
        return recorded_history(loaded, key, ledger)


def recorded_history(loaded: LoadedJob, key: str, ledger: ReadableLedger) -> dict[str, Any]:
    """Return the same from an open ledger."""
    with prepare_job(loaded, ledger) as ready:
        ready.selection.load_sink_state(
            ready.sink if ready.sink.exists() else None, childless_rows(ledger, ready.job.name, ready.sink_name)
        )
        row = ready.selection.lookup(key)
        history = row_exchanges(ledger, ready.job.name, key)
        result, errors = _current_outcome(ready, key)
        if row is None and not history and result is None:
            raise DataError(loaded.path, f"no row has the key {key}", f"keys are those of {', '.join(ready.shape.key)}")
        return {
            "job": ready.job.name,
            "key": key,
            "row": None if row is None else _visible(row_values(row)[0]),
            "steps": [] if row is None else _steps(ready, ledger, row, result, key, _shared_steps(history)),
            "exchanges": history,
            "cost_usd": _total_cost(history),
            "result": result,
            "errors": errors,
        }


def _steps(
    ready: PreparedJob, ledger: ReadableLedger, row: pa.Table, result: Any, key: str, shared_steps: Collection[str]
) -> list[dict[str, Any]]:
    """Return what each step requested and got; `shared_steps`: those in which other rows shared an exchange."""
    steps: list[dict[str, Any]] = []
    values = {**(result or {}), **row_values(row)[0]}
    for step in ready.steps:
        missing = sorted(name for name in step.endpoint.input_columns if name not in values)
        if missing:
            steps.append({"step": step.model.name, "request": None, "why": f"waits for {', '.join(missing)}"})
            continue
        request = step.endpoint.request(values, key)
        if isinstance(request, RowError):
            steps.append({"step": step.model.name, "request": None, "why": request.message})
            continue
        exchanges = _with_repairs(ledger, step, request, row, result or {})
        endpoint = step.endpoint
        if isinstance(endpoint, ConversationEndpoint) and endpoint.pack_options and step.model.name in shared_steps:
            exchanges[0]["item"] = endpoint.packed(endpoint.packed_mode).item(request)
        steps.extend(exchanges)
        for rung in step.rungs:
            request = rung.endpoint.request(values, key)
            if isinstance(request, Request) and ledger.get_with_request(request.fingerprint) is not None:
                again = _with_repairs(ledger, rung, request, row, result or {})
                steps.extend({**exchange, "rung": rung.rung} for exchange in again)
    return steps


def _shared_steps(history: list[dict[str, Any]]) -> Collection[str]:
    return {exchange["step"] for exchange in history if exchange["rows"] > 1}


def _with_repairs(
    ledger: ReadableLedger, step: PreparedStep, first: Request, row: pa.Table, result: dict[str, Any]
) -> list[dict[str, Any]]:
    """The request and, if its answer did not fit the schema or failed a check, the repair turns that followed."""
    name, endpoint = step.model.name, step.endpoint
    exchanges: list[dict[str, Any]] = []
    request: Request | None = first
    while request is not None:
        stored = ledger.get_with_request(request.fingerprint)
        sent = request.body if stored is None or stored.request is None else stored.request
        exchanges.append(
            {
                "step": name,
                "fingerprint": request.fingerprint.hex(),
                "request": orjson.loads(sent),
                "reply": None if stored is None or stored.reply is None else shorten_reply(stored.reply),
                "error": None if stored is None or stored.error is None else stored.error.message,
                "run_id": None if stored is None else stored.run_id,
                "at": None if stored is None else iso_time(stored.at),
            }
        )
        repair: Request | None = None
        if stored is not None and stored.reply is not None:
            error, problem = _problem(step, stored.reply, row, result)
            if error is not None and problem is not None:
                exchanges[-1]["error"] = error.message
                if len(exchanges) <= step.repairs:
                    repair = endpoint.repair(request, stored.reply, problem)
                if repair is not None and repair.former is not None:
                    is_known = ledger.get_with_request(repair.former.fingerprint) is not None
                    repair = repair.former if is_known else repair
        request = repair
    return exchanges


def _problem(
    step: PreparedStep, answer: bytes, row: pa.Table, result: dict[str, Any]
) -> tuple[RowError | None, RowError | None]:
    """Return (the row's error, what a repair turn says of it) of an answer; None if it is accepted.

    Checks are left out if the row lacks a column that they read.
    """
    values = step.endpoint.values(answer)
    if isinstance(values, RowError):
        return values, values
    quality = step.quality
    if quality is None:
        return None, None
    for name in quality.columns.difference(row.column_names):
        kind = step.context.columns[name]
        if name not in result or (isinstance(result[name], dict) and not pa.types.is_struct(kind)):
            return None, None
        row = row.append_column(pa.field(name, kind), pa.array([result[name]], kind))
    _, failures = quality.evaluate(row, step.endpoint.arrays([values]))
    failure = failures.get(0)
    return (None, None) if failure is None else (failure.error, failure.problem)


def shorten_reply(reply: bytes) -> Any:
    """Return a stored reply as JSON; a vector as its length and first numbers."""
    try:
        return parse_json(reply)
    except orjson.JSONDecodeError:
        if len(reply) % 4:
            return f"{len(reply):,} bytes"
        import numpy as np

        numbers = np.frombuffer(reply, dtype="<f4")
        return {"length": len(numbers), "first": [round(float(n), 6) for n in numbers[:SHOWN_NUMBERS]]}


def row_exchanges(ledger: ReadableLedger, job: str, key: str) -> list[dict[str, Any]]:
    """Return the exchanges of a row in a job, oldest first."""
    names = (
        "run_id", "step", "model", "attempt", "http_status", "error_class", "message", "cost_usd", "started_at",
        "latency_ms", "request_id", "rows",
    )  # fmt: skip
    exchanges = [
        dict(zip(names, row, strict=True))
        for row in ledger.query(
            "select l.run_id, l.step, l.model, e.attempt, e.http_status, e.error_class, e.message, e.cost, "
            "e.started_at, e.latency_ms, e.request_id, json_array_length(e.keys) "
            "from exchanges e join legs l on l.id = e.leg where l.job = ? and instr(e.keys, ?) "
            "and exists (select 1 from json_each(e.keys) k where k.value = ?) order by e.started_at",
            (job, orjson.dumps(key).decode(), key),
        )
    ]
    for exchange in exchanges:
        exchange["started_at"] = iso_time(exchange["started_at"])
        if exchange["cost_usd"] is not None:
            exchange["cost_usd"] = usd(exchange["cost_usd"])
        # Rows that share an exchange share its cost.
        exchange["row_cost_usd"] = None if exchange["cost_usd"] is None else exchange["cost_usd"] / exchange["rows"]
    return exchanges


def _current_outcome(ready: PreparedJob, key: str) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """(the row's result, its errors) in the sink."""
    if not ready.sink.exists():
        return None, []
    text = key_text(ready.shape.key)
    with query_connection(ready.scratch) as db:
        ready.sink.attach(db)
        results = db.sql(f"select * from {ready.sink.results_sql()} where {text} = ?", params=[key]).to_arrow_table()
        errors = db.sql(f"select * from {ready.sink.errors_sql()} where {text} = ?", params=[key]).to_arrow_table()
        ready.sink.detach(db)
    rows = [_visible(row) for row in row_values(results)]
    return (rows[0] if rows else None), [_visible(row) for row in row_values(errors)]


def _visible(row: dict[str, Any]) -> dict[str, Any]:
    """The row without internal columns, long vectors shortened."""
    hidden = ("_part", "_key", "_in_errors", ROW_PROBLEM)
    shown = (name for name in row if name not in hidden and not name.startswith(TEXT_PREFIX))
    return {name: _shorten_vector(row[name]) for name in shown}


def _shorten_vector(value: Any) -> Any:
    if isinstance(value, list) and len(value) > SHOWN_NUMBERS and all(isinstance(one, float) for one in value):
        return {"length": len(value), "first": [round(one, 6) for one in value[:SHOWN_NUMBERS]]}
    return value


def _total_cost(history: list[dict[str, Any]]) -> float | None:
    costs = [exchange["row_cost_usd"] for exchange in history]
    return None if None in costs else sum(costs)
