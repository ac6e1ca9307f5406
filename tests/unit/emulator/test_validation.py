"""Request checks: the API's error object for the first violation of a schema."""

from typing import Any

import pytest

from connectors.emulator.api import ApiError
from connectors.emulator.api_schemas import (
    BOOLEAN,
    METADATA,
    RequestSchema,
    array,
    enum,
    integer,
    official_types,
    record,
    request_schema,
    text,
)
from connectors.emulator.validation import check_body

SHAPE = {
    "anyOf": [
        record("type radius", type=enum("circle"), radius={"type": "number", "maximum": 10}),
        record("type sides", type=enum("polygon"), sides=array(integer(1), minItems=3)),
        {"type": "string", "enum": ["point", "line"]},
    ]
}
SCHEMA = RequestSchema(
    record("name", name=text(5, 1), count=integer(1, 3), flag=BOOLEAN, metadata=METADATA, shape=SHAPE)
)


def refusal(body: dict[str, Any], schema: RequestSchema = SCHEMA) -> tuple[str | None, str]:
    with pytest.raises(ApiError) as caught:
        check_body(body, schema)
    error = caught.value.body["error"]
    return error["param"], error["code"]


@pytest.mark.parametrize(
    ("values", "param", "code"),
    [
        ({"name": None}, "name", "missing_required_parameter"),
        ({"colour": "red"}, "colour", "unknown_parameter"),
        ({"name": ""}, "name", "empty_string"),
        ({"name": "too long"}, "name", "string_above_max_length"),
        ({"count": 1.0}, "count", "invalid_type"),
        ({"count": True}, "count", "invalid_type"),
        ({"count": 4}, "count", "integer_above_max_value"),
        ({"flag": 1}, "flag", "invalid_type"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
        ({"metadata": {"1": 1}}, "metadata.1", "invalid_type"),
        ({"metadata": {"k" * 65: "v"}}, "metadata", "invalid_value"),
        ({"metadata": {str(number): "v" for number in range(17)}}, "metadata", "object_above_max_properties"),
        ({"shape": 5}, "shape", "invalid_type"),
        ({"shape": "plane"}, "shape", "invalid_value"),
        ({"shape": {}}, "shape.type", "missing_required_parameter"),
        ({"shape": {"type": "cube"}}, "shape.type", "invalid_value"),
        ({"shape": {"type": "circle"}}, "shape.radius", "missing_required_parameter"),
        ({"shape": {"type": "circle", "radius": 11}}, "shape.radius", "decimal_above_max_value"),
        ({"shape": {"type": "circle", "radius": 1, "sides": []}}, "shape.sides", "unknown_parameter"),
        ({"shape": {"type": "polygon", "sides": [1, 2]}}, "shape.sides", "array_below_min_length"),
        ({"shape": {"type": "polygon", "sides": [1, 2, "3"]}}, "shape.sides[2]", "invalid_type"),
    ],
)
def test_the_error_names_the_parameter_and_the_violation(values: dict[str, Any], param: str, code: str) -> None:
    assert refusal({"name": "x", **values}) == (param, code)


def test_an_error_lists_the_values_that_are_allowed() -> None:
    with pytest.raises(ApiError, match="Supported values are: 'circle', and 'polygon'"):
        check_body({"name": "x", "shape": {"type": "cube"}}, SCHEMA)


def test_a_valid_body_passes() -> None:
    shapes: list[Any] = ["line", {"type": "circle", "radius": 1.5}, {"type": "polygon", "sides": [3, 4, 5]}]
    for shape in shapes:
        check_body({"name": "x", "count": 3, "metadata": None, "shape": shape}, SCHEMA)


def test_objects_of_the_official_schemas_take_no_unknown_properties() -> None:
    chat = request_schema("CreateChatCompletionRequest", {})
    message = {"role": "user", "content": [{"type": "text", "text": "x", "colour": "red"}]}
    assert refusal({"model": "m", "messages": [message]}, chat) == (
        "messages[0].content[0].colour",
        "unknown_parameter",
    )


def test_a_request_schema_can_omit_and_require_properties() -> None:
    schema = request_schema("CreateEmbeddingRequest", {}, only="model user", required="user")
    assert (schema.required, schema.types_of("user"), schema.types_of("input")) == (
        ("model", "user"),
        frozenset({"string"}),
        frozenset(),
    )


def test_the_types_of_official_alternatives_are_known() -> None:
    assert {"function", "custom", "web_search", "mcp", "code_interpreter"} <= official_types("Tool")
