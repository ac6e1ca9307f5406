"""Error replies, Retry-After and rate-limit headers of providers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import lru_cache
from math import isfinite
from typing import Any

import orjson

from connectors.records import ErrorClass, Reply, RowError
from connectors.transport.bounded_json import parse_json

_CONTENT_FILTER = re.compile(
    r"content[_ ]?(filter|policy|management)|responsible_?ai|content_violation|safety_block", re.I
)
_QUOTA_CODES = frozenset(
    {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_funds", "quota_exceeded"}
)
_CLASS_BY_STATUS: Mapping[int, ErrorClass] = {
    401: "access_denied",
    402: "quota",
    403: "access_denied",
    408: "timeout",
    409: "server",
    429: "rate_limit",
}
"""Any other 4xx is bad_request, any status from 500 on is server."""
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
_TRANSIENT: frozenset[ErrorClass] = frozenset({"timeout", "server"})
_MAX_EXCERPT_CHARACTERS = 200
_YEAR_S = 365 * 86400.0


def row_error(reply: Reply) -> RowError:
    """Return the error in a reply without a 2xx status, or in a 200 whose body is an error object."""
    if 300 <= reply.status < 400:
        return _redirect_error(reply)
    body = _parse_or_none(reply.body)
    error = _error_object(body)
    message, kind, code, param = (_text_or_json(error.get(key)) for key in ("message", "type", "code", "param"))
    inner = _inner_error(error)
    if code is None:
        code = _text_or_json(inner.get("code"))
    rest = {key: value for key, value in error.items() if key not in ("message", "type", "code", "param")}
    status = reply.status if reply.status >= 300 else _status_in_body(error, body, code, kind)
    codes = tuple(each.lower() for each in (code, kind, _text_or_json(inner.get("code"))) if each)
    return RowError(
        error_class=_error_class(status, codes, reply.headers.get("x-should-retry")),
        message=message or _plain_excerpt(reply.body, reply.status),
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
    return bool(body.get("error")) or body.get("object") == "error"


def request_id(headers: Mapping[str, str]) -> str | None:
    """Return the provider's id of this exchange; None without one."""
    return headers.get("x-request-id") or headers.get("request-id") or headers.get("apim-request-id")


def retry_after_seconds(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds to wait before the next request, at most a year; None if no header gives them.

    `now`: seconds since 1970.
    """
    seconds = _parse_retry_after(headers, now)
    return None if seconds is None else min(max(0.0, seconds), _YEAR_S)


def _parse_retry_after(headers: Mapping[str, str], now: float) -> float | None:
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    if value is None:
        return None
    if (seconds := _number(value)) is not None:
        return seconds
    try:
        # A date without a zone is in UTC, as in HTTP.
        date = parsedate_to_datetime(value)
        timestamp = date.timestamp() if date.tzinfo else date.replace(tzinfo=UTC).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return timestamp - now


@dataclass(frozen=True, slots=True)
class RateHeaders:
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


def _error_class(status: int, codes: tuple[str, ...], should_retry: str | None) -> ErrorClass:
    if any(_CONTENT_FILTER.search(code) for code in codes):
        return "content_filter"
    if status in (403, 429) and not _QUOTA_CODES.isdisjoint(codes):
        return "quota"
    default: ErrorClass = _CLASS_BY_STATUS.get(status, "server" if status >= 500 else "bad_request")
    # OpenAI states whether the same request can succeed later; that overrides the status.
    if should_retry == "true" and default == "bad_request":
        return "server"
    if should_retry == "false" and default in _TRANSIENT:
        return "bad_request"
    return default


def _parse_or_none(body: bytes) -> Any:
    try:
        return parse_json(body)
    except orjson.JSONDecodeError:
        return None


def _error_object(body: Any) -> dict[str, Any]:
    """Return the object with the message, wherever a server puts it; empty without one."""
    if isinstance(body, list) and body:
        body = body[0]
    if not isinstance(body, dict):
        return {}
    for key in ("error", "errors", "detail"):
        value = body.get(key)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            # FastAPI: [{"loc": [...], "msg": ...}, ...]
            return {"message": _text_or_json(value[0].get("message") or value[0].get("msg")), key: value}
        if isinstance(value, dict):
            return value
        if isinstance(value, str) and value:
            return {"message": value, **{name: other for name, other in body.items() if name != key}}
    return body if isinstance(body.get("message"), str) else {}


def _inner_error(error: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return Azure's `innererror`, which has the reason."""
    inner = error.get("innererror") or error.get("inner_error")
    return inner if isinstance(inner, dict) else {}


def _status_in_body(error: Mapping[str, Any], body: Any, code: str | None, kind: str | None) -> int:
    """Return the status that a 2xx reply with an error should have had; 500 if unknown."""
    for value in (error.get("code"), error.get("status"), error.get("status_code")):
        if isinstance(value, int | str) and re.fullmatch(r"[45]\d\d", str(value)):
            return int(value)
    return next((_STATUS_BY_CODE[word] for word in (code, kind) if word is not None and word in _STATUS_BY_CODE), 500)


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


def _number(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) else None


def _count(text: str | None, minimum: int) -> int | None:
    value = _number(text)
    return int(value) if value is not None and value >= minimum else None


_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "": 1.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:d|h|ms|m|s|us|µs|ns))+|\d+(?:\.\d+)?")
_PART = re.compile(r"(\d+(?:\.\d+)?)([a-zµ]*)")


def _duration(text: str | None) -> float | None:
    return None if text is None else _parse_duration(text)


@lru_cache(maxsize=1024)
def _parse_duration(text: str) -> float | None:
    """Return the seconds of `6m0s`, `20ms`, `1.5s` or `7`; None for anything else."""
    if not _DURATION.fullmatch(text.strip()):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def _smaller(a: int | None, b: int | None) -> int | None:
    return a if b is None else b if a is None else min(a, b)


def _larger(a: float | None, b: float | None) -> float | None:
    return a if b is None else b if a is None else max(a, b)
