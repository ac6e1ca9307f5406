"""The protocol of a run's control socket: one JSON object a line, a request and its reply."""

from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

import orjson
from msgspec import Struct, field

from connectors.errors import JobError

Command = Literal["state", "pause", "resume", "drain", "set"]
COMMANDS: tuple[str, ...] = get_args(Command)

MAX_REQUEST_BYTES = 64 << 10
"""Of one line to a run, newline included."""

MAX_REPLY_BYTES = 16 << 20
"""Of one line from a run."""


class ControlRequest(Struct, frozen=True):
    """What a run is asked to do."""

    command: Command
    values: Mapping[str, Any] = field(default_factory=dict)
    """Of `set`: dotted key of the job file -> value."""

    def to_line(self) -> bytes:
        """Encode the request."""
        values = {"values": dict(self.values)} if self.command == "set" else {}
        return orjson.dumps({"command": self.command, **values}) + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        """Decode a request; JobError if the line holds no request."""
        try:
            read = orjson.loads(line)
        except orjson.JSONDecodeError as exc:
            raise JobError("control", "a line that is not JSON", 'send e.g. {"command": "state"}') from exc
        command = read.get("command") if isinstance(read, dict) else None
        if not isinstance(command, str) or command not in COMMANDS:
            raise JobError("control", "no such command", f"send one of {', '.join(COMMANDS)}")
        values = read.get("values", {})
        if not isinstance(values, dict):
            raise JobError("control", "values is not an object", 'send e.g. "values": {"limits.concurrency": 50}')
        return cls(command, values)  # type: ignore[arg-type]  # It is one of COMMANDS.


class ControlReply(Struct, frozen=True):
    """What a run answers: its state, or why it refused the request."""

    state: Mapping[str, Any] | None = None
    """After the request; None if it was refused."""
    error: str | None = None
    """One line."""
    notice: str | None = None
    """What else the user should know, in one line."""

    def to_line(self) -> bytes:
        """Encode the reply."""
        reply = {"ok": self.error is None, "state": self.state, "error": self.error, "notice": self.notice}
        return orjson.dumps({name: value for name, value in reply.items() if value is not None}, default=str) + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        """Decode a reply; ValueError if the line holds no reply."""
        reply = orjson.loads(line)
        return cls(reply.get("state"), reply.get("error"), reply.get("notice"))
