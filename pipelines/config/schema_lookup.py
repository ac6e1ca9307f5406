"""Lookup in a JSON Schema: what holds at a key path of a file, given the file's values."""

from collections.abc import Iterator, Mapping
from typing import Any

from connectors.errors import KeyPath

Schema = Mapping[str, Any]


def schemas_at(schema: Schema, path: KeyPath, values: Any) -> list[Schema]:
    """Return every schema that may hold at the path; `values`, those of the file, decide between alternatives."""
    found, value = list(_alternatives(schema, schema, values)), values
    for part in path:
        value = _child_value(value, part)
        found = [
            alternative
            for outer in found
            for inner in _child_schemas(outer, part)
            for alternative in _alternatives(inner, schema, value)
        ]
    return found


def known_keys(schema: Schema, path: KeyPath, values: Any) -> frozenset[str]:
    """Return the keys that the mapping at the path may have."""
    return frozenset(key for found in schemas_at(schema, path, values) for key in found.get("properties", ()))


def _alternatives(schema: Schema, root: Schema, value: Any) -> Iterator[Schema]:
    """Yield the schema with references and alternatives resolved; its own description and examples come first."""
    if reference := schema.get("$ref"):
        name = str(reference).rsplit("/", 1)[-1]
        if len(schema) > 1:
            yield {key: inner for key, inner in schema.items() if key != "$ref"}
        yield from _alternatives(root["$defs"][name], root, value)
        return
    branches = [*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())]
    yield schema
    resolved = [found for branch in branches for found in _alternatives(branch, root, value)]
    yield from _matching(resolved, value)


def _matching(schemas: list[Schema], value: Any) -> list[Schema]:
    """Return the schemas whose constants and required keys the value has; all of them if none matches."""
    if not isinstance(value, Mapping):
        return schemas
    mappings = [schema for schema in schemas if schema.get("type", "object") == "object"]
    constant = [schema for schema in mappings if _constants_match(schema, value)] or mappings
    return [schema for schema in constant if all(key in value for key in schema.get("required", ()))] or constant


def _constants_match(schema: Schema, value: Mapping[str, Any]) -> bool:
    properties = schema.get("properties", {})
    return all(value.get(key) == inner["const"] for key, inner in properties.items() if "const" in inner)


def _child_schemas(schema: Schema, part: str | int) -> Iterator[Schema]:
    if isinstance(part, int):
        items = schema.get("items")
        if isinstance(items, Mapping):
            yield items
    elif part in schema.get("properties", {}):
        yield schema["properties"][part]
    elif isinstance(schema.get("additionalProperties"), Mapping):
        yield schema["additionalProperties"]


def _child_value(value: Any, part: str | int) -> Any:
    if isinstance(value, Mapping):
        return value.get(part)
    return value[part] if isinstance(value, list) and isinstance(part, int) and part < len(value) else None
