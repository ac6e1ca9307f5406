"""Form and query parameters: texts converted to the types that the schema states."""

from collections.abc import Collection, Mapping
from typing import Any

import orjson

from connectors.emulator.api import ApiError, ApiRequest
from connectors.emulator.api_schemas import RequestSchema
from connectors.emulator.validation import check_body, missing, refuse, unknown, wrong_type

File = tuple[str, bytes]
"""(file name, content)"""

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def typed_value(text: str, types: frozenset[str]) -> Any:
    """The text as a value of one of these JSON types, or unchanged if it has none of them (the schema rejects it)."""
    if types & {"integer", "number"}:
        return number(text)
    if "boolean" in types:
        return _BOOLEANS.get(text.lower(), text)
    if "array" in types:
        # A form does not show whether a single field is a list.
        return [text]
    if "object" in types and text.lstrip().startswith(("{", "[")):
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            return text
    return text


def number(text: str) -> Any:
    """The text as a number, or unchanged if it is not one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def form_values(api_request: ApiRequest, schema: RequestSchema) -> dict[str, Any]:
    """The fields of a form with the types that the schema states; `name[key]` fields become an object `name`.

    A JSON body stays as it is, without its nulls.
    """
    if api_request.http_request.content_type != "multipart/form-data":
        return {name: value for name, value in api_request.body.items() if value is not None}
    values: dict[str, Any] = {}
    for name, value in api_request.body.items():
        whole, bracket, key = name.removesuffix("]").partition("[")
        if bracket:
            entry = values.setdefault(whole, {})
            if not isinstance(entry, dict):
                raise wrong_type(whole, "an object", entry)
            entry[key] = number(value) if isinstance(value, str) else value
        else:
            values[name] = typed_value(value, schema.types_of(name)) if isinstance(value, str) else value
    return values


def query_values(
    api_request: ApiRequest, schema: RequestSchema, names: Collection[str] | None = None
) -> dict[str, Any]:
    """The parameters of the URL with the types that the schema states; `names`: those to read, None for all.

    ApiError for what the schema does not allow.
    """
    query = {name: value for name, value in api_request.http_request.query.items() if names is None or name in names}
    values = {name: typed_value(value, schema.types_of(name)) for name, value in query.items()}
    check_body(values, schema)
    return values


def uploaded_files(
    api_request: ApiRequest, max_counts: Mapping[str, int], required: str
) -> dict[str, tuple[File, ...]]:
    """The files by field; ApiError for an unknown field, more than `max_counts`, or a missing `required` field."""
    for name, files in api_request.files.items():
        if name not in max_counts:
            raise unknown(name)
        if len(files) > max_counts[name]:
            message = f"Invalid '{name}': expected at most {max_counts[name]} files, but got {len(files)} instead."
            raise refuse(name, message, "array_above_max_length")
    for name in max_counts:
        if name in api_request.body:
            raise wrong_type(name, "a file", api_request.body[name])
    if not api_request.files.get(required):
        raise missing(required)
    return dict(api_request.files)


def file_too_large(limit: int, size: int) -> ApiError:
    """The API's 413 for a file above the limit."""
    return ApiError(413, f"Maximum content size limit ({limit}) exceeded ({size} bytes read)")
