"""Structured modes: what follows from a provider's refusal of a schema, in whatever words."""

from typing import Any

import orjson
import pytest

from connectors.endpoints.conversation.structured.structured_modes import STRUCTURED_MODES, StructuredMode, next_mode
from connectors.records import RowError

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "minimum": {"type": "integer", "minimum": 1, "maximum": 5},
        "names": {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": "a", "enum": ["minItems"]}},
    },
    "required": ["minimum", "names"],
    "additionalProperties": False,
}
FULL, BARE = StructuredMode("schema"), StructuredMode("json_object")


def refused(message: str, **more: Any) -> RowError:
    return RowError("bad_request", message, 400, **more)


def following(problem: RowError, mode: StructuredMode = FULL) -> str | None:
    found = next_mode(mode, STRUCTURED_MODES, SCHEMA, problem)
    return None if found is None else str(found)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "output_format.schema: For 'integer' type, properties maximum, minimum are not supported",
            "schema without maximum, minimum",
        ),
        ("In context=('properties', 'names'), 'minItems' is not permitted", "schema without minItems"),
        ("Unknown name \"additional_properties\" at 'response_schema'", "schema without additionalProperties"),
        ("min_items and Pattern are unknown", "schema without minItems, pattern"),
        ("Additional-Properties must not be set", "schema without additionalProperties"),
        ("exclusiveMinimum and max_items are unknown", None),
        ("Invalid parameter: 'response_format' of type 'json_schema'", "json_object"),
        ("'type' is required in this schema", "json_object"),
        ("This model does not support structured outputs", "json_object"),
        ("guided_json: grammar compilation failed", "json_object"),
        ("Format not supported", "json_object"),
        ("the messages are too long", None),
        ("the maximum context length is 8192 tokens, of a minimum number of 1", None),
        ("this information is wrong", None),
    ],
)
def test_the_keywords_that_a_refusal_names_go_first(message: str, expected: str | None) -> None:
    assert following(refused(message)) == expected


@pytest.mark.parametrize(
    "problem",
    [
        refused(
            "Provider returned error", details=orjson.dumps({"metadata": {"raw": '{"message": "minimum"}'}}).decode()
        ),
        refused("422", details='{"detail": [{"loc": ["body", "response_format", "minimum"], "msg": "extra"}]}'),
        refused('[{"error": {"message": "Unknown keyword minimum"}}]'),
        refused("no", param="response_format.json_schema.schema.properties.n.minimum"),
        refused("no", code="minimum"),
    ],
)
def test_the_providers_words_are_found_wherever_they_are(problem: RowError) -> None:
    assert following(problem) == "schema without minimum"


def test_what_repeats_the_request_is_no_word_of_the_provider() -> None:
    echo = {"detail": [{"msg": "too long", "input": {"response_format": {"minimum": 1}}, "ctx": {"schema": {}}}]}
    assert following(refused("too long", details=orjson.dumps(echo).decode())) is None


def test_each_refusal_leads_to_a_simpler_mode_until_none_is_left() -> None:
    modes, mode = [], FULL
    for word in ("minimum", "pattern", "response_format", "json_object", "response_format"):
        found = next_mode(mode, STRUCTURED_MODES, SCHEMA, refused(f"{word} is unknown"))
        modes.append(None if found is None else str(found))
        mode = found or mode
    assert modes == ["schema without minimum", "schema without minimum, pattern", "json_object", "prompt", None]
    assert following(refused("minimum is unknown"), StructuredMode("schema", ("minimum",))) is None
    assert following(refused("minimum in schema"), StructuredMode("schema", ("minimum",))) == "json_object"
    assert next_mode(FULL, ("schema", "prompt"), SCHEMA, refused("json_schema: unknown")) == StructuredMode("prompt")


def test_keywords_leave_the_schema_at_every_depth_and_properties_of_their_name_stay() -> None:
    mode = StructuredMode.parse("schema without additionalProperties, minItems, minimum")
    assert str(mode) == "schema without additionalProperties, minItems, minimum"
    assert mode.reduce(SCHEMA) == {
        "type": "object",
        "properties": {
            "minimum": {"type": "integer", "maximum": 5},
            "names": {"type": "array", "items": {"type": "string", "pattern": "a", "enum": ["minItems"]}},
        },
        "required": ["minimum", "names"],
    }
    assert FULL.reduce(SCHEMA) == SCHEMA
