"""POST, GET and DELETE /responses: OpenAI's dialect (`input`), and the reference's (`messages`)."""

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from connectors.emulator.api import ApiError, ApiRequest, ApiRoute, EmulatorState, derived_id, digest_of, json_answer
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

ITEMS = "response.items"
"""`object` of what is kept beside a response: its dialogue, and how it ends if it is made in the background."""

_PAGE = RequestSchema(record(order=enum("asc", "desc"), limit=integer(1, 100), after=TEXT))
_RETRIEVAL = RequestSchema(record(stream=BOOLEAN, starting_after=integer(0)))

_RENAMED = {
    "response_format": "text.format",
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
}
"""A parameter of chat completions -> the one that it is here."""


async def respond(api_request: ApiRequest) -> web.StreamResponse:
    """One response, in the dialect of the request."""
    if "messages" in api_request.body and "input" not in api_request.body:
        return await respond_in_reference_dialect(api_request)
    body = api_request.body
    check_response(body)
    check_model(body, "chat")
    state = api_request.state
    earlier = _earlier(state, body.get("previous_response_id"))
    digest = digest_of(body)
    items = input_items_of(body["input"], digest)
    known = {item["id"]: item for item in [*_all_items(state, body["input"]), *earlier]}
    turns = messages_of_items([*earlier, *items], known, state, len(earlier))
    if body.get("instructions"):
        turns.insert(0, {"role": "system", "content": body["instructions"]})
    if not turns:
        raise refuse("input", "Invalid 'input': it has no message.", "invalid_value")
    try:
        chat = _as_chat(body, turns)
        check_json_word(chat)
        request = answer_request(chat)
        given = prompt_tokens(request, body.get("tools"))
        (made,) = await answer_choices(request)
        given = made.prompt_tokens or given
    except ApiError as exc:
        raise _renamed(exc) from exc
    api_request.http_request[USED_TOKENS] = given + made.tokens
    told = _response(body, request, made, given, _new_id(state, digest))
    if body.get("store") is not False:
        _keep(state, told, [*earlier, *items], background=bool(body.get("background")))
        if body.get("background") and not body.get("stream"):
            told = state.objects[told["id"]]
    if body.get("stream"):
        return await event_stream(api_request, response_events(told))
    return json_answer(told)


def _as_chat(body: Mapping[str, Any], turns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The request as chat completions would have it."""
    form = (body.get("text") or {}).get("format") or {"type": "text"}
    if form["type"] == "json_schema":
        form = {"type": "json_schema", "json_schema": {key: form[key] for key in form if key != "type"}}
    chat: dict[str, Any] = {"model": body["model"], "messages": turns, "response_format": form}
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


def _renamed(refused: ApiError) -> ApiError:
    """The refusal, with the parameter as it is called here."""
    error = refused.body["error"]
    param = error["param"]
    if isinstance(param, str):
        error["param"] = _RENAMED.get(param, param).replace("].function.", "].")
    return refused


def _response(
    body: Mapping[str, Any], request: AnswerRequest, made: Answer, given: int, response_id: str
) -> dict[str, Any]:
    """The object, with every parameter as it was taken."""
    now = int(time.time())
    unfinished = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(made.finish_reason)
    text = body.get("text") or {}
    reasoning = body.get("reasoning") or {}
    return {
        "id": response_id,
        "object": "response",
        "created_at": now,
        "status": "completed" if unfinished is None else "incomplete",
        "completed_at": now if unfinished is None else None,
        "background": bool(body.get("background")),
        "error": None,
        "incomplete_details": None if unfinished is None else {"reason": unfinished},
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "max_tool_calls": body.get("max_tool_calls"),
        "metadata": body.get("metadata") or {},
        "model": request.model,
        "output": output_items(request, made, _logprobs(body)),
        "parallel_tool_calls": request.allows_parallel_calls,
        "previous_response_id": body.get("previous_response_id"),
        "prompt_cache_key": body.get("prompt_cache_key"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "safety_identifier": body.get("safety_identifier"),
        "service_tier": "default",
        "store": body.get("store") is not False,
        "temperature": _or(body.get("temperature"), 1.0),
        "text": {"format": text.get("format") or {"type": "text"}, "verbosity": text.get("verbosity") or "medium"},
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": [_tool(tool) for tool in body.get("tools") or ()],
        "top_logprobs": body.get("top_logprobs") or 0,
        "top_p": _or(body.get("top_p"), 1.0),
        "truncation": body.get("truncation") or "disabled",
        "usage": {
            "input_tokens": given,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": made.tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": given + made.tokens,
        },
        "user": body.get("user"),
    }


def _or(value: Any, usual: float) -> Any:
    return usual if value is None else value


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool["type"] == "custom":
        return {"format": {"type": "text"}, **tool}
    return {"description": None, "parameters": None, **tool, "strict": bool(tool.get("strict"))}


def _logprobs(body: Mapping[str, Any]) -> int | None:
    if "message.output_text.logprobs" in (body.get("include") or ()):
        return body.get("top_logprobs") or 0
    return body.get("top_logprobs") or None


def _new_id(state: EmulatorState, digest: bytes) -> str:
    """Chosen by the request; by chance where there is such a response already."""
    chosen = derived_id("resp_", digest.hex())
    return chosen if chosen not in state.objects else f"resp_{secrets.token_hex(12)}"


def _keep(state: EmulatorState, told: dict[str, Any], dialogue_before: list[dict[str, Any]], background: bool) -> None:
    """Remember a response and its dialogue; one made in the background is queued until it is looked for."""
    evict_oldest(state)
    waiting = {
        **told,
        "status": "queued",
        "output": [],
        "usage": None,
        "completed_at": None,
        "incomplete_details": None,
    }
    state.objects[told["id"]] = waiting if background else told
    items_id = dialogue_id(told["id"])
    state.objects[items_id] = {
        "id": items_id,
        "object": ITEMS,
        "input": dialogue_before,
        "final": told,
    }


def _found(state: EmulatorState, response_id: str) -> dict[str, Any]:
    found = state.objects.get(response_id)
    if found is None or found.get("object") != "response":
        raise ApiError(404, f"Response with id '{response_id}' not found.", param="response_id")
    return found


def _earlier(state: EmulatorState, response_id: str | None) -> list[dict[str, Any]]:
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
    kept = state.objects[dialogue_id(response_id)]
    return [*kept["input"], *kept["final"]["output"]]


def _all_items(state: EmulatorState, given: Any) -> list[dict[str, Any]]:
    """Every item that is kept, if the input refers to one."""
    if isinstance(given, str) or not any("content" not in item and "id" in item for item in given):
        return []
    kept = [one for one in state.objects.values() if one.get("object") == ITEMS]
    return [item for one in kept for item in (*one["input"], *one["final"]["output"])]


async def show(api_request: ApiRequest) -> web.StreamResponse:
    """A stored response; with `stream=true` its events, after the one that `starting_after` names."""
    response_id = api_request.http_request.match_info["response_id"]
    found = _found(api_request.state, response_id)
    if found["status"] == "queued":
        found = api_request.state.objects[response_id] = api_request.state.objects[dialogue_id(response_id)]["final"]
    values = query_values(api_request, _RETRIEVAL, names=("stream", "starting_after"))
    if values.get("stream"):
        return await event_stream(api_request, response_events(found, values.get("starting_after", -1)))
    return json_answer(found)


async def delete(api_request: ApiRequest) -> web.StreamResponse:
    """Forget a response."""
    response_id = api_request.http_request.match_info["response_id"]
    _found(api_request.state, response_id)
    delete_answer(api_request.state, response_id)
    return json_answer({"id": response_id, "object": "response", "deleted": True})


async def cancel(api_request: ApiRequest) -> web.StreamResponse:
    """Of a response made in the background that nobody has looked for yet."""
    response_id = api_request.http_request.match_info["response_id"]
    found = _found(api_request.state, response_id)
    if not found["background"]:
        raise ApiError(400, "Cannot cancel a synchronous response.", param="response_id")
    if found["status"] == "queued":
        found = api_request.state.objects[response_id] = {**found, "status": "cancelled"}
        api_request.state.objects[dialogue_id(response_id)]["final"] = found
    return json_answer(found)


async def input_items(api_request: ApiRequest) -> web.StreamResponse:
    """What a response was made from, the newest first."""
    response_id = api_request.http_request.match_info["response_id"]
    _found(api_request.state, response_id)
    values = query_values(api_request, _PAGE, names=("order", "limit", "after"))
    items = api_request.state.objects[dialogue_id(response_id)]["input"]
    listed = items if values.get("order") == "asc" else items[::-1]
    return json_answer(page(listed, values.get("after"), values.get("limit", 20)))


async def count_input(api_request: ApiRequest) -> web.StreamResponse:
    """POST /responses/input_tokens: what an input would take."""
    body = {"model": "gpt-4o", **{key: value for key, value in api_request.body.items() if value is not None}}
    check_response(body)
    turns = messages_of_items(input_items_of(body["input"], b""), {}, api_request.state, 0)
    if body.get("instructions"):
        turns.insert(0, {"role": "system", "content": body["instructions"]})
    tokens = prompt_tokens(answer_request(_as_chat(body, turns)), body.get("tools"))
    return json_answer({"object": "response.input_tokens", "input_tokens": tokens})


ROUTES: tuple[ApiRoute, ...] = (
    ApiRoute("POST", "/responses", respond),
    ApiRoute("POST", "/responses/input_tokens", count_input, is_rate_limited=False),
    ApiRoute("GET", "/responses/{response_id}", show, is_rate_limited=False),
    ApiRoute("DELETE", "/responses/{response_id}", delete, is_rate_limited=False),
    ApiRoute("POST", "/responses/{response_id}/cancel", cancel, is_rate_limited=False),
    ApiRoute("GET", "/responses/{response_id}/input_items", input_items, is_rate_limited=False),
)
