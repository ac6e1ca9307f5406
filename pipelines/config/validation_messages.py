"""What pydantic finds wrong with a file's values, in the words of the file: key path, what was found, what to do."""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from connectors.errors import KeyPath, did_you_mean

Schema = Mapping[str, Any]


def schemas_at(schema: Schema, path: KeyPath, raw: Any) -> list[Schema]:
    """Every schema that may hold at the path; `raw`, the file's values, decides between alternatives."""
    found, value = list(_alternatives(schema, schema, raw)), raw
    for part in path:
        value = _inner(value, part)
        found = [
            alternative
            for outer in found
            for inner in _below(outer, part)
            for alternative in _alternatives(inner, schema, value)
        ]
    return found


def known_keys(schema: Schema, path: KeyPath, raw: Any) -> frozenset[str]:
    """The keys that the mapping at the path may have."""
    return frozenset(key for found in schemas_at(schema, path, raw) for key in found.get("properties", ()))


def _alternatives(schema: Schema, top: Schema, raw: Any) -> Iterator[Schema]:
    """The schema with references and alternatives resolved; its own words (description, examples) go first."""
    if reference := schema.get("$ref"):
        name = str(reference).rsplit("/", 1)[-1]
        if len(schema) > 1:
            yield {key: value for key, value in schema.items() if key != "$ref"}
        yield from _alternatives(top["$defs"][name], top, raw)
        return
    branches = [*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())]
    yield schema
    resolved = [found for branch in branches for found in _alternatives(branch, top, raw)]
    yield from _fitting(resolved, raw)


def _fitting(schemas: list[Schema], raw: Any) -> list[Schema]:
    """Those whose constants and required keys the value has; all of them where none fits."""
    if not isinstance(raw, Mapping):
        return schemas
    mappings = [schema for schema in schemas if schema.get("type", "object") == "object"]
    constant = [schema for schema in mappings if _constants_fit(schema, raw)] or mappings
    return [schema for schema in constant if all(key in raw for key in schema.get("required", ()))] or constant


def _constants_fit(schema: Schema, raw: Mapping[str, Any]) -> bool:
    properties = schema.get("properties", {})
    return all(raw.get(key) == inner["const"] for key, inner in properties.items() if "const" in inner)


def _below(schema: Schema, part: str | int) -> Iterator[Schema]:
    if isinstance(part, int):
        items = schema.get("items")
        if isinstance(items, Mapping):
            yield items
    elif part in schema.get("properties", {}):
        yield schema["properties"][part]
    elif isinstance(schema.get("additionalProperties"), Mapping):
        yield schema["additionalProperties"]


def _inner(value: Any, part: str | int) -> Any:
    if isinstance(value, Mapping):
        return value.get(part)
    return value[part] if isinstance(value, list) and isinstance(part, int) and part < len(value) else None


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong at a key path: `WHAT; WHAT TO DO`."""

    path: KeyPath
    what: str
    missing: bool = False
    """The key is not there at all."""


class Misfit(ValueError):
    """Raised by a model's own check of keys against each other: `path` is relative to the model."""

    def __init__(self, path: KeyPath, what: str) -> None:
        super().__init__(what)
        self.path = path


SECRETS = frozenset({"api_key", "apikey", "api-key", "token", "secret", "password", "authorization", "bearer"})

OTHER_WORDS = {
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
"""What people call a key -> what it is called here; told only where that key exists."""

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
"""For keys whose models carry none."""

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
"""The first word of pydantic's error type -> what it wants to see."""

_WRONG_TYPE = ("_type", "_parsing", "_from_float", "_unicode", "_attributes_type")
_ADVICE = {
    "a list": "write [a, b]",
    "keys and values": "write key: value in lines below it, indented",
    "text": "put it in quotes",
    "a number": "write a number",
    "a whole number": "write a whole number",
    "true or false": "write true or false",
}


def mistakes_of(
    exc: ValidationError,
    raw: Any,
    schema: Callable[[], Schema],
    tagged: Callable[[Sequence[str | int]], KeyPath] = tuple,
) -> Iterator[Mistake]:
    """All that is wrong with `raw`; `tagged` takes out of a pydantic location what is no key of the file."""
    told = (error for error in exc.errors(include_url=False) if not _is_echo(error))
    errors = [(tagged(error["loc"]), error) for error in told]
    yield from _told(errors, (), raw, raw, schema())


def coerced(raw: Any, value: Any, path: KeyPath = ()) -> Iterator[Mistake]:
    """Where true or false was taken for a number: pydantic lets it pass."""
    if isinstance(raw, bool) and isinstance(value, int | float) and not isinstance(value, bool):
        yield Mistake(path, f"found {shown(raw)}, expected a number; write a number")
    elif isinstance(raw, dict):
        for key, inner in raw.items():
            if isinstance(value, BaseModel) and hasattr(value, key):
                yield from coerced(inner, getattr(value, key), (*path, key))
            elif isinstance(value, Mapping) and key in value:
                yield from coerced(inner, value[key], (*path, key))
    elif isinstance(raw, list) and isinstance(value, list | tuple) and len(raw) == len(value):
        for index, (inner, taken) in enumerate(zip(raw, value, strict=True)):
            yield from coerced(inner, taken, (*path, index))


def shown(value: Any) -> str:
    """A value as a message quotes it, shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "keys and values"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
        return text if len(text) <= 60 else f'{text[:56]}..."'
    return json.dumps(value)


def no_such_key(key: str, known: Collection[str]) -> str:
    """The message for a key that is not among the known ones."""
    if key.lower() in SECRETS:
        return "a secret is never written in a file; set a variable and name it as api_key_env in rowmill.yaml"
    word = OTHER_WORDS.get(key.lower())
    if word in known:
        return f"no such key; did you mean {word}?"
    longer = [name for name in known if len(key) > 2 and name.startswith(key)]
    if len(longer) == 1:
        return f"no such key; did you mean {longer[0]}?"
    return f"no such key; {did_you_mean(key, known)}"


_Located = tuple[KeyPath, ErrorDetails]


def _told(errors: Sequence[_Located], base: KeyPath, here: Any, raw: Any, schema: Schema) -> Iterator[Mistake]:
    """`base`: the key path reached so far, with the value `here`; what is left of each location starts there."""
    forks: dict[KeyPath, list[_Located]] = {}
    for loc, error in errors:
        path, rest = _followed(loc, here)
        if error["type"] == "missing" and len(rest) == 1:
            yield Mistake((*base, *path, *rest), _missing((*base, *path, *rest), raw, schema), missing=True)
        elif rest and rest != ("[key]",):
            # The next word of the location names one branch of a union: what was tried there, not a key.
            forks.setdefault(path, []).append((rest, error))
        else:
            yield from _single((*base, *path), error, raw, schema)
    for path, tried in forks.items():
        yield from _fork(tried, (*base, *path), _value_at(here, path), raw, schema)


def _fork(tried: list[_Located], path: KeyPath, value: Any, raw: Any, schema: Schema) -> Iterator[Mistake]:
    """One of a union's branches was meant: the one that the value came nearest to fitting."""
    branches: dict[str | int, list[_Located]] = {}
    for loc, error in tried:
        branches.setdefault(loc[0], []).append((loc[1:], error))
    deep = [
        errors for errors in branches.values() if not all(_is_type_error(error) and not loc for loc, error in errors)
    ]
    if not deep:
        wanted = dict.fromkeys(_expected(error) for errors in branches.values() for _, error in errors)
        yield Mistake(path, _found(value, _either([want for want in wanted if want != "nothing"]), path, raw, schema))
        return
    unknown = [
        {_followed(loc, value) for loc, error in errors if error["type"] == "extra_forbidden"} for errors in deep
    ]
    common = [inner for inner, rest in set.intersection(*unknown) if not rest]
    if common:
        # No branch knows the key: the known keys of all of them are asked for the one that was meant.
        yield from (Mistake((*path, *inner), _unknown((*path, *inner), raw, schema)) for inner in common)
        return
    yield from _told(min(deep, key=len), path, value, raw, schema)


def _single(path: KeyPath, error: ErrorDetails, raw: Any, schema: Schema) -> Iterator[Mistake]:
    kind, context, found = error["type"], error.get("ctx", {}), error["input"]
    if kind == "extra_forbidden":
        yield Mistake(path, _unknown(path, raw, schema))
    elif kind == "value_error" and isinstance(problem := context.get("error"), Misfit):
        yield Mistake((*path, *problem.path), str(problem))
    elif kind in ("value_error", "assertion_error"):
        said = str(context.get("error", ""))
        yield Mistake(path, said if ";" in said else f"{said}; correct it")
    else:
        yield Mistake(path, _found(found, _expected(error), path, raw, schema))


def _expected(error: ErrorDetails) -> str:
    kind, context = error["type"], error.get("ctx", {})
    match kind:
        case "literal_error" | "enum":
            return str(context["expected"]).replace("'", "")
        case "greater_than_equal":
            return f"at least {_number(context['ge'])}"
        case "greater_than":
            return f"more than {_number(context['gt'])}"
        case "less_than_equal":
            return f"at most {_number(context['le'])}"
        case "less_than":
            return f"less than {_number(context['lt'])}"
        case "string_pattern_mismatch":
            return f"text that fits {context['pattern'].strip('^$')}"
        case "string_too_short" | "too_short":
            return "text" if kind.startswith("string") else f"at least {context['min_length']}"
        case "string_too_long" | "too_long":
            return f"at most {context['max_length']}"
        case "finite_number":
            return "a finite number"
        case "none_required":
            return "nothing"
    if _is_type_error(error):
        return _EXPECTED.get(kind.split("_")[0], "another kind of value")
    return error["msg"].removeprefix("Input should be ").removeprefix("Value should be ")


def _number(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else str(bound)


def _is_echo(error: ErrorDetails) -> bool:
    """Pydantic calls a list too short as well where an element of it is wrong: that is told already."""
    found = error["input"]
    return error["type"] == "too_short" and isinstance(found, list) and len(found) >= error["ctx"]["min_length"]


def _is_type_error(error: ErrorDetails) -> bool:
    return error["type"].endswith(_WRONG_TYPE) or error["type"] in ("none_required", "literal_error")


def _found(value: Any, expected: str, path: KeyPath, raw: Any, schema: Schema) -> str:
    choices = [choice for part in expected.split(", ") for choice in part.split(" or ")]
    if isinstance(value, str) and len(choices) > 1 and (near := did_you_mean(value, choices)).startswith("did"):
        return f"found {shown(value)}, expected {expected}; {near}"
    advice = _example(path, raw, schema)
    if advice is None and expected == "text" and isinstance(value, None | dict | list):
        advice = "write text"
    return f"found {shown(value)}, expected {expected}; {advice or _ADVICE.get(expected, 'correct it')}"


def _missing(path: KeyPath, raw: Any, schema: Schema) -> str:
    advice = _example(path, raw, schema)
    if advice is None:
        said = next((found["description"] for found in schemas_at(schema, path, raw) if "description" in found), "")
        advice = f"write {path[-1]}: ..." + (f" ({said.rstrip('.')})" if said else "")
    return f"missing; {advice}"


def _example(path: KeyPath, raw: Any, schema: Schema) -> str | None:
    """`write e.g. usd: 5.00`; None where no example is known."""
    key = next((part for part in reversed(path) if isinstance(part, str)), "")
    examples = [found["examples"][0] for found in schemas_at(schema, path, raw) if found.get("examples")]
    value = examples[0] if examples else EXAMPLES.get(key)
    if value is None or path[-1:] != (key,):
        return None
    return f"write e.g. {key}: {_written(value)}"


def _written(value: Any) -> str:
    """As it can stand in YAML."""
    if isinstance(value, float):
        return f"{value:.2f}"
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w ./<>()*-]*", value)
    return str(value) if plain else json.dumps(value)


def _unknown(path: KeyPath, raw: Any, schema: Schema) -> str:
    key, known = str(path[-1]), known_keys(schema, path[:-1], raw)
    if len(path) > 1 and key in known_keys(schema, (), raw) and not did_you_mean(key, known).startswith("did"):
        return "no such key here; it stands at the top of the file"
    near = did_you_mean(key, known).startswith("did") or OTHER_WORDS.get(key) in known
    if "params" in known and not near and key.lower() not in SECRETS:
        return "no such key; a parameter of the API goes below params, see also extra_body"
    return no_such_key(key, known)


def _either(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def _followed(loc: KeyPath, value: Any) -> tuple[KeyPath, KeyPath]:
    """The part of a location that stands in the file, and the rest."""
    for depth, part in enumerate(loc):
        listed = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if not listed and not (isinstance(value, Mapping) and part in value):
            return loc[:depth], loc[depth:]
        value = value[part]
    return loc, ()


def _value_at(value: Any, path: KeyPath) -> Any:
    for part in path:
        value = value[part]
    return value
