"""JSON from other servers: with a bound on its depth so that it can be written again, and valid Unicode only."""

import json
import re
from typing import Any

import orjson

MAX_DEPTH = 200
"""Levels of lists and objects: orjson reads 1,024 and writes 254, and Rowmill wraps replies in some of its own."""

LARGE_BYTES = 1 << 16
"""Size from which on finding brackets one by one is faster than counting all: vectors in base64 have few."""

_HIGH, _LOW = "[dD][89abAB][0-9a-fA-F]{2}", "[dD][c-fC-F][0-9a-fA-F]{2}"
_ESCAPE = re.compile(rf"\\(?:(u{_HIGH}\\u{_LOW})|(u[dD][89a-fA-F][0-9a-fA-F]{{2}})|.)", re.S)
_STRING_OR_NAN = re.compile(r'"(?:[^"\\]|\\.)*"|(-?\b(?:NaN|Infinity)\b)', re.S)


def parse_json(text: bytes | str, keeps_halves: bool = False) -> Any:
    """Return the value; orjson.JSONDecodeError for invalid or too deeply nested JSON.

    The answer is paid for: what is no Unicode (half a surrogate pair, bytes that are not UTF-8) is replaced by U+FFFD,
    and Python's NaN and Infinity, which are no JSON, by null.
    `keeps_halves`: half a pair stays, since the other half may follow in another text.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        text = text if isinstance(text, str) else text.decode("utf-8", "replace")
        value = orjson.loads(_without_nan(replace_lone_surrogates(text)).encode("utf-8", "replace"))
        if keeps_halves:
            value = json.loads(text)
    if isinstance(text, bytes):
        has_many_brackets = _has_many_brackets(text)
    else:
        has_many_brackets = text.count("[") + text.count("{") > MAX_DEPTH
    if has_many_brackets and not has_bounded_depth(value):
        raise orjson.JSONDecodeError(f"nested deeper than {MAX_DEPTH} levels", "", 0)
    return value


def _has_many_brackets(text: bytes) -> bool:
    """Return whether a text has enough brackets to be nested too deeply; hardly any reply has."""
    if len(text) < LARGE_BYTES:
        return text.count(b"[") + text.count(b"{") > MAX_DEPTH
    found = 0
    for bracket in b"[{":
        place = text.find(bracket)
        while place >= 0 and found <= MAX_DEPTH:
            found += 1
            place = text.find(bracket, place + 1)
    return found > MAX_DEPTH


def replace_lone_surrogates(text: str) -> str:
    """Return JSON text with U+FFFD in place of every escape that is half a surrogate pair."""
    if "\\ud" not in text and "\\uD" not in text:
        return text
    return _ESCAPE.sub(lambda found: "\ufffd" if found[2] else found[0], text)


def _without_nan(text: str) -> str:
    """Return JSON text with null in place of each NaN and Infinity outside of strings."""
    if "NaN" not in text and "Infinity" not in text:
        return text
    return _STRING_OR_NAN.sub(lambda found: found[0] if found[1] is None else "null", text)


def has_bounded_depth(value: Any) -> bool:
    """Return whether a value is nested no deeper than MAX_DEPTH."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return True
    return False
