"""JSON objects in the text of an answer: after reasoning, in fences, between sentences, next to special tokens."""

import ast
import json
import re
from collections.abc import Iterator
from itertools import islice
from math import isfinite
from typing import Any

import orjson

from connectors.transport.bounded_json import has_bounded_depth, replace_lone_surrogates

_NAMES = r"(?:\w+:)?(?:think(?:ing)?|reason(?:ing)?|thoughts?|reflection|analysis|scratchpad|deliberation)"
_OPENING = rf"<\|?{_NAMES}\|?>|◁think▷|\[THINK\]|<\|(?:begin_of_thought|START_THINKING)\|>"
_CLOSING = rf"</\|?{_NAMES}\|?>|<\|/{_NAMES}\|>|◁/think▷|\[/THINK\]|<\|(?:end_of_thought|END_THINKING)\|>"
_MARK = re.compile(f"(?P<opening>{_OPENING})|(?P<closing>{_CLOSING})", re.I)
_FINAL_CHANNEL = re.compile(r"<\|channel\|>\s*final\b[^<]*<\|message\|>|\bassistantfinal(?=\s*[{`])")
"""The last channel of gpt-oss; the second form has lost its special tokens."""
_OTHER_CHANNEL = re.compile(r"<\|channel\|>\s*(?:analysis|commentary)\b")
_SPECIAL_TOKEN = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|</?s>|<｜[^｜<>\n]{1,40}｜>|\[/?INST\]|<(?:start|end)_of_turn>|```\w*"
)

_STRING_OR_BRACE = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}]', re.S)
_STRING_OR_COMMA = re.compile(r'("[^"\\]*+(?:\\.[^"\\]*+)*+")|,(?=\s*[}\]])', re.S)
_ESCAPE = re.compile(r"\\(.)", re.S)
_OBJECT_START = re.compile(r"\{\s*[\"}]")
_BRACE = re.compile(r"\}")
_PYTHON_START = re.compile(r"\{\s*'")
MAX_PYTHON_CHARACTERS = 20_000
MAX_PYTHON_BRACES = 50
"""A longer object in the notation of Python is not read, nor one with more closing braces."""
_WRAPPER_KEYS = frozenset({"name", "type", "id", "arguments", "parameters", "input", "function"})
"""Keys around the arguments of a call that a model has written as its answer."""


def _finite(number: str) -> float:
    value = float(number)
    if not isfinite(value):
        raise ValueError(f"{number} is no JSON number")
    return value


_decoder = json.JSONDecoder(strict=False, parse_constant=_finite, parse_float=_finite)
"""Not strict: line breaks and tabs may appear in strings as they are."""


def json_objects(text: str) -> list[dict[str, Any]]:
    """Return the JSON objects of an answer in their order; those within others are not listed.

    Objects within reasoning count only if the answer consists of nothing else. An object that does not end makes the
    whole answer doubtful: then the list is empty.
    """
    text = text.removeprefix("\ufeff")
    answer, reasoning = _without_reasoning(text)
    if not _SPECIAL_TOKEN.sub("", answer).strip():
        answer = reasoning
    try:
        return list(_objects(replace_lone_surrogates(answer)))
    except (_Unfinished, RecursionError):
        return []


class _Unfinished(Exception):
    """An object that does not end."""


def _without_reasoning(text: str) -> tuple[str, str]:
    """Return (the text outside of reasoning, the reasoning); a block that is not closed ends with the text.

    Text before a closing mark without its opening is reasoning as well: many templates put that into the prompt.
    """
    outside: list[str] = []
    inside: list[str] = []
    position, depth = 0, 0
    if channels := list(_FINAL_CHANNEL.finditer(text)):
        inside.append(text[: channels[-1].start()])
        text = text[channels[-1].end() :]
    elif _OTHER_CHANNEL.search(text):
        return "", text
    for mark in _MARK.finditer(text):
        piece = text[position : mark.start()]
        position = mark.end()
        if mark["opening"]:
            (inside if depth else outside).append(piece)
            depth += 1
        elif depth:
            inside.append(piece)
            depth -= 1
        else:
            inside += [*outside, piece]
            outside = []
    (inside if depth else outside).append(text[position:])
    return "\n".join(outside), "\n".join(inside)


def _objects(text: str) -> Iterator[dict[str, Any]]:
    position = text.find("{")
    while position >= 0:
        if _OBJECT_START.match(text, position) is not None:
            value, end = _decode(text, position)
        elif _PYTHON_START.match(text, position) is not None:
            value, end = _decode_python(text, position)
        else:
            value, end = None, position + 1
        if isinstance(value, dict):
            yield value
        position = text.find("{", end)


def wrapped_objects(value: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the object that is the only value of another, or the arguments of a call; then what that wraps."""
    inner = [each for each in value.values() if isinstance(each, dict)]
    if len(inner) == 1 and (len(value) == 1 or value.keys() <= _WRAPPER_KEYS):
        yield inner[0]
        yield from wrapped_objects(inner[0])


def _decode(text: str, start: int) -> tuple[Any, int]:
    """Return (object, its end) at this place; None for braces that close around no JSON. _Unfinished if they do not."""
    try:
        value, end = _decoder.raw_decode(text, start)
    except ValueError:
        end = _end_of_braces(text, start)
        try:
            # A comma before a closing bracket, and a backslash before what needs none, have one meaning only.
            value = _decoder.decode(_STRING_OR_COMMA.sub(_valid_string, text[start:end]))
        except ValueError:
            return None, end
    return (value if has_bounded_depth(value) else None), end


def _valid_string(found: re.Match[str]) -> str:
    """Return a string of JSON with valid escapes, and nothing for a comma."""
    return _ESCAPE.sub(_valid_escape, found[1]) if found[1] else ""


def _valid_escape(found: re.Match[str]) -> str:
    if found[1] in '"\\/bfnrtu':
        return found[0]
    return "'" if found[1] == "'" else f"\\{found[0]}"


def _decode_python(text: str, start: int) -> tuple[Any, int]:
    """Return (object, its end) of an object as Python writes it; None if there is none."""
    line = text[start : start + MAX_PYTHON_CHARACTERS]
    for end in islice((found.end() for found in _BRACE.finditer(line)), MAX_PYTHON_BRACES):
        try:
            value = ast.literal_eval(line[:end])
            orjson.dumps(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        return (value if has_bounded_depth(value) else None), start + end
    return None, start + 1


def _end_of_braces(text: str, start: int) -> int:
    depth = 0
    for found in _STRING_OR_BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(found[0], 0)
        if not depth:
            return found.end()
    raise _Unfinished


def same_json(one: Any, other: Any) -> bool:
    """Return whether two values are equal as JSON: 1, 1.0 and true differ."""
    options = orjson.OPT_SORT_KEYS
    try:
        return orjson.dumps(one, option=options) == orjson.dumps(other, option=options)
    except TypeError:  # a number of more than 64 bits
        return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
