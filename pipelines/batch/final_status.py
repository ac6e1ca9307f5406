"""Final status of a batch: what it means for its lines, and whether the run goes on."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from connectors.error_classes import FATAL_ERROR_CLASSES, TRANSIENT_ERROR_CLASSES
from connectors.records import Reply, RowError
from connectors.transport.error_replies import row_error
from connectors.transport.token_usage import parse_count
from pipelines.runtime.provider_api import Item

FINAL_STATUSES = frozenset({"completed", "failed", "expired", "cancelled"})
LOST = "lost"
"""Our status for a batch that the provider does not know any more: its outcome, and its cost, will stay unknown."""
ABANDONED = "abandoned"
"""Our status for a batch that did not end in time after this job had cancelled it; its outcome stays unknown too."""
CROWDED = "crowded"
"""Our status for a batch of one line that the provider has not accepted for longest_hold."""
TOKEN_LIMIT = "token_limit_exceeded"
"""The code of a batch that is refused, or fails, because it has too many tokens to be enqueued."""

STATUS_NAMES: Mapping[str, str] = {
    "canceled": "cancelled",
    "complete": "completed",
    "done": "completed",
    "ended": "completed",
    "succeeded": "completed",
    "success": "completed",
    "error": "failed",
    "errored": "failed",
    "failure": "failed",
    "timeout_exceeded": "expired",
}
"""Other providers' names of final states -> OpenAI's."""
CONTENT_PARAMETERS = frozenset(
    {"audio", "content", "custom_id", "file", "image", "images", "input", "instructions", "messages", "prompt", "text"}
)
"""Parts of a line's body that come from its row; all other parameters are the same in every line."""
_OF_EVERY_LINE = re.compile(r"\bmodel\b|\bendpoint\b|\burl\b|batch api", re.I)
"""Words about what all lines of a batch share."""
_VARIABLE_WORDS = re.compile(r"\d+|'[^']*'|\"[^\"]*\"|`[^`]*`")


class TokenLimitReached(Exception):
    """The provider takes no more enqueued tokens at this moment."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        stated = re.search(r"limit:?\s*([\d,]{3,})", message, re.I)
        self.limit = int(stated[1].replace(",", "")) if stated else None
        """As the message states it."""


def status_of(item: Item) -> str | None:
    """Return the state of a batch by OpenAI's name."""
    status = item.get("status")
    if not isinstance(status, str):
        return None
    status = status.lower().removeprefix("job_state_").removeprefix("batch_state_")
    return STATUS_NAMES.get(status, status)


def completed_lines(item: Item) -> int:
    """Return how many lines the provider has answered by its own count; 0 if it counts none."""
    counts = item.get("request_counts")
    return (parse_count(counts.get("completed")) or 0) if isinstance(counts, Mapping) else 0


def token_limit(item: Item) -> TokenLimitReached | None:
    """Return why a failed batch may be created again; None if it failed for another reason, or did not fail."""
    if item.get("status") != "failed":
        return None
    for error in batch_errors(item):
        if is_token_limit(error.code, error.message):
            return TokenLimitReached(error.message)
    return None


def is_token_limit(code: str | None, message: str) -> bool:
    """Return whether a refusal means that other batches fill the provider's queue."""
    return code == TOKEN_LIMIT or re.search(r"enqueued tokens?", message, re.I) is not None


def above_limit(exc: TokenLimitReached, is_sure: bool) -> Item:
    """Return how a batch ends whose only line is above the limit; unless `is_sure`, the next run requests it again."""
    error = {"code": TOKEN_LIMIT, "message": str(exc), "line": 1 if is_sure else None}
    return {"status": "failed" if is_sure else CROWDED, "errors": {"data": [error]}}


def refused(error: RowError) -> Item:
    """Return how a batch ends that the provider refuses to create."""
    raw = {"code": error.code, "message": error.message, "param": error.param, "http_status": error.http_status}
    return {"status": "failed", "errors": {"data": [{**raw, "line": None}]}}


def of_no_line(item: Item) -> Item:
    """Return a batch with its errors attributed to no line: they concern all of them."""
    return {**item, "errors": {"data": [{**error, "line": None} for error in _raw_errors(item)]}}


class Refusals:
    """The refusals of the batches of one run: of all lines, or of single ones."""

    def __init__(self) -> None:
        self._seen: Counter[tuple[str | None, str | None, str]] = Counter()

    def of_whole_batch(self, item: Item, lines: int) -> RowError | None:
        """Return why no batch like this one will be accepted.

        None if the batch did not fail, failed for a passing reason, or because of single lines, which are left out.
        A second batch that fails in the same way shows that the lines are not the reason.
        """
        if item.get("status") != "failed":
            return None
        errors = batch_errors(item)
        if not errors:
            return RowError("bad_request", "the batch failed without a reason")
        first = errors[0]
        if first.error_class in TRANSIENT_ERROR_CLASSES or (first.code == TOKEN_LIMIT and lines == 1):
            return None
        place_of = refused_lines(item)
        if first.error_class in FATAL_ERROR_CLASSES or not place_of or any(map(_concerns_every_line, errors)):
            return first
        kinds = {(error.code, error.param, _VARIABLE_WORDS.sub("", error.message)) for error in errors}
        is_repeated = any(self._seen[kind] for kind in kinds)
        self._seen.update(kinds)
        concerns_all = len(kinds) == 1 and len(place_of) == lines > 1
        return first if is_repeated or concerns_all else None


def refused_lines(item: Item) -> dict[int, RowError]:
    """Return the places of the lines that made a batch fail, with their errors."""
    places: dict[int, RowError] = {}
    for raw, error in zip(_raw_errors(item), batch_errors(item), strict=True):
        if isinstance(raw.get("line"), int) and not isinstance(raw["line"], bool):
            message = error.message or "the provider refuses this line"
            places[raw["line"] - 1] = RowError("bad_request", message, code=error.code, param=error.param)
    return places


def missing_answer(item: Item, code: str | None, message: str | None) -> RowError:
    """Return why a line has no answer: by its own error (`code`, `message`), or by how the batch ended."""
    status, name = item.get("status"), item.get("id") or "the batch"
    if status in (LOST, ABANDONED):
        errors = batch_errors(item)
        words = f": {errors[0].message}" if errors else ""
        return RowError("timeout", f"{name} was created, but its outcome is unknown{words}", code="batch_lost")
    if code == "batch_expired" or (code is None and status == "expired"):
        return RowError("timeout", message or "the batch expired before it came to this line", code="batch_expired")
    if code is None and status == "completed":
        return RowError("malformed_reply", f"{name} is complete, but its files have no readable line for this request")
    errors = batch_errors(item)
    message = message or (errors and errors[0].message) or f"the batch ended as {status} before it came to this line"
    code = code or (errors[0].code if errors else None) or f"batch_{status}"
    if status == CROWDED:
        return RowError("rate_limit", message, code=code)
    return RowError("server", message, code=code)


def batch_errors(item: Item) -> Sequence[RowError]:
    """Return the errors of a batch as a whole, classified as those of an online request."""
    return [_classified(error) for error in _raw_errors(item)]


def _classified(error: Mapping[str, Any]) -> RowError:
    body = orjson.dumps({"error": {key: error.get(key) for key in ("code", "message", "param", "type")}})
    code = str(error.get("code") or "").lower()
    is_passing = any(word in code for word in ("server_error", "internal", "unavailable", "overloaded", "timeout"))
    return row_error(Reply(500 if is_passing else error.get("http_status") or 400, {}, body, 0.0))


def _concerns_every_line(error: RowError) -> bool:
    param = (error.param or "").removeprefix("body.")
    root = re.split(r"[.\[]", param)[0]
    if root:
        return root not in CONTENT_PARAMETERS and root != "body"
    return _OF_EVERY_LINE.search(f"{error.code} {error.message}".replace("_", " ")) is not None


def _raw_errors(item: Item) -> list[Mapping[str, Any]]:
    errors = item.get("errors")
    data = errors.get("data") if isinstance(errors, Mapping) else errors
    return [error for error in data or () if isinstance(error, Mapping)] if isinstance(data, list) else []
