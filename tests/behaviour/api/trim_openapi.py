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
WORDS = frozenset(
    {"description", "title", "example", "examples", "default", "deprecated", "discriminator", "$recursiveAnchor"}
)
"""Keys that no value is checked by; the last is of an older JSON Schema."""
COMMENT = (
    "The request schemas of the OpenAPI description of the OpenAI API (github openai/openai-openapi, commit f85dbe2 of "
    "2026-08-21, MIT licence), cut out by trim_openapi.py: without descriptions, `nullable` as JSON Schema writes it, and "
    "anyOf in place of oneOf, whose alternatives overlap."
)


def trimmed(schema: Any, names: bool = False) -> Any:
    """Without words. `names`: the keys of `schema` are names of properties."""
    if isinstance(schema, list):
        return [trimmed(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    if names:
        return {name: trimmed(inner) for name, inner in schema.items()}
    kept = {
        key: trimmed(inner, key == "properties")
        for key, inner in schema.items()
        if key not in WORDS and key != "nullable" and not key.startswith("x-")
    }
    if "oneOf" in kept:
        kept["anyOf"] = kept.pop("oneOf")
    if "$recursiveRef" in kept:  # Of an older JSON Schema; it stands in one filter, which no request here has.
        kept = {}
    if "$ref" in kept:
        kept["$ref"] = kept["$ref"].replace("#/components/schemas/", "#/$defs/")
    return {"anyOf": [kept, {"type": "null"}]} if schema.get("nullable") else kept


def named(schema: Any) -> set[str]:
    """The schemas that a trimmed one refers to."""
    if isinstance(schema, dict):
        own = {schema["$ref"].removeprefix("#/$defs/")} if isinstance(schema.get("$ref"), str) else set()
        return own.union(*(named(inner) for inner in schema.values()))
    return set[str]().union(*(named(inner) for inner in schema)) if isinstance(schema, list) else set()


def main(description: Path) -> None:
    told = YAML(typ="safe").load(description)["components"]["schemas"]
    found: dict[str, Any] = {}
    left = list(REQUESTS)
    while left:
        name = left.pop()
        if name not in found:
            found[name] = trimmed(told[name])
            left.extend(named(found[name]))
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(schema)}" for name, schema in sorted(found.items()))
    print(f'{{"$comment": {json.dumps(COMMENT)},\n"$defs": {{\n{lines}\n}}}}')


if __name__ == "__main__":
    main(Path(sys.argv[1]))
