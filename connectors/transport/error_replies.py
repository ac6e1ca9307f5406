"""Error replies of providers, whatever their shape, and rate-limit headers."""

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson
from msgspec import Struct

from connectors.records import Reply, RowError
from connectors.transport.bounded_json import parse_json
from connectors.transport.fault_table import fault_class
from connectors.transport.retry_after import finite_number, parse_duration

_STATUS_BY_CODE: Mapping[str, int] = {
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "insufficient_quota": 429,
    "invalid_api_key": 401,
    "authentication_error": 401,
    "permission_error": 403,
    "invalid_request_error": 400,
    "validation_error": 400,
    "context_length_exceeded": 400,
    "model_not_found": 404,
    "not_found_error": 404,
    # Codes of failed responses; their other codes mean a failure of the server.
    **dict.fromkeys(
        (
            "invalid_prompt",
            "data_residency_mismatch",
            "bio_policy",
            "invalid_image",
            "invalid_image_format",
            "invalid_base64_image",
            "invalid_image_url",
            "invalid_image_mode",
            "image_too_large",
            "image_too_small",
            "image_parse_error",
            "image_file_too_large",
            "image_file_not_found",
            "unsupported_image_media_type",
            "empty_image_file",
            "failed_to_download_image",
        ),
        400,
    ),
}
"""Code or type of an error in a reply with status 200 -> the status that it should have had."""
_MAX_EXCERPT_CHARACTERS = 200
_MAX_QUOTED_CHARACTERS = 20_000
_STATUS_BY_BASE_RESP: Mapping[str, int] = {
    "1001": 408, "1002": 429, "1004": 401, "1008": 402, "1026": 400, "1027": 400, "1039": 429, "1041": 429,
    "2013": 400, "2049": 401, "2056": 429,
}  # fmt: skip
"""MiniMax replies 200 with the code in `base_resp`; the other codes mean a failure of the server."""
_MAX_NESTING = 5
"""Error objects within error objects: a gateway quotes what the provider behind it has replied."""
_ERROR_KEYS = ("error", "errors", "detail", "Error", "fault")
_MESSAGE_KEYS = ("message", "msg", "error_message", "errorMessage", "detail", "error_msg", "Message", "description")
_CODE_KEYS = (
    "code",
    "type",
    "status",
    "error_type",
    "errorType",
    "error_code",
    "err_code",
    "__type",
    "reason",
    "error",
)
_GENERIC_MESSAGE = re.compile(
    r"(the )?(upstream |provider |server )?(returned )?(an? )?(upstream |provider )?(error|bad request"
    r"|request failed)[.!]?"
    r"( from (the )?(provider|upstream))?|provider returned error.*|upstream (request|error).*",
    re.I,
)
"""A gateway's words, which name no fault: what it quotes is the message."""


def row_error(reply: Reply) -> RowError:
    """Return the error in a reply without a 2xx status, or in a 200 whose body is an error object."""
    if 300 <= reply.status < 400:
        return _redirect_error(reply)
    body = _parse_or_none(reply.body)
    error = _error_object(body)
    levels = list(_levels(error))
    message = _message(levels) or _plain_excerpt(reply.body, reply.status)
    kind, code = (_text_or_json(error.get(key)) for key in ("type", "code"))
    param = _text_or_json(error.get("param")) or _location(error)
    inner_codes = [found for level in levels for found in _codes(level)]
    if code is None:
        code = next((one for level in levels[1:] if (one := _text_or_json(level.get("code"))) is not None), None)
    rest = {key: value for key, value in error.items() if key not in ("message", "type", "code", "param")}
    stated = reply.status if reply.status >= 300 else _status_in_body(error, body, code, kind)
    return RowError(
        error_class=fault_class(
            stated or reply.status,
            inner_codes,
            message,
            param=param,
            has_error_object=bool(error),
            should_retry=reply.headers.get("x-should-retry"),
        ),
        message=message,
        http_status=reply.status,
        type=kind,
        param=param,
        code=code,
        details=orjson.dumps(rest).decode() if rest else None,
        request_id=request_id(reply.headers),
    )


def is_error_body(body: Any) -> bool:
    """Return whether a parsed 2xx body is an error: vLLM sends `{"object": "error", ...}` without an `error`."""
    if not isinstance(body, dict) or body.get("choices") or body.get("data"):
        return False
    return bool(body.get("error")) or body.get("object") == "error" or _base_resp(body) is not None


def _base_resp(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return MiniMax's object of an error; None without one."""
    base = body.get("base_resp")
    return base if isinstance(base, dict) and base.get("status_code") not in (None, 0, "0") else None


def request_id(headers: Mapping[str, str]) -> str | None:
    """Return the provider's id of this exchange; None without one."""
    return headers.get("x-request-id") or headers.get("request-id") or headers.get("apim-request-id")


class RateHeaders(Struct, frozen=True):
    """The `x-ratelimit-*` headers of an API key: the tighter of the project's and the organisation's limits."""

    limit_requests: int | None = None
    """Per minute."""
    remaining_requests: int | None = None
    reset_requests_s: float | None = None
    limit_tokens: int | None = None
    """Per minute."""
    remaining_tokens: int | None = None
    reset_tokens_s: float | None = None


NO_RATE_HEADERS = RateHeaders()


def parse_rate_headers(headers: Mapping[str, str]) -> RateHeaders:
    """Parse the rate-limit headers of a reply; an invalid number or duration counts as missing."""
    get = headers.get
    requests, tokens = get("x-ratelimit-limit-requests"), get("x-ratelimit-limit-tokens")
    project = (get("x-ratelimit-limit-project-requests"), get("x-ratelimit-limit-project-tokens"))
    remaining = (get("x-ratelimit-remaining-requests"), get("x-ratelimit-remaining-tokens"))
    if requests is None and tokens is None and project == (None, None) and remaining == (None, None):
        return NO_RATE_HEADERS
    return RateHeaders(
        _smaller(_count(requests, 1), _count(project[0], 1)),
        _smaller(_count(remaining[0], 0), _count(get("x-ratelimit-remaining-project-requests"), 0)),
        _larger(_duration(get("x-ratelimit-reset-requests")), _duration(get("x-ratelimit-reset-project-requests"))),
        _smaller(_count(tokens, 1), _count(project[1], 1)),
        _smaller(_count(remaining[1], 0), _count(get("x-ratelimit-remaining-project-tokens"), 0)),
        _larger(_duration(get("x-ratelimit-reset-tokens")), _duration(get("x-ratelimit-reset-project-tokens"))),
    )


def _redirect_error(reply: Reply) -> RowError:
    """Return an error that stops the run: the provider's base_url is wrong, not the row."""
    target = reply.headers.get("location", "").partition("?")[0] or "an unnamed address"
    message = (
        f"redirected to {target}, which is not followed because the key would be sent along; "
        "correct the provider's base_url"
    )
    return RowError("access_denied", message, reply.status, request_id=request_id(reply.headers))


def _parse_or_none(body: bytes) -> Any:
    try:
        return parse_json(body)
    except orjson.JSONDecodeError:
        return None


def _error_object(body: Any) -> dict[str, Any]:
    """Return the object with the message, wherever a server puts it; empty without one."""
    if isinstance(body, list) and body:
        body = body[0]
    if isinstance(body, str) and body.lstrip()[:1] == "{":
        body = _parse_or_none(body.encode(errors="replace"))
    if not isinstance(body, dict):
        return {}
    if (base := _base_resp(body)) is not None:
        return {"message": base.get("status_msg"), "code": str(base["status_code"])}
    for key in _ERROR_KEYS:
        value = body.get(key)
        if isinstance(value, list) and value and isinstance(value[0], dict | str):
            return {"message": _list_message(value), key: value}
        if isinstance(value, dict):
            return value
        if isinstance(value, str) and value:
            others = {name: other for name, other in body.items() if name != key}
            # Some send a word under `error` and the sentence next to it.
            sentence = next(
                (body[name] for name in _MESSAGE_KEYS if name != key and isinstance(body.get(name), str)), None
            )
            if sentence and not re.search(r"\s", value):
                return {**others, "message": sentence, "code": others.get("code", value)}
            return {**others, "message": value}
    return body if any(body.get(name) for name in _MESSAGE_KEYS) else {}


def _list_message(entries: list[Any]) -> str | None:
    """Return the message of the first of several errors; FastAPI: [{"loc": ["body", "model"], "msg": ...}, ...]."""
    first = entries[0]
    if isinstance(first, str):
        return first or None
    message = next((_text_or_json(first[key]) for key in _MESSAGE_KEYS if first.get(key)), None)
    place = _place(first)
    return f"{place}: {message}" if place and message else message


def _place(entry: Mapping[str, Any]) -> str | None:
    """Return the key of the body that FastAPI's `loc` names."""
    loc = entry.get("loc")
    return ".".join(str(part) for part in loc if part != "body") or None if isinstance(loc, list) else None


def _location(error: dict[str, Any]) -> str | None:
    """Return the key of the request's body that a validation error names."""
    for level in _levels(error):
        for key in ("detail", "errors", "error"):
            entries = level.get(key)
            if isinstance(entries, list) and entries and isinstance(entries[0], dict) and (place := _place(entries[0])):
                return place
    return None


def _levels(error: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the error object, then those within it: Azure's `innererror`, what a gateway quotes, JSON in a message."""
    level: dict[str, Any] | None = error or None
    for _ in range(_MAX_NESTING):
        if level is None:
            return
        yield level
        level = _nested(level)


def _nested(error: Mapping[str, Any]) -> dict[str, Any] | None:
    metadata = error.get("metadata")
    quoted = metadata.get("raw") if isinstance(metadata, dict) else None
    for value in (error.get("innererror"), error.get("inner_error"), quoted, error.get("message"), error.get("error")):
        parsed = _quoted_json(value) if isinstance(value, str) else value
        if isinstance(parsed, dict | list) and parsed:
            # An inner error may have a code alone.
            return _error_object(parsed) or (parsed if isinstance(parsed, dict) and _codes(parsed) else None)
        if value is quoted and isinstance(value, str) and value.strip():
            return {"message": value.strip()}
    return None


def _quoted_json(text: str) -> Any:
    """Return the JSON of an error that a message consists of, or has among a few words of a gateway; else None."""
    start = min((place for place in (text.find("{"), text.find("[{")) if place >= 0), default=-1)
    if start < 0 or start > 200 or len(text) > _MAX_QUOTED_CHARACTERS:
        return None
    quoted = text[start : max(text.rfind("}"), text.rfind("]")) + 1]
    parsed = _parse_or_none(quoted.encode(errors="replace"))
    if parsed is None:
        parsed = _python_value(text, start, quoted)
    return parsed if quoted == text.strip() or _looks_like_error(parsed) else None


def _python_value(text: str, start: int, quoted: str) -> Any:
    """Return a value that a gateway has written as Python does: `{'error': ...}`, or JSON as `b'{...}'`."""
    prefix = text[max(0, start - 2) : start]
    is_bytes = prefix in ("b'", 'b"')
    try:
        value = ast.literal_eval(f"{prefix}{quoted}{prefix[1]}" if is_bytes else quoted)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return _parse_or_none(value) if isinstance(value, bytes) else value


def _looks_like_error(value: Any) -> bool:
    """Return whether a quoted value is an error and not the row's own text."""
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, dict):
        return False
    is_named = any(value.get(key) for key in ("code", "type", "status", "reason"))
    return bool(value.get("error")) or (is_named and any(isinstance(value.get(key), str) for key in _MESSAGE_KEYS))


def _message(levels: list[dict[str, Any]]) -> str | None:
    """Return the innermost message, unless an outer one says more than that something failed."""
    texts = [
        text
        for level in levels
        if (
            text := next((one for key in _MESSAGE_KEYS if isinstance(one := level.get(key), str) and one.strip()), None)
        )
    ]
    for text in texts:
        if not _GENERIC_MESSAGE.fullmatch(text.strip()) and _quoted_json(text) is None:
            return text
    return (
        texts[-1]
        if texts
        else next((_text_or_json(level[key]) for level in levels for key in _MESSAGE_KEYS if level.get(key)), None)
    )


def _codes(error: Mapping[str, Any]) -> list[str]:
    """Return codes, types and reasons of an error object; a sentence is none."""
    found = [str(error[key]) for key in _CODE_KEYS if isinstance(error.get(key), str | int) and error[key]]
    details = error.get("details")
    if isinstance(details, list):
        found += [str(entry["reason"]) for entry in details if isinstance(entry, dict) and entry.get("reason")]
    metadata = error.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("error_type"), str):
        found.append(metadata["error_type"])
    return [code for code in found if not re.search(r"\s", code)]


def _status_in_body(error: Mapping[str, Any], body: Any, code: str | None, kind: str | None) -> int | None:
    """Return the status that a 2xx reply with an error should have had; None if unknown."""
    if isinstance(body, dict) and _base_resp(body) is not None:
        return _STATUS_BY_BASE_RESP.get(str(code))
    for value in (error.get("code"), error.get("status"), error.get("status_code")):
        if isinstance(value, int | str) and re.fullmatch(r"[45]\d\d", str(value)):
            return int(value)
    return next((_STATUS_BY_CODE[word] for word in (code, kind) if word is not None and word in _STATUS_BY_CODE), None)


def _text_or_json(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value or None
    return orjson.dumps(value).decode()


def _plain_excerpt(body: bytes, status: int) -> str:
    """Return the first words of a body without an error object, e.g. a proxy's HTML page."""
    text = body[:4000].decode("utf-8", "replace")
    if "<" in text:
        text = re.sub(r"(?is)<(script|style)\b.*?(</\1>|$)|<[^>]*>", " ", text)
    text = " ".join(text.split())
    if not text:
        return f"status {status} with an empty body"
    return text if len(text) <= _MAX_EXCERPT_CHARACTERS else f"{text[:_MAX_EXCERPT_CHARACTERS]}..."


def _count(text: str | None, minimum: int) -> int | None:
    value = finite_number(text)
    return int(value) if value is not None and value >= minimum else None


def _duration(text: str | None) -> float | None:
    return None if text is None else parse_duration(text)


def _smaller(a: int | None, b: int | None) -> int | None:
    return a if b is None else b if a is None else min(a, b)


def _larger(a: float | None, b: float | None) -> float | None:
    return a if b is None else b if a is None else max(a, b)
