"""The pages of rows: a table page by page, and everything about one row."""

from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import orjson
from msgspec.structs import replace

from connectors.contracts import Sink
from connectors.errors import RowmillError
from pipelines.analysis.output_columns import HIDDEN_COLUMNS, allowed_values, output_columns
from pipelines.analysis.results import Results
from pipelines.analysis.results_key import results_key
from pipelines.config.loaded_job import LoadedJob
from pipelines.dashboard.cell_values import CellValue, cell_values, row_address, sample_table
from pipelines.dashboard.job_tables import (
    PAGE_ROWS,
    TableName,
    failure_values,
    readable_sink,
    table_page,
    table_row,
)
from pipelines.dashboard.rendering import Page, part
from pipelines.dashboard.workspace_pages import job_address
from pipelines.dashboard.workspace_reader import Snapshot, WorkspaceReader
from pipelines.formatting import format_count, format_money
from pipelines.reporting.column_summaries import summarize_columns
from pipelines.reporting.distribution_cards import distribution_cards
from pipelines.reporting.page.page_values import Table, fact, table
from pipelines.reporting.row_history import recorded_history, row_exchanges

MAX_BODY_CHARACTERS = 20_000
"""Of a request or a reply on the page."""
MAX_CHILDREN = 200
"""Children of a source row that its page links to."""
READ_ERRORS = (RowmillError, duckdb.Error, OSError)
"""What reading tables may raise while a run changes them."""
TITLES: Mapping[TableName, str] = {"results": "Results", "errors": "Failed rows"}
ANSWERS = "Distribution of the answers"
SHOWN_FAILURE = ("step", "error_class", "http_status", "message", "attempts", "failed_at")
"""Columns of a failed row in its table; the others are on its page."""


def rows_page(loaded: LoadedJob, snapshot: Snapshot, name: TableName, start: int) -> Page:
    """Return a page of a table, after the `start` newest rows."""
    job = loaded.job.name
    address = job_address(job)
    values: dict[str, Any] = {
        "name": job,
        "title": f"{TITLES[name]} of {job}",
        "job_address": address,
        "row_address": f"{address}/row",
        "tabs": _tabs(job, name),
        "rows": None,
        "problem": None,
    }
    try:
        sink = readable_sink(loaded, snapshot.running_jobs)
        if sink is not None:
            values |= _rows_of_page(loaded, sink, name, start)
    except READ_ERRORS as exc:
        values["problem"] = f"The table cannot be read at the moment: {exc}"
    return Page(values["title"], "rows-page", (part("rows", is_live=False, **values),), "/")


def answers_page(loaded: LoadedJob, snapshot: Snapshot) -> Page:
    """Return the page with the distribution of each output, as in the report."""
    job = loaded.job.name
    cards, problem = None, None
    try:
        sink = readable_sink(loaded, snapshot.running_jobs)
        if sink is not None:
            with Results(loaded, loaded.workspace, sink).open_tables() as db:
                db.execute("set threads = 1")
                names = db.sql("select * from results limit 0").columns
                outputs = {name: allowed_values(loaded.job, name) for name in output_columns(loaded.job, names)}
                cards = distribution_cards(summarize_columns(db, outputs, HIDDEN_COLUMNS))
    except READ_ERRORS as exc:
        problem = f"The results cannot be read at the moment: {exc}"
    answers = part(
        "answers",
        is_live=False,
        name=job,
        title=f"Answers of {job}",
        job_address=job_address(job),
        tabs=_tabs(job, "answers"),
        cards=cards and cards[0],
        more=cards[1] if cards else 0,
        problem=problem,
    )
    return Page(f"Answers of {job}", "rows-page", (answers,), "/")


def _tabs(job: str, current: str) -> Sequence[tuple[str, str, bool]]:
    """Return (text, address, whether it is the current page) of the pages about a job's rows."""
    address = job_address(job)
    tables = [(title, f"{address}/rows?table={table}", table == current) for table, title in TITLES.items()]
    return [*tables, (ANSWERS, f"{address}/answers", current == "answers")]


def _rows_of_page(loaded: LoadedJob, sink: Sink, name: TableName, start: int) -> Mapping[str, Any]:
    page = table_page(sink, results_key(loaded.job), name, start, PAGE_ROWS)
    if name == "errors":
        page = replace(page, rows=[_failure(row) for row in page.rows])
    results = Results(loaded, loaded.workspace, sink)
    job, shown = loaded.job.name, len(page.rows)
    address = f"{job_address(job)}/rows?table={name}&start="
    older, newer = start + shown, max(0, start - PAGE_ROWS)
    span = f"{start + 1:,} to {older:,} of {page.total:,}, the newest first"
    return {
        "rows": sample_table(results, page, f"{TITLES[name]} {span}") if shown else None,
        "range": span,
        "older": f"{address}{older}" if older < page.total else None,
        "newer": f"{address}{newer}" if start else None,
    }


def _failure(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the key and the most important columns of a failed row."""
    values = failure_values(row)
    key = list(row)[: len(row) - len(values)]
    return {**{name: row[name] for name in key}, **{name: values[name] for name in SHOWN_FAILURE}}


def row_page(reader: WorkspaceReader, loaded: LoadedJob, snapshot: Snapshot, key: str) -> Page:
    """Return the page of one row: its result, its errors, every request, reply and exchange; as `rowmill show`."""
    history, problem = _history(reader, loaded, snapshot, key)
    results = Results(loaded, loaded.workspace, _sink(loaded))
    cost = history["cost_usd"]
    requests = len(history["exchanges"])
    story = part(
        "story",
        is_live=False,
        name=loaded.job.name,
        job_address=job_address(loaded.job.name),
        key=key,
        problem=problem,
        cost=f"{format_count(requests, 'exchange')}, together {format_money(cost)}" if requests else "",
        errors=[cell_values(results, _without_nulls(failure_values(row))) for row in history["errors"]],
        result=history["result"] and cell_values(results, history["result"]),
        source=history["row"] and _source_values(results, history["row"], history["result"]),
        steps=[_step(step) for step in history["steps"]],
        exchanges=_exchanges(history["exchanges"]),
        children=[(child, row_address(loaded.job.name, child)) for child in history.get("children", ())[:MAX_CHILDREN]],
    )
    is_known = history.get("children") or history["row"] or history["result"] or requests or history["errors"]
    return Page(f"Row {key} of {loaded.job.name}", "row-page", (story,), "/", 200 if is_known else 404)


def _sink(loaded: LoadedJob) -> Sink:
    from pipelines.config.job_graph import empty_sink

    return empty_sink(loaded, longest_hold=0)


def _history(
    reader: WorkspaceReader, loaded: LoadedJob, snapshot: Snapshot, key: str
) -> tuple[Mapping[str, Any], str | None]:
    """Return the history of a row; what can be read of it, with the reason, if not all can be."""
    history: dict[str, Any] = {
        "row": None, "steps": [], "exchanges": [], "cost_usd": None, "result": None, "errors": [],
    }  # fmt: skip
    try:
        sink = readable_sink(loaded, snapshot.running_jobs)
        ledger = reader.open_ledger()
        if ledger is None:
            return history, "Nothing was ever run in this workspace."
        with ledger:
            history["exchanges"] = row_exchanges(ledger, loaded.job.name, key)
            history["cost_usd"] = _total(history["exchanges"])
            if sink is not None:
                history["result"], history["errors"] = table_row(sink, results_key(loaded.job), key)
            if not ledger.is_current:
                return history, "The ledger is of an earlier version: requests are shown when the next run has begun."
            # It opens the source and needs the variables of the providers.
            recorded = recorded_history(loaded, key, ledger)
            # The table's own values, not those that are shortened for a terminal.
            return {**recorded, "result": {**(recorded["result"] or {}), **(history["result"] or {})}}, None
    except READ_ERRORS as exc:
        return history, f"Not everything can be shown: {exc}"


def _total(exchanges: Sequence[Mapping[str, Any]]) -> float | None:
    costs = [exchange["row_cost_usd"] for exchange in exchanges]
    return None if None in costs else sum(costs)


def _without_nulls(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: value for name, value in row.items() if value is not None}


def _source_values(
    results: Results, row: Mapping[str, Any], result: Mapping[str, Any] | None
) -> Sequence[tuple[str, CellValue]]:
    """Return the columns of the source that are not in the result anyway."""
    return cell_values(results, {name: value for name, value in row.items() if name not in (result or {})})


def _step(step: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what the page shows of one request of a step."""
    rung = f", rung {step['rung']}" if step.get("rung") else ""
    request, reply = step["request"], step.get("reply")
    return {
        "title": f"{step['step']}{rung}",
        "error": step.get("error") or step.get("why"),
        "messages": [] if request is None else [*_messages(request), *_answer(reply)],
        "request": None if request is None else _json(request),
        "reply": None if reply is None else _json(reply),
    }


def _messages(request: Mapping[str, Any]) -> Sequence[Mapping[str, str]]:
    """Return the messages of a request of chat or responses."""
    messages = request.get("messages") or request.get("input")
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, list):
        return ()
    return [
        {"role": str(message.get("role", "user")), "text": _cut(_content(message.get("content")))}
        for message in messages
        if isinstance(message, Mapping) and "content" in message
    ]


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(one.get("text") or f"[{one.get('type')}]") for one in content if isinstance(one, Mapping))
    return "" if content is None else _json(content)


def _answer(reply: Any) -> Sequence[Mapping[str, str]]:
    """Return the text of an answer of chat or responses as a message."""
    if not isinstance(reply, Mapping):
        return ()
    choices = [one.get("message", {}).get("content") for one in reply.get("choices") or ()]
    items = [one.get("content") for one in reply.get("output") or () if isinstance(one, Mapping)]
    texts = [_content(content) for content in (*choices, *items) if content]
    return [{"role": "assistant", "text": _cut(text)} for text in texts]


def _json(value: Any) -> str:
    return _cut(orjson.dumps(value, default=str, option=orjson.OPT_INDENT_2).decode())


def _cut(text: str) -> str:
    if len(text) <= MAX_BODY_CHARACTERS:
        return text
    return f"{text[:MAX_BODY_CHARACTERS]}… ({len(text):,} characters in all)"


def _exchanges(exchanges: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        (
            exchange["started_at"].replace("T", " ").replace("+00:00", " UTC"),
            exchange["step"],
            exchange["model"],
            exchange["attempt"],
            exchange["http_status"],
            exchange["error_class"] or "answered",
            None if exchange["latency_ms"] is None else f"{exchange['latency_ms']:,.0f} ms",
            exchange["rows"],
            fact(f"row_cost_usd.{place}", exchange["row_cost_usd"], format_money(exchange["row_cost_usd"])),
            exchange["message"],
        )
        for place, exchange in enumerate(exchanges)
    ]
    heads = (
        "started",
        "step",
        "model",
        "attempt",
        "HTTP",
        "outcome",
        "latency",
        "rows",
        "share of the cost",
        "message",
    )
    return table(heads, rows, "Every exchange with this row", frozenset({3, 4, 6, 7, 8}))
