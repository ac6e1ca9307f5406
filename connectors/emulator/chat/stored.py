"""GET, POST and DELETE /chat/completions…: completions that were created with `store`."""

from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from connectors.emulator.api import ApiError, ApiRequest, ApiRoute, EmulatorState, json_answer
from connectors.emulator.api_schemas import METADATA, TEXT, RequestSchema, enum, integer, record
from connectors.emulator.chat.request_checks import content_text
from connectors.emulator.parameters import query_values
from connectors.emulator.store import delete_answer, dialogue_id, evict_oldest, page
from connectors.emulator.validation import check_body

_PAGE_QUERY = RequestSchema(record(order=enum("asc", "desc"), limit=integer(1, 100), after=TEXT))
_UPDATE = RequestSchema(record("metadata", metadata=METADATA))


def store_completion(state: EmulatorState, completion: Mapping[str, Any], body: Mapping[str, Any]) -> None:
    """Store a completion and its messages."""
    evict_oldest(state)
    parameters = {
        name: body.get(name)
        for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "tools", "tool_choice")
    }
    stored = {**completion, **parameters, "request_id": None, "metadata": body.get("metadata") or {}}
    state.objects[completion["id"]] = stored
    messages = [_message(message, f"{completion['id']}-{index}") for index, message in enumerate(body["messages"])]
    state.objects[dialogue_id(completion["id"])] = {
        "id": dialogue_id(completion["id"]),
        "object": "chat.messages",
        "messages": messages,
    }


async def list_completions(api_request: ApiRequest) -> web.StreamResponse:
    """The stored completions by model and metadata, the oldest first unless `order=desc`."""
    query = api_request.http_request.query
    model = query.get("model")
    metadata_filter = {
        name.removeprefix("metadata[").removesuffix("]"): value
        for name, value in query.items()
        if name.startswith("metadata[")
    }
    completions = [
        each
        for each in api_request.state.objects.values()
        if each.get("object") == "chat.completion"
        and model in (None, each["model"])
        and metadata_filter.items() <= each["metadata"].items()
    ]
    return _page(api_request, completions)


async def show(api_request: ApiRequest) -> web.StreamResponse:
    """One completion."""
    return json_answer(_stored_completion(api_request))


async def update(api_request: ApiRequest) -> web.StreamResponse:
    """Replace the metadata of a completion."""
    check_body(api_request.body, _UPDATE)
    updated = {**_stored_completion(api_request), "metadata": api_request.body["metadata"]}
    api_request.state.objects[updated["id"]] = updated
    return json_answer(updated)


async def delete(api_request: ApiRequest) -> web.StreamResponse:
    """Delete a completion."""
    completion_id = _stored_completion(api_request)["id"]
    delete_answer(api_request.state, completion_id)
    return json_answer({"object": "chat.completion.deleted", "id": completion_id, "deleted": True})


async def list_messages(api_request: ApiRequest) -> web.StreamResponse:
    """The messages from which a completion was generated."""
    return _page(api_request, api_request.state.objects[dialogue_id(_stored_completion(api_request)["id"])]["messages"])


def _page(api_request: ApiRequest, oldest_first: Sequence[dict[str, Any]]) -> web.Response:
    values = query_values(api_request, _PAGE_QUERY, names=("order", "limit", "after"))
    ordered = oldest_first if values.get("order", "asc") == "asc" else oldest_first[::-1]
    return json_answer(page(ordered, values.get("after"), values.get("limit", 20)))


def _stored_completion(api_request: ApiRequest) -> dict[str, Any]:
    completion_id = api_request.http_request.match_info["completion_id"]
    stored = api_request.state.objects.get(completion_id)
    if stored is None or stored.get("object") != "chat.completion":
        raise ApiError(404, f"Completion {completion_id} not found.", param="completion_id", code="not_found")
    return stored


def _message(message: Mapping[str, Any], message_id: str) -> dict[str, Any]:
    """A message as the list returns it: its text, and its content parts."""
    content = message.get("content")
    parts = content if isinstance(content, list) else None
    return {**message, "id": message_id, "content": content_text(content) if content else None, "content_parts": parts}


ROUTES: tuple[ApiRoute, ...] = (
    ApiRoute("GET", "/chat/completions", list_completions, is_rate_limited=False),
    ApiRoute("GET", "/chat/completions/{completion_id}", show, is_rate_limited=False),
    ApiRoute("POST", "/chat/completions/{completion_id}", update, is_rate_limited=False),
    ApiRoute("DELETE", "/chat/completions/{completion_id}", delete, is_rate_limited=False),
    ApiRoute("GET", "/chat/completions/{completion_id}/messages", list_messages, is_rate_limited=False),
)
