"""Looking things up in a JSON Schema: what may stand at a key path, and under which keys."""

from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.yaml_lines import KeyPath

Schema = Mapping[str, Any]


def schemas_at(schema: Schema, path: KeyPath, raw: Any) -> list[Schema]:
    """Every schema that may hold at the path; `raw`, the file's values, decides between alternatives."""
    found, value = list(_alternatives(schema, schema, raw)), raw
    for part in path:
        value = _inner(value, part)
        found = [
            alternative
            for outer in found
            for inner in _below(outer, part)
            for alternative in _alternatives(inner, schema, value)
        ]
    return found


def known_keys(schema: Schema, path: KeyPath, raw: Any) -> frozenset[str]:
    """The keys that the mapping at the path may have."""
    return frozenset(key for found in schemas_at(schema, path, raw) for key in found.get("properties", ()))


def _alternatives(schema: Schema, top: Schema, raw: Any) -> Iterator[Schema]:
    """The schema with references and alternatives resolved; its own words (description, examples) go first."""
    if reference := schema.get("$ref"):
        name = str(reference).rsplit("/", 1)[-1]
        if len(schema) > 1:
            yield {key: value for key, value in schema.items() if key != "$ref"}
        yield from _alternatives(top["$defs"][name], top, raw)
        return
    branches = [*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())]
    yield schema
    resolved = [found for branch in branches for found in _alternatives(branch, top, raw)]
    yield from _fitting(resolved, raw)


def _fitting(schemas: list[Schema], raw: Any) -> list[Schema]:
    """Those whose constants and required keys the value has; all of them where none fits."""
    if not isinstance(raw, Mapping):
        return schemas
    mappings = [schema for schema in schemas if schema.get("type", "object") == "object"]
    constant = [schema for schema in mappings if _constants_fit(schema, raw)] or mappings
    return [schema for schema in constant if all(key in raw for key in schema.get("required", ()))] or constant


def _constants_fit(schema: Schema, raw: Mapping[str, Any]) -> bool:
    properties = schema.get("properties", {})
    return all(raw.get(key) == inner["const"] for key, inner in properties.items() if "const" in inner)


def _below(schema: Schema, part: str | int) -> Iterator[Schema]:
    if isinstance(part, int):
        items = schema.get("items")
        if isinstance(items, Mapping):
            yield items
    elif part in schema.get("properties", {}):
        yield schema["properties"][part]
    elif isinstance(schema.get("additionalProperties"), Mapping):
        yield schema["additionalProperties"]


def _inner(value: Any, part: str | int) -> Any:
    if isinstance(value, Mapping):
        return value.get(part)
    return value[part] if isinstance(value, list) and isinstance(part, int) and part < len(value) else None
