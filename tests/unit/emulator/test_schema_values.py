"""Values for schemas, and parts of texts, from which the emulator builds its answers."""

import re
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.emulator.chat.regex_text import matching_text
from connectors.emulator.chat.schema_values import Filler
from connectors.emulator.chat.text_facts import proper_names, sentences, subject_of

SCHEMAS: list[Any] = [
    {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/A"}},
        "required": ["a"],
        "$defs": {"A": {"enum": [1, None]}},
    },
    {"type": "array", "items": {"type": "integer", "minimum": 3, "maximum": 3}, "minItems": 3, "maxItems": 3},
    {"type": "array", "items": {"enum": ["x", "y", "z"]}, "minItems": 3, "uniqueItems": True},
    {"type": "string", "minLength": 30, "maxLength": 40},
    {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
    {"type": "string", "maxLength": 0},
    {"type": ["null", "number"], "exclusiveMinimum": 0, "exclusiveMaximum": 0.01},
    {"type": "integer", "multipleOf": 7, "minimum": 20, "maximum": 30},
    {"type": "number", "minimum": 1000},
    {"type": "number", "maximum": -5},
    {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    {"const": {"fixed": [1]}},
    {"type": "null"},
    {"allOf": [{"type": "object", "properties": {"x": {"type": "integer"}}}, {"required": ["x"]}]},
    {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "value": {"type": "string"},
                    "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                },
                "required": ["value", "next", "children"],
            }
        },
    },
]


@pytest.mark.parametrize("schema", SCHEMAS)
@given(text=st.text(max_size=60), digest=st.binary(min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_values_fit_their_schema_for_any_text(schema: Any, text: str, digest: bytes) -> None:
    value = Filler(schema, text, digest).value()
    assert jsonschema_rs.validator_for(schema).is_valid(value), value
    assert Filler(schema, text, digest).value() == value


def test_texts_are_split_into_sentences_names_and_subjects() -> None:
    assert sentences("It costs 3.50 today. Is it so?\nYes!") == ["It costs 3.50 today.", "Is it so?", "Yes!"]
    assert sentences("你好。再见。") == ["你好。", "再见。"]
    assert proper_names("Compare Boston, MA with New York for IBM") == ["Boston, MA", "New York", "IBM"]
    assert subject_of("Label this.\n\nThe body.\n\nMore.") == "The body.\n\nMore."


@pytest.mark.parametrize(
    "pattern",
    [
        r"^[A-Z]{3}-\d{4}$",
        r"^\d{4}-\d{2}-\d{2}$",
        r"^(foo|bar)+$",
        r"[^a-z]+",
        r"^#[0-9a-fA-F]{6}$",
        r"^\+?[1-9]\d{1,14}$",
        r"^[\w.-]+@[\w-]+\.\w+$",
        r"^\S+\s.$",
    ],
)
@given(number=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_a_generated_text_matches_its_pattern(pattern: str, number: int) -> None:
    assert re.search(pattern, matching_text(pattern, number))


def test_an_invalid_pattern_gives_an_empty_text() -> None:
    assert matching_text("(", 1) == ""
