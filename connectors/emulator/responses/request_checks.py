"""Rules of POST /responses, in OpenAI's dialect, beyond its schema."""

from collections.abc import Mapping
from typing import Any

from connectors.emulator.api_schemas import NON_EMPTY, NULLABLE_TEXT, integer, nullable, official_types, request_schema
from connectors.emulator.validation import check_body, refuse

REQUEST = request_schema(
    "CreateResponse",
    {"model": NON_EMPTY, "max_tool_calls": nullable(integer(1)), "user": NULLABLE_TEXT},
    required="model input",
)

HOSTED_TOOLS = (official_types("Tool") | official_types("ToolChoiceParam")) - {"function", "custom", "allowed_tools"}
"""Tools that OpenAI's servers run; the emulator has none of them."""


def check_response(body: Mapping[str, Any]) -> None:
    """Raise ApiError 400 for the first parameter that the API would reject."""
    for name in ("conversation", "prompt"):
        if body.get(name) is not None:
            message = f"The embedded provider stores no {name}s; leave '{name}' out."
            raise refuse(name, message, "unsupported_parameter")
    _check_hosted(body.get("tool_choice"), "tool_choice")
    tools = body.get("tools")
    for index, tool in enumerate(tools if isinstance(tools, list) else ()):
        _check_hosted(tool, f"tools[{index}]")
    check_body({**body, "input": _with_types(body.get("input"))}, REQUEST)
    if body["input"] == []:
        raise refuse("input", "Invalid 'input': empty array. Expected at least one item.", "empty_array")
    if body.get("stream_options") is not None and not body.get("stream"):
        raise refuse(
            "stream_options", "The 'stream_options' parameter is only allowed when 'stream' is true.", "invalid_value"
        )
    if body.get("background") and body.get("store") is False:
        raise refuse("background", "A background response is stored; leave 'store' out.", "invalid_value")


def _with_types(input_value: Any) -> Any:
    """The input items with the `type` that a message and a reference may omit."""
    if not isinstance(input_value, list):
        return input_value
    return [
        {**item, "type": "item_reference" if item.keys() <= {"id", "type"} else "message"}
        if isinstance(item, dict) and item.get("type") is None
        else item
        for item in input_value
    ]


def _check_hosted(tool: Any, param: str) -> None:
    if isinstance(tool, dict) and tool.get("type") in HOSTED_TOOLS:
        message = f"The embedded provider has no tool '{tool['type']}'; it calls functions and custom tools."
        raise refuse(f"{param}.type", message, "unsupported_value")
