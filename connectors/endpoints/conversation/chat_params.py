"""Parameters of chat completions and responses: the reference, 1.3.2 and 2.3.2, and the current OpenAPI description."""

from collections.abc import Mapping
from typing import Any

from connectors.endpoints.params.checks import (
    FLAG,
    MAPPING,
    ParamCheck,
    integer,
    mapping_of,
    number,
    one_of,
    text,
    text_list,
    text_up_to,
)
from connectors.transport.token_usage import MAX_TOKENS


def _is_bias(token: str, bias: Any) -> bool:
    return str(token).isdecimal() and number(-100, 100).fits(bias)


def _is_label(key: str, value: Any) -> bool:
    return isinstance(key, str) and len(key) <= 64 and isinstance(value, str) and len(value) <= 512


def _list_of(expected: str, item: ParamCheck) -> ParamCheck:
    return ParamCheck(
        expected, lambda value: isinstance(value, list | tuple) and bool(value) and all(map(item.fits, value))
    )


_LABELS = mapping_of("at most 16 keys of at most 64 and texts of at most 512 characters", _is_label)
METADATA = ParamCheck(_LABELS.expected, lambda value: _LABELS.fits(value) and len(value) <= 16)

_EFFORT = one_of("none", "minimal", "low", "medium", "high", "xhigh", "max")
_SUMMARY = one_of("auto", "concise", "detailed")


def _is_reasoning(key: str, value: Any) -> bool:
    known = {"effort": _EFFORT, "summary": _SUMMARY}
    return key not in known or value is None or known[key].fits(value)


_SHARED: Mapping[str, ParamCheck] = {
    "metadata": METADATA,
    "moderation": MAPPING,
    "parallel_tool_calls": FLAG,
    "prompt_cache_key": text,
    "prompt_cache_options": MAPPING,
    "prompt_cache_retention": one_of("in_memory", "24h"),
    "safety_identifier": text_up_to(64),
    "service_tier": text,
    "store": FLAG,
    "stream_options": MAPPING,
    "temperature": number(0, 2),
    "top_logprobs": integer(0, 20),
    "top_p": number(0, 1),
    "user": text,
}

_SAMPLING: Mapping[str, ParamCheck] = {
    "frequency_penalty": number(-2, 2),
    "max_tokens": integer(1, MAX_TOKENS),
    "presence_penalty": number(-2, 2),
    "seed": integer(-(2**63), 2**63 - 1),
    "stop": text_list(4),
}

CHAT_PARAMS: Mapping[str, ParamCheck] = {
    **_SHARED,
    **_SAMPLING,
    "logit_bias": mapping_of("token ids with numbers from -100 to 100", _is_bias),
    "logprobs": FLAG,
    "max_completion_tokens": integer(1, MAX_TOKENS),
    "n": integer(1, 128),
    "prediction": MAPPING,
    "reasoning_effort": _EFFORT,
    "verbosity": one_of("low", "medium", "high"),
    "web_search_options": MAPPING,
}
"""All but the keys of the step (messages, tools, tool_choice, stream), response_format, which has its own check, audio
answers, which have no column, and the deprecated functions; `extra_body` sends those."""

INCLUDE = (
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
)

RESPONSES_PARAMS: Mapping[str, ParamCheck] = {
    **_SHARED,
    "context_management": _list_of("a list of keys and values", MAPPING),
    "conversation": ParamCheck("text or keys and values", lambda value: text.fits(value) or MAPPING.fits(value)),
    "include": _list_of(f"a list of {', '.join(INCLUDE)}", one_of(*INCLUDE)),
    "max_output_tokens": integer(16, MAX_TOKENS),
    "max_tool_calls": integer(1),
    "previous_response_id": text,
    "prompt": MAPPING,
    "reasoning": mapping_of(f"effort: {_EFFORT.expected}; summary: {_SUMMARY.expected}", _is_reasoning),
    "truncation": one_of("auto", "disabled"),
}
"""All but the keys of the step, and background, whose answers would have to be fetched later."""

REFERENCE_PARAMS: Mapping[str, ParamCheck] = {
    **_SAMPLING,
    **{name: _SHARED[name] for name in ("parallel_tool_calls", "temperature", "top_p", "user")},
}
"""Section 2.3.2 of the reference, without the keys of the step."""

_SPOKEN = ("its column is a text", "leave it out, or write it in extra_body: the transcript is the text")
LEFT_OUT_OF_CHAT: Mapping[str, tuple[str, str]] = {
    "audio": _SPOKEN,
    "modalities": _SPOKEN,
    "functions": ("replaced by tools", "write tools: in the step"),
    "function_call": ("replaced by tool_choice", "write tool_choice: in the step"),
}
"""Parameters of chat completions that no step takes -> the reason, and what to write in their place."""
