"""Rules of POST /chat/completions beyond its schema: parameters that exclude or require each other."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from connectors.emulator.api_schemas import NON_EMPTY, request_schema
from connectors.emulator.validation import check_body, refuse, wrong_type

_REASONING = re.compile(r"(o[134]|gpt-5)(-mini|-nano|-pro)?(-\d{4}-\d{2}-\d{2})?")
"""Models that accept no max_tokens, and only 1 as temperature."""

REQUEST = request_schema("CreateChatCompletionRequest", {"model": NON_EMPTY})


def check_chat(body: Mapping[str, Any]) -> None:
    """Raise ApiError 400 for the first parameter that the API would reject."""
    check_body(body, REQUEST)
    check_messages(body["messages"])
    if "audio" in (body.get("modalities") or ()):
        raise refuse("modalities", "The embedded provider answers in text only; leave audio out.", "unsupported_value")
    if body.get("top_logprobs") is not None and not body.get("logprobs"):
        raise refuse(
            "top_logprobs", "The 'top_logprobs' parameter is only allowed when 'logprobs' is true.", "invalid_value"
        )
    if body.get("stream_options") is not None and not body.get("stream"):
        raise refuse(
            "stream_options",
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            "invalid_value",
        )
    for name, needed in (("tool_choice", "tools"), ("parallel_tool_calls", "tools"), ("function_call", "functions")):
        if name in body and not body.get(needed):
            raise refuse(name, f"'{name}' is only allowed when '{needed}' are specified.", "invalid_value")
    _check_reasoning(body)
    check_json_word(body)


def check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raise ApiError 400 unless each tool message follows the call that it answers."""
    open_calls: dict[str, None] = {}
    for index, message in enumerate(messages):
        param = f"messages[{index}]"
        if message["role"] == "tool":
            _close_call(open_calls, message["tool_call_id"], param)
            continue
        _check_answered(open_calls, param)
        if message["role"] == "assistant":
            open_calls = {call["id"]: None for call in message.get("tool_calls") or ()}
            if not open_calls and message.get("content") is None and not message.get("function_call"):
                raise wrong_type(f"{param}.content", "a string", None)
    _check_answered(open_calls, f"messages[{len(messages) - 1}]")


def _close_call(open_calls: dict[str, None], call: str, param: str) -> None:
    if call not in open_calls:
        raise refuse(
            f"{param}.tool_call_id",
            "Invalid parameter: messages with role 'tool' must be a response to a preceding message with 'tool_calls'.",
            "invalid_value",
        )
    del open_calls[call]


def _check_answered(open_calls: Mapping[str, None], param: str) -> None:
    if open_calls:
        raise refuse(
            param,
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
            f"'tool_call_id'. The following tool_call_ids did not have response messages: {', '.join(open_calls)}",
            "invalid_value",
        )


def _check_reasoning(body: Mapping[str, Any]) -> None:
    if not _REASONING.fullmatch(body["model"]):
        return
    if body.get("max_tokens") is not None:
        raise refuse(
            "max_tokens",
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' "
            "instead.",
            "unsupported_parameter",
        )
    for name in ("temperature", "top_p"):
        if body.get(name) not in (None, 1):
            raise refuse(
                name,
                f"Unsupported value: '{name}' does not support {body[name]} with this model. Only the default (1) "
                "value is supported.",
                "unsupported_value",
            )


def check_json_word(body: Mapping[str, Any]) -> None:
    """JSON mode asks for the word in some message."""
    response_format = body.get("response_format")
    if response_format is None or response_format["type"] != "json_object":
        return
    if not any("json" in content_text(message.get("content")).lower() for message in body["messages"]):
        raise refuse(
            "messages",
            "'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'.",
            "invalid_value",
        )


def content_text(content: str | Sequence[Mapping[str, Any]] | None) -> str:
    """The text of a message's content, its parts joined."""
    if content is None or isinstance(content, str):
        return content or ""
    return "\n\n".join(str(part["text"]) for part in content if "text" in part)
