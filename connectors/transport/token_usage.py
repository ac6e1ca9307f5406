"""Usage of a reply: token counts, billed tool calls, service tier and cost, in the names and places of each provider.

Two rules hold for every shape. A part that is larger than its whole is no part of it, and is added. A total that is
larger than the sum of what it names has tokens that nobody names: they count as output.
"""

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

from connectors.records import Usage

MAX_TOKENS = 10**8
"""No exchange uses as many. A larger count is a server's error, and its price would fit no table."""
MAX_COST_USD = 1e6
"""No exchange costs as much."""
_EMPTY: Mapping[str, Any] = {}

Path = tuple[str, ...]

PLACES: tuple[Path, ...] = (
    ("usage",),
    ("usage", "billed_units"),  # Cohere, version 2
    ("usage", "tokens"),
    ("usageMetadata",),  # Gemini
    ("usage_metadata",),
    ("x_groq", "usage"),  # Groq, in the last chunk of a stream
    ("meta", "billed_units"),  # Cohere, version 1
    ("meta", "tokens"),
    ("message", "usage"),  # Anthropic, in the first event of a stream
    (),  # Ollama, in the reply itself
)
"""The places of the counts; the first place with a known name counts. Moonshot has them in a choice, too."""

_ROOTS = frozenset(path[0] for path in PLACES if path) | {"prompt_eval_count", "eval_count"}

INPUT = (
    "prompt_tokens",
    "input_tokens",
    "promptTokenCount",
    "prompt_token_count",
    "inputTokens",
    "prompt_eval_count",
)
OUTPUT = (
    "completion_tokens",
    "output_tokens",
    "candidatesTokenCount",
    "candidates_token_count",
    "outputTokens",
    "eval_count",
)
TOTAL = ("total_tokens", "totalTokenCount", "total_token_count", "totalTokens")

_DETAILS: tuple[tuple[str, ...], tuple[str, ...]] = (
    ("prompt_tokens_details", "input_tokens_details", "prompt_token_details", "input_token_details"),
    ("completion_tokens_details", "output_tokens_details", "completion_token_details", "output_token_details"),
)

CACHED = ("prompt_cache_hit_tokens", "cached_tokens", "num_cached_tokens", "cachedContentTokenCount")
"""Next to the input, and a part of it: DeepSeek, Moonshot, Mistral, Gemini."""
CACHE_MISSES = "prompt_cache_miss_tokens"
CACHE_READS = ("cache_read_input_tokens", "cacheReadInputTokens")
CACHE_WRITES = ("cache_creation_input_tokens", "cacheWriteInputTokens")
"""Next to the input, and not a part of it: Anthropic and Bedrock. LiteLLM has details as well, and includes them."""
DETAILED_CACHE_WRITES = ("cache_write_tokens", "cache_creation_tokens")
OTHER_INPUT = ("citation_tokens", "toolUsePromptTokenCount", "tool_use_prompt_token_count")
"""Next to the input, and not a part of it: Perplexity and Gemini."""
OTHER_OUTPUT = ("thoughtsTokenCount", "thoughts_token_count")
"""Reasoning next to the output, and not a part of it: Gemini."""
REASONING = "reasoning_tokens"

CLIENT_CALLS = frozenset({"function", "custom_tool", "computer", "local_shell", "shell", "apply_patch", "tool_search"})
"""Types of calls, without `_call`, that the caller executes: no provider bills them."""
SEARCH_COUNTS = (("server_tool_use", "web_search_requests"), ("server_tool_use_details", "web_search_requests"))
"""Web searches that only the usage counts: Anthropic and OpenRouter."""


_USUAL_COUNTS = frozenset(
    {"prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details", "completion_tokens_details"}
)
_USUAL_INPUT_DETAILS = frozenset({"cached_tokens", "audio_tokens", "text_tokens", "image_tokens"})
_USUAL_OUTPUT_DETAILS = frozenset(
    {"reasoning_tokens", "audio_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens", "text_tokens"}
)
"""All that OpenAI's own chat completions report, and most servers that follow them."""


def token_usage(reply: Mapping[str, Any], finish_reason: str | None, *, has_output: bool = True) -> Usage:
    """Return the usage that a parsed reply reports; an invalid count is None.

    `has_output`: whether the endpoint makes tokens; otherwise all tokens are input.
    """
    if has_output and (usual := _usual_usage(reply, finish_reason)) is not None:
        return usual
    return any_token_usage(reply, finish_reason, has_output=has_output)


def _usual_usage(reply: Mapping[str, Any], finish_reason: str | None) -> Usage | None:
    """Return the usage of a reply with nothing but the usual counts, which add up; None: `any_token_usage` reads it.

    It takes a fifth of the time.
    """
    counts = reply.get("usage")
    if type(counts) is not dict or not counts.keys() <= _USUAL_COUNTS or "output" in reply:
        return None
    inputs, outputs = counts.get("prompt_tokens"), counts.get("completion_tokens")
    if type(inputs) is not int or type(outputs) is not int or counts.get("total_tokens") != inputs + outputs:
        return None
    cached = reasoning = None
    if (details := counts.get("prompt_tokens_details")) is not None:
        if type(details) is not dict or not details.keys() <= _USUAL_INPUT_DETAILS:
            return None
        cached = details.get("cached_tokens")
    if (details := counts.get("completion_tokens_details")) is not None:
        if type(details) is not dict or not details.keys() <= _USUAL_OUTPUT_DETAILS:
            return None
        reasoning = details.get("reasoning_tokens")
    if cached is not None and (type(cached) is not int or not 0 <= cached <= inputs):
        return None
    if reasoning is not None and (type(reasoning) is not int or not 0 <= reasoning <= outputs):
        return None
    if not (0 <= inputs <= MAX_TOKENS and 0 <= outputs <= MAX_TOKENS and inputs + outputs <= MAX_TOKENS):
        return None
    model, tier = reply.get("model"), reply.get("service_tier")
    return Usage(
        inputs,
        cached,
        outputs,
        reasoning,
        None,
        None,
        None,
        model if isinstance(model, str) else None,
        finish_reason,
        tier if tier and isinstance(tier, str) else None,
    )


def any_token_usage(reply: Mapping[str, Any], finish_reason: str | None, *, has_output: bool = True) -> Usage:
    """Do the same as `token_usage`, for replies of every shape."""
    counts = usage_counts(reply)
    inputs, cached, cache_writes = _input_tokens(counts)
    outputs, reasoning = _output_tokens(counts)
    total = _first(counts, TOTAL)
    if not has_output:
        inputs, outputs = (max(inputs or 0, total) if total is not None else inputs), 0 if counts else None
    elif (inputs is None) != (outputs is None):
        # Half a count would make half a bill: the total gives the other half, else both are unknown.
        known = inputs or outputs or 0
        rest = None if total is None or total < known else total - known
        inputs, outputs = (None, None) if rest is None else (rest, outputs) if inputs is None else (inputs, rest)
    if inputs is not None and outputs is not None:
        if reasoning is not None and _is_beside(counts, inputs, outputs, reasoning, total):
            outputs += reasoning
        if total is not None and total > inputs + outputs:
            outputs = total - inputs
    model, tier = reply.get("model"), reply.get("service_tier") or counts.get("service_tier")
    return Usage(
        input_tokens=inputs,
        cached_tokens=cached,
        output_tokens=outputs,
        reasoning_tokens=reasoning,
        model_version=model if isinstance(model, str) else None,
        finish_reason=finish_reason,
        service_tier=tier if isinstance(tier, str) else None,
        cache_write_tokens=cache_writes,
        hosted_calls=_hosted_calls(reply, counts),
        reported_usd=_reported_usd(counts),
    )


def usage_counts(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the object with the counts of a reply or of a chunk; empty without one."""
    usual = reply.get("usage")
    if isinstance(usual, dict) and ("prompt_tokens" in usual or "input_tokens" in usual):
        return usual
    for place in _places(reply):
        if any(name in place for names in (INPUT, OUTPUT, TOTAL) for name in names):
            return place
    return usual if isinstance(usual, dict) else _EMPTY


def _places(reply: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for path in PLACES:
        value: Any = reply
        for name in path:
            value = _mapping(value).get(name)
        if isinstance(value, dict):
            yield value
    choices = reply.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        yield _mapping(_mapping(choice).get("usage"))


def _input_tokens(counts: Mapping[str, Any]) -> tuple[int | None, int | None, int | None]:
    """Return (input tokens with the cached ones, cached tokens, tokens that were written to the cache)."""
    inputs = _first(counts, INPUT)
    details = _first_mapping(counts, _DETAILS[0])
    detailed = parse_count(details.get("cached_tokens"))
    cached = detailed if detailed is not None else _first(counts, CACHED)
    misses = parse_count(counts.get(CACHE_MISSES))
    if inputs is None and cached is not None and misses is not None:
        inputs = cached + misses
    reads, writes = _first(counts, CACHE_READS), _first(counts, CACHE_WRITES)
    others = sum(count for name in OTHER_INPUT if (count := parse_count(counts.get(name))) is not None)
    if inputs is not None:
        cache_tokens = (reads or 0) + (writes or 0)
        if cache_tokens and (detailed is None or cache_tokens > inputs):
            inputs += cache_tokens
        elif cached is not None and cached > inputs:
            inputs += cached
        inputs += others
    if writes is None:
        writes = _first(details, DETAILED_CACHE_WRITES)
    return inputs, cached if reads is None else reads, writes


def _output_tokens(counts: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Return (output tokens, reasoning tokens), both as they are reported."""
    outputs = _first(counts, OUTPUT)
    reasoning = parse_count(_first_mapping(counts, _DETAILS[1]).get(REASONING))
    if reasoning is None:
        reasoning = parse_count(counts.get(REASONING))
    if reasoning is None:
        reasoning = _first(counts, OTHER_OUTPUT)
        if reasoning is not None and outputs is None:
            # Gemini leaves out a count of zero.
            outputs = 0
    return outputs, reasoning


def _is_beside(counts: Mapping[str, Any], inputs: int, outputs: int, reasoning: int, total: int | None) -> bool:
    """Return whether the reasoning tokens are no part of the output tokens."""
    if reasoning > outputs or any(name in counts for name in OTHER_OUTPUT):
        return True
    if total is not None:
        return total >= inputs + outputs + reasoning
    return REASONING in counts


def _hosted_calls(reply: Mapping[str, Any], counts: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    """Return (type without `_call`, number) of the calls that the provider executed."""
    items = reply.get("output")
    calls: dict[str, int] = {}
    for item in items if isinstance(items, list) else ():
        kind = item.get("type") if isinstance(item, dict) else None
        if isinstance(kind, str) and kind.endswith("_call") and (name := kind[:-5]) not in CLIENT_CALLS:
            calls[name] = calls.get(name, 0) + 1
    if not calls:
        for place, name in SEARCH_COUNTS:
            if searches := parse_count(_mapping(counts.get(place)).get(name)):
                calls["web_search"] = searches
    return tuple(calls.items())


def _reported_usd(counts: Mapping[str, Any]) -> float | None:
    """Return the cost that the reply reports, in US dollars: OpenRouter, Perplexity, DeepInfra, xAI."""
    cost = counts.get("cost")
    value = _usd(cost.get("total_cost")) if isinstance(cost, dict) else _usd(cost)
    if value is None:
        value = _usd(counts.get("estimated_cost"))
    if value is None and (ticks := _usd(counts.get("cost_in_usd_ticks"), MAX_COST_USD * 1e10)) is not None:
        value = ticks / 1e10
    if value is not None and counts.get("is_byok") is True:
        # The cost is OpenRouter's fee; the owner of the key pays the rest to the provider.
        value += _usd(_mapping(counts.get("cost_details")).get("upstream_inference_cost")) or 0.0
    return value


def _usd(value: Any, limit: float = MAX_COST_USD) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if isfinite(value) and 0 <= value <= limit else None


def parse_count(value: Any) -> int | None:
    """Return a count from 0 to MAX_TOKENS, also if it came as 5.0 or "5"; None for anything else."""
    if type(value) is int:
        return value if 0 <= value <= MAX_TOKENS else None
    if isinstance(value, str):
        return parse_count(int(value)) if len(value) < 12 and value.isascii() and value.isdigit() else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value <= MAX_TOKENS and value == int(value) else None


def _first(counts: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """Return the first of these counts that is valid."""
    for name in names:
        if name in counts and (count := parse_count(counts[name])) is not None:
            return count
    return None


def _first_mapping(counts: Mapping[str, Any], names: tuple[str, ...]) -> Mapping[str, Any]:
    for name in names:
        if isinstance(value := counts.get(name), dict):
            return value
    return _EMPTY


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else _EMPTY


class StreamedUsage:
    """The usage in the chunks of a stream: in the last one, in several, or in every one."""

    def __init__(self) -> None:
        self._reports: list[tuple[Mapping[str, Any], bool]] = []

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Add the usage of a chunk, if it has one."""
        choices = chunk.get("choices")
        choices = [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
        if _ROOTS.isdisjoint(chunk) and not any("usage" in choice for choice in choices):
            return
        if counts := usage_counts(chunk):
            deltas = [_mapping(choice.get("delta")) for choice in (*choices, chunk)]
            has_content = any(value for delta in deltas for name, value in delta.items() if name != "role")
            self._reports.append((counts, has_content))

    def total(self) -> dict[str, Any] | None:
        """Return the usage of the whole stream; None without any.

        Reports that grow are cumulative: of each count the largest is the total. If a chunk continues the answer, but
        its count of output tokens is no larger than the one before, the counts are those of single chunks. A last
        report after the answer that is larger than all others is the total in any case.
        """
        if not self._reports:
            return None
        total: dict[str, Any] = {}
        for counts, _ in self._reports:
            _merge_largest(total, counts)
        outputs = [_first(counts, OUTPUT) or 0 for counts, _ in self._reports]
        is_cumulative = not any(
            has_content and 0 < later <= earlier
            for earlier, later, (_, has_content) in zip(outputs, outputs[1:], self._reports[1:], strict=False)
        )
        has_total_at_end = not self._reports[-1][1] and outputs[-1] > max(outputs[:-1], default=0)
        if not is_cumulative and not has_total_at_end:
            total[next(name for name in OUTPUT if name in total)] = sum(outputs)
            for name in TOTAL:
                total.pop(name, None)
        return total


def _merge_largest(total: dict[str, Any], counts: Mapping[str, Any]) -> None:
    for name, value in counts.items():
        earlier = total.get(name)
        if isinstance(value, dict):
            merged = dict(earlier) if isinstance(earlier, dict) else {}
            _merge_largest(merged, value)
            total[name] = merged
        elif not (_is_number(earlier) and _is_number(value) and earlier > value) and value is not None:
            total[name] = value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
