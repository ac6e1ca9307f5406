"""The JSON Schema of the job file, for editors and for programs that write job files."""

from collections.abc import Mapping
from typing import Any

from pipelines.config.job import job_rules
from pipelines.config.validation_messages import EXAMPLES

_AS_THEY_ARE = ("examples", "default", "enum", "const", "required")
_DROPPED = ("title", "discriminator")
"""Titles repeat the key; `discriminator` is a word of OpenAPI."""


def job_schema() -> dict[str, Any]:
    """Draft 2020-12; what it accepts may still fail where keys must fit each other or the data."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Rowmill job file",
        **_plain(job_rules()),
    }


def _plain(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Without what pydantic adds for itself, with an example for the keys that all kinds share."""
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs"):
            named = {name: _plain(inner) for name, inner in value.items()}
            found[key] = {name: _exemplified(name, inner) for name, inner in named.items()}
        elif key in _AS_THEY_ARE:
            found[key] = value
        elif isinstance(value, Mapping) and key != "discriminator":
            found[key] = _plain(value)
        elif isinstance(value, list):
            found[key] = [_plain(inner) if isinstance(inner, Mapping) else inner for inner in value]
        elif key not in _DROPPED:
            found[key] = value
    return found


def _exemplified(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    known = name in EXAMPLES and "description" in schema and not {"examples", "$ref", "properties"} & schema.keys()
    return {**schema, "examples": [EXAMPLES[name]]} if known else schema
