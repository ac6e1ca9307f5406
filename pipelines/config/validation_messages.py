"""Pydantic's validation errors as messages about the file: key path, what was found, what to do."""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from connectors.errors import FieldError, JobError, KeyPath, closest, did_you_mean
from pipelines.config.key_locations import KeyLocations
from pipelines.config.schema_lookup import Schema, known_keys, schemas_at


class ConfigError(Struct, frozen=True):
    """One error in a file's values, at a key path."""

    path: KeyPath
    found: str
    remedy: str
    is_missing: bool = False
    """The key is not there at all."""


SECRET_KEYS = frozenset({"api_key", "apikey", "api-key", "token", "secret", "password", "authorization", "bearer"})

SYNONYMS = {
    "inflight": "concurrency",
    "in_flight": "concurrency",
    "max_concurrency": "concurrency",
    "parallelism": "concurrency",
    "workers": "concurrency",
    "rpm": "requests_per_minute",
    "tpm": "tokens_per_minute",
    "retries": "attempts",
    "max_retries": "attempts",
    "max_attempts": "attempts",
    "prompt": "messages",
    "filter": "where",
    "path": "parquet",
    "url": "base_url",
    "timezone": "time_zone",
    "schema": "output",
    "cron": "schedule",
}
"""Another name for a key -> its name here; suggested only where that key exists."""

EXAMPLES: dict[str, Any] = {
    "name": "label-tickets",
    "key": "id",
    "where": "length(body) > 20",
    "limit": 1000,
    "model": "gpt-4o-mini",
    "provider": "openai",
    "write": "merge",
    "deleted": "keep",
    "when": "topic is not null",
    "columns": ["id"],
    "messages": [{"user": "{{ text }}"}],
}
"""For keys whose models have none."""

_EXPECTED = {
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "dict": "keys and values",
    "mapping": "keys and values",
    "model": "keys and values",
    "tuple": "a list",
    "list": "a list",
    "set": "a list",
    "frozen": "a list",
    "none": "nothing",
}
"""The first word of pydantic's error type -> the kind of value that it expects."""

_TYPE_ERRORS = ("_type", "_parsing", "_from_float", "_unicode", "_attributes_type")
_REMEDIES = {
    "a list": "write [a, b]",
    "keys and values": "write key: value in lines below it, indented",
    "text": "put it in quotes",
    "a number": "write a number",
    "a whole number": "write a whole number",
    "true or false": "write true or false",
}
_DEFAULT_REMEDY = "correct it"


def validation_errors(
    exc: ValidationError,
    values: Any,
    schema: Callable[[], Schema],
    key_path: Callable[[Sequence[str | int]], KeyPath] = tuple,
) -> Iterator[ConfigError]:
    """Yield all errors in `values`; `key_path` removes from a pydantic location what is no key of the file."""
    errors = [(key_path(error["loc"]), error) for error in exc.errors(include_url=False) if not _is_echo(error)]
    yield from _config_errors(errors, (), values, values, schema())


def silent_coercions(values: Any, model: Any, path: KeyPath = ()) -> Iterator[ConfigError]:
    """Yield each true or false that pydantic took for a number."""
    if isinstance(values, bool) and isinstance(model, int | float) and not isinstance(model, bool):
        yield ConfigError(path, f"found {format_value(values)}, expected a number", "write a number")
    elif isinstance(values, dict):
        for key, inner in values.items():
            if isinstance(model, BaseModel) and hasattr(model, key):
                yield from silent_coercions(inner, getattr(model, key), (*path, key))
            elif isinstance(model, Mapping) and key in model:
                yield from silent_coercions(inner, model[key], (*path, key))
    elif isinstance(values, list) and isinstance(model, list | tuple) and len(values) == len(model):
        for index, (inner, validated) in enumerate(zip(values, model, strict=True)):
            yield from silent_coercions(inner, validated, (*path, index))


def first_error(errors: Iterable[ConfigError], locations: KeyLocations) -> JobError:
    """Return the first error in the file's order; missing keys come last: a misspelt key is missing too."""
    first = min(errors, key=lambda error: (error.is_missing, locations.line(error.path)))
    return JobError(locations.locate(first.path), first.found, first.remedy)


def format_value(value: Any) -> str:
    """Return a value as a message quotes it, shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "keys and values"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
        return text if len(text) <= 60 else f'{text[:56]}..."'
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    # From Python: a class, an object.
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def unknown_key(key: str, known: Collection[str]) -> tuple[str, str]:
    """Return what was found and what to do for a key that is not among the known ones."""
    if key.lower() in SECRET_KEYS:
        return "a secret is never written in a file", "set a variable and name it as api_key_env in rowmill.yaml"
    synonym = SYNONYMS.get(key.lower())
    if synonym in known:
        return "no such key", f"did you mean {synonym}?"
    completions = [name for name in known if len(key) > 2 and name.startswith(key)]
    if len(completions) == 1:
        return "no such key", f"did you mean {completions[0]}?"
    return "no such key", did_you_mean(key, known)


_LocatedError = tuple[KeyPath, ErrorDetails]


def _config_errors(
    errors: Sequence[_LocatedError], base: KeyPath, value: Any, values: Any, schema: Schema
) -> Iterator[ConfigError]:
    """`base`: the key path reached so far, at which `value` is; the rest of each location starts there."""
    unions: dict[KeyPath, list[_LocatedError]] = {}
    for location, error in errors:
        path, rest = _followed(location, value)
        if error["type"] == "missing" and len(rest) == 1:
            missing = (*base, *path, *rest)
            yield ConfigError(missing, "missing", _remedy_for_missing(missing, values, schema), is_missing=True)
        elif rest and rest != ("[key]",):
            # The next part of the location names one branch of a union: what was tried there, not a key.
            unions.setdefault(path, []).append((rest, error))
        else:
            yield _single_error((*base, *path), error, values, schema)
    for path, tried in unions.items():
        yield from _union_errors(tried, (*base, *path), _value_at(value, path), values, schema)


def _union_errors(
    tried: list[_LocatedError], path: KeyPath, value: Any, values: Any, schema: Schema
) -> Iterator[ConfigError]:
    """Yield the errors of the branch of a union that the value came nearest to matching."""
    branches: dict[str | int, list[_LocatedError]] = {}
    for location, error in tried:
        branches.setdefault(location[0], []).append((location[1:], error))
    deep = [
        errors
        for errors in branches.values()
        if not all(_is_type_error(error) and not location for location, error in errors)
    ]
    if not deep:
        expected = dict.fromkeys(_expected(error) for errors in branches.values() for _, error in errors)
        kinds = _joined([kind for kind in expected if kind != "nothing"])
        yield ConfigError(path, *_unexpected_value(value, kinds, path, values, schema))
        return
    unknown = [
        {_followed(location, value) for location, error in errors if error["type"] == "extra_forbidden"}
        for errors in deep
    ]
    common = [inner for inner, rest in set.intersection(*unknown) if not rest]
    if common:
        # No branch knows the key: suggest one of the keys of all branches.
        for inner in common:
            yield ConfigError((*path, *inner), *_misplaced_key((*path, *inner), values, schema))
        return
    yield from _config_errors(min(deep, key=len), path, value, values, schema)


def _single_error(path: KeyPath, error: ErrorDetails, values: Any, schema: Schema) -> ConfigError:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return ConfigError(path, *_misplaced_key(path, values, schema))
    if kind in ("value_error", "assertion_error"):
        cause = context.get("error")
        if isinstance(cause, FieldError):
            return ConfigError((*path, *cause.path), cause.found, cause.remedy)
        return ConfigError(path, str(cause or ""), _DEFAULT_REMEDY)
    return ConfigError(path, *_unexpected_value(error["input"], _expected(error), path, values, schema))


def _expected(error: ErrorDetails) -> str:
    kind, context = error["type"], error.get("ctx", {})
    match kind:
        case "literal_error" | "enum":
            return str(context["expected"]).replace("'", "")
        case "greater_than_equal":
            return f"at least {_format_bound(context['ge'])}"
        case "greater_than":
            return f"more than {_format_bound(context['gt'])}"
        case "less_than_equal":
            return f"at most {_format_bound(context['le'])}"
        case "less_than":
            return f"less than {_format_bound(context['lt'])}"
        case "string_pattern_mismatch":
            return f"text that matches {context['pattern'].strip('^$')}"
        case "string_too_short" | "too_short":
            return "text" if kind.startswith("string") else f"at least {context['min_length']}"
        case "string_too_long" | "too_long":
            return f"at most {context['max_length']}"
        case "finite_number":
            return "a finite number"
        case "none_required":
            return "nothing"
        case "byte_size" | "byte_size_unit":
            return "a number of bytes"
    if _is_type_error(error):
        return _EXPECTED.get(kind.split("_")[0], "another kind of value")
    return error["msg"].removeprefix("Input should be ").removeprefix("Value should be ")


def _format_bound(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else str(bound)


def _is_echo(error: ErrorDetails) -> bool:
    """Return whether pydantic calls a list too short only because an element of it is invalid."""
    found = error["input"]
    return error["type"] == "too_short" and isinstance(found, list) and len(found) >= error["ctx"]["min_length"]


def _is_type_error(error: ErrorDetails) -> bool:
    return error["type"].endswith(_TYPE_ERRORS) or error["type"] in ("none_required", "literal_error")


def _unexpected_value(value: Any, expected: str, path: KeyPath, values: Any, schema: Schema) -> tuple[str, str]:
    found = f"found {format_value(value)}, expected {expected}"
    choices = [choice for part in expected.split(", ") for choice in part.split(" or ")]
    if isinstance(value, str) and len(choices) > 1 and (choice := closest(value, choices)):
        return found, f"did you mean {choice}?"
    remedy = _example(path, values, schema)
    if remedy is None and expected == "text" and isinstance(value, None | dict | list):
        remedy = "write text"
    return found, remedy or _REMEDIES.get(expected, _DEFAULT_REMEDY)


def _remedy_for_missing(path: KeyPath, values: Any, schema: Schema) -> str:
    example = _example(path, values, schema)
    if example is not None:
        return example
    found = schemas_at(schema, path, values)
    description = next((one["description"] for one in found if "description" in one), "")
    return f"write {path[-1]}: ..." + (f" ({description.rstrip('.')})" if description else "")


def _example(path: KeyPath, values: Any, schema: Schema) -> str | None:
    """Return `write e.g. usd: 5.00`; None if no example is known."""
    key = next((part for part in reversed(path) if isinstance(part, str)), "")
    examples = [found["examples"][0] for found in schemas_at(schema, path, values) if found.get("examples")]
    value = examples[0] if examples else EXAMPLES.get(key)
    if value is None or path[-1:] != (key,):
        return None
    return f"write e.g. {key}: {_yaml_value(value)}"


def _yaml_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    is_plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w ./<>()*-]*", value)
    return str(value) if is_plain else json.dumps(value)


def _misplaced_key(path: KeyPath, values: Any, schema: Schema) -> tuple[str, str]:
    key, known = str(path[-1]), known_keys(schema, path[:-1], values)
    is_close = closest(key, known) is not None
    if len(path) > 1 and key in known_keys(schema, (), values) and not is_close:
        return "no such key here", "it belongs at the top of the file"
    if "params" in known and not is_close and SYNONYMS.get(key) not in known and key.lower() not in SECRET_KEYS:
        return "no such key", "a parameter of the API goes below params, see also extra_body"
    return unknown_key(key, known)


def _joined(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def _followed(location: KeyPath, value: Any) -> tuple[KeyPath, KeyPath]:
    """Split a location into the part that is in the file and the rest."""
    for depth, part in enumerate(location):
        is_index = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if not is_index and not (isinstance(value, Mapping) and part in value):
            return location[:depth], location[depth:]
        value = value[part]
    return location, ()


def _value_at(value: Any, path: KeyPath) -> Any:
    for part in path:
        value = value[part]
    return value
