"""Checks of API parameters by a table: name -> what the value must be."""

import json
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from msgspec import Struct

from connectors.errors import JobError, KeyPath, closest


class ParamCheck(Struct, frozen=True):
    """The values that a parameter accepts, as a phrase and as a test."""

    expected: str
    fits: Callable[[Any], bool]


def number(low: float, high: float) -> ParamCheck:
    """Return the check of a number; both ends are valid."""
    return ParamCheck(f"a number from {low:g} to {high:g}", lambda value: _is_number(value) and low <= value <= high)


def integer(low: int, high: int | None = None) -> ParamCheck:
    """Return the check of an integer; both ends are valid."""
    expected = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    return ParamCheck(expected, lambda value: _is_integer(value) and low <= value and (high is None or value <= high))


FLAG = ParamCheck("true or false", lambda value: isinstance(value, bool))
MAPPING = ParamCheck("keys and values", lambda value: isinstance(value, Mapping))


text = ParamCheck("text", lambda value: isinstance(value, str) and value != "")


def text_up_to(max_characters: int) -> ParamCheck:
    """Return the check of a text with a maximum length."""
    return ParamCheck(
        f"text of at most {max_characters} characters", lambda value: text.fits(value) and len(value) <= max_characters
    )


def one_of(*choices: str) -> ParamCheck:
    """Return the check of a choice of texts."""
    return ParamCheck(" or ".join([", ".join(choices[:-1]), choices[-1]]), lambda value: value in choices)


def text_list(max_length: int) -> ParamCheck:
    """Return the check of a text or a list of 1 to `max_length` texts."""
    return ParamCheck(
        f"text or a list of at most {max_length} texts",
        lambda value: (
            isinstance(value, str)
            or (
                isinstance(value, list | tuple)
                and 0 < len(value) <= max_length
                and all(isinstance(v, str) for v in value)
            )
        ),
    )


def list_of(items: str, fits: Callable[[Any], bool], max_length: int | None = None) -> ParamCheck:
    """Return the check of a list of 1 to `max_length` values, each of which fits."""
    expected = f"a list of {items}" if max_length is None else f"a list of at most {max_length} {items}"
    return ParamCheck(
        expected,
        lambda value: (
            isinstance(value, list | tuple) and 0 < len(value) <= (max_length or len(value)) and all(map(fits, value))
        ),
    )


def mapping_of(expected: str, fits: Callable[[str, Any], bool]) -> ParamCheck:
    """Return the check of keys and values, each pair of which fits."""
    return ParamCheck(
        expected, lambda value: isinstance(value, Mapping) and all(fits(key, v) for key, v in value.items())
    )


def check_params(
    params: Mapping[str, Any],
    table: Mapping[str, ParamCheck],
    where: KeyPath,
    left_out: Mapping[str, tuple[str, str]] = MappingProxyType({}),
) -> None:
    """Raise JobError below `where` at the first parameter that is not in the table or does not fit.

    `left_out`: parameters of the API that no step takes -> the reason, and what to write in their place.
    """
    for name, value in params.items():
        if name in left_out:
            raise JobError((*where, "params", name), *left_out[name])
        if name not in table:
            match = closest(name, table)
            remedy = f"did you mean {match}?" if match else "write it in extra_body if the API has it"
            raise JobError((*where, "params", name), "no such parameter", remedy)
        if not table[name].fits(value):
            raise JobError(
                (*where, "params", name), f"found {_json_excerpt(value)}, expected {table[name].expected}", "correct it"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _json_excerpt(value: Any) -> str:
    # The standard library writes integers of any size.
    text = json.dumps(value, default=str, ensure_ascii=False, separators=(",", ":"))
    return text if len(text) <= 60 else f"{text[:60]}..."
