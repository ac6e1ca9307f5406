"""Conversations in a column (lists of struct, or JSON text), converted to the format of chat completions."""

from collections.abc import Mapping
from typing import Any

import orjson
import pyarrow as pa

from connectors.endpoints.conversation.tool_calls import normalize_tool_call
from connectors.records import TEXT_PREFIX, Row
from connectors.templating.template import RenderError, template_value
from connectors.transport.bounded_json import parse_json

SHORT_ROLES = ("system", "user", "assistant", "developer")
ROLES = (*SHORT_ROLES, "tool", "function")
MESSAGE_KEYS = ("role", "content", "name", "tool_call_id", "tool_calls")
PASSED_KEYS = ("refusal", "audio", "function_call")
"""Keys of an assistant's message that pass unchanged."""


def can_hold_conversation(kind: pa.DataType) -> bool:
    """Return whether a column of this type can hold conversations."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return True
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_list and pa.types.is_struct(kind.value_type))


def list_in_column(row: Row, column: str) -> Any:
    """Return the list in a row's column, or whatever else it has; orjson.JSONDecodeError for a text that is no JSON.

    A list of JSON lines is read from its text: in the typed column, all elements of all rows have the same keys.
    """
    text = row.get(TEXT_PREFIX + column, row[column])
    return parse_json(text) if isinstance(text, str) else text


def parse_conversation(row: Row, column: str, allows_items: bool) -> list[dict[str, Any]]:
    """Return the messages in a row's column; RenderError, with the column's name, if it has no conversation.

    `allows_items`: the messages may include input items of responses (with a `type`).
    """
    try:
        value = list_in_column(row, column)
    except orjson.JSONDecodeError as exc:
        raise RenderError(f"{column} is not a conversation: invalid JSON ({exc})") from exc
    if not isinstance(value, list) or not value:
        found = "null" if value is None else "an empty list" if value == [] else type(value).__name__
        raise RenderError(f"{column} is not a conversation: found {found}, expected a list of messages")
    try:
        return [_message(_without_nulls(template_value(message)), allows_items) for message in value]
    except ValueError as exc:
        raise RenderError(f"{column} is not a conversation: {exc}") from exc


def _message(source: Any, allows_items: bool) -> dict[str, Any]:
    if not isinstance(source, dict):
        raise ValueError(f"a message is {source!r}")
    if allows_items and isinstance(source.get("type"), str) and "role" not in source:
        return source
    if "role" not in source and len(source) == 1 and next(iter(source)) in SHORT_ROLES:
        [(role, content)] = source.items()
        source = {"role": role, "content": content}
    role = source.get("role")
    if role not in ROLES:
        raise ValueError(f"a message has the role {role!r}")
    message: dict[str, Any] = {"role": role, "content": None}
    for key, inner in source.items():
        if key == "content":
            message[key] = _content(inner)
        elif key == "tool_calls":
            if not isinstance(inner, list):
                raise ValueError("tool_calls is not a list")
            if inner:
                message[key] = [normalize_tool_call(call) for call in inner]
        elif key in MESSAGE_KEYS or key in PASSED_KEYS or (allows_items and key in ("type", "id", "status", "phase")):
            message[key] = inner
        elif inner not in ([], {}, ""):
            raise ValueError(f"a message has the key {key!r}")
    if role == "tool" and not isinstance(message.get("tool_call_id"), str):
        raise ValueError("a tool's message has no tool_call_id")
    if message["content"] is None and not message.keys() & {"tool_calls", "function_call", "refusal", "audio"}:
        raise ValueError(f"a message of the {role} has no content")
    return message


def _content(content: Any) -> Any:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise ValueError(f"a message's content is {content!r}")
    return [_part(part) for part in content]


def _part(part: Any) -> dict[str, Any]:
    if isinstance(part, dict):
        if isinstance(part.get("type"), str):
            return part
        if part.keys() == {"text"}:
            return {"type": "text", "text": part["text"]}
        if "image" in part and part.keys() <= {"image", "detail"}:
            url, detail = part["image"], part.get("detail")
            if not isinstance(url, str) or not url[:8].lower().startswith(("http://", "https://", "data:")):
                raise ValueError("a picture in it is not a URL")
            return {"type": "image_url", "image_url": {"url": url} | ({} if detail is None else {"detail": detail})}
    raise ValueError(f"a part of a message is {str(part)[:60]}")


def _without_nulls(value: Any) -> Any:
    """Remove nulls: Arrow's structs have every key, the missing ones as null."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
