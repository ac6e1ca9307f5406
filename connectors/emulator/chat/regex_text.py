"""A text that matches a regular expression, for the expressions that schemas use."""

import re
import string
from functools import lru_cache
from importlib import import_module
from typing import Any

_SHORT = 32
"""Of an unbounded repetition, at most so many more than it must have."""

_CATEGORIES = {
    "CATEGORY_DIGIT": string.digits,
    "CATEGORY_SPACE": " ",
    "CATEGORY_WORD": string.ascii_lowercase,
    "CATEGORY_NOT_DIGIT": string.ascii_lowercase,
    "CATEGORY_NOT_SPACE": string.ascii_lowercase,
    "CATEGORY_NOT_WORD": "-",
}


@lru_cache(maxsize=1024)
def text_that_matches(pattern: str, number: int) -> str:
    """A text that the pattern finds a match in, the same for the same number; empty for what cannot be read."""
    try:
        parsed = import_module("re._parser").parse(pattern)
    except re.error:
        return ""
    return "".join(_made(one, number + place) for place, one in enumerate(parsed))


def _made(one: Any, number: int) -> str:
    operation, about = str(one[0]), one[1]
    match operation:
        case "LITERAL":
            return chr(about)
        case "NOT_LITERAL":
            return "b" if about == ord("a") else "a"
        case "ANY":
            return "a"
        case "IN":
            return _from_set(about, number)
        case "BRANCH":
            ways = about[1]
            return _all(ways[number % len(ways)], number)
        case "SUBPATTERN":
            return _all(about[3], number)
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            least, most, inner = about
            times = max(int(least), min(int(most), 1)) if int(most) < _SHORT else max(int(least), 1)
            return "".join(_all(inner, number + place * 7) for place in range(times))
        case _:
            # Anchors stand for no text; what looks ahead or back is left to chance.
            return ""


def _all(parts: Any, number: int) -> str:
    return "".join(_made(one, number + place) for place, one in enumerate(parts))


def _from_set(parts: Any, number: int) -> str:
    kinds = [str(kind) for kind, _ in parts]
    if "NEGATE" in kinds:
        banned = "".join(_members(part) for part in parts)
        return next(letter for letter in string.ascii_lowercase + string.printable if letter not in banned)
    letters = "".join(_members(part) for part in parts)
    return letters[number % len(letters)]


def _members(part: Any) -> str:
    kind, about = str(part[0]), part[1]
    if kind == "LITERAL":
        return chr(about)
    if kind == "RANGE":
        return "".join(chr(code) for code in range(about[0], min(about[1], about[0] + 256) + 1))
    return _CATEGORIES.get(str(about), "") if kind == "CATEGORY" else ""
