"""JSON of others, as deep as we can write it again."""

from typing import Any

import orjson

MAX_DEPTH = 200
"""Levels of lists and objects: orjson reads 1,024 of them and writes 254, some of which are our own."""


def loads(text: bytes | str) -> Any:
    """The value; orjson.JSONDecodeError for what is no JSON or nested too deeply."""
    value = orjson.loads(text)
    # Counting costs next to nothing, and hardly any reply has as many.
    opened = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
    if opened > MAX_DEPTH and _deeper(value):
        raise orjson.JSONDecodeError(f"nested deeper than {MAX_DEPTH} levels", "", 0)
    return value


def _deeper(value: Any) -> bool:
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
