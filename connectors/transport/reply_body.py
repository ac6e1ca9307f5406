"""2xx replies that are JSON or events: parsed, and told from errors that come with a 2xx status."""

from collections.abc import Iterator
from typing import Any

import orjson

from connectors.contracts import MalformedReply
from connectors.records import ROW_ERROR_CLASSES, Reply, RowError
from connectors.transport.bounded_json import loads
from connectors.transport.error_replies import is_error_body, row_error
from connectors.transport.sse import parse_events


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is; MalformedReply where it is none."""
    try:
        found = loads(body)
    except orjson.JSONDecodeError as exc:
        raise MalformedReply(f"the reply is no JSON ({exc}): {excerpt(body)}") from exc
    if not isinstance(found, dict):
        raise MalformedReply(f"the reply is no JSON object: {excerpt(body)}")
    return found


def error_in_body(reply: Reply, body: Any) -> RowError | None:
    """The error that a parsed 2xx body is, None where it is none; MalformedReply for one that passes: asked again."""
    if not is_error_body(body):
        return None
    error = row_error(reply)
    if error.error_class not in ROW_ERROR_CLASSES:
        raise MalformedReply(f"status {reply.status} with an error in it: {error.message}", error)
    return error


def parse_json_events(body: bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects of a stream of events; MalformedReply for an error in it, and for what is no JSON."""
    for event in parse_events(body):
        if event.data == "[DONE]":
            return
        found = parse_object(event.data.encode())
        if is_error_body(found) or event.name == "error" or found.get("type") == "error":
            raise MalformedReply(f"the stream broke off with an error: {excerpt(event.data.encode())}")
        yield found


def excerpt(body: bytes) -> str:
    """The beginning of a body, for messages."""
    text = body[:200].decode("utf-8", "replace")
    return text if len(body) <= 200 else f"{text}…"
