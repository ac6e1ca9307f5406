"""The first token of a streamed reply, detected while the reply arrives."""

from collections.abc import Mapping
from typing import Any

import orjson

from connectors.transport.sse import is_event_stream

MAX_FIELD_BYTES = len(b"event:")
"""A body that is so long and begins with no field of an event stream is another body, such as JSON or audio."""


class FirstToken:
    """Detects the first token of a body; keep-alives and opening events are none."""

    def __init__(self) -> None:
        self._rest = b""
        self._is_event_stream = False
        self.has_arrived = False

    def feed(self, part: bytes) -> bool:
        """Examine the next part of the body; return whether a token has arrived by now."""
        if self.has_arrived:
            return True
        self._rest += part
        if not self._is_event_stream:
            begin = self._rest.lstrip()
            if len(begin) < MAX_FIELD_BYTES:
                return False
            self._is_event_stream = is_event_stream(begin)
            self.has_arrived = not self._is_event_stream
        *lines, self._rest = self._rest.split(b"\n")
        self.has_arrived = self.has_arrived or any(map(_brings_token, lines))
        return self.has_arrived


def _brings_token(line: bytes) -> bool:
    field, _, data = line.partition(b":")
    if field.strip() != b"data":
        return False
    try:
        event = orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    if not isinstance(event, dict):
        return False
    kind = event.get("type")
    if isinstance(kind, str) and ("delta" in kind or "partial" in kind):
        # Events of Responses, of speech and of images.
        return True
    choices = event.get("choices")
    return any(_has_text(choice) for choice in (event, *(choices if isinstance(choices, list) else ())))


def _has_text(choice: Any) -> bool:
    """Whether a choice of a chat or completion brings text, reasoning or a tool call, and not just its role."""
    if not isinstance(choice, Mapping):
        return False
    delta = choice.get("delta")
    parts = delta if isinstance(delta, Mapping) else {}
    return bool(choice.get("text")) or any(value for name, value in parts.items() if name != "role")
