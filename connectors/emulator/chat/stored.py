"""GET, POST and DELETE /chat/completions…: completions that were asked for with `store`."""

from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from connectors.emulator.api import ApiError, Incoming, Route, State, json_answer
from connectors.emulator.api_schemas import METADATA, TEXT, RequestSchema, enum, integer, record
from connectors.emulator.chat.request_checks import text_of
from connectors.emulator.parameters import query_values
from connectors.emulator.store import beside, forget, make_room, page
from connectors.emulator.validation import check_body

_PAGE = RequestSchema(record(order=enum("asc", "desc"), limit=integer(1, 100), after=TEXT))
_CHANGES = RequestSchema(record("metadata", metadata=METADATA))


def keep_completion(state: State, told: Mapping[str, Any], body: Mapping[str, Any]) -> None:
    """Remember a completion and its dialogue."""
    make_room(state)
    more = {
        name: body.get(name)
        for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "tools", "tool_choice")
    }
    kept = {**told, **more, "request_id": None, "metadata": body.get("metadata") or {}}
    state.objects[told["id"]] = kept
    messages = [_message(message, f"{told['id']}-{place}") for place, message in enumerate(body["messages"])]
    state.objects[beside(told["id"])] = {"id": beside(told["id"]), "object": "chat.messages", "messages": messages}


async def list_completions(incoming: Incoming) -> web.StreamResponse:
    """Those of a model, with such metadata; the oldest first unless `order=desc`."""
    query = incoming.request.query
    model = query.get("model")
    wanted = {
        name.removeprefix("metadata[").removesuffix("]"): value
        for name, value in query.items()
        if name.startswith("metadata[")
    }
    found = [
        one
        for one in incoming.state.objects.values()
        if one.get("object") == "chat.completion"
        and model in (None, one["model"])
        and wanted.items() <= one["metadata"].items()
    ]
    return _listed(incoming, found)


async def show(incoming: Incoming) -> web.StreamResponse:
    """One completion."""
    return json_answer(_found(incoming))


async def change(incoming: Incoming) -> web.StreamResponse:
    """Give a completion other metadata."""
    check_body(incoming.body, _CHANGES)
    changed = {**_found(incoming), "metadata": incoming.body["metadata"]}
    incoming.state.objects[changed["id"]] = changed
    return json_answer(changed)


async def delete(incoming: Incoming) -> web.StreamResponse:
    """Forget a completion."""
    completion_id = _found(incoming)["id"]
    forget(incoming.state, completion_id)
    return json_answer({"object": "chat.completion.deleted", "id": completion_id, "deleted": True})


async def messages_of(incoming: Incoming) -> web.StreamResponse:
    """What a completion was made from."""
    return _listed(incoming, incoming.state.objects[beside(_found(incoming)["id"])]["messages"])


def _listed(incoming: Incoming, found: Sequence[dict[str, Any]]) -> web.Response:
    values = query_values(incoming, _PAGE, names=("order", "limit", "after"))
    ordered = found if values.get("order", "asc") == "asc" else found[::-1]
    return json_answer(page(ordered, values.get("after"), values.get("limit", 20)))


def _found(incoming: Incoming) -> dict[str, Any]:
    completion_id = incoming.request.match_info["completion_id"]
    found = incoming.state.objects.get(completion_id)
    if found is None or found.get("object") != "chat.completion":
        raise ApiError(404, f"Completion {completion_id} not found.", param="completion_id", code="not_found")
    return found


def _message(message: Mapping[str, Any], message_id: str) -> dict[str, Any]:
    """As the list has it: a text, and the parts that it came in."""
    content = message.get("content")
    parts = content if isinstance(content, list) else None
    return {**message, "id": message_id, "content": text_of(content) if content else None, "content_parts": parts}


ROUTES: tuple[Route, ...] = (
    Route("GET", "/chat/completions", list_completions, limited=False),
    Route("GET", "/chat/completions/{completion_id}", show, limited=False),
    Route("POST", "/chat/completions/{completion_id}", change, limited=False),
    Route("DELETE", "/chat/completions/{completion_id}", delete, limited=False),
    Route("GET", "/chat/completions/{completion_id}/messages", messages_of, limited=False),
)
