"""Parameters of an API, checked by a table: each name with what its value must be."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from connectors.errors import JobError, KeyPath, did_you_mean


@dataclass(frozen=True, slots=True)
class ParamCheck:
    """What a parameter takes, in words and as a test."""

    expected: str
    fits: Callable[[Any], bool]


def number(low: float, high: float) -> ParamCheck:
    """A number, both ends allowed."""
    return ParamCheck(f"a number from {low:g} to {high:g}", lambda value: _is_number(value) and low <= value <= high)


def integer(low: int, high: int | None = None) -> ParamCheck:
    """An integer, both ends allowed."""
    words = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    return ParamCheck(words, lambda value: _is_whole(value) and low <= value and (high is None or value <= high))


FLAG = ParamCheck("true or false", lambda value: isinstance(value, bool))
MAPPING = ParamCheck("keys and values", lambda value: isinstance(value, Mapping))


text = ParamCheck("text", lambda value: isinstance(value, str) and value != "")


def text_up_to(longest: int) -> ParamCheck:
    """A text of at most so many characters."""
    return ParamCheck(f"text of at most {longest} characters", lambda value: text.fits(value) and len(value) <= longest)


def one_of(*choices: str) -> ParamCheck:
    """One of these texts."""
    return ParamCheck(" or ".join([", ".join(choices[:-1]), choices[-1]]), lambda value: value in choices)


def text_list(most: int) -> ParamCheck:
    """A text or a list of 1 to `most` texts."""
    return ParamCheck(
        f"text or a list of at most {most} texts",
        lambda value: (
            isinstance(value, str)
            or (isinstance(value, list | tuple) and 0 < len(value) <= most and all(isinstance(v, str) for v in value))
        ),
    )


def list_of(words: str, fits: Callable[[Any], bool], most: int | None = None) -> ParamCheck:
    """A list of 1 to `most` values, each of which fits."""
    told = f"a list of {words}" if most is None else f"a list of at most {most} {words}"
    return ParamCheck(
        told,
        lambda value: (
            isinstance(value, list | tuple) and 0 < len(value) <= (most or len(value)) and all(map(fits, value))
        ),
    )


def mapping_of(words: str, fits: Callable[[str, Any], bool]) -> ParamCheck:
    """Keys and values, each pair of which fits."""
    return ParamCheck(words, lambda value: isinstance(value, Mapping) and all(fits(key, v) for key, v in value.items()))


def check_params(params: Mapping[str, Any], table: Mapping[str, ParamCheck], where: KeyPath) -> None:
    """JobError, placed below `where`, at the first parameter that the table does not know or that does not fit."""
    for name, value in params.items():
        if name not in table:
            near = did_you_mean(name, table)
            advice = near if near.startswith("did") else "extra_body sends what Rowmill does not know"
            raise JobError((*where, "params", name), "no such parameter", f"{advice}")
        if not table[name].fits(value):
            raise JobError(
                (*where, "params", name), f"found {_shown(value)}, expected {table[name].expected}", "correct it"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    # The standard library's: it writes integers of any size.
    words = json.dumps(value, default=str, ensure_ascii=False, separators=(",", ":"))
    return words if len(words) <= 60 else f"{words[:60]}..."
