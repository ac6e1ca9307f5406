"""POST, GET and DELETE /responses: OpenAI's dialect (`input`), and the reference's (`messages`)."""

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from connectors.emulator.api import (
    ApiError,
    ApiRequest,
    ApiRoute,
    EmulatorState,
    derived_id,
    digest_of,
    json_answer,
    served_tier,
)
from connectors.emulator.api_schemas import BOOLEAN, TEXT, RequestSchema, enum, integer, record
from connectors.emulator.chat.answerer import answer_choices
from connectors.emulator.chat.answers import Answer, AnswerRequest
from connectors.emulator.chat.completions import answer_request, prompt_tokens
from connectors.emulator.chat.request_checks import check_json_word
from connectors.emulator.parameters import query_values
from connectors.emulator.rate_limits import USED_TOKENS
from connectors.emulator.responses.events import response_events
from connectors.emulator.responses.items import input_items_of, messages_of_items, output_items
from connectors.emulator.responses.reference_dialect import respond_in_reference_dialect
from connectors.emulator.responses.request_checks import check_response
from connectors.emulator.sse_stream import event_stream
from connectors.emulator.store import delete_answer, dialogue_id, evict_oldest, page
from connectors.emulator.validation import check_model, refuse

ITEMS_KIND = "response.items"
"""`object` of the stored items of a response, and of the final state of a background response."""

_PAGE_QUERY = RequestSchema(record(order=enum("asc", "desc"), limit=integer(1, 100), after=TEXT))
_RETRIEVAL_QUERY = RequestSchema(record(stream=BOOLEAN, starting_after=integer(0)))

_RENAMED_PARAMETERS = {
    "response_format": "text.format",
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
}
"""Parameter of chat completions -> its name in responses."""


async def respond(api_request: ApiRequest) -> web.StreamResponse:
    """Answer with one response, in the dialect of the request."""
    if "messages" in api_request.body and "input" not in api_request.body:
        return await respond_in_reference_dialect(api_request)
    body = api_request.body
    check_response(body)
    check_model(body, "chat")
    state = api_request.state
    earlier = _earlier_items(state, body.get("previous_response_id"))
    digest = digest_of(body)
    items = input_items_of(body["input"], digest)
    items_by_id = {item["id"]: item for item in [*_referable_items(state, body["input"]), *earlier]}
    messages = messages_of_items([*earlier, *items], items_by_id, state, len(earlier))
    if body.get("instructions"):
        messages.insert(0, {"role": "system", "content": body["instructions"]})
    if not messages:
        raise refuse("input", "Invalid 'input': it has no message.", "invalid_value")
    try:
        chat = _as_chat(body, messages)
        check_json_word(chat)
        request = answer_request(chat)
        prompt = prompt_tokens(request, body.get("tools"), body.get("text"))
        (answer,) = await answer_choices(request)
        prompt = answer.prompt_tokens or prompt
    except ApiError as exc:
        raise _with_renamed_param(exc) from exc
    api_request.http_request[USED_TOKENS] = prompt + answer.tokens
    response = _response(body, request, answer, prompt, _new_id(state, digest))
    if body.get("store") is not False:
        _store_response(state, response, [*earlier, *items], background=bool(body.get("background")))
        if body.get("background") and not body.get("stream"):
            response = state.objects[response["id"]]
    if body.get("stream"):
        return await event_stream(api_request, response_events(response))
    return json_answer(response)


def _as_chat(body: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The request in the format of chat completions."""
    form = (body.get("text") or {}).get("format") or {"type": "text"}
    if form["type"] == "json_schema":
        form = {"type": "json_schema", "json_schema": {key: form[key] for key in form if key != "type"}}
    chat: dict[str, Any] = {"model": body["model"], "messages": messages, "response_format": form}
    chat |= {name: body[name] for name in ("temperature", "top_p") if body.get(name) is not None}
    if _logprobs(body) is not None:
        chat |= {"logprobs": True, "top_logprobs": _logprobs(body)}
    if body.get("max_output_tokens") is not None:
        chat["max_completion_tokens"] = body["max_output_tokens"]
    if body.get("tools"):
        chat["tools"] = [
            {"type": tool["type"], tool["type"]: {key: tool[key] for key in tool if key != "type"}}
            for tool in body["tools"]
        ]
    if body.get("parallel_tool_calls") is not None:
        chat["parallel_tool_calls"] = body["parallel_tool_calls"]
    choice = body.get("tool_choice", "auto")
    if isinstance(choice, dict):
        if choice["type"] == "allowed_tools":
            names = [{"type": "function", "function": {"name": tool.get("name")}} for tool in choice["tools"]]
            choice = {"type": "allowed_tools", "allowed_tools": {"mode": choice["mode"], "tools": names}}
        else:
            choice = {"type": choice["type"], choice["type"]: {"name": choice["name"]}}
    return {**chat, "tool_choice": choice}


def _with_renamed_param(error_reply: ApiError) -> ApiError:
    """The error with the parameter's name in responses."""
    error = error_reply.body["error"]
    param = error["param"]
    if isinstance(param, str):
        error["param"] = _RENAMED_PARAMETERS.get(param, param).replace("].function.", "].")
    return error_reply


def _response(
    body: Mapping[str, Any], request: AnswerRequest, answer: Answer, prompt: int, response_id: str
) -> dict[str, Any]:
    """The response object, with every parameter as applied."""
    now = int(time.time())
    incomplete_reason = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(answer.finish_reason)
    text = body.get("text") or {}
    reasoning = body.get("reasoning") or {}
    return {
        "id": response_id,
        "object": "response",
        "created_at": now,
        "status": "completed" if incomplete_reason is None else "incomplete",
        "completed_at": now if incomplete_reason is None else None,
        "background": bool(body.get("background")),
        "error": None,
        "incomplete_details": None if incomplete_reason is None else {"reason": incomplete_reason},
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "max_tool_calls": body.get("max_tool_calls"),
        "metadata": body.get("metadata") or {},
        "model": request.model,
        "output": output_items(request, answer, _logprobs(body)),
        "parallel_tool_calls": request.allows_parallel_calls,
        "previous_response_id": body.get("previous_response_id"),
        "prompt_cache_key": body.get("prompt_cache_key"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "safety_identifier": body.get("safety_identifier"),
        "service_tier": served_tier(body),
        "store": body.get("store") is not False,
        "temperature": _or_default(body.get("temperature"), 1.0),
        "text": {"format": text.get("format") or {"type": "text"}, "verbosity": text.get("verbosity") or "medium"},
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": [_tool_object(tool) for tool in body.get("tools") or ()],
        "top_logprobs": body.get("top_logprobs") or 0,
        "top_p": _or_default(body.get("top_p"), 1.0),
        "truncation": body.get("truncation") or "disabled",
        "usage": {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": answer.tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + answer.tokens,
        },
        "user": body.get("user"),
    }


def _or_default(value: Any, default: float) -> Any:
    return default if value is None else value


def _tool_object(tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool["type"] == "custom":
        return {"format": {"type": "text"}, **tool}
    return {"description": None, "parameters": None, **tool, "strict": bool(tool.get("strict"))}


def _logprobs(body: Mapping[str, Any]) -> int | None:
    if "message.output_text.logprobs" in (body.get("include") or ()):
        return body.get("top_logprobs") or 0
    return body.get("top_logprobs") or None


def _new_id(state: EmulatorState, digest: bytes) -> str:
    """An id derived from the request; a random one if that id is taken."""
    chosen = derived_id("resp_", digest.hex())
    return chosen if chosen not in state.objects else f"resp_{secrets.token_hex(12)}"


def _store_response(
    state: EmulatorState, response: dict[str, Any], input_items: list[dict[str, Any]], background: bool
) -> None:
    """Store a response and its items; a background response is queued until the first lookup."""
    evict_oldest(state)
    queued = {
        **response,
        "status": "queued",
        "output": [],
        "usage": None,
        "completed_at": None,
        "incomplete_details": None,
    }
    state.objects[response["id"]] = queued if background else response
    items_id = dialogue_id(response["id"])
    state.objects[items_id] = {
        "id": items_id,
        "object": ITEMS_KIND,
        "input": input_items,
        "final": response,
    }


def _stored_response(state: EmulatorState, response_id: str) -> dict[str, Any]:
    stored = state.objects.get(response_id)
    if stored is None or stored.get("object") != "response":
        raise ApiError(404, f"Response with id '{response_id}' not found.", param="response_id")
    return stored


def _earlier_items(state: EmulatorState, response_id: str | None) -> list[dict[str, Any]]:
    """All items up to the end of an earlier response."""
    if response_id is None:
        return []
    if state.objects.get(response_id, {}).get("object") != "response":
        raise ApiError(
            400,
            f"Previous response with id '{response_id}' not found.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    stored = state.objects[dialogue_id(response_id)]
    return [*stored["input"], *stored["final"]["output"]]


def _referable_items(state: EmulatorState, prompt: Any) -> list[dict[str, Any]]:
    """Every stored item, if the input refers to any."""
    if isinstance(prompt, str) or not any("content" not in item and "id" in item for item in prompt):
        return []
    stored = [each for each in state.objects.values() if each.get("object") == ITEMS_KIND]
    return [item for each in stored for item in (*each["input"], *each["final"]["output"])]


async def show(api_request: ApiRequest) -> web.StreamResponse:
    """Return a stored response; with `stream=true` its events after `starting_after`."""
    response_id = api_request.http_request.match_info["response_id"]
    stored = _stored_response(api_request.state, response_id)
    if stored["status"] == "queued":
        stored = api_request.state.objects[response_id] = api_request.state.objects[dialogue_id(response_id)]["final"]
    values = query_values(api_request, _RETRIEVAL_QUERY, names=("stream", "starting_after"))
    if values.get("stream"):
        return await event_stream(api_request, response_events(stored, values.get("starting_after", -1)))
    return json_answer(stored)


async def delete(api_request: ApiRequest) -> web.StreamResponse:
    """Delete a response."""
    response_id = api_request.http_request.match_info["response_id"]
    _stored_response(api_request.state, response_id)
    delete_answer(api_request.state, response_id)
    return json_answer({"id": response_id, "object": "response", "deleted": True})


async def cancel(api_request: ApiRequest) -> web.StreamResponse:
    """Cancel a background response that was not looked up yet."""
    response_id = api_request.http_request.match_info["response_id"]
    stored = _stored_response(api_request.state, response_id)
    if not stored["background"]:
        raise ApiError(400, "Cannot cancel a synchronous response.", param="response_id")
    if stored["status"] == "queued":
        stored = api_request.state.objects[response_id] = {**stored, "status": "cancelled"}
        api_request.state.objects[dialogue_id(response_id)]["final"] = stored
    return json_answer(stored)


async def input_items(api_request: ApiRequest) -> web.StreamResponse:
    """List the input items of a response, the newest first."""
    response_id = api_request.http_request.match_info["response_id"]
    _stored_response(api_request.state, response_id)
    values = query_values(api_request, _PAGE_QUERY, names=("order", "limit", "after"))
    items = api_request.state.objects[dialogue_id(response_id)]["input"]
    ordered = items if values.get("order") == "asc" else items[::-1]
    return json_answer(page(ordered, values.get("after"), values.get("limit", 20)))


async def count_input(api_request: ApiRequest) -> web.StreamResponse:
    """POST /responses/input_tokens: count the tokens of an input."""
    body = {"model": "gpt-4o", **{key: value for key, value in api_request.body.items() if value is not None}}
    check_response(body)
    messages = messages_of_items(input_items_of(body["input"], b""), {}, api_request.state, 0)
    if body.get("instructions"):
        messages.insert(0, {"role": "system", "content": body["instructions"]})
    tokens = prompt_tokens(answer_request(_as_chat(body, messages)), body.get("tools"), body.get("text"))
    return json_answer({"object": "response.input_tokens", "input_tokens": tokens})


ROUTES: tuple[ApiRoute, ...] = (
    ApiRoute("POST", "/responses", respond),
    ApiRoute("POST", "/responses/input_tokens", count_input, is_rate_limited=False),
    ApiRoute("GET", "/responses/{response_id}", show, is_rate_limited=False),
    ApiRoute("DELETE", "/responses/{response_id}", delete, is_rate_limited=False),
    ApiRoute("POST", "/responses/{response_id}/cancel", cancel, is_rate_limited=False),
    ApiRoute("GET", "/responses/{response_id}/input_items", input_items, is_rate_limited=False),
)
