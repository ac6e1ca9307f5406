"""Forms: their fields are text, and here become the values that the same request in JSON would hold."""

from collections.abc import Collection, Mapping
from typing import Any

import orjson

from connectors.emulator.api import ApiError, Incoming
from connectors.emulator.api_schemas import RequestSchema
from connectors.emulator.validation import check_body, missing, refuse, unknown, wrong_type

File = tuple[str, bytes]
"""(file name, content)"""

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def typed_value(text: str, types: frozenset[str]) -> Any:
    """The text as a value of one of these JSON types; the text itself if it is none, for the schema to refuse."""
    if types & {"integer", "number"}:
        return number(text)
    if "boolean" in types:
        return _BOOLEANS.get(text.lower(), text)
    if "array" in types:
        # A field that came once: a form does not show whether it is a list.
        return [text]
    if "object" in types and text.lstrip().startswith(("{", "[")):
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            return text
    return text


def number(text: str) -> Any:
    """The text as a number, or itself if it is none."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def form_values(incoming: Incoming, schema: RequestSchema) -> dict[str, Any]:
    """The fields of a form with the types that the schema states; `name[key]` fields become an object `name`.

    A JSON body stays as it is, without its nulls.
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
        else:
            values[name] = typed_value(value, schema.types_of(name)) if isinstance(value, str) else value
    return values


def query_values(incoming: Incoming, schema: RequestSchema, names: Collection[str] | None = None) -> dict[str, Any]:
    """The parameters of the URL with the types that the schema states; `names`: those to look at, None for all.

    ApiError for what the schema does not take.
    """
    query = {name: value for name, value in incoming.request.query.items() if names is None or name in names}
    values = {name: typed_value(value, schema.types_of(name)) for name, value in query.items()}
    check_body(values, schema)
    return values


def uploaded_files(incoming: Incoming, most: Mapping[str, int], required: str) -> dict[str, tuple[File, ...]]:
    """The files by field; ApiError for a field that takes none, for more than `most`, or if `required` has none."""
    for name, files in incoming.files.items():
        if name not in most:
            raise unknown(name)
        if len(files) > most[name]:
            message = f"Invalid '{name}': expected at most {most[name]} files, but got {len(files)} instead."
            raise refuse(name, message, "array_above_max_length")
    for name in most:
        if name in incoming.body:
            raise wrong_type(name, "a file", incoming.body[name])
    if not incoming.files.get(required):
        raise missing(required)
    return dict(incoming.files)


def file_too_large(most: int, size: int) -> ApiError:
    """The API's 413 for a file that is too large."""
    return ApiError(413, f"Maximum content size limit ({most}) exceeded ({size} bytes read)")
