"""JSON from other servers, with a bound on its depth so that it can be written again."""

from typing import Any

import orjson

MAX_DEPTH = 200
"""Levels of lists and objects: orjson reads 1,024 and writes 254, and Rowmill wraps replies in some of its own."""


def parse_json(text: bytes | str) -> Any:
    """Return the value; orjson.JSONDecodeError for invalid or too deeply nested JSON."""
    value = orjson.loads(text)
    # Counting brackets is cheap, and hardly any reply has this many.
    brackets = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
    if brackets > MAX_DEPTH and _is_too_deep(value):
        raise orjson.JSONDecodeError(f"nested deeper than {MAX_DEPTH} levels", "", 0)
    return value


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True
