"""What a reply says that it used, in the words of chat completions or of responses."""

from collections.abc import Mapping
from typing import Any

from connectors.exchange import Usage

_LARGEST = 2**63 - 1
_NOTHING: Mapping[str, Any] = {}


def token_usage(reply: Mapping[str, Any], finish_reason: str | None) -> Usage:
    """From `usage` and `model` of a parsed reply; a count that is none counts as not said."""
    used = _mapping(reply.get("usage"))
    model = reply.get("model")
    given = "prompt_tokens" if "prompt_tokens" in used else "input_tokens"
    made = "completion_tokens" if "completion_tokens" in used else "output_tokens"
    return Usage(
        input_tokens=whole_count(used.get(given)),
        cached_tokens=whole_count(_mapping(used.get(f"{given}_details")).get("cached_tokens")),
        output_tokens=whole_count(used.get(made)),
        reasoning_tokens=whole_count(_mapping(used.get(f"{made}_details")).get("reasoning_tokens")),
        model_version=model if isinstance(model, str) else None,
        finish_reason=finish_reason,
    )


def whole_count(value: Any) -> int | None:
    """A count of 0 or more, also where it came as 5.0; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value <= _LARGEST and value == int(value) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else _NOTHING
