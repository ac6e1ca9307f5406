"""The parameters of POST /chat/completions: section 1.3.2 of the reference, and the current OpenAPI description."""

from collections.abc import Mapping
from typing import Any

from connectors.params import FLAG, MAPPING, Check, mapping_of, number, one_of, text, text_up_to, texts, whole


def _is_bias(token: str, bias: Any) -> bool:
    return str(token).isdecimal() and number(-100, 100).fits(bias)


def _is_label(key: str, value: Any) -> bool:
    return len(key) <= 64 and isinstance(value, str) and len(value) <= 512


CHAT_PARAMS: Mapping[str, Check] = {
    "frequency_penalty": number(-2, 2),
    "logit_bias": mapping_of("token ids with numbers from -100 to 100", _is_bias),
    "logprobs": FLAG,
    "max_completion_tokens": whole(1),
    "max_tokens": whole(1),
    "metadata": mapping_of("keys of at most 64 and texts of at most 512 characters", _is_label),
    "moderation": MAPPING,
    "n": whole(1, 128),
    "parallel_tool_calls": FLAG,
    "prediction": MAPPING,
    "presence_penalty": number(-2, 2),
    "prompt_cache_key": text,
    "prompt_cache_options": MAPPING,
    "prompt_cache_retention": one_of("in_memory", "24h"),
    "reasoning_effort": one_of("none", "minimal", "low", "medium", "high", "xhigh", "max"),
    "response_format": MAPPING,
    "safety_identifier": text_up_to(64),
    "seed": whole(-(2**63), 2**63 - 1),
    "service_tier": text,
    "stop": texts(4),
    "store": FLAG,
    "temperature": number(0, 2),
    "top_logprobs": whole(0, 20),
    "top_p": number(0, 1),
    "user": text,
    "verbosity": one_of("low", "medium", "high"),
    "web_search_options": MAPPING,
}
