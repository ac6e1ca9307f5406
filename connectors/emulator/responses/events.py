"""Stream events of a response in OpenAI's dialect, with sequence numbers and all fields that clients expect."""

from collections.abc import Iterator, Mapping
from typing import Any

from connectors.emulator.sse_stream import event
from connectors.tokens import token_pieces


def response_events(response: Mapping[str, Any], after: int = -1) -> Iterator[bytes]:
    """The whole stream, or the events after the one with this sequence number."""
    for number, body in enumerate(_events(response)):
        if number > after:
            yield event({**body, "sequence_number": number}, body["type"])


def _events(response: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    started = {**response, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    started["completed_at"] = None
    yield {"type": "response.created", "response": started}
    yield {"type": "response.in_progress", "response": started}
    for index, item in enumerate(response["output"]):
        if item["type"] == "message":
            yield from _message_events(item, index, response["model"])
        else:
            yield from _call_events(item, index, response["model"])
    event_type = "response.completed" if response["status"] == "completed" else "response.incomplete"
    yield {"type": event_type, "response": response}


def _message_events(item: Mapping[str, Any], index: int, model: str) -> Iterator[dict[str, Any]]:
    (part,) = item["content"]
    at = {"item_id": item["id"], "output_index": index, "content_index": 0}
    started = {**item, "status": "in_progress", "content": []}
    yield {"type": "response.output_item.added", "output_index": index, "item": started}
    yield {"type": "response.content_part.added", **at, "part": {**part, "text": "", "logprobs": []}}
    logprobs = iter(part["logprobs"])
    for piece, _ in token_pieces(part["text"], model):
        logprob = next(logprobs, None)
        yield {"type": "response.output_text.delta", **at, "delta": piece, "logprobs": [logprob] if logprob else []}
    yield {"type": "response.output_text.done", **at, "text": part["text"], "logprobs": part["logprobs"]}
    yield {"type": "response.content_part.done", **at, "part": part}
    yield {"type": "response.output_item.done", "output_index": index, "item": item}


def _call_events(item: Mapping[str, Any], index: int, model: str) -> Iterator[dict[str, Any]]:
    key, event_type = ("input", "custom_tool_call_input")
    if item["type"] == "function_call":
        key, event_type = ("arguments", "function_call_arguments")
    at = {"item_id": item["id"], "output_index": index}
    yield {
        "type": "response.output_item.added",
        "output_index": index,
        "item": {**item, key: "", "status": "in_progress"},
    }
    for piece, _ in token_pieces(item[key], model):
        yield {"type": f"response.{event_type}.delta", **at, "delta": piece}
    yield {"type": f"response.{event_type}.done", **at, key: item[key], "name": item["name"]}
    yield {"type": "response.output_item.done", "output_index": index, "item": item}
