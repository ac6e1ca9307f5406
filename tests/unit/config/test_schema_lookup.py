"""Lookup in a JSON Schema by key path."""

from typing import Any

from pipelines.config.schema_lookup import known_keys, schemas_at

SCHEMA: dict[str, Any] = {
    "properties": {
        "name": {"type": "string", "examples": ["a"]},
        "limit": {"$ref": "#/$defs/Limit", "description": "own"},
        "sink": {"oneOf": [{"$ref": "#/$defs/Parquet"}, {"$ref": "#/$defs/Duckdb"}]},
        "prices": {"additionalProperties": {"$ref": "#/$defs/Limit"}},
        "steps": {"items": {"$ref": "#/$defs/Step"}},
    },
    "$defs": {
        "Limit": {"type": "object", "description": "general", "properties": {"usd": {"type": "number"}}},
        "Parquet": {"type": "object", "required": ["parquet"], "properties": {"parquet": {}, "files": {}}},
        "Duckdb": {"type": "object", "required": ["duckdb"], "properties": {"duckdb": {}, "table": {}}},
        "Step": {"anyOf": [{"$ref": "#/$defs/Chat"}, {"$ref": "#/$defs/Speech"}]},
        "Chat": {"properties": {"endpoint": {"const": "chat"}, "messages": {}}},
        "Speech": {"properties": {"endpoint": {"const": "speech"}, "voice": {}}},
    },
}


def test_a_key_has_its_own_schema_before_the_one_that_it_refers_to() -> None:
    found = [schema.get("description") for schema in schemas_at(SCHEMA, ("limit",), {})]
    assert found == ["own", "general"]
    assert [schema.get("examples") for schema in schemas_at(SCHEMA, ("name",), {})] == [["a"]]


def test_required_keys_and_constants_decide_between_alternatives() -> None:
    assert known_keys(SCHEMA, ("sink",), {"sink": {"duckdb": "x"}}) == {"duckdb", "table"}
    assert known_keys(SCHEMA, ("sink",), {"sink": {}}) == {"duckdb", "table", "parquet", "files"}
    steps = {"steps": [{"endpoint": "chat"}, {"endpoint": "speech"}]}
    assert known_keys(SCHEMA, ("steps", 0), steps) == {"endpoint", "messages"}
    assert known_keys(SCHEMA, ("steps", 1), steps) == {"endpoint", "voice"}


def test_keys_of_any_name_have_the_schema_of_additional_properties() -> None:
    assert known_keys(SCHEMA, ("prices", "gpt-4o"), {"prices": {"gpt-4o": {}}}) == {"usd"}


def test_an_unknown_path_has_no_schema() -> None:
    assert schemas_at(SCHEMA, ("nothing", "here"), {}) == []
    assert schemas_at(SCHEMA, ("name", 0), {"name": "a"}) == []
