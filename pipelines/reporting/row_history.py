"""The history of one row: its requests as sent, the replies, the cost of each exchange, its current result."""

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

import orjson
import pyarrow as pa

from connectors.endpoints.conversation.conversation_endpoint import ConversationEndpoint
from connectors.errors import DataError
from connectors.media.media_reader import is_fetched
from connectors.records import ROW_PROBLEM, TEXT_PREFIX, Request, Row, RowError, Values
from connectors.sql import identifier, key_text, scratch_connection
from connectors.templating.row_values import row_values
from connectors.transport.bounded_json import parse_json
from pipelines.config.loaded_job import LoadedJob
from pipelines.dispatch.media_files import read_media
from pipelines.ledger.ledger_reader import ReadableLedger
from pipelines.ledger.projection import childless_rows
from pipelines.preparation.local_steps import PreparedLocalStep
from pipelines.preparation.prepared_job import PreparedJob, PreparedStep, media_reader, prepare_job
from pipelines.pricing.prices import usd
from pipelines.reporting.status_queries import iso_time
from pipelines.runtime.services import workspace_answers
from pipelines.transforms.child_keys import child_key_starts
from pipelines.transforms.each import Each
from pipelines.transforms.fold import Fold
from pipelines.transforms.select import Select

SHOWN_NUMBERS = 8
"""Of a vector."""


def row_history(loaded: LoadedJob, key: str) -> dict[str, Any]:
    """Return the row, the request and reply of each step, every exchange with its key, its result and its errors."""
    with workspace_answers(loaded.workspace) as ledger:
        return recorded_history(loaded, key, ledger)


def recorded_history(loaded: LoadedJob, key: str, ledger: ReadableLedger) -> dict[str, Any]:
    """Return the same from an open ledger."""
    with prepare_job(loaded, ledger) as ready:
        ready.selection.load_sink_state(
            ready.sink if ready.sink.exists() else None, childless_rows(ledger, ready.job.name, ready.sink_name)
        )
        row, index = ready.selection.lookup(key), None
        if row is None and (child := _child_key(ready, key)) is not None:
            key, source, index = child
            row = ready.selection.lookup(source)
        child_start = None
        if row is not None and index is None and any(step.kind == "each" for step in ready.local_steps):
            (child_start,) = child_key_starts(row.select(ready.shape.source_key))
        history = row_exchanges(ledger, ready.job.name, key, child_start)
        result, errors = _current_outcome(ready, key, index)
        steps: list[dict[str, Any]] = []
        children = _children(ready, key) if index is None else []
        is_known = bool(history or errors or children) or result is not None
        if row is not None:
            local = _LocalSteps(row, result or {}, index)
            steps = _steps(ready, ledger, local, row, result, key, _shared_steps(history))
            is_known = is_known or index is None or local.children is None or index < local.children
            if child_start is not None and not children and local.children:
                children = [f"{child_start}{child}]" for child in range(local.children)]
        if not is_known:
            raise DataError(loaded.path, f"no row has the key {key}", f"keys are those of {', '.join(ready.shape.key)}")
        return {
            "job": ready.job.name,
            "key": key,
            "row": None if row is None else _visible(row_values(row)[0]),
            "steps": steps,
            "exchanges": history,
            "cost_usd": _total_cost(history),
            "result": result,
            "errors": errors,
            **({"children": children} if children else {}),
        }


def _child_key(ready: PreparedJob, key: str) -> tuple[str, str, int] | None:
    """Return (key, key of the source row, index) of a child row, as texts, from `[key, index]`; None if it is none."""
    if not any(step.kind == "each" for step in ready.local_steps):
        return None
    try:
        values = orjson.loads(key)
    except orjson.JSONDecodeError:
        return None
    if (
        not isinstance(values, list)
        or len(values) != len(ready.shape.source_key) + 1
        or not isinstance(values[-1], int)
        or values[-1] < 0
    ):
        return None
    *source, index = values
    text = source[0] if len(source) == 1 and isinstance(source[0], str) else None
    if text is None:
        text = orjson.dumps(source[0] if len(source) == 1 else source).decode()
    return orjson.dumps(values).decode(), text, index


def _children(ready: PreparedJob, key: str) -> list[str]:
    """Return the keys of the children of a source row that are in the results; none if a `fold` ends them."""
    if ready.shape.child_index is None or not ready.sink.exists():
        return []
    with scratch_connection(ready.scratch) as db:
        ready.sink.attach(db)
        found = db.execute(
            f"select {key_text(ready.shape.key)} from {ready.sink.results_sql()} "
            f"where {key_text(ready.shape.source_key)} = ? order by {identifier(ready.shape.child_index)}",
            [key],
        ).fetchall()
        ready.sink.detach(db)
    return [str(child) for (child,) in found]


class _LocalSteps:
    """The row on its way: what local steps make of it, as far as its values are known."""

    def __init__(self, row: pa.Table, result: dict[str, Any], index: int | None) -> None:
        """`index`: of the child that is shown; None: the source row itself."""
        self._row = row
        self._result = result
        self._index = index
        self.values = {**result, **row_values(row)[0]}
        self.is_elsewhere = False
        """Whether the steps here see children, and the source row itself is shown."""
        self.is_at_end = False
        """Whether the child that is shown has been folded."""
        self.children: int | None = None
        """How many children the source row has, the most of any `each`; None: not known."""

    def add(self, fields: Sequence[pa.Field], arrays: Sequence[pa.Array]) -> None:
        """Add columns."""
        for field, array in zip(fields, arrays, strict=True):
            self._row = self._row.append_column(field, array)
            self.values[field.name] = array.to_pylist()[0]

    def apply(self, step: PreparedLocalStep) -> None:
        """Go through a local step."""
        known = step.input_columns.issubset(self._row.column_names)
        index = self._index
        match step.transform:
            case Fold():
                self.is_elsewhere, self.is_at_end = False, self._index is not None
                folded = [field for field in step.fields if field.name in self._result]
                self.add(folded, [pa.array([self._result[field.name]], field.type) for field in folded])
            case Each():
                self.is_elsewhere = index is None
                expansion = step.transform.expand(self._row) if known else None
                if expansion is not None:
                    self.children = max(self.children or 0, expansion.total)
                if expansion is not None and index is not None and index < expansion.total:
                    _, child = step.transform.children(expansion, index, index + 1)
                    self.add(step.fields, [column.combine_chunks() for column in child.columns])
            case Select() if known and not self.is_elsewhere:
                made, errors = step.transform.apply(self._row)
                if not errors:
                    self.add(step.fields, [column.combine_chunks() for column in made.columns])


def _steps(
    ready: PreparedJob,
    ledger: ReadableLedger,
    local: _LocalSteps,
    row: pa.Table,
    result: Any,
    key: str,
    shared_steps: Collection[str],
) -> list[dict[str, Any]]:
    """Return what each step requested and got; `shared_steps`: those in which other rows shared an exchange."""
    steps: list[dict[str, Any]] = []
    for step in ready.every_step:
        if isinstance(step, PreparedLocalStep):
            local.apply(step)
            if local.is_at_end:
                break
            continue
        if local.is_elsewhere:
            continue
        values = local.values
        missing = sorted(name for name in step.endpoint.input_columns if name not in values)
        if missing:
            steps.append(_no_request(step, f"waits for {', '.join(missing)}"))
            continue
        with_files = _with_files(ready, step, values)
        if isinstance(with_files, RowError):
            steps.append(_no_request(step, with_files.message))
            continue
        request = step.endpoint.request(with_files, key)
        if isinstance(request, RowError):
            steps.append(_no_request(step, request.message))
            continue
        exchanges = _with_repairs(ledger, step, request, row, result or {})
        endpoint = step.endpoint
        if (answer := _last_values(ledger, step, exchanges)) is not None and not values.keys() & {
            field.name for field in endpoint.fields
        }:
            local.add(endpoint.fields, endpoint.arrays([answer]))
        if isinstance(endpoint, ConversationEndpoint) and endpoint.pack_options and step.model.name in shared_steps:
            exchanges[0]["item"] = endpoint.packed(endpoint.packed_mode).item(request)
        steps.extend(exchanges)
        for rung in step.rungs:
            request = rung.endpoint.request(with_files, key)
            if isinstance(request, Request) and ledger.get_with_request(request.fingerprint) is not None:
                again = _with_repairs(ledger, rung, request, row, result or {})
                steps.extend({**exchange, "rung": rung.rung} for exchange in again)
    return steps


def _no_request(step: PreparedStep, why: str) -> dict[str, Any]:
    return {"step": step.model.name, "request": None, "why": why}


def _with_files(ready: PreparedJob, step: PreparedStep, values: Row) -> Row | RowError:
    """Return the row with the files that the step reads in place of their paths; RowError if they cannot be read.

    Nothing is fetched: a file behind a URL may be another one by now.
    """
    uses = step.endpoint.media
    if not uses:
        return values
    for name, use in uses.items():
        if is_fetched(values[name], use):
            return RowError("input", f"{name}: the file is behind a URL, and is not fetched again; see exchanges")

    async def read() -> Row | RowError:
        reader = media_reader(ready)
        try:
            return (await read_media(reader, [values], uses, [0]))[0]
        finally:
            await reader.close()

    return asyncio.run(read())


def _last_values(ledger: ReadableLedger, step: PreparedStep, exchanges: list[dict[str, Any]]) -> Values | None:
    """Return the outputs of the answer with which a step ended; None if there is none."""
    stored = ledger.get_with_request(bytes.fromhex(exchanges[-1]["fingerprint"]))
    values = None if stored is None or stored.reply is None else step.endpoint.values(stored.reply)
    return None if isinstance(values, RowError) else values


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
        numbers = memoryview(reply).cast("f")
        return {"length": len(numbers), "first": [round(n, 6) for n in numbers[:SHOWN_NUMBERS]]}


def row_exchanges(ledger: ReadableLedger, job: str, key: str, child_start: str | None = None) -> list[dict[str, Any]]:
    """Return the exchanges of a row in a job, oldest first, and those of its children.

    `child_start`: the text with which the keys of its children begin; None: without them.
    """
    names = (
        "run_id", "step", "model", "attempt", "http_status", "error_class", "message", "cost_usd", "started_at",
        "latency_ms", "request_id", "rows", "children",
    )  # fmt: skip
    is_child = "false" if child_start is None else "substr(k.value, 1, length(?2)) = ?2"
    found = f"from json_each(e.keys) k where (k.value = ?3 or {is_child})"
    start = None if child_start is None else orjson.dumps(child_start).decode()[:-1]
    exchanges = [
        dict(zip(names, row, strict=True))
        for row in ledger.query(
            "select l.run_id, l.step, l.model, e.attempt, e.http_status, e.error_class, e.message, e.cost, "
            "e.started_at, e.latency_ms, e.request_id, json_array_length(e.keys), "
            f"(select json_group_array(k.value) {found} and k.value <> ?3) "
            "from exchanges e join legs l on l.id = e.leg "
            f"where l.job = ?1 and (instr(e.keys, ?4) or instr(e.keys, ?5)) and exists (select 1 {found}) "
            "order by e.started_at",
            (job, child_start, key, orjson.dumps(key).decode(), start),
        )
    ]
    for exchange in exchanges:
        exchange["started_at"] = iso_time(exchange["started_at"])
        if exchange["cost_usd"] is not None:
            exchange["cost_usd"] = usd(exchange["cost_usd"])
        children = orjson.loads(exchange.pop("children"))
        # Rows that share an exchange share its cost.
        own = max(1, len(children)) / exchange["rows"]
        exchange["row_cost_usd"] = None if exchange["cost_usd"] is None else exchange["cost_usd"] * own
        if children:
            exchange["children"] = children
    return exchanges


def _current_outcome(
    ready: PreparedJob, key: str, index: int | None
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """(the row's result, its errors) in the sink."""
    if not ready.sink.exists():
        return None, []
    shape = ready.shape
    text = key_text(shape.source_key if index is None and shape.child_index is not None else shape.key)
    with scratch_connection(ready.scratch) as db:
        ready.sink.attach(db)
        results = db.sql(f"select * from {ready.sink.results_sql()} where {text} = ?", params=[key]).to_arrow_table()
        errors = db.sql(f"select * from {ready.sink.errors_sql()} where {text} = ?", params=[key]).to_arrow_table()
        ready.sink.detach(db)
    rows = [_visible(row) for row in row_values(results)] if index is not None or shape.child_index is None else []
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
