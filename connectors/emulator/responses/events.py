"""A response of OpenAI's dialect as a stream: every event with its sequence_number, every field that clients expect."""

from collections.abc import Iterator, Mapping
from typing import Any

from connectors.emulator.sse_stream import event
from connectors.tokens import token_pieces


def response_events(response: Mapping[str, Any], after: int = -1) -> Iterator[bytes]:
    """The whole stream, or what comes after the event with this sequence_number."""
    for number, told in enumerate(_events(response)):
        if number > after:
            yield event({**told, "sequence_number": number}, told["type"])


def _events(response: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    started = {**response, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    started["completed_at"] = None
    yield {"type": "response.created", "response": started}
    yield {"type": "response.in_progress", "response": started}
    for place, item in enumerate(response["output"]):
        if item["type"] == "message":
            yield from _message_events(item, place, response["model"])
        else:
            yield from _call_events(item, place, response["model"])
    kind = "response.completed" if response["status"] == "completed" else "response.incomplete"
    yield {"type": kind, "response": response}


def _message_events(item: Mapping[str, Any], place: int, model: str) -> Iterator[dict[str, Any]]:
    (part,) = item["content"]
    at = {"item_id": item["id"], "output_index": place, "content_index": 0}
    begun = {**item, "status": "in_progress", "content": []}
    yield {"type": "response.output_item.added", "output_index": place, "item": begun}
    yield {"type": "response.content_part.added", **at, "part": {**part, "text": "", "logprobs": []}}
    logprobs = iter(part["logprobs"])
    for piece, _ in token_pieces(part["text"], model):
        told = next(logprobs, None)
        yield {"type": "response.output_text.delta", **at, "delta": piece, "logprobs": [told] if told else []}
    yield {"type": "response.output_text.done", **at, "text": part["text"], "logprobs": part["logprobs"]}
    yield {"type": "response.content_part.done", **at, "part": part}
    yield {"type": "response.output_item.done", "output_index": place, "item": item}


def _call_events(item: Mapping[str, Any], place: int, model: str) -> Iterator[dict[str, Any]]:
    key, kind = ("input", "custom_tool_call_input")
    if item["type"] == "function_call":
        key, kind = ("arguments", "function_call_arguments")
    at = {"item_id": item["id"], "output_index": place}
    yield {
        "type": "response.output_item.added",
        "output_index": place,
        "item": {**item, key: "", "status": "in_progress"},
    }
    for piece, _ in token_pieces(item[key], model):
        yield {"type": f"response.{kind}.delta", **at, "delta": piece}
    yield {"type": f"response.{kind}.done", **at, key: item[key], "name": item["name"]}
    yield {"type": "response.output_item.done", "output_index": place, "item": item}
