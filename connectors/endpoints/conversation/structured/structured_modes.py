"""Structured modes: how a typed output is requested, and what to try next if a server refuses its schema."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, Self

import orjson

from connectors.records import RowError

STRUCTURED_MODES = ("schema", "json_object", "prompt")
"""Strictest first; if a server refuses one, the next is used."""

_WITHOUT = " without "
_LIKELY_WORDS = re.compile(
    r"schema|response_?format|json_?object|output_?format|output_?config|text\.format|structured[ _-]?output"
    r"|guided_?(?:json|decoding)|grammar|(?<![a-z0-9])formats?(?![a-z0-9])|json[ _]?mode|generation_?config",
    re.I,
)
"""Words of a refusal. A false match costs requests that are refused, and free: a mode is learned when it works."""
_STRUCTURE = frozenset({"type", "properties", "items", "required", "nullable"})
"""Keywords that make the schema what it is: without them it would describe something else."""
_ECHOES = frozenset({"input", "ctx", "body", "request", "messages", "failed_generation"})
"""Keys of an error's details that repeat the request."""
_PROSE = r" (?:context|lengths?|number|size|tokens?|input|output|requests?|prompt|allowed|of|is \d)\b"
"""Words after which a keyword is none: `maximum context length`."""
_MAX_DEPTH = 8


class StructuredMode(NamedTuple):
    """A mode, and the keywords that its schema leaves out; as text: `schema without maximum, minimum`."""

    way: str
    without: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the mode that `str` has written."""
        way, _, without = text.partition(_WITHOUT)
        return cls(way, tuple(without.split(", ")) if without else ())

    def __str__(self) -> str:
        return f"{self.way}{_WITHOUT}{', '.join(self.without)}" if self.without else self.way

    def reduce(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """Return the schema as this mode sends it."""
        reduced = _reduce(schema, frozenset(self.without)) if self.without else schema
        return dict(reduced)


def next_mode(
    mode: StructuredMode, modes: Sequence[str], schema: Mapping[str, Any], problem: RowError
) -> StructuredMode | None:
    """Return the mode to try after a refusal; None if `problem` does not refuse the schema, or no mode is left.

    `modes`: those of the wire format. First the schema goes without the keywords that the refusal names.
    """
    words = "\n".join(_words(problem))
    keywords = sorted(_keywords(mode.reduce(schema)) - _STRUCTURE) if mode.way == "schema" else []
    named = tuple(keyword for keyword in keywords if _name(keyword).search(words))
    if not named and not _LIKELY_WORDS.search(words):
        return None
    if named:
        return StructuredMode("schema", tuple(sorted({*mode.without, *named})))
    following = modes.index(mode.way) + 1
    return StructuredMode(modes[following]) if following < len(modes) else None


def _words(problem: RowError) -> Iterator[str]:
    """Yield the provider's words, wherever they are, without what repeats the request."""
    yield from (text for text in (problem.param, problem.code, problem.type) if text)
    yield from _texts(problem.message, 0)
    yield from _texts(problem.details, 0)


def _texts(value: Any, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, str):
        try:
            inner = orjson.loads(value) if value.lstrip()[:1] in ("{", "[") else None
        except orjson.JSONDecodeError:
            inner = None
        if inner is None:
            yield value
        else:
            yield from _texts(inner, depth + 1)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each, depth + 1)
    elif isinstance(value, dict):
        for key, each in value.items():
            if key not in _ECHOES:
                yield from _texts(each, depth + 1)


@cache
def _name(keyword: str) -> re.Pattern[str]:
    """Return a pattern of the keyword in camel case, in snake case, or as words."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "[ _-]?", keyword.lstrip("$"))
    return re.compile(rf"(?<![a-z0-9_]){words}(?![a-z0-9_]|{_PROSE})", re.I)


def _keywords(schema: Any) -> set[str]:
    """Return the keywords of a schema at every depth; names of properties are none."""
    if isinstance(schema, list):
        return set().union(*map(_keywords, schema))
    if not isinstance(schema, Mapping):
        return set()
    found = set(schema)
    for key, value in schema.items():
        if key in _SCHEMAS_BY_NAME and isinstance(value, Mapping):
            found.update(*map(_keywords, value.values()))
        elif key in _SCHEMAS:
            found |= _keywords(value)
    return found


def _reduce(schema: Any, without: frozenset[str]) -> Any:
    if isinstance(schema, list):
        return [_reduce(each, without) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    reduced: dict[str, Any] = {}
    for key, value in schema.items():
        if key in without:
            continue
        if key in _SCHEMAS_BY_NAME and isinstance(value, Mapping):
            reduced[key] = {name: _reduce(each, without) for name, each in value.items()}
        else:
            reduced[key] = _reduce(value, without) if key in _SCHEMAS else value
    return reduced


_SCHEMAS_BY_NAME = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_SCHEMAS = frozenset(
    {
        "items",
        "prefixItems",
        "contains",
        "additionalProperties",
        "propertyNames",
        "anyOf",
        "allOf",
        "oneOf",
        "not",
        "if",
        "then",
        "else",
    }
)
"""Keywords whose value is a schema or a list of schemas; in the others it is data, such as the values of an enum."""
