"""Retry-After: the wait that a reply asks for, in its headers, in keys of its body, or in words."""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from math import isfinite
from typing import Any

import orjson

from connectors.records import Reply
from connectors.transport.bounded_json import parse_json
from connectors.transport.fault_table import without_quotations

_YEAR_S = 365 * 86400.0
_FIRST_EPOCH_S = 1e9
"""A larger number of seconds is a point in time."""
_FIRST_EPOCH_MS = 1e12
_MAX_DEPTH = 6
"""Levels of an error body in which a wait is looked for."""
_MAX_ERROR_BYTES = 1 << 20
_MAX_WORDS_BYTES = 20_000

_MS_HEADERS = ("retry-after-ms", "x-ms-retry-after-ms", "x-retry-after-ms")
_HEADERS = ("retry-after", "x-retry-after", "x-ratelimit-retry-after", "x-ratelimit-reset-after", "ratelimit-reset")
_RESET_HEADERS = ("x-ratelimit-reset",)
"""Seconds, or a point in time: they count only if the reply is a 429."""

_KEYS = frozenset({"retryafter", "retrydelay", "retryafterseconds", "retryafters", "retryin", "retryinseconds"})
"""Keys in lower case, without `_` and `-`."""
_MS_KEYS = frozenset({"retryafterms", "retryaftermilliseconds", "retrydelayms"})

_UNIT_SECONDS = {
    "d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9,
    "day": 86400.0, "hour": 3600.0, "hr": 3600.0, "minute": 60.0, "min": 60.0, "second": 1.0, "sec": 1.0,
    "millisecond": 1e-3, "msec": 1e-3,
}  # fmt: skip
_UNIT = r"(?:days?|hours?|hrs?|minutes?|mins?|milliseconds?|msecs?|seconds?|secs?|ms|us|µs|ns|d|h|m|s)(?![a-z])"
_PART = rf"\d+(?:\.\d+)?\s*{_UNIT}"
_PARTS = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zµ]+)", re.I)
_SHORT_PARTS = re.compile(r"(?:\d+(?:\.\d+)?(?:d|h|ms|m|s|us|µs|ns))+|\d+(?:\.\d+)?")
# Compiled at the first error: that takes 20 ms.
_WORDS = (
    r"\b(?:try|retry|retried|retrying|wait(?:ing)?|come back|available|resets?|reset time|again|resume|refills?)\b"
    r"[^.;]{0,60}?\b(?:in|after|for|at least|about|:)?\s*"
    rf"((?:{_PART}(?:[\s,]*(?:and\s+)?)?)+|(?:\d+(?:\.\d+)?(?:d|h|ms|m|s))+(?![a-z]))"
)
_DATE_WORDS = (
    r"\b(?:try|retry|wait|available|resets?|regain|again|resume|until|access)\b[^;]{0,60}?\b(?:on|at|until|after)\s+"
    r"(\d{4}-\d\d-\d\d)(?:(?:T|\s+at\s+|\s+)(\d\d:\d\d(?::\d\d)?)(?:\.\d+)?)?"
)


def retry_after_of(reply: Reply, now: float) -> float | None:
    """Return the seconds after which the provider wants to be asked again, at most a year; None if it states none.

    `now`: seconds since 1970. A body is read only if it is an error's.
    """
    seconds = _in_headers(reply.headers, now, reply.status == 429)
    if seconds is None and 0 < len(reply.body) <= _MAX_ERROR_BYTES and not reply.body.startswith(b"<"):
        seconds = _in_body(reply.body, now, is_error=reply.status >= 300)
    return None if seconds is None else min(max(0.0, seconds), _YEAR_S)


def retry_after_seconds(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds to wait before the next request, at most a year; None if no header gives them."""
    seconds = _in_headers(headers, now, is_rate_limit=False)
    return None if seconds is None else min(max(0.0, seconds), _YEAR_S)


@lru_cache(maxsize=1024)
def parse_duration(text: str) -> float | None:
    """Return the seconds of `6m0s`, `20ms`, `1.5s` or `7`; None for anything else."""
    if not _SHORT_PARTS.fullmatch(text.strip()):
        return None
    number = finite_number(text)
    return number if number is not None else _sum_of_parts(text)


def _in_headers(headers: Mapping[str, str], now: float, is_rate_limit: bool) -> float | None:
    for name in _MS_HEADERS:
        if (milliseconds := finite_number(headers.get(name))) is not None:
            return milliseconds / 1000
    for name in _HEADERS if not is_rate_limit else (*_HEADERS, *_RESET_HEADERS):
        if (value := headers.get(name)) is not None and (seconds := _seconds(value, now)) is not None:
            return seconds
    return None


def _seconds(value: str, now: float) -> float | None:
    """Return the seconds of a number, a point in time, a duration or a date."""
    if (number := finite_number(value)) is not None:
        return _after_now(number, now)
    if (duration := parse_duration(value)) is not None:
        return duration
    try:
        # A date without a zone is in UTC, as in HTTP.
        date = parsedate_to_datetime(value)
        timestamp = date.timestamp() if date.tzinfo else date.replace(tzinfo=UTC).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return timestamp - now


def _after_now(number: float, now: float) -> float:
    if number >= _FIRST_EPOCH_MS:
        return number / 1000 - now
    return number - now if number >= _FIRST_EPOCH_S else number


def _in_body(body: bytes, now: float, is_error: bool) -> float | None:
    """Return the longest wait that a body states; of a 2xx reply only its `error` counts, no answer's text."""
    try:
        parsed = parse_json(body)
    except orjson.JSONDecodeError:
        return _in_words(body[:_MAX_WORDS_BYTES].decode("utf-8", "replace"), now) if is_error else None
    if not is_error:
        parsed = {"error": parsed.get("error")} if isinstance(parsed, dict) else None
    waits: list[float] = []
    texts: list[str] = []
    for key, value in _leaves(parsed, 0):
        plain = key.lower().replace("_", "").replace("-", "")
        if plain in _MS_KEYS and (milliseconds := finite_number(str(value))) is not None:
            waits.append(milliseconds / 1000)
        elif plain in _KEYS and (seconds := _seconds(str(value), now)) is not None:
            waits.append(seconds)
        elif plain in ("xratelimitreset", "ratelimitreset") and (number := finite_number(str(value))) is not None:
            waits.append(_after_now(number, now))
        elif plain in ("message", "error", "detail", "msg", "raw", "reason") and isinstance(value, str):
            texts.append(value)
    if waits:
        return max(waits)
    found = [wait for text in texts if (wait := _in_words(text, now)) is not None]
    return max(found, default=None)


def _leaves(value: Any, depth: int, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (key, value) pairs of a body, also of JSON within its strings; `{seconds, nanos}` counts as a value."""
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, dict):
        if "seconds" in value and set(value) <= {"seconds", "nanos"}:
            nanos = finite_number(str(value.get("nanos", 0))) or 0.0
            yield key, (finite_number(str(value["seconds"])) or 0.0) + nanos / 1e9
            return
        for name, inner in value.items():
            yield from _leaves(inner, depth + 1, name)
    elif isinstance(value, list):
        for inner in value[:20]:
            yield from _leaves(inner, depth + 1, key)
    elif isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            yield from _leaves(parse_json(value), depth + 1, key)
        except orjson.JSONDecodeError:
            yield key, value
    else:
        yield key, value


def _in_words(text: str, now: float) -> float | None:
    """Return the wait of `try again in 13s`, `in 6m0s`, `retry after 30 seconds` or `regain access on 2025-07-01`."""
    plain = without_quotations(text)
    if (found := re.search(_WORDS, plain, re.I)) is not None:
        return _sum_of_parts(found[1])
    if (found := re.search(_DATE_WORDS, plain, re.I)) is None:
        return None
    day, clock = found[1], found[2] or "00:00"
    try:
        return datetime.fromisoformat(f"{day}T{clock}").replace(tzinfo=UTC).timestamp() - now
    except ValueError:
        return None


def _sum_of_parts(text: str) -> float | None:
    parts = [(float(number), unit.lower()) for number, unit in _PARTS.findall(text)]
    seconds = [number * _UNIT_SECONDS.get(unit, _UNIT_SECONDS.get(unit.rstrip("s"), 0.0)) for number, unit in parts]
    return sum(seconds) if parts else None


def finite_number(text: str | None) -> float | None:
    """Return the number in a text; None if it is not one, or not finite."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) else None
