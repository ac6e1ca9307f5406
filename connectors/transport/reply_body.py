"""Bodies of 2xx replies: parsed JSON or events, and the errors that arrive with a 2xx status."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from connectors.contracts import MalformedReply
from connectors.error_classes import ROW_ERROR_CLASSES
from connectors.records import Reply, RowError
from connectors.transport.bounded_json import parse_json
from connectors.transport.error_replies import is_error_body, row_error
from connectors.transport.sse import parse_events

_WEB_PAGE = re.compile(rb"\s*(?:<!--.{0,500}?-->\s*)?<(?:!doctype\s+html|html)\b", re.I | re.S)
_ANSWER = re.compile(rb'"(?:choices|delta|output|data)"\s*:\s*[\[{]\s*[{"\[]')


def web_page(reply: Reply) -> RowError | None:
    """Return the error of a 2xx reply that is a web page: no endpoint of the API is at this address."""
    if reply.body.startswith((b"{", b"[")) or _WEB_PAGE.match(reply.body) is None:
        return None
    return RowError("setup", "the reply is a web page, not an answer", reply.status)


def has_answer(body: bytes) -> bool:
    """Return whether the body of an error contains an answer, or the beginning of one."""
    return _ANSWER.search(body) is not None


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body; MalformedReply if it is anything else."""
    if not body.strip():
        raise MalformedReply("the reply is empty")
    try:
        value = parse_json(body)
    except orjson.JSONDecodeError as exc:
        raise MalformedReply(f"the reply is not JSON ({exc}): {excerpt(body)}") from exc
    if not isinstance(value, dict):
        raise MalformedReply(f"the reply is not a JSON object: {excerpt(body)}")
    return value


def error_in_body(reply: Reply, body: Any) -> RowError | None:
    """Return the row's error in a parsed 2xx body, None without one; MalformedReply for a transient error."""
    if not is_error_body(body):
        return None
    error = row_error(reply)
    if error.error_class not in ROW_ERROR_CLASSES:
        raise MalformedReply(f"status {reply.status} with an error in it: {error.message}", error)
    return error


def parse_json_events(body: bytes) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of an event stream; MalformedReply for an error event or invalid JSON."""
    for event in parse_events(body):
        if event.data.strip() == "[DONE]":
            return
        value = parse_object(event.data.encode())
        if is_error_body(value) or event.name == "error" or value.get("type") == "error":
            error = row_error(Reply(200, {}, event.data.encode(), 0.0))
            raise MalformedReply(f"the stream ended with an error: {error.message}", error)
        yield value


def excerpt(body: bytes | Mapping[str, Any]) -> str:
    """Return the beginning of a body, raw or parsed, for messages."""
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    if b"\0" in raw:
        return f"{len(raw):,} bytes of binary data"
    text = raw[:200].decode("utf-8", "replace")
    return text if len(raw) <= 200 else f"{text}…"
