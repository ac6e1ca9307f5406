"""`output_schema:` a JSON Schema in a file, whose properties become the outputs of a step."""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from connectors.endpoints.conversation.structured.schema_references import resolve_references
from connectors.errors import FieldError, JobError, KeyPath
from pipelines.config.key_locations import IncludedPart
from pipelines.config.yaml_reader import parse_yaml

_OBJECT_KEYWORDS = frozenset(
    {"type", "properties", "required", "additionalProperties", "title", "description", "default", "examples"}
    | {"definitions", "nullable", "deprecated", "readOnly", "writeOnly"}
)
"""Keywords of the object itself that its columns keep or that say nothing about them."""


def read_output_schema(text: str, shown: str) -> tuple[dict[str, Any], IncludedPart]:
    """Return the `output:` that a JSON Schema describes, and where each part of it is in the file.

    JobError, with `shown` and the line, for a text that is no JSON, or a schema that is no object with properties.
    """
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as exc:
        line = exc.lineno if isinstance(exc, json.JSONDecodeError) else 1
        reason = exc.msg if isinstance(exc, json.JSONDecodeError) else str(exc)
        raise JobError(f"{shown}:{line}", f"not JSON ({reason})", "correct it") from exc
    except RecursionError as exc:
        raise JobError(shown, "nested too deep", "flatten it") from exc
    if not isinstance(document, dict):
        raise JobError(shown, "not a JSON object", 'write {"type": "object", "properties": {...}}')
    # JSON is YAML, but for tabs between its tokens; its texts contain none.
    lines = parse_yaml(text.replace("\t", " "), shown).lines
    try:
        resolved = resolve_references(document)
        _check_object(resolved.schema)
    except FieldError as exc:
        where = IncludedPart(shown, lines).locate(exc.path, "", None)
        raise JobError(where, exc.found, exc.remedy) from exc
    properties: dict[str, Any] = resolved.schema["properties"]
    origins: dict[KeyPath, KeyPath] = {
        path[1:]: origin for path, origin in resolved.origins.items() if path[:1] == ("properties",)
    }
    return properties, IncludedPart(shown, lines, origins)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _check_object(schema: Mapping[str, Any]) -> None:
    kind = schema.get("type", "object")
    if kind != "object":
        raise FieldError(f"found {json.dumps(kind)}, expected an object", 'write "type": "object"', ("type",))
    for word in schema:
        if word not in _OBJECT_KEYWORDS and not word.startswith(("$", "x-")):
            # A high cutoff: minProperties and patternProperties are other keywords, not misspelt ones.
            if misspelt := get_close_matches(word, _OBJECT_KEYWORDS, n=1, cutoff=0.8):
                raise FieldError("no such keyword", f"did you mean {misspelt[0]}?", (word,))
            remedy = "leave it out; `check:` of the step takes conditions over several outputs"
            raise FieldError("applies to the answer as a whole, not to one column", remedy, (word,))
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or not properties:
        found = "no properties" if properties is None else "names no property"
        raise FieldError(found, 'write "properties": {"topic": {"type": "string"}}', ("properties",))
