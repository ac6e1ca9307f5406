"""Forms: their fields are text, and here become the values that the same request in JSON would hold."""

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from connectors.emulator.api import ApiError, Incoming
from connectors.emulator.validation import check_fields, refuse, wrong_type

Reading = Callable[[str], Any]
"""Text -> value, or the text itself if it is no such value: the check of the field then refuses it."""

File = tuple[str, bytes]
"""(file name, content)"""


def number(text: str) -> Any:
    """A whole or decimal number."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def flag(text: str) -> Any:
    """True or false."""
    return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)


def json_value(text: str) -> Any:
    """An object or a list written as JSON, or plain text."""
    if not text.lstrip().startswith(("{", "[")):
        return text
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def listed(text: str) -> Any:
    """A list of one: it came once, and without a second there is no telling."""
    return [text]


def form_values(incoming: Incoming, readings: Mapping[str, Reading]) -> dict[str, Any]:
    """The fields of a form with the values that `readings` find; `name[key]` fields become an object `name`.

    What came as JSON is left alone, but for a null, which is the same as nothing.
    """
    if incoming.request.content_type != "multipart/form-data":
        return {name: value for name, value in incoming.body.items() if value is not None}
    values: dict[str, Any] = {}
    for name, value in incoming.body.items():
        whole, bracket, key = name.removesuffix("]").partition("[")
        if bracket:
            entry = values.setdefault(whole, {})
            if not isinstance(entry, dict):
                raise wrong_type(whole, "an object", entry)
            entry[key] = number(value) if isinstance(value, str) else value
        elif isinstance(value, str) and name in readings:
            values[name] = readings[name](value)
        else:
            values[name] = value
    return values


def files_of(incoming: Incoming, most: Mapping[str, int], required: str) -> dict[str, tuple[File, ...]]:
    """The files by field; ApiError for a field that takes none, for more than `most`, or if `required` has none."""
    for name, files in incoming.files.items():
        if name not in most:
            raise refuse(name, f"Unknown parameter: '{name}'.", "unknown_parameter")
        if len(files) > most[name]:
            message = f"Invalid '{name}': expected at most {most[name]} files, but got {len(files)} instead."
            raise refuse(name, message, "array_above_max_length")
    for name in most:
        if name in incoming.body:
            raise wrong_type(name, "a file", incoming.body[name])
    if not incoming.files.get(required):
        check_fields({}, {}, (required,))
    return dict(incoming.files)


def too_many_bytes(most: int, size: int) -> ApiError:
    """The API's 413 for a file that is too large."""
    return ApiError(413, f"Maximum content size limit ({most}) exceeded ({size} bytes read)")
