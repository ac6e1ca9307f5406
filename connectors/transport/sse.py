"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) of a complete body.

Besides the standard it reads what servers make of it: keep-alives in the data, events without a blank line between
them, and a whole JSON value between keep-alives or before `[DONE]`.
"""

import re
from collections.abc import Iterator

import orjson
from msgspec import Struct

_LINE_END = re.compile(r"\r\n|\n|\r")

KEEP_ALIVE_WORDS = frozenset({"ping", "keepalive", "keep-alive", "keep_alive", "heartbeat", "null", "{}"})
"""The data, event name or JSON `type` of an event that says nothing, in lower case."""
MAX_KEEP_ALIVE_CHARACTERS = 200
"""A longer event is no keep-alive."""

_QUIET_LINES = re.compile(
    rb"(?:[ \t]*(?::[^\r\n]*|(?:data|event):[ \t]*(?::[^\r\n]*|ping|keep[-_]?alive|heartbeat|\[DONE\])?[ \t]*)?"
    rb"[\r\n]+)*+",
    re.I,
)
"""Comments, keep-alives, `[DONE]` and blank lines."""
_DONE_AT_END = re.compile(rb"\s*(?:(?:data:)?[ \t]*\[DONE\]|:[^\r\n{}\[\]\"]*)\s*\Z")
_REPEATED_FIELD = re.compile(r"^(?:data:[ \t]*)+", re.M)
_DONE = re.compile(r'\s*"?\[DONE\]"?\s*', re.I)
MAX_DONE_CHARACTERS = 20
_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":")


class Event(Struct, frozen=True):
    """One event: its data lines joined by line feeds."""

    data: str
    name: str | None = None
    """The `event` field; None if the stream has none."""


def is_event_stream(body: bytes) -> bool:
    """Return whether a body is an event stream and not JSON: by its first word, whatever its content type is.

    Comments before a JSON value do not make it a stream.
    """
    begin = body.lstrip(b"\xef\xbb\xbf\r\n\t ") if body[:1] not in b"{[" else body[:1]
    if not begin.startswith(_FIELDS):
        return False
    rest = _without_quiet_lines(begin)
    return not rest.startswith((b"{", b"["))


def whole_json(body: bytes) -> bytes:
    """Return the JSON value of a body without the keep-alives and the `[DONE]` around it; any other body unchanged."""
    if _is_enclosed(body):
        return body
    value = _without_quiet_lines(body).strip()
    while found := _DONE_AT_END.search(value[-MAX_KEEP_ALIVE_CHARACTERS:]):
        value = value[: len(value) - len(found[0])].rstrip()
    return value if _is_enclosed(value) else body


def _is_enclosed(body: bytes) -> bool:
    return (body[:1], body[-1:]) in ((b"{", b"}"), (b"[", b"]"))


def _without_quiet_lines(body: bytes) -> bytes:
    quiet = _QUIET_LINES.match(body)
    return body[quiet.end() :].lstrip() if quiet is not None else body


def parse_events(body: bytes) -> Iterator[Event]:
    """Yield the events of a body but keep-alives; the last may be incomplete."""
    text = body.decode("utf-8", "replace").removeprefix("\ufeff")
    data: list[str] = []
    name: str | None = None
    # The last event counts even without its blank line: many servers close the connection right after `[DONE]`.
    for line in (*_LINE_END.split(text), ""):
        if not line:
            if data and not _is_keep_alive(event := _event(data, name)):
                yield event
            data, name = [], None
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            if data and _is_next_event(data, value):
                # No blank line ends the event before.
                if not _is_keep_alive(event := _event(data, name)):
                    yield event
                data, name = [], None
            data.append(value)
        elif field == "event":
            name = value or None


def _event(data: list[str], name: str | None) -> Event:
    text = "\n".join(data)
    if text.startswith("data:") or len(text) <= MAX_DONE_CHARACTERS:
        # Some gateways write the field twice, and the end in their own way.
        text = _REPEATED_FIELD.sub("", text)
        text = "[DONE]" if _DONE.fullmatch(text) else text
    return Event(text, name)


def _is_keep_alive(event: Event) -> bool:
    """Return whether an event says nothing: `: keepalive` as data, no data, or a ping."""
    data = event.data.strip()
    if not data or data.startswith(":"):
        return True
    if len(data) > MAX_KEEP_ALIVE_CHARACTERS:
        return False
    if data.lower() in KEEP_ALIVE_WORDS or (event.name or "").lower() in KEEP_ALIVE_WORDS:
        return True
    if '"type"' not in data:
        return False
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return isinstance(value, dict) and str(value.get("type")).lower() in KEEP_ALIVE_WORDS


def _is_next_event(data: list[str], value: str) -> bool:
    """Return whether a line of data begins another event: the lines before it are a whole one."""
    if data == ["[DONE]"] or data[0].startswith(":"):
        return True
    if value.strip() != "[DONE]" and not value.startswith(("{", ":")):
        return False
    try:
        orjson.loads("\n".join(data))
    except orjson.JSONDecodeError:
        return False
    return True
