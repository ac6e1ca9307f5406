"""POST and GET /batches, GET /batches/{id}, POST /batches/{id}/cancel: files of requests, run in the background.

Tests control the outcome of a batch by its metadata: `rowmill_delay_s` spreads the lines over so many seconds,
`rowmill_expire_share` lets this share of the lines, the last ones, expire, `rowmill_fail` fails the whole batch with
this code, and `rowmill_enqueued_tokens` is the enqueued token limit that applies.
"""

import asyncio
import io
import time
from collections.abc import Iterator, Mapping
from math import ceil, inf
from typing import Any

import orjson
from aiohttp import web
from msgspec import Struct, field

from connectors.emulator.api import ApiError, ApiRequest, ApiRoute, EmulatorState, Handler, derived_id, json_answer
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
    find_object,
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
"""Endpoint of a batch -> handler of its lines."""

WINDOW_SECONDS = 24 * 3600
ENQUEUED_TOKENS = 2_000_000_000
"""Limit on all unfinished batches of one model, counted as one token per four bytes of their files."""

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


class BatchOverrides(Struct, frozen=True):
    """The outcome of a batch that its metadata requests."""

    delay_s: float = 0
    expire_share: float = 0
    fail: str | None = None
    enqueued_tokens: float = ENQUEUED_TOKENS


class BatchOutput(Struct):
    """The results of a batch so far: output and error file, and usage."""

    output: io.BytesIO = field(default_factory=io.BytesIO)
    errors: io.BytesIO = field(default_factory=io.BytesIO)
    used: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("input", "output", "total", "cached", "reasoning"), 0)
    )


async def create(api_request: ApiRequest) -> web.StreamResponse:
    """Create a batch and start it."""
    body, state = api_request.body, api_request.state
    check_body(body, REQUEST)
    _overrides(body.get("metadata"))
    source = find_object(state, "file", body["input_file_id"], "input_file_id")
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
    return json_answer(_ensure_running(api_request, batch_id))


async def list_batches(api_request: ApiRequest) -> web.StreamResponse:
    """List the batches, the newest first."""
    query = query_values(api_request, _QUERY)
    batches = await asyncio.to_thread(list_objects, api_request.state, "batch")
    for batch in batches:
        if batch["status"] not in FINAL_STATUSES:
            _ensure_running(api_request, batch["id"])
    return json_answer(page(batches[::-1], query.get("after"), query.get("limit", 20)))


async def show(api_request: ApiRequest) -> web.StreamResponse:
    """Return the current state of one batch."""
    return json_answer(_ensure_running(api_request, api_request.http_request.match_info["batch_id"]))


async def cancel(api_request: ApiRequest) -> web.StreamResponse:
    """Cancel a batch; finished lines stay."""
    state = api_request.state
    batch = _ensure_running(api_request, api_request.http_request.match_info["batch_id"])
    if batch["status"] in FINAL_STATUSES or batch["status"] == "finalizing":
        message = f"Cannot cancel a batch with status '{batch['status']}'."
        raise ApiError(409, message, code="batch_not_cancellable", headers={"x-should-retry": "false"})
    if batch["status"] != "cancelling" and batch["id"] in state.tasks:
        _set_status(state, batch, "cancelling")
    elif batch["status"] != "cancelling":
        request_cancel(state, batch["id"])
        batch = find_object(state, "batch", batch["id"])
    return json_answer(batch)


def _ensure_running(api_request: ApiRequest, batch_id: str) -> dict[str, Any]:
    """The current state of a batch, which is started if no server runs it (e.g. after a restart)."""
    state = api_request.state
    batch = find_object(state, "batch", batch_id)
    if batch["status"] in FINAL_STATUSES or batch_id in state.tasks:
        return batch
    lock = claim_batch(state, batch_id)
    if lock is None:
        return batch
    # The previous owner of the lock may have finished it.
    batch = find_object(state, "batch", batch_id)
    if batch["status"] in FINAL_STATUSES:
        lock.close()
        return batch
    state.objects[batch_id] = batch
    task = state.tasks[batch_id] = asyncio.get_running_loop().create_task(_run_batch(api_request, batch))

    def on_done(task: asyncio.Task[None]) -> None:
        del state.tasks[batch_id]
        if state.folder is not None:
            del state.objects[batch_id]
        lock.close()

    task.add_done_callback(on_done)
    return batch


async def _run_batch(api_request: ApiRequest, batch: dict[str, Any]) -> None:
    state, overrides = api_request.state, _overrides(batch["metadata"])
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
    output = await _answer_lines(api_request, batch, checked.lines, overrides)
    end = "expired" if overrides.expire_share else "completed"
    if batch["status"] == "cancelling":
        end = "cancelled"
    else:
        _set_status(state, batch, "finalizing")
    await asyncio.to_thread(_write_results, state, batch, output)
    _set_status(state, batch, end)


def _check_input(state: EmulatorState, batch: dict[str, Any], overrides: BatchOverrides) -> CheckedInput:
    """The lines of the input file, or the errors that fail the batch."""
    if overrides.fail is not None:
        return CheckedInput(errors=(batch_error(overrides.fail, "The metadata of this batch requests this failure."),))
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
    enqueued = sum(file["bytes"] // 4 for file in others if file is not None)
    if not checked.errors and enqueued + len(content) // 4 > overrides.enqueued_tokens:
        message = (
            f"Enqueued token limit reached for {checked.model} in organization rowmill-local. Limit: "
            f"{overrides.enqueued_tokens:,.0f} enqueued tokens. Please try again once some in_progress batches have "
            "been completed."
        )
        return CheckedInput(model=checked.model, errors=(batch_error("token_limit_exceeded", message),))
    return checked


async def _answer_lines(
    api_request: ApiRequest, batch: dict[str, Any], lines: tuple[bytes, ...], overrides: BatchOverrides
) -> BatchOutput:
    """Answer the lines in order until the end or a cancellation."""
    output, counts = BatchOutput(), batch["request_counts"]
    started = time.monotonic()
    expired_from = len(lines) - ceil(len(lines) * overrides.expire_share)
    for index, raw in enumerate(lines):
        due = started + overrides.delay_s * (index + 1) / len(lines)
        for pause in _sleep_intervals(due):
            await asyncio.sleep(pause)
            if batch["status"] != "cancelling" and cancel_requested_at(api_request.state, batch["id"]) is not None:
                _set_status(api_request.state, batch, "cancelling")
            if batch["status"] == "cancelling":
                return output
        line = orjson.loads(raw)
        custom_id = line["custom_id"]
        result: dict[str, Any] = {"id": derived_id("batch_req_", batch["id"], custom_id), "custom_id": custom_id}
        if index >= expired_from:
            output.errors.write(_line({**result, "response": None, "error": _EXPIRED_ERROR}))
            counts["failed"] += 1
            continue
        status, body = await _answer_line(api_request, batch["endpoint"], line["body"])
        request_id = derived_id("req_", batch["id"], custom_id)
        response = {"status_code": status, "request_id": request_id, "body": orjson.Fragment(body)}
        succeeded = status < 400
        (output.output if succeeded else output.errors).write(_line({**result, "response": response, "error": None}))
        counts["completed" if succeeded else "failed"] += 1
        _add_usage(output.used, orjson.loads(body).get("usage") or {})
    return output


def _sleep_intervals(due: float) -> Iterator[float]:
    """Short sleeps until `due`, to notice a cancellation; at least one, to let other requests run."""
    yield 0
    while (remaining := due - time.monotonic()) > 0:
        yield min(remaining, 0.02)


async def _answer_line(api_request: ApiRequest, endpoint: str, body: dict[str, Any]) -> tuple[int, bytes]:
    """(status, JSON) of one line, answered like a separate request."""
    if body.get("stream"):
        refusal = refuse("stream", "Streaming is not supported in the Batch API.", "unsupported_parameter")
        return refusal.status, orjson.dumps(refusal.body)
    try:
        response = await HANDLERS[endpoint](ApiRequest(api_request.http_request, api_request.state, body, {}))
    except ApiError as exc:
        return exc.status, orjson.dumps(exc.body)
    # Without `stream` every handler returns a complete JSON response.
    assert isinstance(response, web.Response)
    assert isinstance(response.body, bytes)
    return response.status, response.body


def _line(result: dict[str, Any]) -> bytes:
    return orjson.dumps(result, option=orjson.OPT_APPEND_NEWLINE)


def _add_usage(used: dict[str, int], usage: dict[str, Any]) -> None:
    """Add the usage of one answer, in the format of chat or of responses."""
    input_details = usage.get("input_tokens_details") or usage.get("prompt_tokens_details") or {}
    output_details = usage.get("output_tokens_details") or usage.get("completion_tokens_details") or {}
    used["input"] += usage.get("input_tokens") or usage.get("prompt_tokens") or 0
    used["output"] += usage.get("output_tokens") or usage.get("completion_tokens") or 0
    used["total"] += usage.get("total_tokens") or 0
    used["cached"] += input_details.get("cached_tokens") or 0
    used["reasoning"] += output_details.get("reasoning_tokens") or 0


def _write_results(state: EmulatorState, batch: dict[str, Any], output: BatchOutput) -> None:
    """Store the output and the error file, unless empty."""
    names = {kind: f"{batch['id']}_{kind}.jsonl" for kind in ("output", "error")}
    for leftover in list_objects(state, "file"):
        # A server that was killed at this point has written them already.
        if leftover["filename"] in names.values():
            delete_file(state, leftover["id"])
    expiry = batch.get("output_expires_after")
    seconds = expiry["seconds"] if expiry else None
    for name, lines in (("output", output.output), ("error", output.errors)):
        if lines.tell():
            file = add_file(state, names[name], lines.getvalue(), "batch_output", seconds)
            batch[f"{name}_file_id"] = file["id"]
    used = output.used
    batch["usage"] = {
        "input_tokens": used["input"],
        "input_tokens_details": {"cached_tokens": used["cached"]},
        "output_tokens": used["output"],
        "output_tokens_details": {"reasoning_tokens": used["reasoning"]},
        "total_tokens": used["total"],
    }


def _set_status(state: EmulatorState, batch: dict[str, Any], status: str) -> None:
    batch["status"] = status
    batch[f"{status}_at"] = int(time.time())
    save_object(state, batch)


def _overrides(metadata: Mapping[str, str] | None) -> BatchOverrides:
    """The overrides in the metadata; ApiError for an invalid number."""
    metadata = metadata or {}
    return BatchOverrides(
        _override(metadata, "rowmill_delay_s", 0, inf),
        _override(metadata, "rowmill_expire_share", 0, 1),
        metadata.get("rowmill_fail"),
        _override(metadata, "rowmill_enqueued_tokens", ENQUEUED_TOKENS, inf),
    )


def _override(metadata: Mapping[str, str], name: str, default: float, maximum: float) -> float:
    value = number(metadata[name]) if name in metadata else default
    if not isinstance(value, int | float) or not 0 <= value <= maximum:
        param = f"metadata.{name}"
        raise refuse(
            param, f"Invalid '{param}': expected a number from 0 to {maximum}, got '{value}'.", "invalid_value"
        )
    return value


ROUTES: tuple[ApiRoute, ...] = (
    ApiRoute("POST", "/batches", create),
    ApiRoute("GET", "/batches", list_batches, is_rate_limited=False),
    ApiRoute("GET", "/batches/{batch_id}", show, is_rate_limited=False),
    ApiRoute("POST", "/batches/{batch_id}/cancel", cancel, is_rate_limited=False),
)
