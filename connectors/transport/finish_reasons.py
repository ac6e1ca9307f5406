"""Finish reasons: how an answer ended, under the names of all providers."""

import re
from collections.abc import Mapping
from typing import Any, Literal

Ending = Literal["stop", "tool_calls", "length", "content_filter", "unknown"]

_REASONS: Mapping[Ending, str] = {
    # OpenAI; TGI and watsonx eos_token; Anthropic and Bedrock end_turn, stop_sequence; Cohere COMPLETE; llama.cpp word;
    # xAI REASON_STOP; Baidu normal.
    "stop": """stop stopped stop_sequence stop_sequences stop_word word end_turn eos eos_token end_of_text end_of_turn
        end complete completed finish finished done normal ok success reason_stop""",
    # OpenAI; Anthropic and Bedrock tool_use; Cohere TOOL_CALL; xAI REASON_TOOL_CALLS.
    "tool_calls": "tool_calls tool_call tool_use tools function_call function_calls reason_tool_calls",
    # OpenAI; Responses max_output_tokens; Anthropic, Cohere and Gemini max_tokens; Mistral model_length; llama.cpp
    # limit; Cohere ERROR_LIMIT; Anthropic and GLM model_context_window_exceeded; watsonx token_limit; xAI
    # REASON_MAX_LEN.
    "length": """length max_length max_len max_tokens max_output_tokens max_completion_tokens max_new_tokens token_limit
        limit model_length context_length context_length_exceeded max_context model_context_window_exceeded error_limit
        reason_max_len reason_max_context""",
    # OpenAI; Bedrock content_filtered, guardrail_intervened; Gemini SAFETY to MODEL_ARMOR, and those of pictures;
    # Anthropic refusal; Cohere ERROR_TOXIC; GLM sensitive.
    "content_filter": """content_filter content_filtered filtered content_policy content_policy_violation refusal safety
        recitation language blocklist prohibited_content spii model_armor image_safety image_prohibited_content
        image_recitation error_toxic toxic sensitive guardrail guardrails guardrail_intervened moderation moderated
        flagged blocked prompt_blocked""",
}
"""Ending -> its names. Any other name (abort, error, cancelled, pause_turn, insufficient_system_resource, OTHER ...) is
unknown: nobody can say whether the answer is whole."""


def _key(name: str) -> str:
    """Return a name without what differs among dialects: `FinishReason.MAX_TOKENS`, `max-tokens`, `maxTokens`.

    Gemini adds the cause: `content_filter: RECITATION`.
    """
    plain = name.partition(":")[0].rpartition(".")[2].lower()
    return re.sub(r"[^a-z0-9]", "", plain).removeprefix("finishreason")


_ENDINGS: dict[str, Ending] = {_key(name): ending for ending, names in _REASONS.items() for name in names.split()}
_NO_REASON = frozenset({"", "null", "none"})


def finish_reason(value: Any) -> str | None:
    """Return a reason as the provider wrote it; None if the value states none."""
    if isinstance(value, str):
        return value if value.strip().lower() not in _NO_REASON else None
    if isinstance(value, Mapping):
        return finish_reason(value.get("type"))  # SGLang: {"type": "abort", "message": ...}
    return str(value) if value else None


def ending(reason: str | None) -> Ending:
    """Return how an answer with this reason ended; without a reason, a whole reply counts as stop."""
    if reason is None or reason == "stop":
        return "stop"
    return _ENDINGS.get(_key(reason), "unknown")
