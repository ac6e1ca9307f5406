"""Token counts of a reply, as chat completions or as responses name them."""

from collections.abc import Mapping
from typing import Any

from connectors.records import Usage

MAX_TOKENS = 10**8
"""No exchange uses as many. A larger count is a server's error, and its price would fit no table."""
_EMPTY: Mapping[str, Any] = {}


def token_usage(reply: Mapping[str, Any], finish_reason: str | None) -> Usage:
    """Return the usage from `usage` and `model` of a parsed reply; an invalid count is None."""
    counts = _mapping(reply.get("usage"))
    model = reply.get("model")
    input_name = "prompt_tokens" if "prompt_tokens" in counts else "input_tokens"
    output_name = "completion_tokens" if "completion_tokens" in counts else "output_tokens"
    inputs, outputs, total = (parse_count(counts.get(name)) for name in (input_name, output_name, "total_tokens"))
    if (inputs is None) != (outputs is None):
        # Half a count would make half a bill: the total gives the other half, else both are unknown.
        known = inputs or outputs or 0
        rest = None if total is None or total < known else total - known
        inputs, outputs = (None, None) if rest is None else (rest, outputs) if inputs is None else (inputs, rest)
    return Usage(
        input_tokens=inputs,
        cached_tokens=parse_count(_mapping(counts.get(f"{input_name}_details")).get("cached_tokens")),
        output_tokens=outputs,
        reasoning_tokens=parse_count(_mapping(counts.get(f"{output_name}_details")).get("reasoning_tokens")),
        model_version=model if isinstance(model, str) else None,
        finish_reason=finish_reason,
    )


def parse_count(value: Any) -> int | None:
    """Return a count from 0 to MAX_TOKENS, also if it came as 5.0; None for anything else."""
    if type(value) is int:
        return value if 0 <= value <= MAX_TOKENS else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value <= MAX_TOKENS and value == int(value) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else _EMPTY
