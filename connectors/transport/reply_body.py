"""2xx replies that are JSON or events: parsed, and told from errors that come with a 2xx status."""

from collections.abc import Iterator
from typing import Any

import orjson

from connectors.contracts import MalformedReply
from connectors.records import OWN_CLASSES, Reply, RowError
from connectors.transport.bounded_json import loads
from connectors.transport.error_replies import is_error, row_error
from connectors.transport.sse import events


def parsed(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is; MalformedReply where it is none."""
    try:
        found = loads(body)
    except orjson.JSONDecodeError as exc:
        raise MalformedReply(f"the reply is no JSON ({exc}): {shortened(body)}") from exc
    if not isinstance(found, dict):
        raise MalformedReply(f"the reply is no JSON object: {shortened(body)}")
    return found


def refusal(reply: Reply, body: Any) -> RowError | None:
    """The error that a parsed 2xx body is, None where it is none; MalformedReply for one that passes: asked again."""
    if not is_error(body):
        return None
    error = row_error(reply)
    if error.error_class not in OWN_CLASSES:
        raise MalformedReply(f"status {reply.status} with an error in it: {error.message}", error)
    return error


def json_events(body: bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects of a stream of events; MalformedReply for an error in it, and for what is no JSON."""
    for event in events(body):
        if event.data == "[DONE]":
            return
        found = parsed(event.data.encode())
        if is_error(found) or event.name == "error" or found.get("type") == "error":
            raise MalformedReply(f"the stream broke off with an error: {shortened(event.data.encode())}")
        yield found


def shortened(body: bytes) -> str:
    """The beginning of a body, for messages."""
    text = body[:200].decode("utf-8", "replace")
    return text if len(body) <= 200 else f"{text}…"
