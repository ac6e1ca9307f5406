"""Parameters of a test of which only some run by default; `pytest -m exhaustive` runs the others."""

from collections.abc import Mapping
from typing import Any

import pytest


def every_nth(step: int, cases: Mapping[str, Any]) -> list[Any]:
    """Return id -> value as parameters; all but the first and every `step`-th after it have the marker."""
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), id=name, marks=marks(place % step > 0))
        for place, (name, value) in enumerate(cases.items())
    ]


def marks(is_exhaustive: bool) -> Any:
    """Return the marks of a parameter."""
    return [pytest.mark.exhaustive] if is_exhaustive else []
