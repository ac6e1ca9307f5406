"""Every parameter of POST /responses, in OpenAI's dialect, and how each must look."""

from collections.abc import Mapping
from typing import Any

from connectors.emulator.chat.fields import function_name
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
)

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

_MORE: Mapping[str, Check] = {"type": anything, "prompt_cache_breakpoint": anything}
_INPUT_TEXT = record({**_MORE, "text": string()}, ("text",))
_INPUT_IMAGE = record(
    {
        **_MORE,
        "image_url": nullable(string(shortest=1)),
        "file_id": nullable(string()),
        "detail": one_of("low", "high", "auto", "original"),
    }
)
_INPUT_FILE = record(
    {
        **_MORE,
        "file_id": nullable(string()),
        "filename": string(),
        "file_data": string(),
        "file_url": string(),
        "detail": one_of("low", "high", "auto"),
    }
)
_OUTPUT_TEXT = record({"type": anything, "text": string(), "annotations": anything, "logprobs": anything}, ("text",))
_REFUSAL = record({"type": anything, "refusal": string()}, ("refusal",))
_GIVEN = {"input_text": _INPUT_TEXT, "input_image": _INPUT_IMAGE, "input_file": _INPUT_FILE}
_SAID = {"output_text": _OUTPUT_TEXT, "refusal": _REFUSAL}
_TEXT_OR_PARTS = "a string or an array of content parts"
_CONTENT = either(_TEXT_OR_PARTS, (str, anything), (list, list_of(tagged({**_GIVEN, **_SAID}))))
_OUTPUT = either(_TEXT_OR_PARTS, (str, anything), (list, list_of(tagged(_GIVEN))))

_STATUS = nullable(one_of("in_progress", "completed", "incomplete"))
_ITEM: Mapping[str, Check] = {"type": anything, "id": nullable(string()), "status": _STATUS}
_CALL: Mapping[str, Check] = {
    **_ITEM,
    "call_id": string(),
    "name": string(),
    "namespace": anything,
    "caller": anything,
    "async": anything,
}
_MESSAGE = record(
    {
        **_ITEM,
        "role": one_of("user", "assistant", "system", "developer"),
        "content": _CONTENT,
        "phase": anything,
    },
    ("role", "content"),
)
_ITEMS: Mapping[str, Check] = {
    "message": _MESSAGE,
    "function_call": record({**_CALL, "arguments": string()}, ("call_id", "name", "arguments")),
    "function_call_output": record({**_CALL, "output": _OUTPUT}, ("call_id", "output")),
    "custom_tool_call": record({**_CALL, "input": string()}, ("call_id", "name", "input")),
    "custom_tool_call_output": record({**_CALL, "output": _OUTPUT}, ("call_id", "output")),
    "reasoning": record(
        {**_ITEM, "summary": anything, "content": anything, "encrypted_content": nullable(string())}, ("summary",)
    ),
    "item_reference": record({"type": anything, "id": string()}, ("id",)),
}
_TYPED_ITEM = tagged(_ITEMS)


def _item(value: Any, where: str) -> None:
    """A message may leave its type out, and so may a reference."""
    if isinstance(value, dict) and value.get("type") is None:
        return (_ITEMS["item_reference"] if value.keys() <= {"id", "type"} else _MESSAGE)(value, where)
    return _TYPED_ITEM(value, where)


HOSTED = (
    "file_search",
    "web_search",
    "web_search_2025_08_26",
    "web_search_preview",
    "web_search_preview_2025_03_11",
    "code_interpreter",
    "image_generation",
    "mcp",
    "computer",
    "computer_use_preview",
    "local_shell",
    "shell",
    "apply_patch",
    "namespace",
    "tool_search",
    "programmatic_tool_calling",
)
"""Tools that OpenAI's servers carry out: there are none here."""


def _hosted(value: Any, where: str) -> None:
    raise refuse(
        f"{where}.type",
        f"The local provider has no tool '{value['type']}'; it calls functions and custom tools.",
        "unsupported_value",
    )


_TOOL = tagged(
    {
        "function": record(
            {
                "type": anything,
                "name": function_name,
                "description": nullable(string()),
                "parameters": nullable(json_object),
                "output_schema": nullable(json_object),
                "strict": nullable(flag),
                "defer_loading": flag,
                "allowed_callers": anything,
            },
            ("name",),
        ),
        "custom": record(
            {
                "type": anything,
                "name": function_name,
                "description": string(),
                "format": json_object,
                "defer_loading": flag,
                "allowed_callers": anything,
            },
            ("name",),
        ),
        **dict.fromkeys(HOSTED, _hosted),
    }
)
_NAMED = record({"type": anything, "name": string()}, ("name",))
_TOOL_CHOICE = either(
    "a string or an object",
    (str, one_of("none", "auto", "required")),
    (
        dict,
        tagged(
            {
                "function": _NAMED,
                "custom": _NAMED,
                "allowed_tools": record(
                    {"type": anything, "mode": one_of("auto", "required"), "tools": list_of(json_object, least=1)},
                    ("mode", "tools"),
                ),
                **dict.fromkeys(HOSTED, _hosted),
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
                "name": function_name,
                "description": nullable(string()),
                "schema": json_object,
                "strict": nullable(flag),
            },
            ("name", "schema"),
        ),
    }
)
_REASONING = record(
    {
        "effort": nullable(one_of("none", "minimal", "low", "medium", "high", "xhigh", "max")),
        "summary": nullable(one_of("auto", "concise", "detailed")),
        "generate_summary": nullable(one_of("auto", "concise", "detailed")),
        "mode": nullable(string()),
        "context": nullable(string()),
    }
)


def _absent(words: str) -> Check:
    def check(value: Any, where: str) -> None:
        raise refuse(where, f"The local provider keeps no {words}; leave '{where}' out.", "unsupported_parameter")

    return check


_FIELDS: Mapping[str, Check] = {
    "model": string(shortest=1),
    "input": either("a string or an array of items", (str, anything), (list, list_of(_item))),
    "background": nullable(flag),
    "context_management": nullable(list_of(json_object, least=1)),
    "conversation": nullable(_absent("conversations")),
    "include": nullable(list_of(one_of(*INCLUDE))),
    "instructions": nullable(string()),
    "max_output_tokens": nullable(whole(16)),
    "max_tool_calls": nullable(whole(1)),
    "metadata": nullable(metadata),
    "moderation": nullable(json_object),
    "parallel_tool_calls": nullable(flag),
    "previous_response_id": nullable(string()),
    "prompt": nullable(_absent("prompts")),
    "prompt_cache_key": nullable(string()),
    "prompt_cache_options": json_object,
    "prompt_cache_retention": nullable(one_of("in_memory", "in-memory", "24h")),
    "reasoning": nullable(_REASONING),
    "safety_identifier": nullable(string(longest=64)),
    "service_tier": nullable(one_of("auto", "default", "flex", "scale", "priority", "fast", "ultrafast")),
    "store": nullable(flag),
    "stream": nullable(flag),
    "stream_options": nullable(record({"include_obfuscation": flag})),
    "temperature": nullable(number(0, 2)),
    "text": record({"format": _FORMAT, "verbosity": nullable(one_of("low", "medium", "high"))}),
    "tool_choice": _TOOL_CHOICE,
    "tools": list_of(_TOOL, most=128),
    "top_logprobs": nullable(whole(0, 20)),
    "top_p": nullable(number(0, 1)),
    "truncation": nullable(one_of("auto", "disabled")),
    "user": nullable(string()),
}


def check_response(body: Mapping[str, Any]) -> None:
    """ApiError 400 for the first parameter that the API would refuse."""
    check_fields(body, _FIELDS, ("model", "input"))
    if body["input"] == []:
        raise refuse("input", "Invalid 'input': empty array. Expected at least one item.", "empty_array")
    if body.get("stream_options") is not None and not body.get("stream"):
        raise refuse(
            "stream_options", "The 'stream_options' parameter is only allowed when 'stream' is true.", "invalid_value"
        )
    if body.get("background") and body.get("store") is False:
        raise refuse("background", "A background response is stored; leave 'store' out.", "invalid_value")
