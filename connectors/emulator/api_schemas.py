"""JSON Schemas of the request bodies: OpenAI's API description, and the emulator's deviations from it.

`openai-request-schemas.json` is the official OpenAPI description, trimmed by `tests/behaviour/api/trim_openapi.py`.
Here its objects take no unknown properties, as the API itself behaves, and `_DEVIATIONS` adds what the description
states only in words (patterns, limits) and what the API accepts although the description omits it.
"""

from collections.abc import Collection, Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson

Schema = Mapping[str, Any]

ANY: Schema = {}
TEXT: Schema = {"type": "string"}
NON_EMPTY: Schema = {"type": "string", "minLength": 1}
BOOLEAN: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
NULLABLE_TEXT: Schema = {"type": ["string", "null"]}
NULLABLE_OBJECT: Schema = {"type": ["object", "null"]}
NULLABLE_BOOLEAN: Schema = {"type": ["boolean", "null"]}


def enum(*values: str) -> Schema:
    """One of these strings."""
    return {"type": "string", "enum": list(values)}


def integer(minimum: int, maximum: int | None = None) -> Schema:
    """An integer in these bounds."""
    return {"type": "integer", "minimum": minimum} | ({} if maximum is None else {"maximum": maximum})


def text(max_length: int, min_length: int = 0) -> Schema:
    """A string of so many characters."""
    return {"type": "string", "maxLength": max_length, "minLength": min_length}


def array(items: Schema, **limits: int) -> Schema:
    """An array, e.g. with `maxItems`."""
    return {"type": "array", "items": items, **limits}


def nullable(schema: Schema) -> Schema:
    """Null or what `schema` describes."""
    return {"anyOf": [schema, {"type": "null"}]}


def ref(*names: str) -> Schema:
    """One of these definitions."""
    return {"anyOf": [{"$ref": f"#/$defs/{name}"} for name in names]}


def _without_empty_required(schema: Schema) -> Schema:
    """Draft 4 forbids an empty `required`."""
    return {key: value for key, value in schema.items() if key != "required" or value}


def record(required: str = "", **properties: Schema) -> Schema:
    """An object with these properties and no others; `required`: names separated by blanks."""
    schema = {"type": "object", "properties": properties, "required": required.split(), "additionalProperties": False}
    return _without_empty_required(schema)


METADATA = nullable(
    {
        "type": "object",
        "maxProperties": 16,
        "patternProperties": {r"^[\s\S]{0,64}$": text(512)},
        "additionalProperties": False,
    }
)
_NAME: Schema = {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"}
_FUNCTION = {"name": _NAME, "description": NULLABLE_TEXT, "parameters": NULLABLE_OBJECT, "strict": NULLABLE_BOOLEAN}
_JSON_SCHEMA = {"name": _NAME, "description": NULLABLE_TEXT, "schema": OBJECT, "strict": NULLABLE_BOOLEAN}
_TOKEN_LIMIT: Schema = nullable(integer(1))
_ITEM: dict[str, Schema] = {
    "id": NULLABLE_TEXT,
    "status": nullable(enum("in_progress", "completed", "incomplete")),
    **dict.fromkeys(("namespace", "caller", "async"), ANY),
}
_INPUT_PARTS = ("InputTextContentParam", "InputImageContentParamAutoParam", "InputFileContentParam")
_OUTPUT: Schema = {"anyOf": [TEXT, array(ref(*_INPUT_PARTS))]}
_CONTENT: Schema = {"anyOf": [TEXT, array(ref(*_INPUT_PARTS, "OutputTextContent", "RefusalContent"))]}

_DEVIATIONS: Mapping[str, Schema] = {
    "Metadata": METADATA,
    # Chat completions.
    "FunctionObject": record("name", **_FUNCTION),
    "ChatCompletionFunctions": record("name", **_FUNCTION),
    "ChatCompletionRequestMessageContentPartImage": record(
        "type image_url",
        type=enum("image_url"),
        image_url=record("url", url=NON_EMPTY, detail=enum("auto", "low", "high", "original")),
        prompt_cache_breakpoint=ANY,
    ),
    "ChatCompletionRequestToolMessage": {"name": TEXT},
    "ChatCompletionRequestFunctionMessage": record(
        "role name", role=enum("function"), content=NULLABLE_TEXT, name=TEXT
    ),
    "ChatCompletionRequestAssistantMessage": {
        "annotations": ANY,
        "audio": NULLABLE_OBJECT,
        "tool_calls": nullable(ref("ChatCompletionMessageToolCalls")),
    },
    "ChatCompletionMessageToolCalls": array(
        ref("ChatCompletionMessageToolCall", "ChatCompletionMessageCustomToolCall"), minItems=1
    ),
    "ResponseFormatJsonSchema": record(
        "type json_schema", type=enum("json_schema"), json_schema=record("name", **_JSON_SCHEMA)
    ),
    "CustomToolChatCompletions": record(
        "type custom",
        type=enum("custom"),
        custom=record("name", name=_NAME, description=TEXT, format=OBJECT),
    ),
    "ModelResponseProperties": {"prompt_cache_retention": nullable(enum("in_memory", "in-memory", "24h"))},
    "ResponseModalities": nullable(array(enum("text", "audio"), minItems=1)),
    # Responses.
    "Tool": ref("FunctionToolParam", "CustomToolParam"),
    "FunctionToolParam": {**_FUNCTION, "allowed_callers": ANY},
    "CustomToolParam": {"name": _NAME, "format": OBJECT, "allowed_callers": ANY},
    "ToolChoiceParam": ref("ToolChoiceOptions", "ToolChoiceAllowed", "ToolChoiceFunction", "ToolChoiceCustom"),
    "TextResponseFormatJsonSchema": record("type name schema", type=enum("json_schema"), **_JSON_SCHEMA),
    "OutputTextContent": record(
        "type text", type=enum("output_text"), text=TEXT, annotations=ANY, logprobs=ANY, prompt_cache_breakpoint=ANY
    ),
    "InputItem": ref(
        "EasyInputMessage",
        "FunctionToolCall",
        "FunctionCallOutputItemParam",
        "CustomToolCall",
        "CustomToolCallOutput",
        "ReasoningItem",
        "ItemReferenceParam",
    ),
    "EasyInputMessage": {**_ITEM, "content": _CONTENT, "phase": ANY},
    "FunctionToolCall": _ITEM,
    "FunctionCallOutputItemParam": record(
        "type call_id output", **_ITEM, type=enum("function_call_output"), call_id=TEXT, name=TEXT, output=_OUTPUT
    ),
    "CustomToolCall": _ITEM,
    "CustomToolCallOutput": {**_ITEM, "name": TEXT, "output": _OUTPUT},
    "ReasoningItem": record(
        "type summary", **_ITEM, type=enum("reasoning"), summary=ANY, content=ANY, encrypted_content=NULLABLE_TEXT
    ),
    "ItemReferenceParam": record("id", type=enum("item_reference"), id=TEXT),
    # Requests.
    "CreateChatCompletionRequest": {
        "max_tokens": _TOKEN_LIMIT,
        "max_completion_tokens": _TOKEN_LIMIT,
        "logit_bias": nullable(
            {
                "type": "object",
                "patternProperties": {"^[0-9]+$": {"type": "number", "minimum": -100, "maximum": 100}},
                "additionalProperties": False,
            }
        ),
        "tools": array(ref("ChatCompletionTool", "CustomToolChatCompletions"), maxItems=128),
    },
}
"""Definition -> its properties that differ, or its whole schema."""


class RequestSchema:
    """The schema of one request body (or form, or query), compiled on first use."""

    def __init__(self, schema: Schema) -> None:
        self._schema = _without_empty_required(schema)
        self.required: tuple[str, ...] = tuple(schema.get("required", ()))

    @cached_property
    def _document(self) -> dict[str, Any]:
        return {**self._schema, "$defs": _definitions()}

    @cached_property
    def _validator(self) -> jsonschema_rs.Validator:
        # Draft 4 alone holds that 1.0 is no integer, as the API does.
        return jsonschema_rs.Draft4Validator(self._document, validate_formats=False)

    def errors(self, body: Mapping[str, Any]) -> Iterator[jsonschema_rs.ValidationError]:
        """What the body violates."""
        return iter(()) if self._validator.is_valid(body) else self._validator.iter_errors(body)

    def lookup(self, path: Collection[str | int]) -> Any:
        """The part of the schema at a JSON path such as `["properties", "n"]`."""
        node: Any = self._document
        for step in path:
            node = node[step]
        return node

    def types_of(self, name: str) -> frozenset[str]:
        """The JSON types that a property may have, through all its alternatives; none for an unknown property."""
        branches = _alternatives(self._schema["properties"].get(name, {}), _definitions())
        return frozenset(branch["type"] for branch in branches if "type" in branch)


def request_schema(
    name: str, properties: Mapping[str, Schema], *, only: str = "", without: str = "", required: str = ""
) -> RequestSchema:
    """The official schema with other properties; `only`, `without`, `required` (also): names separated by blanks."""
    official = _definitions()[name]
    merged = {**official["properties"], **properties}
    names = (frozenset(only.split()) or merged.keys()) - frozenset(without.split())
    return RequestSchema(
        {
            **official,
            "properties": {key: value for key, value in merged.items() if key in names},
            "required": [key for key in (*official.get("required", ()), *required.split()) if key in names],
        }
    )


def official_types(name: str) -> frozenset[str]:
    """The values of `type` in the alternatives of an official definition, such as those of `Tool`."""
    official = _official()
    branches = [_resolved(branch, official) for branch in _alternatives(official[name], official)]
    kinds = (branch.get("properties", {}).get("type", {}).get("enum", ()) for branch in branches)
    return frozenset(kind for each in kinds for kind in each)


@cache
def _official() -> dict[str, Any]:
    path = Path(__file__).with_name("openai-request-schemas.json")
    definitions: dict[str, Any] = orjson.loads(path.read_bytes())["$defs"]
    return definitions


@cache
def _definitions() -> dict[str, Any]:
    """Every definition, with the deviations."""
    merged = dict(_official())
    for name, change in _DEVIATIONS.items():
        if "anyOf" in change or isinstance(change.get("type"), str):
            merged[name] = change
        else:
            official = _without_all_of(merged[name], merged)
            merged[name] = {**official, "properties": {**official["properties"], **change}}
    return {name: _closed(schema, merged) for name, schema in merged.items()}


def _closed(schema: Any, definitions: Schema) -> Any:
    """The schema with objects that take no unknown properties, and with flat alternatives."""
    if isinstance(schema, list):
        return [_closed(inner, definitions) for inner in schema]
    if not isinstance(schema, Mapping):
        return schema
    closed: dict[str, Any] = {}
    for key, inner in _without_all_of(schema, definitions).items():
        if key == "properties":
            closed[key] = {name: _closed(property_schema, definitions) for name, property_schema in inner.items()}
        elif key == "anyOf":
            branches = [_closed(branch, definitions) for branch in _alternatives(schema, definitions)]
            # Where any string will do, the known ones are only documentation.
            redundant = "enum" if TEXT in branches else ""
            closed[key] = [branch for branch in branches if redundant not in branch]
        else:
            closed[key] = _closed(inner, definitions)
    if "properties" in closed:
        closed.setdefault("additionalProperties", False)
    return _without_empty_required(closed)


def _without_all_of(schema: Schema, definitions: Schema) -> Schema:
    """One object in place of `allOf` several; of a property that two of them have, the first one's."""
    if "allOf" not in schema:
        return schema
    properties: dict[str, Any] = {}
    required: list[str] = []
    for part in schema["allOf"]:
        whole = _without_all_of(_resolved(part, definitions), definitions)
        properties = {**whole["properties"], **properties}
        required += whole.get("required", ())
    return {"type": "object", "properties": properties, "required": required}


def _alternatives(schema: Schema, definitions: Schema) -> Iterator[Schema]:
    """The branches of nested `anyOf`; references to objects stay references."""
    for branch in schema.get("anyOf", [schema]):
        whole = _resolved(branch, definitions)
        if (branch is not schema and whole.keys() == {"anyOf"}) or (branch is schema and whole is not schema):
            yield from _alternatives(whole, definitions)
        else:
            yield branch if "properties" in whole else whole


def _resolved(schema: Schema, definitions: Schema) -> Schema:
    return definitions[schema["$ref"].removeprefix("#/$defs/")] if "$ref" in schema else schema
