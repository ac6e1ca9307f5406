"""What a provider says besides its answers: errors in its own words, when to come back, how much is left."""

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
from connectors.transport.bounded_json import loads

_FILTERED = re.compile(r"content[_ ]?(filter|policy|management)|responsible_?ai|content_violation|safety_block", re.I)
_NO_MONEY = frozenset(
    {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_funds", "quota_exceeded"}
)
_BY_STATUS: Mapping[int, ErrorClass] = {
    401: "access_denied",
    402: "quota",
    403: "access_denied",
    408: "timeout",
    409: "server",
    429: "rate_limit",
}
"""Every other 4xx is bad_request, all from 500 on server."""
_BY_WORD: Mapping[str, int] = {
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
    # Of failed responses; their other codes tell a failure of the server.
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
"""An error in a reply with status 200: its code or type -> the status it would have had."""
_PASSING: frozenset[ErrorClass] = frozenset({"timeout", "server"})
_SHOWN = 200
_YEAR = 365 * 86400.0


def row_error(reply: Reply) -> RowError:
    """The error that a reply tells: one without a 2xx status, or a 200 whose body is an error object."""
    if 300 <= reply.status < 400:
        return _redirected(reply)
    body = _json_of(reply.body)
    error = _error_object(body)
    message, kind, code, param = (_text(error.get(key)) for key in ("message", "type", "code", "param"))
    inner = _innermost(error)
    if code is None:
        code = _text(inner.get("code"))
    rest = {key: value for key, value in error.items() if key not in ("message", "type", "code", "param")}
    status = reply.status if reply.status >= 300 else _status_told(error, body, code, kind)
    words = tuple(word.lower() for word in (code, kind, _text(inner.get("code"))) if word)
    return RowError(
        error_class=_class(status, words, reply.headers.get("x-should-retry")),
        message=message or _squashed(reply.body, reply.status),
        http_status=reply.status,
        type=kind,
        param=param,
        code=code,
        details=orjson.dumps(rest).decode() if rest else None,
        request_id=request_id(reply.headers),
    )


def is_error_body(body: Any) -> bool:
    """Whether a parsed 2xx body is an error after all: vLLM's is `{"object": "error", ...}` without an `error`."""
    if not isinstance(body, dict) or body.get("choices") or body.get("data"):
        return False
    return bool(body.get("error")) or body.get("object") == "error"


def request_id(headers: Mapping[str, str]) -> str | None:
    """What the provider calls this exchange; None where it has no name for it."""
    return headers.get("x-request-id") or headers.get("request-id") or headers.get("apim-request-id")


def retry_after_seconds(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds until the provider wants to be asked again, at most a year; None where it does not say. `now`: seconds
    since 1970."""
    told = _told_wait(headers, now)
    return None if told is None else min(max(0.0, told), _YEAR)


def _told_wait(headers: Mapping[str, str], now: float) -> float | None:
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    said = headers.get("retry-after")
    if said is None:
        return None
    if (seconds := _number(said)) is not None:
        return seconds
    try:
        # A date without a zone is taken as UTC, as HTTP's dates are.
        when = parsedate_to_datetime(said)
        moment = when.timestamp() if when.tzinfo else when.replace(tzinfo=UTC).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return moment - now


@dataclass(frozen=True, slots=True)
class RateHeaders:
    """What `x-ratelimit-*` says of the key: the project's or the organisation's, whichever is tighter."""

    limit_requests: int | None = None
    """A minute."""
    remaining_requests: int | None = None
    reset_requests_s: float | None = None
    limit_tokens: int | None = None
    """A minute."""
    remaining_tokens: int | None = None
    reset_tokens_s: float | None = None


NO_RATE_HEADERS = RateHeaders()


def parse_rate_headers(headers: Mapping[str, str]) -> RateHeaders:
    """The limits that a reply tells; what is no number or duration counts as not said."""
    get = headers.get
    requests, tokens = get("x-ratelimit-limit-requests"), get("x-ratelimit-limit-tokens")
    more = (get("x-ratelimit-limit-project-requests"), get("x-ratelimit-limit-project-tokens"))
    left = (get("x-ratelimit-remaining-requests"), get("x-ratelimit-remaining-tokens"))
    if requests is None and tokens is None and more == (None, None) and left == (None, None):
        return NO_RATE_HEADERS
    return RateHeaders(
        _least(_count(requests, 1), _count(more[0], 1)),
        _least(_count(left[0], 0), _count(get("x-ratelimit-remaining-project-requests"), 0)),
        _longest(_duration(get("x-ratelimit-reset-requests")), _duration(get("x-ratelimit-reset-project-requests"))),
        _least(_count(tokens, 1), _count(more[1], 1)),
        _least(_count(left[1], 0), _count(get("x-ratelimit-remaining-project-tokens"), 0)),
        _longest(_duration(get("x-ratelimit-reset-tokens")), _duration(get("x-ratelimit-reset-project-tokens"))),
    )


def _redirected(reply: Reply) -> RowError:
    """Every request would be sent elsewhere: nothing is wrong with the row, so that its failure is not kept."""
    target = reply.headers.get("location", "").partition("?")[0] or "an address that it does not name"
    message = f"redirected to {target}; that is not followed, as the key would go along: mend the provider's base_url"
    return RowError("access_denied", message, reply.status, request_id=request_id(reply.headers))


def _class(status: int, words: tuple[str, ...], should_retry: str | None) -> ErrorClass:
    if any(_FILTERED.search(word) for word in words):
        return "content_filter"
    if status in (403, 429) and any(word in _NO_MONEY for word in words):
        return "quota"
    usual: ErrorClass = _BY_STATUS.get(status, "server" if status >= 500 else "bad_request")
    # OpenAI's own word on whether the same request can succeed later goes before the status.
    if should_retry == "true" and usual == "bad_request":
        return "server"
    if should_retry == "false" and usual in _PASSING:
        return "bad_request"
    return usual


def _json_of(body: bytes) -> Any:
    try:
        return loads(body)
    except orjson.JSONDecodeError:
        return None


def _error_object(body: Any) -> dict[str, Any]:
    """The object that holds the message, wherever a server puts it; empty where there is none."""
    if isinstance(body, list) and body:
        body = body[0]
    if not isinstance(body, dict):
        return {}
    for key in ("error", "errors", "detail"):
        said = body.get(key)
        if isinstance(said, list) and said and isinstance(said[0], dict):
            # FastAPI: [{"loc": [...], "msg": ...}, ...]
            return {"message": _text(said[0].get("message") or said[0].get("msg")), key: said}
        if isinstance(said, dict):
            return said
        if isinstance(said, str) and said:
            return {"message": said, **{name: value for name, value in body.items() if name != key}}
    return body if isinstance(body.get("message"), str) else {}


def _innermost(error: Mapping[str, Any]) -> Mapping[str, Any]:
    """Azure tells the reason in `innererror`."""
    inner = error.get("innererror") or error.get("inner_error")
    return inner if isinstance(inner, dict) else {}


def _status_told(error: Mapping[str, Any], body: Any, code: str | None, kind: str | None) -> int:
    """Of a 2xx reply with an error in it: the status that it should have had; 500 where nothing tells."""
    for said in (error.get("code"), error.get("status"), error.get("status_code")):
        if isinstance(said, int | str) and re.fullmatch(r"[45]\d\d", str(said)):
            return int(said)
    return next((_BY_WORD[word] for word in (code, kind) if word is not None and word in _BY_WORD), 500)


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value or None
    return orjson.dumps(value).decode()


def _squashed(body: bytes, status: int) -> str:
    """The first words of a body that is no error object, e.g. a proxy's HTML page."""
    text = body[:4000].decode("utf-8", "replace")
    if "<" in text:
        text = re.sub(r"(?is)<(script|style)\b.*?(</\1>|$)|<[^>]*>", " ", text)
    text = " ".join(text.split())
    if not text:
        return f"status {status} without a word"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _number(said: str | None) -> float | None:
    if said is None:
        return None
    try:
        value = float(said)
    except ValueError:
        return None
    return value if isfinite(value) else None


def _count(said: str | None, least: int) -> int | None:
    if said is None:
        return None
    value = _number(said)
    return int(value) if value is not None and value >= least else None


_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "": 1.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:d|h|ms|m|s|us|µs|ns))+|\d+(?:\.\d+)?")
_PART = re.compile(r"(\d+(?:\.\d+)?)([a-zµ]*)")


def _duration(said: str | None) -> float | None:
    return None if said is None else _seconds(said)


@lru_cache(maxsize=1024)
def _seconds(said: str) -> float | None:
    """Of `6m0s`, `20ms`, `1.5s`, `7`; None for anything else."""
    if not _DURATION.fullmatch(said.strip()):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(said))


def _least(one: int | None, other: int | None) -> int | None:
    return one if other is None else other if one is None else min(one, other)


def _longest(one: float | None, other: float | None) -> float | None:
    return one if other is None else other if one is None else max(one, other)
