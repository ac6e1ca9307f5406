"""JSON Schemas as requests bring them: checked once, by the rules of strict mode where it is asked for."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jsonschema_rs
import orjson

from connectors.emulator.validation import refuse

UNSUPPORTED = frozenset(
    {"allOf", "not", "dependentRequired", "dependentSchemas", "if", "then", "else", "patternProperties"}
)
"""Keywords that strict mode refuses."""


@dataclass(frozen=True, slots=True)
class Schema:
    """One schema, and what is wrong with it."""

    whole: Any
    problem: str | None
    """In the API's words; None: nothing."""
    validator: Any
    """jsonschema_rs's; None where there is a problem."""


def schema_of(schema: Any, name: str, strict: bool, where: str) -> Schema:
    """The schema, known again when it comes again; ApiError 400 at `where` for one that will not do."""
    found = _read(orjson.dumps(schema), strict)
    if found.problem is not None:
        raise refuse(where, f"Invalid schema for {name}: {found.problem}", "invalid_json_schema")
    return found


@lru_cache(maxsize=512)
def _read(written: bytes, strict: bool) -> Schema:
    whole = orjson.loads(written)
    problem = next(_strict_problems(whole), None) if strict else None
    if problem is None:
        try:
            return Schema(whole, None, jsonschema_rs.validator_for(whole, retriever=_fetch_nothing))
        except (ValueError, jsonschema_rs.ValidationError) as exc:
            problem = " ".join(str(exc).split())[:300]
    return Schema(whole, problem, None)


def _fetch_nothing(uri: str) -> Any:
    raise ValueError(f"{uri} is not fetched")


def _strict_problems(root: Any) -> Iterator[str]:
    if not isinstance(root, dict) or root.get("type") != "object":
        kind = root.get("type") if isinstance(root, dict) else root
        yield f"schema must be a JSON Schema of 'type: \"object\"', got 'type: {orjson.dumps(kind).decode()}'."
        return
    if "anyOf" in root:
        yield "schema must have type 'object' and not have 'anyOf' at the top level."
    yield from _problems(root, ())


def _problems(schema: Any, path: tuple[str, ...]) -> Iterator[str]:
    if not isinstance(schema, dict):
        return
    here = f"In context={path!r}"
    for word in sorted(UNSUPPORTED & schema.keys()):
        yield f"{here}, '{word}' is not permitted."
    kinds = schema.get("type")
    if kinds == "object" or (isinstance(kinds, list) and "object" in kinds):
        properties = schema.get("properties", {})
        if schema.get("additionalProperties") is not False:
            yield f"{here}, 'additionalProperties' is required to be supplied and to be false."
        required = schema.get("required", [])
        for name in properties:
            if name not in required:
                yield (
                    f"{here}, 'required' is required to be supplied and to be an array including every key in "
                    f"properties. Missing '{name}'."
                )
        for name in required:
            if name not in properties:
                yield f"{here}, Extra required key '{name}' supplied."
    if kinds == "array" and "items" not in schema:
        yield f"{here}, array schema missing items."
    for name, one in schema.get("properties", {}).items():
        yield from _problems(one, (*path, "properties", name))
    if "items" in schema:
        yield from _problems(schema["items"], (*path, "items"))
    for place, one in enumerate(schema.get("anyOf", ())):
        yield from _problems(one, (*path, "anyOf", str(place)))
    for word in ("$defs", "definitions"):
        for name, one in schema.get(word, {}).items():
            yield from _problems(one, (*path, word, name))
