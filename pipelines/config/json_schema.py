"""The JSON Schema of the job file, for editors and for programs that write job files."""

from collections.abc import Mapping
from typing import Any

from pipelines.config.job import pydantic_schema
from pipelines.config.validation_messages import EXAMPLES

_VERBATIM = ("examples", "default", "enum", "const", "required")
"""Keywords whose values hold no schemas."""
_DROPPED = ("title", "discriminator")
"""Titles repeat the key; `discriminator` is a keyword of OpenAPI."""


def job_schema() -> dict[str, Any]:
    """Return the schema (draft 2020-12); what it accepts may still fail where keys must fit each other or the data."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Rowmill job file",
        **_cleaned(pydantic_schema()),
    }


def _cleaned(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema without pydantic's own keywords, with examples for the keys that all kinds share."""
    cleaned: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _DROPPED:
            continue
        if key in ("properties", "$defs"):
            cleaned[key] = {name: _with_example(name, _cleaned(inner)) for name, inner in value.items()}
        elif key in _VERBATIM:
            cleaned[key] = value
        elif isinstance(value, Mapping):
            cleaned[key] = _cleaned(value)
        elif isinstance(value, list):
            cleaned[key] = [_cleaned(inner) if isinstance(inner, Mapping) else inner for inner in value]
        else:
            cleaned[key] = value
    return cleaned


def _with_example(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    needs_example = "description" in schema and not {"examples", "$ref", "properties"} & schema.keys()
    return {**schema, "examples": [EXAMPLES[name]]} if name in EXAMPLES and needs_example else schema
