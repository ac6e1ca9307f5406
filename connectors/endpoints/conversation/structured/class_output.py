"""A pydantic class as a typed output: its fields become columns."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUserError

from connectors.endpoints.conversation.structured.schema_references import resolve_references
from connectors.errors import FieldError, KeyPath

_REMEDY = "use str, int, float, bool, Literal, Enum, list, Optional or another model"
_DROPPED = frozenset({"title", "default"})
"""Keywords that say nothing about answers: every column is required."""


def output_of_class(model: type[BaseModel]) -> dict[str, Any]:
    """Return the `output:` of a class: column -> JSON Schema; FieldError for an annotation without a column type."""
    try:
        schema = model.model_json_schema()
    except (PydanticInvalidForJsonSchema, PydanticUserError) as exc:
        raise FieldError(f"{model.__name__}: {str(exc).splitlines()[0]}", _REMEDY) from exc
    try:
        columns = resolve_references(schema).schema.get("properties")
    except FieldError as exc:
        raise FieldError(f"{_annotation(model, exc.path)} {exc.found}", exc.remedy) from exc
    if not columns:
        raise FieldError(f"{model.__name__} has no fields", "declare a field for each column")
    return {name: _plain(column, (model.__name__, name)) for name, column in columns.items()}


def _annotation(model: type[BaseModel], path: KeyPath) -> str:
    """Return the annotation at a key path of the class's schema: `Ticket.owner.items`."""
    words = [str(part) for part in path if part not in ("$defs", "$ref", "properties")]
    # A definition begins with the name of its class.
    return ".".join(words if path[0] == "$defs" else [model.__name__, *words])


def _plain(schema: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """Return a schema without unions and without what pydantic adds."""
    plain = {key: value for key, value in schema.items() if key not in _DROPPED}
    kind = plain.get("type")
    if "anyOf" in plain:
        raise FieldError(f"{'.'.join(path)} has several types", _REMEDY)
    if not isinstance(kind, str) or "oneOf" in plain or "prefixItems" in plain or kind == "null":
        raise FieldError(f"{'.'.join(path)} has no single type", _REMEDY)
    if kind == "object":
        if not plain.get("properties"):
            raise FieldError(f"{'.'.join(path)} has no fixed fields", "declare a model with a field for each")
        plain["properties"] = {name: _plain(inner, (*path, name)) for name, inner in plain["properties"].items()}
        plain.pop("required", None)
        plain.pop("additionalProperties", None)
    elif kind == "array":
        plain["items"] = _plain(plain.get("items", {}), (*path, "items"))
    return plain
