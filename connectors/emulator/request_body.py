"""Request bodies: a JSON object, or the fields and files of a form."""

from collections.abc import Mapping
from typing import Any

import orjson
from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from connectors.emulator.api import ApiError

MAX_BODY_BYTES = 512 * 1024 * 1024
"""Maximum size of one body."""

Files = Mapping[str, tuple[tuple[str, bytes], ...]]
NO_FILES: Files = {}


async def read_body(request: web.Request) -> tuple[dict[str, Any], Files, int]:
    """(JSON object or text fields, files of a form, bytes of text); ApiError for any other body."""
    if not request.can_read_body:
        return {}, NO_FILES, 0
    kind = request.content_type
    try:
        if kind == "multipart/form-data":
            return await _form(request)
        raw = await request.read()
    except web.HTTPRequestEntityTooLarge as exc:
        raise too_large() from exc
    except web.RequestPayloadError as exc:
        message = f"We could not read the body of your request: {malformed_part(exc) or exc}."
        raise ApiError(400, message, code="invalid_body") from exc
    if not raw:
        return {}, NO_FILES, 0
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        raise ApiError(400, f"We could not parse the JSON body of your request: {exc}.", code="invalid_json") from exc
    if not isinstance(body, dict):
        raise ApiError(400, "The JSON body of your request is not an object.", code="invalid_json")
    return body, NO_FILES, len(raw)


def malformed_part(error: BaseException | None) -> str | None:
    """What of an HTTP request was malformed, in one line, if this error says so."""
    cause = error.__cause__ if isinstance(error, web.RequestPayloadError) else error
    return " ".join(cause.message.split()).removesuffix(" ^") if isinstance(cause, HttpProcessingError) else None


def too_large() -> ApiError:
    """The API's 413 for a body above the limit."""
    return ApiError(413, f"The request is too large; the limit is {MAX_BODY_BYTES} bytes.", code="request_too_large")


async def _form(request: web.Request) -> tuple[dict[str, Any], Files, int]:
    fields: dict[str, list[str]] = {}
    files: dict[str, list[tuple[str, bytes]]] = {}
    length = 0
    try:
        reader = await request.multipart()
        async for part in reader:
            if not isinstance(part, BodyPartReader):
                raise ValueError("a part of it is a form")
            name = (part.name or "").removesuffix("[]")
            content = bytes(await part.read(decode=True))
            length += len(content)
            if length > MAX_BODY_BYTES:
                raise too_large()
            if part.filename is None:
                fields.setdefault(name, []).append(content.decode())
            else:
                files.setdefault(name, []).append((part.filename, content))
    except (ValueError, AssertionError, RuntimeError) as exc:
        raise ApiError(400, f"We could not parse the form of your request: {exc}.", code="invalid_form") from exc
    body: dict[str, Any] = {name: values[0] if len(values) == 1 else values for name, values in fields.items()}
    text_bytes = sum(len(value) for values in fields.values() for value in values)
    return body, {name: tuple(contents) for name, contents in files.items()}, text_bytes
