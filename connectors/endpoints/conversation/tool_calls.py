"""Tools of a step, and a model's calls of them, in the formats of chat completions and of responses."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa

from connectors.errors import JobError, KeyPath, did_you_mean
from connectors.records import BillingTerms
from connectors.templating.template_tree import plain_json

TOOL_CALLS = pa.list_(pa.struct([("id", pa.string()), ("name", pa.string()), ("arguments", pa.string())]))
"""The column of calls; `arguments` is the text that the model wrote, JSON unless it failed."""

CHOICES = ("none", "auto", "required")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def validate_tools(tools: Any, where: KeyPath, flat: bool) -> list[dict[str, Any]]:
    """Return the tools of a step in its wire format (`flat`: as responses have them); JobError for invalid tools."""
    if not isinstance(tools, list | tuple) or not tools:
        raise JobError(
            where, f"found {_json_excerpt(tools)}, expected a list of tools", "write the API's own tool objects"
        )
    valid = [_validate_tool(tool, (*where, index), flat) for index, tool in enumerate(tools)]
    names = [name for name in map(_tool_name, valid) if name is not None]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise JobError(where, f"two tools are called {name}", "give each a different name")
    return valid


def validate_tool_choice(choice: Any, tools: Sequence[Mapping[str, Any]] | None, where: KeyPath, flat: bool) -> Any:
    """Return `tool_choice` in the wire format; JobError if it is invalid or names an unknown tool."""
    if tools is None:
        raise JobError(where, "the step has no tools", "add tools: to the step")
    names = [name for name in map(_tool_name, tools) if name is not None]
    if isinstance(choice, str):
        if choice in CHOICES:
            return choice
        if choice in names:
            raise JobError(
                where,
                f"found {_json_excerpt(choice)}, expected an object that names the tool",
                f"write {{type: function, function: {{name: {choice}}}}}",
            )
        raise JobError(where, f"found {_json_excerpt(choice)}", did_you_mean(choice, CHOICES))
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    if not isinstance(kind, str):
        raise JobError(
            where, f"found {_json_excerpt(choice)}, expected none, auto, required or {{type: ...}}", "correct it"
        )
    choice = plain_json(choice, where)
    if kind in ("function", "custom"):
        inner = choice.get(kind, choice)
        name = inner.get("name") if isinstance(inner, Mapping) else None
        if name not in names:
            raise JobError(where, f"no tool {_json_excerpt(name)} in tools", did_you_mean(str(name), names))
        return {"type": kind, "name": name} if flat else {"type": kind, kind: {"name": name}}
    return choice


def normalize_tool_call(call: Any) -> dict[str, Any]:
    """Return a call in the format of chat completions, also from `{id, name, arguments}`; ValueError if invalid."""
    if not isinstance(call, Mapping):
        raise ValueError(f"a tool call is {{id, name, arguments}}, not {_json_excerpt(call)}")
    custom = call.get("custom")
    if isinstance(custom, Mapping):
        return {
            "id": _call_id(call),
            "type": "custom",
            "custom": {"name": custom.get("name"), "input": custom.get("input")},
        }
    function = call.get("function")
    inner = function if isinstance(function, Mapping) else call
    name, arguments = inner.get("name"), inner.get("arguments")
    if not isinstance(name, str) or not name:
        raise ValueError("a tool call has no name")
    if not isinstance(arguments, str):
        arguments = orjson.dumps({} if arguments is None else arguments, option=orjson.OPT_NON_STR_KEYS).decode()
    return {"id": _call_id(call), "type": "function", "function": {"name": name, "arguments": arguments}}


def parse_tool_calls(message: Mapping[str, Any]) -> list[dict[str, str | None]]:
    """Return the calls in a reply's message as values of the column; invalid calls are left out."""
    calls = message.get("tool_calls")
    parsed = [call for call in map(_parse_call, calls) if call is not None] if isinstance(calls, list) else []
    legacy = message.get("function_call")
    if not parsed and isinstance(legacy, Mapping) and (call := _parse_call({"function": legacy})) is not None:
        parsed.append(call)
    return parsed


def parse_call_items(items: Sequence[Mapping[str, Any]]) -> list[dict[str, str | None]]:
    """Return the calls among a response's output items that the caller has to execute, as values of the column.

    A hosted tool's item has no `call_id`, or the output that goes with it follows.
    """
    executed = [item.get("call_id") for item in items if str(item.get("type")).endswith("_output")]
    calls = (_parse_call_item(item) for item in items if item.get("call_id") is None or item["call_id"] not in executed)
    return [call for call in calls if call is not None]


def tool_call_struct(call_id: Any, name: Any, arguments: Any) -> dict[str, str | None]:
    """Return one element of the column."""
    return {"id": _text_or_json(call_id), "name": _text_or_json(name), "arguments": _text_or_json(arguments)}


def _parse_call(call: Any) -> dict[str, str | None] | None:
    if not isinstance(call, Mapping):
        return None
    for kind, text_key in (("function", "arguments"), ("custom", "input")):
        inner = call.get(kind)
        if isinstance(inner, Mapping):
            return tool_call_struct(call.get("id"), inner.get("name"), inner.get(text_key))
    if "name" in call:
        return tool_call_struct(call.get("id"), call.get("name"), call.get("arguments"))
    other = call.get("type")
    if isinstance(other, str) and isinstance(inner := call.get(other), Mapping):
        return tool_call_struct(call.get("id"), inner.get("name") or other, inner)
    return None


def _parse_call_item(item: Mapping[str, Any]) -> dict[str, str | None] | None:
    kind, call_id = str(item.get("type")), item.get("call_id")
    if kind in ("function_call", "custom_tool_call", "mcp_approval_request"):
        key = "input" if kind == "custom_tool_call" else "arguments"
        return tool_call_struct(call_id or item.get("id"), item.get("name"), item.get(key))
    if not kind.endswith("_call") or call_id is None:
        return None
    arguments = {key: value for key, value in item.items() if key not in ("id", "call_id", "type", "status")}
    return tool_call_struct(call_id, kind.removesuffix("_call"), arguments)


def _validate_tool(tool: Any, where: KeyPath, flat: bool) -> dict[str, Any]:
    if not isinstance(tool, Mapping) or not isinstance(tool.get("type"), str):
        raise JobError(
            where, f"found {_json_excerpt(tool)}, expected a tool", "write {type: function, function: {...}}"
        )
    kind = tool["type"]
    if kind not in ("function", "custom"):
        if not flat:
            raise JobError((*where, "type"), f"found {_json_excerpt(kind)}", did_you_mean(kind, ("function", "custom")))
        return dict(plain_json(tool, where))
    is_nested = kind in tool
    inner = tool[kind] if is_nested else {key: value for key, value in tool.items() if key != "type"}
    if not isinstance(inner, Mapping):
        raise JobError(
            (*where, kind), f"found {_json_excerpt(inner)}, expected keys and values", "name and describe the tool"
        )
    if is_nested and len(tool) > 2:
        extra = next(key for key in tool if key not in ("type", kind))
        raise JobError((*where, extra), "no such key of a tool", f"put it below {kind}")
    path = (*where, kind) if is_nested else where
    inner = dict(plain_json(inner, path))
    name = inner.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise JobError(
            (*path, "name"), f"found {_json_excerpt(name)}, expected 1 to 64 letters, digits, _ or -", "name the tool"
        )
    if inner.get("parameters") is not None:
        _check_schema(inner["parameters"], (*path, "parameters"))
    if not flat:
        return {"type": kind, kind: inner}
    if is_nested and kind == "function":
        # A missing `strict` means false in chat completions and true in responses.
        inner = {"parameters": None, "strict": False, **inner}
    return {"type": kind, **inner}


def _check_schema(schema: Any, where: KeyPath) -> None:
    if not isinstance(schema, dict):
        raise JobError(
            where, f"found {_json_excerpt(schema)}, expected a JSON Schema", "write {type: object, properties: ...}"
        )
    import jsonschema_rs  # 3 MB, and only for tools

    try:
        jsonschema_rs.meta.validate(schema)
    except (jsonschema_rs.ValidationError, ValueError) as exc:
        raise JobError(where, f"is not a JSON Schema: {' '.join(str(exc).split())[:200]}", "correct it") from exc


def _tool_name(tool: Mapping[str, Any]) -> str | None:
    inner = tool.get(tool["type"], tool)
    name = inner.get("name") if isinstance(inner, Mapping) else None
    return name if isinstance(name, str) else None


def _call_id(call: Mapping[str, Any]) -> str:
    call_id = call.get("id") or call.get("call_id")
    if not isinstance(call_id, str):
        raise ValueError("a tool call has no id")
    return call_id


def _text_or_json(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return orjson.dumps(value).decode()


def _json_excerpt(value: Any) -> str:
    text = orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    return text if len(text) <= 60 else f"{text[:60]}..."


_CLIENT_TOOLS = frozenset(
    {
        "function",
        "custom",
        "computer",
        "computer_use",
        "local_shell",
        "shell",
        "apply_patch",
        "namespace",
        "tool_search",
    }
)
"""Types of tools whose calls the caller executes."""
_TOOL_VERSION = re.compile(r"(_preview)?(_\d{4}_\d{2}_\d{2})?$")


def billing_terms(body: Mapping[str, Any]) -> BillingTerms:
    """Return what a request's body names of how it is billed.

    A hosted tool has the type of its output item without `_call`: `web_search` for `web_search_preview_2025_03_11`.
    """
    tier, calls, tools = body.get("service_tier"), body.get("max_tool_calls"), body.get("tools")
    types = [tool.get("type") for tool in tools if isinstance(tool, Mapping)] if isinstance(tools, list) else []
    hosted = {_TOOL_VERSION.sub("", kind) for kind in types if isinstance(kind, str)} - _CLIENT_TOOLS
    if body.get("web_search_options") is not None:
        hosted.add("web_search")
    return BillingTerms(
        tier if isinstance(tier, str) else None, frozenset(hosted), calls if type(calls) is int and calls >= 0 else None
    )
