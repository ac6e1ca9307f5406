"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) of a complete body."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_LINE_END = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its data lines joined by line feeds."""

    data: str
    name: str | None = None
    """The `event` field; None if the stream has none."""


def is_event_stream(body: bytes) -> bool:
    """Return whether a body is an event stream and not JSON: by its first word, whatever its content type is."""
    return body[:256].lstrip(b"\xef\xbb\xbf\r\n\t ").startswith((b"data:", b"event:", b"id:", b"retry:", b":"))


def parse_events(body: bytes) -> Iterator[Event]:
    """Yield the events of a body; the last may be incomplete."""
    text = body.decode("utf-8", "replace").removeprefix("\ufeff")
    data: list[str] = []
    name: str | None = None
    # The last event counts even without its blank line: many servers close the connection right after `[DONE]`.
    for line in (*_LINE_END.split(text), ""):
        if not line:
            if data:
                yield Event("\n".join(data), name)
            data, name = [], None
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
        elif field == "event":
            name = value or None
