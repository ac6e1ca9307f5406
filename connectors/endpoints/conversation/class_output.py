"""A pydantic class as a typed output: its fields become columns."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUserError

from connectors.errors import FieldError

_REMEDY = "use str, int, float, bool, Literal, Enum, list, Optional or another model"
_DROPPED = frozenset({"title", "default"})
"""Keywords that say nothing about answers: every column is required."""


def output_of_class(model: type[BaseModel]) -> dict[str, Any]:
    """Return the `output:` of a class: column -> JSON Schema; FieldError for an annotation without a column type."""
    try:
        schema = model.model_json_schema()
    except (PydanticInvalidForJsonSchema, PydanticUserError) as exc:
        raise FieldError(f"{model.__name__}: {str(exc).splitlines()[0]}", _REMEDY) from exc
    definitions = schema.get("$defs", {})
    trail: tuple[str, ...] = ()
    if "$ref" in schema:
        trail = (schema["$ref"],)
        schema = _resolved(schema, definitions, (model.__name__,), ())
    columns = schema.get("properties")
    if not columns:
        raise FieldError(f"{model.__name__} has no fields", "declare a field for each column")
    return {name: _plain(column, definitions, (model.__name__, name), trail) for name, column in columns.items()}


def _plain(
    schema: Mapping[str, Any], definitions: Mapping[str, Any], path: tuple[str, ...], trail: tuple[str, ...]
) -> dict[str, Any]:
    """Return a schema without references and unions; `trail`: the definitions around it."""
    if "$ref" in schema:
        name = str(schema["$ref"])
        return _plain(_resolved(schema, definitions, path, trail), definitions, path, (*trail, name))
    if "anyOf" in schema:
        kinds = [kind for kind in schema["anyOf"] if kind.get("type") != "null"]
        if len(kinds) != 1 or len(kinds) == len(schema["anyOf"]):
            raise FieldError(f"{'.'.join(path)} has several types", _REMEDY)
        outer = {key: value for key, value in schema.items() if key != "anyOf"}
        return {**_plain({**kinds[0], **outer}, definitions, path, trail), "nullable": True}
    plain = {key: value for key, value in schema.items() if key not in _DROPPED}
    kind = plain.get("type")
    if not isinstance(kind, str) or "oneOf" in plain or "prefixItems" in plain or kind == "null":
        raise FieldError(f"{'.'.join(path)} has no single type", _REMEDY)
    if kind == "object":
        if not plain.get("properties"):
            raise FieldError(f"{'.'.join(path)} has no fixed fields", "declare a model with a field for each")
        plain["properties"] = {
            name: _plain(inner, definitions, (*path, name), trail) for name, inner in plain["properties"].items()
        }
        plain.pop("required", None)
        plain.pop("additionalProperties", None)
    elif kind == "array":
        plain["items"] = _plain(plain.get("items", {}), definitions, (*path, "items"), trail)
    return plain


def _resolved(
    schema: Mapping[str, Any], definitions: Mapping[str, Any], path: tuple[str, ...], trail: tuple[str, ...]
) -> dict[str, Any]:
    name = str(schema["$ref"])
    if name in trail:
        raise FieldError(f"{'.'.join(path)} contains itself", "a column has a fixed depth: leave the field out")
    return {**definitions[name.rpartition("/")[2]], **{key: value for key, value in schema.items() if key != "$ref"}}
