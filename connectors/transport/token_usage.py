"""What a reply says that it used, in the words of chat completions or of responses."""

from collections.abc import Mapping
from typing import Any

from connectors.records import Usage

MAX_TOKENS = 10**8
"""Tokens: no exchange takes as many. Counts beyond it are a server's nonsense, and their price would fit no table."""
_NOTHING: Mapping[str, Any] = {}


def token_usage(reply: Mapping[str, Any], finish_reason: str | None) -> Usage:
    """From `usage` and `model` of a parsed reply; a count that is none counts as not said."""
    used = _mapping(reply.get("usage"))
    model = reply.get("model")
    given = "prompt_tokens" if "prompt_tokens" in used else "input_tokens"
    made = "completion_tokens" if "completion_tokens" in used else "output_tokens"
    read, written, both = (parse_count(used.get(name)) for name in (given, made, "total_tokens"))
    if (read is None) != (written is None):
        # Half a count would make half a bill: the total tells the rest, else neither is said.
        known = read or written or 0
        rest = None if both is None or both < known else both - known
        read, written = (None, None) if rest is None else (rest, written) if read is None else (read, rest)
    return Usage(
        input_tokens=read,
        cached_tokens=parse_count(_mapping(used.get(f"{given}_details")).get("cached_tokens")),
        output_tokens=written,
        reasoning_tokens=parse_count(_mapping(used.get(f"{made}_details")).get("reasoning_tokens")),
        model_version=model if isinstance(model, str) else None,
        finish_reason=finish_reason,
    )


def parse_count(value: Any) -> int | None:
    """A count of 0 or more, also where it came as 5.0; None for anything else."""
    if type(value) is int:
        return value if 0 <= value <= MAX_TOKENS else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value <= MAX_TOKENS and value == int(value) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else _NOTHING
