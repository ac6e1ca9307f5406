"""POST and GET /batches, GET /batches/{id}, POST /batches/{id}/cancel: files of requests, answered in the background.

For tests a batch can be told by its own metadata how to end:
`rowmill_delay_s` spreads its lines over so many seconds, `rowmill_expire_share` lets this share of them, the last
ones, expire, `rowmill_fail` fails it as a whole with this code, `rowmill_enqueued_tokens` is the limit that it meets.
"""

import asyncio
import io
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil, inf
from typing import Any

import orjson
from aiohttp import web

from connectors.emulator.api import ApiError, Handler, Incoming, Route, State, derived_id, json_answer
from connectors.emulator.api_schemas import METADATA, NON_EMPTY, TEXT, RequestSchema, enum, integer, record
from connectors.emulator.batches.files import EXPIRY
from connectors.emulator.batches.input_file import CheckedInput, batch_error, check_lines
from connectors.emulator.chat import completions
from connectors.emulator.embeddings import routes as embeddings_routes
from connectors.emulator.images import routes as images_routes
from connectors.emulator.parameters import number, query_values
from connectors.emulator.responses import responses
from connectors.emulator.store import (
    add_file,
    cancel_requested_at,
    claim_batch,
    delete_file,
    file_content,
    find,
    get_object,
    list_objects,
    new_id,
    page,
    request_cancel,
    save_object,
)
from connectors.emulator.validation import check_body, refuse

HANDLERS: Mapping[str, Handler] = {
    f"/v1{route.path}": route.handler
    for route in (*completions.ROUTES, *embeddings_routes.ROUTES, *images_routes.ROUTES, *responses.ROUTES)
    if route.method == "POST"
    and route.path in ("/chat/completions", "/embeddings", "/images/generations", "/images/edits", "/responses")
}
"""Endpoint of a batch -> what answers its lines."""

WINDOW_SECONDS = 24 * 3600
ENQUEUED_TOKENS = 2_000_000_000
"""Of all batches of one model that are not done: a token for every four bytes of their files."""

FINAL_STATUSES = frozenset({"failed", "completed", "expired", "cancelled"})

REQUEST = RequestSchema(
    record(
        "input_file_id endpoint completion_window",
        input_file_id=NON_EMPTY,
        endpoint=enum(*HANDLERS),
        completion_window=enum("24h"),
        metadata=METADATA,
        output_expires_after=EXPIRY,
    )
)

_QUERY = RequestSchema(record(limit=integer(1, 100), after=TEXT))

_TIMESTAMPS = (
    "in_progress_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)

_EXPIRED_ERROR = {
    "code": "batch_expired",
    "message": "This request could not be executed before the completion window expired.",
}


@dataclass(frozen=True, slots=True)
class BatchOverrides:
    """How a batch is to end, as its metadata says."""

    delay_s: float = 0
    expire_share: float = 0
    fail: str | None = None
    enqueued_tokens: float = ENQUEUED_TOKENS


@dataclass(slots=True)
class BatchOutput:
    """What the lines of a batch came to: the two files, as far as they are written."""

    output: io.BytesIO = field(default_factory=io.BytesIO)
    errors: io.BytesIO = field(default_factory=io.BytesIO)
    used: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("input", "output", "total", "cached", "reasoning"), 0)
    )


async def create(incoming: Incoming) -> web.StreamResponse:
    """Take a batch; it is worked on from now on."""
    body, state = incoming.body, incoming.state
    check_body(body, REQUEST)
    _overrides(body.get("metadata"))
    source = find(state, "file", body["input_file_id"], "input_file_id")
    if source["purpose"] != "batch":
        message = f"Invalid 'input_file_id': the file's purpose must be 'batch', but it is '{source['purpose']}'."
        raise refuse("input_file_id", message, "invalid_file_purpose")
    batch_id = new_id(state, "batch", "batch_", body)
    created = int(time.time())
    batch: dict[str, Any] = {
        "id": batch_id,
        "object": "batch",
        "endpoint": body["endpoint"],
        "model": None,
        "errors": None,
        "input_file_id": body["input_file_id"],
        "completion_window": body["completion_window"],
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": created,
        "expires_at": created + WINDOW_SECONDS,
        **dict.fromkeys(_TIMESTAMPS),
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "usage": None,
        "metadata": body.get("metadata"),
    }
    if "output_expires_after" in body:
        batch["output_expires_after"] = body["output_expires_after"]
    save_object(state, batch)
    return json_answer(_ensure_running(incoming, batch_id))


async def list_batches(incoming: Incoming) -> web.StreamResponse:
    """The batches, the newest first."""
    asked = query_values(incoming, _QUERY)
    found = await asyncio.to_thread(list_objects, incoming.state, "batch")
    for batch in found:
        if batch["status"] not in FINAL_STATUSES:
            _ensure_running(incoming, batch["id"])
    return json_answer(page(found[::-1], asked.get("after"), asked.get("limit", 20)))


async def show(incoming: Incoming) -> web.StreamResponse:
    """One batch as it is now."""
    return json_answer(_ensure_running(incoming, incoming.request.match_info["batch_id"]))


async def cancel(incoming: Incoming) -> web.StreamResponse:
    """Stop a batch; what is done of it stays."""
    state = incoming.state
    batch = _ensure_running(incoming, incoming.request.match_info["batch_id"])
    if batch["status"] in FINAL_STATUSES or batch["status"] == "finalizing":
        message = f"Cannot cancel a batch with status '{batch['status']}'."
        raise ApiError(409, message, code="batch_not_cancellable", headers={"x-should-retry": "false"})
    if batch["status"] != "cancelling" and batch["id"] in state.tasks:
        _set_status(state, batch, "cancelling")
    elif batch["status"] != "cancelling":
        request_cancel(state, batch["id"])
        batch = find(state, "batch", batch["id"])
    return json_answer(batch)


def _ensure_running(incoming: Incoming, batch_id: str) -> dict[str, Any]:
    """A batch as it is now, worked on unless that is done or being done: a server that was ended left it as it was."""
    state = incoming.state
    batch = find(state, "batch", batch_id)
    if batch["status"] in FINAL_STATUSES or batch_id in state.tasks:
        return batch
    lock = claim_batch(state, batch_id)
    if lock is None:
        return batch
    # Whoever worked on it until now may have come to its end.
    batch = find(state, "batch", batch_id)
    if batch["status"] in FINAL_STATUSES:
        lock.close()
        return batch
    state.objects[batch_id] = batch
    task = state.tasks[batch_id] = asyncio.get_running_loop().create_task(_run_batch(incoming, batch))

    def ended(task: asyncio.Task[None]) -> None:
        del state.tasks[batch_id]
        if state.folder is not None:
            del state.objects[batch_id]
        lock.close()

    task.add_done_callback(ended)
    return batch


async def _run_batch(incoming: Incoming, batch: dict[str, Any]) -> None:
    state, overrides = incoming.state, _overrides(batch["metadata"])
    checked = await asyncio.to_thread(_check_input, state, batch, overrides)
    batch["model"] = checked.model
    if batch["status"] == "validating":
        if checked.errors:
            batch["errors"] = {"object": "list", "data": list(checked.errors)}
            _set_status(state, batch, "failed")
            return
        batch["request_counts"]["total"] = len(checked.lines)
        _set_status(state, batch, "in_progress")
    batch["request_counts"] = {"total": len(checked.lines), "completed": 0, "failed": 0}
    made = await _answer_lines(incoming, batch, checked.lines, overrides)
    end = "expired" if overrides.expire_share else "completed"
    if batch["status"] == "cancelling":
        end = "cancelled"
    else:
        _set_status(state, batch, "finalizing")
    await asyncio.to_thread(_write_results, state, batch, made)
    _set_status(state, batch, end)


def _check_input(state: State, batch: dict[str, Any], overrides: BatchOverrides) -> CheckedInput:
    """The lines, or why the batch fails."""
    if overrides.fail is not None:
        return CheckedInput(errors=(batch_error(overrides.fail, "This batch was told to fail by its metadata."),))
    try:
        content = file_content(state, batch["input_file_id"])
    except ApiError as exc:
        return CheckedInput(errors=(batch_error("invalid_input_file", str(exc), param="input_file_id"),))
    checked = check_lines(content, batch["endpoint"])
    others = (
        get_object(state, "file", other["input_file_id"])
        for other in list_objects(state, "batch")
        if other["status"] not in FINAL_STATUSES and other["id"] != batch["id"] and other["model"] == checked.model
    )
    waiting = sum(file["bytes"] // 4 for file in others if file is not None)
    if not checked.errors and waiting + len(content) // 4 > overrides.enqueued_tokens:
        message = (
            f"Enqueued token limit reached for {checked.model} in organization rowmill-local. Limit: "
            f"{overrides.enqueued_tokens:,.0f} enqueued tokens. Please try again once some in_progress batches have been "
            "completed."
        )
        return CheckedInput(model=checked.model, errors=(batch_error("token_limit_exceeded", message),))
    return checked


async def _answer_lines(
    incoming: Incoming, batch: dict[str, Any], lines: tuple[bytes, ...], overrides: BatchOverrides
) -> BatchOutput:
    """Answer line after line until all are, or the batch is cancelled."""
    made, counts = BatchOutput(), batch["request_counts"]
    began = time.monotonic()
    last = len(lines) - ceil(len(lines) * overrides.expire_share)
    for place, raw in enumerate(lines):
        due = began + overrides.delay_s * (place + 1) / len(lines)
        for pause in _sleep_intervals(due):
            await asyncio.sleep(pause)
            if batch["status"] != "cancelling" and cancel_requested_at(incoming.state, batch["id"]) is not None:
                _set_status(incoming.state, batch, "cancelling")
            if batch["status"] == "cancelling":
                return made
        line = orjson.loads(raw)
        custom_id = line["custom_id"]
        told: dict[str, Any] = {"id": derived_id("batch_req_", batch["id"], custom_id), "custom_id": custom_id}
        if place >= last:
            made.errors.write(_line({**told, "response": None, "error": _EXPIRED_ERROR}))
            counts["failed"] += 1
            continue
        status, body = await _answer_line(incoming, batch["endpoint"], line["body"])
        request_id = derived_id("req_", batch["id"], custom_id)
        response = {"status_code": status, "request_id": request_id, "body": orjson.Fragment(body)}
        succeeded = status < 400
        (made.output if succeeded else made.errors).write(_line({**told, "response": response, "error": None}))
        counts["completed" if succeeded else "failed"] += 1
        _add_usage(made.used, orjson.loads(body).get("usage") or {})
    return made


def _sleep_intervals(due: float) -> Iterator[float]:
    """Sleeps until then, short ones, so that a cancel is noticed; at least one, so that others are served."""
    yield 0
    while (left := due - time.monotonic()) > 0:
        yield min(left, 0.02)


async def _answer_line(incoming: Incoming, endpoint: str, body: dict[str, Any]) -> tuple[int, bytes]:
    """(status, JSON) of one line, answered as if it had come alone."""
    if body.get("stream"):
        refusal = refuse("stream", "Streaming is not supported in the Batch API.", "unsupported_parameter")
        return refusal.status, orjson.dumps(refusal.body)
    try:
        response = await HANDLERS[endpoint](Incoming(incoming.request, incoming.state, body, {}))
    except ApiError as exc:
        return exc.status, orjson.dumps(exc.body)
    # Without `stream` every handler answers with JSON that is whole.
    assert isinstance(response, web.Response)
    assert isinstance(response.body, bytes)
    return response.status, response.body


def _line(told: dict[str, Any]) -> bytes:
    return orjson.dumps(told, option=orjson.OPT_APPEND_NEWLINE)


def _add_usage(used: dict[str, int], usage: dict[str, Any]) -> None:
    """Add what one answer used, by the names of chat or of responses."""
    given = usage.get("input_tokens_details") or usage.get("prompt_tokens_details") or {}
    made = usage.get("output_tokens_details") or usage.get("completion_tokens_details") or {}
    used["input"] += usage.get("input_tokens") or usage.get("prompt_tokens") or 0
    used["output"] += usage.get("output_tokens") or usage.get("completion_tokens") or 0
    used["total"] += usage.get("total_tokens") or 0
    used["cached"] += given.get("cached_tokens") or 0
    used["reasoning"] += made.get("reasoning_tokens") or 0


def _write_results(state: State, batch: dict[str, Any], made: BatchOutput) -> None:
    """Write the output and the error file, each only if there is something in it."""
    names = {kind: f"{batch['id']}_{kind}.jsonl" for kind in ("output", "error")}
    for left in list_objects(state, "file"):
        # A server that was ended in this very moment has written them before.
        if left["filename"] in names.values():
            delete_file(state, left["id"])
    expiry = batch.get("output_expires_after")
    seconds = expiry["seconds"] if expiry else None
    for name, lines in (("output", made.output), ("error", made.errors)):
        if lines.tell():
            kept = add_file(state, names[name], lines.getvalue(), "batch_output", seconds)
            batch[f"{name}_file_id"] = kept["id"]
    used = made.used
    batch["usage"] = {
        "input_tokens": used["input"],
        "input_tokens_details": {"cached_tokens": used["cached"]},
        "output_tokens": used["output"],
        "output_tokens_details": {"reasoning_tokens": used["reasoning"]},
        "total_tokens": used["total"],
    }


def _set_status(state: State, batch: dict[str, Any], status: str) -> None:
    batch["status"] = status
    batch[f"{status}_at"] = int(time.time())
    save_object(state, batch)


def _overrides(told: Mapping[str, str] | None) -> BatchOverrides:
    """What the metadata says; ApiError for a number that is none."""
    told = told or {}
    return BatchOverrides(
        _override(told, "rowmill_delay_s", 0, inf),
        _override(told, "rowmill_expire_share", 0, 1),
        told.get("rowmill_fail"),
        _override(told, "rowmill_enqueued_tokens", ENQUEUED_TOKENS, inf),
    )


def _override(told: Mapping[str, str], name: str, default: float, most: float) -> float:
    value = number(told[name]) if name in told else default
    if not isinstance(value, int | float) or not 0 <= value <= most:
        where = f"metadata.{name}"
        raise refuse(where, f"Invalid '{where}': expected a number from 0 to {most}, got '{value}'.", "invalid_value")
    return value


ROUTES: tuple[Route, ...] = (
    Route("POST", "/batches", create),
    Route("GET", "/batches", list_batches, limited=False),
    Route("GET", "/batches/{batch_id}", show, limited=False),
    Route("POST", "/batches/{batch_id}/cancel", cancel, limited=False),
)
