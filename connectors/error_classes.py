"""Error classes of failed rows and requests, grouped by what follows: the row fails, a retry, or the run stops."""

from typing import Literal

ErrorClass = Literal[
    "input",
    "bad_request",
    "content_filter",
    "length",
    "invalid_answer",
    "rate_limit",
    "timeout",
    "connection",
    "server",
    "malformed_reply",
    "unknown",
    "quota",
    "access_denied",
    "setup",
    "budget",
]

ROW_ERROR_CLASSES: frozenset[str] = frozenset({"input", "bad_request", "content_filter", "length", "invalid_answer"})
"""Failures of the row itself: sent again when the row or the step changes, or by `retry`."""

TRANSIENT_ERROR_CLASSES: frozenset[str] = frozenset(
    {"rate_limit", "timeout", "connection", "server", "malformed_reply"}
)
"""Transient failures: the request is sent again, at most `retry.attempts` times (rate_limit uses no attempt)."""

FATAL_ERROR_CLASSES: frozenset[str] = frozenset({"quota", "access_denied", "setup"})
"""Failures that every further request would have too: the run stops."""


CHECK_FAILED = "check_failed"
"""The code of the error of a row whose answer fails a check of its step."""
