"""Strict validation: tables of checks, each a 400 that names the parameter, in the API's wording."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from connectors.emulator.api import ApiError
from connectors.emulator.real_models.catalogue import Task, check_real_model

Check = Callable[[Any, str], None]
"""(value, where it stands) -> ApiError for what it should not be."""

ANY_OF_THEM = 12
"""So many allowed values are listed in a message."""


def refuse(where: str, message: str, code: str) -> ApiError:
    """A 400 about one parameter."""
    return ApiError(400, message, param=where, code=code)


def wrong_type(where: str, expected: str, value: Any) -> ApiError:
    """A 400 for a value of another type."""
    return refuse(
        where, f"Invalid type for '{where}': expected {expected}, but got {kind_of(value)} instead.", "invalid_type"
    )


def check_fields(
    body: Mapping[str, Any], checks: Mapping[str, Check], required: Sequence[str], where: str = ""
) -> None:
    """Every field known and as it should be, and none of the required missing; `where`: a prefix such as `tools[0].`"""
    for name in required:
        if body.get(name) is None:
            path = f"{where}{name}"
            raise refuse(path, f"Missing required parameter: '{path}'.", "missing_required_parameter")
    for name, value in body.items():
        check = checks.get(name)
        if check is None:
            path = f"{where}{name}"
            raise refuse(path, f"Unknown parameter: '{path}'.", "unknown_parameter")
        check(value, f"{where}{name}")


def string(longest: int | None = None, shortest: int = 0) -> Check:
    """A text of so many characters."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, str):
            raise wrong_type(where, "a string", value)
        if longest is not None and len(value) > longest:
            raise refuse(
                where,
                f"Invalid '{where}': string too long. Expected a string with maximum length {longest}, but got a "
                f"string with length {len(value)} instead.",
                "string_above_max_length",
            )
        if len(value) < shortest:
            raise refuse(where, f"Invalid '{where}': empty string.", "empty_string")

    return check


def number(least: float | None = None, most: float | None = None) -> Check:
    """A number from `least` to `most`."""

    def check(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong_type(where, "a number", value)
        _within(value, least, most, where, "decimal")

    return check


def whole(least: int | None = None, most: int | None = None) -> Check:
    """A whole number from `least` to `most`."""

    def check(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong_type(where, "an integer", value)
        _within(value, least, most, where, "integer")

    return check


def flag(value: Any, where: str) -> None:
    """true or false."""
    if not isinstance(value, bool):
        raise wrong_type(where, "a boolean", value)


def one_of(*allowed: str) -> Check:
    """One of these words."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, str):
            raise wrong_type(where, "a string", value)
        if value not in allowed:
            raise refuse(where, f"Invalid value: '{value}'. Supported values are: {listed(allowed)}.", "invalid_value")

    return check


def nullable(inner: Check) -> Check:
    """Null, or what `inner` takes."""

    def check(value: Any, where: str) -> None:
        if value is not None:
            inner(value, where)

    return check


def list_of(inner: Check, least: int = 0, most: int | None = None) -> Check:
    """A list of so many."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list):
            raise wrong_type(where, "an array", value)
        if len(value) < least:
            raise refuse(
                where,
                f"Invalid '{where}': array too short. Expected an array with minimum length {least}, but got an array "
                f"with length {len(value)} instead.",
                "array_below_min_length",
            )
        if most is not None and len(value) > most:
            raise refuse(
                where,
                f"Invalid '{where}': array too long. Expected an array with maximum length {most}, but got an array "
                f"with length {len(value)} instead.",
                "array_above_max_length",
            )
        for place, one in enumerate(value):
            inner(one, f"{where}[{place}]")

    return check


def record(checks: Mapping[str, Check], required: Sequence[str] = ()) -> Check:
    """An object of these fields and no others."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise wrong_type(where, "an object", value)
        check_fields(value, checks, required, f"{where}.")

    return check


def tagged(kinds: Mapping[str, Check], tag: str = "type") -> Check:
    """An object whose `tag` says which check holds."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise wrong_type(where, "an object", value)
        if value.get(tag) is None:
            raise refuse(
                f"{where}.{tag}", f"Missing required parameter: '{where}.{tag}'.", "missing_required_parameter"
            )
        kind = value[tag]
        inner = kinds.get(kind) if isinstance(kind, str) else None
        if inner is None:
            raise refuse(
                f"{where}.{tag}",
                f"Invalid value: '{kind}'. Supported values are: {listed(tuple(kinds))}.",
                "invalid_value",
            )
        inner(value, where)

    return check


def either(expected: str, *choices: tuple[type, Check]) -> Check:
    """What the first choice of the value's type takes; `expected` tells the types in words."""

    def check(value: Any, where: str) -> None:
        for kind, inner in choices:
            if isinstance(value, kind):
                return inner(value, where)
        raise wrong_type(where, expected, value)

    return check


def anything(value: Any, where: str) -> None:
    """Not looked at."""


def json_object(value: Any, where: str) -> None:
    """Any object."""
    if not isinstance(value, dict):
        raise wrong_type(where, "an object", value)


def metadata(value: Any, where: str) -> None:
    """At most 16 pairs of texts, keys of 64 and values of 512 characters."""
    json_object(value, where)
    if len(value) > 16:
        raise refuse(
            where,
            f"Invalid '{where}': too many properties. Expected an object with at most 16 properties, but got an "
            f"object with {len(value)} properties instead.",
            "object_above_max_properties",
        )
    for name, one in value.items():
        string(longest=64)(name, where)
        string(longest=512)(one, f"{where}.{name}")


def check_model(body: Mapping[str, Any], task: Task | None = None) -> str:
    """The model asked for; ApiError 404 for names that begin with `no-such-` and for real ones that cannot do this."""
    model: str = body["model"]
    check_real_model(model, task)
    if model.startswith("no-such-"):
        raise model_not_found(model)
    return model


def model_not_found(model: str) -> ApiError:
    """The API's 404 for a model."""
    return ApiError(
        404,
        f"The model `{model}` does not exist or you do not have access to it.",
        param="model",
        code="model_not_found",
    )


def kind_of(value: Any) -> str:
    """The JSON type of a value, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    for kind, word in ((int, "an integer"), (float, "a decimal"), (str, "a string"), (list, "an array")):
        if isinstance(value, kind):
            return word
    return "an object"


def listed(words: Sequence[str]) -> str:
    """`'a', 'b', and 'c'`."""
    quoted = [f"'{word}'" for word in words[:ANY_OF_THEM]]
    if len(words) > ANY_OF_THEM:
        return f"{', '.join(quoted)}, and others"
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])}, and {quoted[-1]}"


def _within(value: float, least: float | None, most: float | None, where: str, kind: str) -> None:
    if least is not None and not value >= least:
        raise refuse(
            where,
            f"Invalid '{where}': {kind} below minimum value. Expected a value >= {least}, but got {value} instead.",
            f"{kind}_below_min_value",
        )
    if most is not None and not value <= most:
        raise refuse(
            where,
            f"Invalid '{where}': {kind} above maximum value. Expected a value <= {most}, but got {value} instead.",
            f"{kind}_above_max_value",
        )
