"""JSON Schemas of requests: compiled once, and checked by the rules of strict mode if the request sets it."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import jsonschema_rs
import orjson
from msgspec import Struct

from connectors.emulator.validation import refuse

UNSUPPORTED = frozenset(
    {"allOf", "not", "dependentRequired", "dependentSchemas", "if", "then", "else", "patternProperties"}
)
"""Keywords that strict mode rejects."""


class CompiledSchema(Struct, frozen=True):
    """A schema with its validator, or the reason why it is invalid."""

    document: Any
    problem: str | None
    """In the API's wording; None for a valid schema."""
    validator: Any
    """The validator of jsonschema_rs; None for an invalid schema."""


def compile_schema(schema: Any, name: str, strict: bool, param: str) -> CompiledSchema:
    """The compiled schema, cached by content; ApiError 400 with the param `where` for an invalid one."""
    compiled = _compile(orjson.dumps(schema), strict)
    if compiled.problem is not None:
        raise refuse(param, f"Invalid schema for {name}: {compiled.problem}", "invalid_json_schema")
    return compiled


@lru_cache(maxsize=512)
def _compile(json: bytes, strict: bool) -> CompiledSchema:
    document = orjson.loads(json)
    problem = next(_strict_problems(document), None) if strict else None
    if problem is None:
        try:
            return CompiledSchema(document, None, jsonschema_rs.validator_for(document, retriever=_refuse_to_fetch))
        except (ValueError, jsonschema_rs.ValidationError) as exc:
            problem = " ".join(str(exc).split())[:300]
    return CompiledSchema(document, problem, None)


def _refuse_to_fetch(uri: str) -> Any:
    raise ValueError(f"{uri} is not fetched")


def _strict_problems(root: Any) -> Iterator[str]:
    if not isinstance(root, dict) or root.get("type") != "object":
        type_name = root.get("type") if isinstance(root, dict) else root
        yield f"schema must be a JSON Schema of 'type: \"object\"', got 'type: {orjson.dumps(type_name).decode()}'."
        return
    if "anyOf" in root:
        yield "schema must have type 'object' and not have 'anyOf' at the top level."
    yield from _problems(root, ())


def _problems(schema: Any, path: tuple[str, ...]) -> Iterator[str]:
    if not isinstance(schema, dict):
        return
    here = f"In context={path!r}"
    for keyword in sorted(UNSUPPORTED & schema.keys()):
        yield f"{here}, '{keyword}' is not permitted."
    types = schema.get("type")
    if types == "object" or (isinstance(types, list) and "object" in types):
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
    if types == "array" and "items" not in schema:
        yield f"{here}, array schema missing items."
    for name, inner in schema.get("properties", {}).items():
        yield from _problems(inner, (*path, "properties", name))
    if "items" in schema:
        yield from _problems(schema["items"], (*path, "items"))
    for index, inner in enumerate(schema.get("anyOf", ())):
        yield from _problems(inner, (*path, "anyOf", str(index)))
    for keyword in ("$defs", "definitions"):
        for name, inner in schema.get(keyword, {}).items():
            yield from _problems(inner, (*path, keyword, name))
