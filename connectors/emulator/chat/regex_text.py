"""Texts that match a regular expression, for the `pattern` of a JSON Schema."""

import re
import string
from functools import lru_cache
from importlib import import_module
from typing import Any

_UNBOUNDED_REPETITIONS = 32
"""A repetition with at least this maximum counts as unbounded and gets its minimum."""

_CATEGORIES = {
    "CATEGORY_DIGIT": string.digits,
    "CATEGORY_SPACE": " ",
    "CATEGORY_WORD": string.ascii_lowercase,
    "CATEGORY_NOT_DIGIT": string.ascii_lowercase,
    "CATEGORY_NOT_SPACE": string.ascii_lowercase,
    "CATEGORY_NOT_WORD": "-",
}


@lru_cache(maxsize=1024)
def matching_text(pattern: str, number: int) -> str:
    """A text in which the pattern matches, equal for equal numbers; empty for an invalid pattern."""
    try:
        parsed = import_module("re._parser").parse(pattern)
    except re.error:
        return ""
    return "".join(_text_of_node(node, number + index) for index, node in enumerate(parsed))


def _text_of_node(node: Any, number: int) -> str:
    operation, argument = str(node[0]), node[1]
    match operation:
        case "LITERAL":
            return chr(argument)
        case "NOT_LITERAL":
            return "b" if argument == ord("a") else "a"
        case "ANY":
            return "a"
        case "IN":
            return _character_of_set(argument, number)
        case "BRANCH":
            branches = argument[1]
            return _text_of_nodes(branches[number % len(branches)], number)
        case "SUBPATTERN":
            return _text_of_nodes(argument[3], number)
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            minimum, maximum, inner = argument
            count = (
                max(int(minimum), min(int(maximum), 1))
                if int(maximum) < _UNBOUNDED_REPETITIONS
                else max(int(minimum), 1)
            )
            return "".join(_text_of_nodes(inner, number + index * 7) for index in range(count))
        case _:
            # Anchors match no text; lookarounds are ignored.
            return ""


def _text_of_nodes(nodes: Any, number: int) -> str:
    return "".join(_text_of_node(node, number + index) for index, node in enumerate(nodes))


def _character_of_set(nodes: Any, number: int) -> str:
    kinds = [str(kind) for kind, _ in nodes]
    if "NEGATE" in kinds:
        banned = "".join(_set_members(node) for node in nodes)
        return next(letter for letter in string.ascii_lowercase + string.printable if letter not in banned)
    letters = "".join(_set_members(node) for node in nodes)
    return letters[number % len(letters)]


def _set_members(node: Any) -> str:
    kind, argument = str(node[0]), node[1]
    if kind == "LITERAL":
        return chr(argument)
    if kind == "RANGE":
        return "".join(chr(code) for code in range(argument[0], min(argument[1], argument[0] + 256) + 1))
    return _CATEGORIES.get(str(argument), "") if kind == "CATEGORY" else ""
