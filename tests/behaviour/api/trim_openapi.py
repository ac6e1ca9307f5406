"""Cut the request schemas out of the OpenAPI description of the OpenAI API.

Usage: `python tests/behaviour/api/trim_openapi.py openapi.yaml > connectors/emulator/openai-request-schemas.json`.
"""

import json
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

REQUESTS = (
    "CreateChatCompletionRequest",
    "CreateResponse",
    "CreateEmbeddingRequest",
    "CreateSpeechRequest",
    "CreateTranscriptionRequest",
    "CreateTranslationRequest",
    "CreateImageRequest",
    "CreateImageEditRequest",
    "CreateImageVariationRequest",
)
DESCRIPTIVE_KEYS = frozenset(
    {"description", "title", "example", "examples", "default", "deprecated", "discriminator", "$recursiveAnchor"}
)
"""Keys without effect on validation; the last is from an older JSON Schema."""
COMMENT = (
    "The request schemas of the OpenAPI description of the OpenAI API (github openai/openai-openapi, commit f85dbe2 of "
    "2026-08-21, MIT licence), cut out by trim_openapi.py: without descriptions, `nullable` as JSON Schema writes it, "
    "and anyOf in place of oneOf, whose alternatives overlap."
)


def trimmed(schema: Any, names: bool = False) -> Any:
    """The schema without descriptions; `names`: its keys are property names."""
    if isinstance(schema, list):
        return [trimmed(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    if names:
        return {name: trimmed(inner) for name, inner in schema.items()}
    trimmed_schema = {
        key: trimmed(inner, key == "properties")
        for key, inner in schema.items()
        if key not in DESCRIPTIVE_KEYS and key != "nullable" and not key.startswith("x-")
    }
    if "oneOf" in trimmed_schema:
        trimmed_schema["anyOf"] = trimmed_schema.pop("oneOf")
    if "$recursiveRef" in trimmed_schema:  # From an older JSON Schema, in one filter that no request here uses.
        trimmed_schema = {}
    if "$ref" in trimmed_schema:
        trimmed_schema["$ref"] = trimmed_schema["$ref"].replace("#/components/schemas/", "#/$defs/")
    return {"anyOf": [trimmed_schema, {"type": "null"}]} if schema.get("nullable") else trimmed_schema


def referenced_names(schema: Any) -> set[str]:
    """The names that a trimmed schema refers to."""
    if isinstance(schema, dict):
        own = {schema["$ref"].removeprefix("#/$defs/")} if isinstance(schema.get("$ref"), str) else set()
        return own.union(*(referenced_names(inner) for inner in schema.values()))
    return set[str]().union(*(referenced_names(inner) for inner in schema)) if isinstance(schema, list) else set()


def main(description: Path) -> None:
    schemas = YAML(typ="safe").load(description)["components"]["schemas"]
    found: dict[str, Any] = {}
    pending = list(REQUESTS)
    while pending:
        name = pending.pop()
        if name not in found:
            found[name] = trimmed(schemas[name])
            pending.extend(referenced_names(found[name]))
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(schema)}" for name, schema in sorted(found.items()))
    print(f'{{"$comment": {json.dumps(COMMENT)},\n"$defs": {{\n{lines}\n}}}}')


if __name__ == "__main__":
    main(Path(sys.argv[1]))
