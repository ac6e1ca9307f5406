"""Every parameter of POST /chat/completions, and how each must look."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from connectors.emulator.validation import (
    Check,
    anything,
    check_fields,
    either,
    flag,
    json_object,
    list_of,
    metadata,
    nullable,
    number,
    one_of,
    record,
    refuse,
    string,
    tagged,
    whole,
    wrong_type,
)

_FUNCTION_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_REASONING = re.compile(r"(o[134]|gpt-5)(-mini|-nano|-pro)?(-\d{4}-\d{2}-\d{2})?")
"""Models that take no max_tokens and no temperature but 1."""


def function_name(value: Any, where: str) -> None:
    """Letters, digits, _ and -, at most 64."""
    string()(value, where)
    if not _FUNCTION_NAME.fullmatch(value):
        raise refuse(
            where,
            f"Invalid '{where}': string does not match pattern. Expected a string that matches the pattern "
            "'^[a-zA-Z0-9_-]{1,64}$'.",
            "invalid_value",
        )


_TEXT_PART = record({"type": anything, "text": string(), "prompt_cache_breakpoint": anything}, ("text",))
_TEXT_PARTS = tagged({"text": _TEXT_PART})
_IMAGE = record({"url": string(shortest=1), "detail": one_of("auto", "low", "high", "original")}, ("url",))
_USER_PARTS = tagged(
    {
        "text": _TEXT_PART,
        "image_url": record(
            {"type": anything, "image_url": _IMAGE, "prompt_cache_breakpoint": anything}, ("image_url",)
        ),
        "input_audio": record(
            {
                "type": anything,
                "input_audio": record({"data": string(), "format": one_of("wav", "mp3")}, ("data", "format")),
                "prompt_cache_breakpoint": anything,
            },
            ("input_audio",),
        ),
        "file": record(
            {
                "type": anything,
                "file": record({"filename": string(), "file_data": string(), "file_id": string()}),
                "prompt_cache_breakpoint": anything,
            },
            ("file",),
        ),
    }
)
_ASSISTANT_PARTS = tagged(
    {"text": _TEXT_PART, "refusal": record({"type": anything, "refusal": string()}, ("refusal",))}
)


def _content(parts: Check) -> Check:
    return either("a string or an array of content parts", (str, anything), (list, list_of(parts, least=1)))


_CALL = tagged(
    {
        "function": record(
            {
                "id": string(),
                "type": anything,
                "function": record({"name": string(), "arguments": string()}, ("name", "arguments")),
            },
            ("id", "function"),
        ),
        "custom": record(
            {
                "id": string(),
                "type": anything,
                "custom": record({"name": string(), "input": string()}, ("name", "input")),
            },
            ("id", "custom"),
        ),
    }
)

_INSTRUCTION: Mapping[str, Check] = {"role": anything, "content": _content(_TEXT_PARTS), "name": string()}
_MESSAGES: Mapping[str, tuple[Mapping[str, Check], tuple[str, ...]]] = {
    "system": (_INSTRUCTION, ("content",)),
    "developer": (_INSTRUCTION, ("content",)),
    "user": ({"role": anything, "content": _content(_USER_PARTS), "name": string()}, ("content",)),
    "assistant": (
        {
            "role": anything,
            "content": nullable(_content(_ASSISTANT_PARTS)),
            "name": string(),
            "refusal": nullable(string()),
            "audio": nullable(json_object),
            "annotations": anything,
            "tool_calls": nullable(list_of(_CALL, least=1)),
            "function_call": nullable(record({"name": string(), "arguments": string()}, ("name", "arguments"))),
        },
        (),
    ),
    "tool": (
        {"role": anything, "content": _content(_TEXT_PARTS), "tool_call_id": string(), "name": string()},
        ("content", "tool_call_id"),
    ),
    "function": ({"role": anything, "content": nullable(string()), "name": string()}, ("name",)),
}

_FUNCTION = record(
    {
        "name": function_name,
        "description": nullable(string()),
        "parameters": nullable(json_object),
        "strict": nullable(flag),
    },
    ("name",),
)
TOOL = tagged(
    {
        "function": record({"type": anything, "function": _FUNCTION}, ("function",)),
        "custom": record(
            {
                "type": anything,
                "custom": record({"name": function_name, "description": string(), "format": json_object}, ("name",)),
            },
            ("custom",),
        ),
    }
)
_NAMED = record({"name": string()}, ("name",))
TOOL_CHOICE = either(
    "a string or an object",
    (str, one_of("none", "auto", "required")),
    (
        dict,
        tagged(
            {
                "function": record({"type": anything, "function": _NAMED}, ("function",)),
                "custom": record({"type": anything, "custom": _NAMED}, ("custom",)),
                "allowed_tools": record(
                    {
                        "type": anything,
                        "allowed_tools": record(
                            {"mode": one_of("auto", "required"), "tools": list_of(json_object, least=1)},
                            ("mode", "tools"),
                        ),
                    },
                    ("allowed_tools",),
                ),
            }
        ),
    ),
)
_FORMAT = tagged(
    {
        "text": record({"type": anything}),
        "json_object": record({"type": anything}),
        "json_schema": record(
            {
                "type": anything,
                "json_schema": record(
                    {
                        "name": function_name,
                        "description": nullable(string()),
                        "schema": json_object,
                        "strict": nullable(flag),
                    },
                    ("name",),
                ),
            },
            ("json_schema",),
        ),
    }
)


def _bias(value: Any, where: str) -> None:
    json_object(value, where)
    for token, one in value.items():
        if not (token.isascii() and token.isdigit()):
            raise refuse(where, f"Invalid key in '{where}': {token}. Expected a token id.", "invalid_value")
        number(-100, 100)(one, f"{where}.{token}")


def _modalities(value: Any, where: str) -> None:
    list_of(one_of("text", "audio"), least=1)(value, where)
    if "audio" in value:
        raise refuse(where, "The local provider answers in text only; leave audio out.", "unsupported_value")


_FIELDS: Mapping[str, Check] = {
    "model": string(shortest=1),
    "messages": anything,
    "audio": nullable(json_object),
    "frequency_penalty": nullable(number(-2, 2)),
    "function_call": either("a string or an object", (str, one_of("none", "auto")), (dict, _NAMED)),
    "functions": list_of(_FUNCTION, least=1, most=128),
    "logit_bias": nullable(_bias),
    "logprobs": nullable(flag),
    "max_completion_tokens": nullable(whole(1)),
    "max_tokens": nullable(whole(1)),
    "metadata": nullable(metadata),
    "modalities": nullable(_modalities),
    "moderation": nullable(json_object),
    "n": nullable(whole(1, 128)),
    "parallel_tool_calls": flag,
    "prediction": nullable(record({"type": one_of("content"), "content": _content(_TEXT_PARTS)}, ("type", "content"))),
    "presence_penalty": nullable(number(-2, 2)),
    "prompt_cache_key": nullable(string()),
    "prompt_cache_options": json_object,
    "prompt_cache_retention": nullable(one_of("in_memory", "in-memory", "24h")),
    "reasoning_effort": nullable(one_of("none", "minimal", "low", "medium", "high", "xhigh", "max")),
    "response_format": _FORMAT,
    "safety_identifier": nullable(string(longest=64)),
    "seed": nullable(whole(-(2**63), 2**63 - 1)),
    "service_tier": nullable(one_of("auto", "default", "flex", "scale", "priority", "fast")),
    "stop": nullable(
        either("a string or an array of strings", (str, anything), (list, list_of(string(), least=1, most=4)))
    ),
    "store": nullable(flag),
    "stream": nullable(flag),
    "stream_options": nullable(record({"include_usage": flag, "include_obfuscation": flag})),
    "temperature": nullable(number(0, 2)),
    "tool_choice": TOOL_CHOICE,
    "tools": list_of(TOOL, most=128),
    "top_logprobs": nullable(whole(0, 20)),
    "top_p": nullable(number(0, 1)),
    "user": string(),
    "verbosity": nullable(one_of("low", "medium", "high")),
    "web_search_options": json_object,
}


def check_chat(body: Mapping[str, Any]) -> None:
    """ApiError 400 for the first parameter that the API would refuse."""
    check_fields(body, _FIELDS, ("model", "messages"))
    check_messages(body["messages"])
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


def check_messages(messages: Any) -> None:
    """The dialogue: each turn as its role asks, each tool's answer after the call that it answers."""
    if not isinstance(messages, list):
        raise wrong_type("messages", "an array of objects", messages)
    if not messages:
        raise refuse(
            "messages",
            "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead.",
            "empty_array",
        )
    open_calls: dict[str, None] = {}
    for place, message in enumerate(messages):
        where = f"messages[{place}]"
        if not isinstance(message, dict):
            raise wrong_type(where, "an object", message)
        role = message.get("role")
        known = _MESSAGES.get(role) if isinstance(role, str) else None
        if known is None:
            one_of(*_MESSAGES)(role, f"{where}.role")
            continue
        check_fields(message, known[0], known[1], f"{where}.")
        if role == "tool":
            _close_call(open_calls, message["tool_call_id"], where)
            continue
        _check_answered(open_calls, where)
        if role == "assistant":
            open_calls = {call["id"]: None for call in message.get("tool_calls") or ()}
            if not open_calls and message.get("content") is None and not message.get("function_call"):
                raise wrong_type(f"{where}.content", "a string", None)
    _check_answered(open_calls, f"messages[{len(messages) - 1}]")


def _close_call(open_calls: dict[str, None], call: str, where: str) -> None:
    if call not in open_calls:
        raise refuse(
            f"{where}.tool_call_id",
            "Invalid parameter: messages with role 'tool' must be a response to a preceding message with 'tool_calls'.",
            "invalid_value",
        )
    del open_calls[call]


def _check_answered(open_calls: Mapping[str, None], where: str) -> None:
    if open_calls:
        raise refuse(
            where,
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
    form = body.get("response_format")
    if form is None or form["type"] != "json_object":
        return
    if not any("json" in text_of(message.get("content")).lower() for message in body["messages"]):
        raise refuse(
            "messages",
            "'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'.",
            "invalid_value",
        )


def text_of(content: str | Sequence[Mapping[str, Any]] | None) -> str:
    """The text of a message's content, its parts joined."""
    if content is None or isinstance(content, str):
        return content or ""
    return "\n\n".join(str(part["text"]) for part in content if "text" in part)
