"""Validation of a batch's input file, as the Batch API does it before a batch starts."""

from collections.abc import Iterator
from typing import Any

import orjson
from msgspec import Struct

from connectors.emulator.store import json_lines

MAX_LINES = 50_000
MAX_BYTES = 200 * 1024 * 1024
MAX_INPUTS = 50_000
"""Maximum number of texts in all lines of a batch for /v1/embeddings."""
MAX_ERRORS = 100
"""Reported errors per file."""


class CheckedInput(Struct, frozen=True):
    """The lines of a valid file, or the errors of an invalid one."""

    lines: tuple[bytes, ...] = ()
    model: str | None = None
    """The model of all lines; None if they have none."""
    errors: tuple[dict[str, Any], ...] = ()
    """Objects of `{code, message, param, line}`."""


def batch_error(code: str, message: str, line: int | None = None, param: str | None = None) -> dict[str, Any]:
    """One error object of a batch."""
    return {"code": code, "message": message, "param": param, "line": line}


def check_lines(content: bytes, endpoint: str) -> CheckedInput:
    """Validate an input file for an endpoint such as /v1/embeddings."""
    if len(content) > MAX_BYTES:
        message = f"The batch input file is larger than the {MAX_BYTES // 1024 // 1024} MB maximum for the Batch API."
        return CheckedInput(errors=(batch_error("file_too_large", message),))
    lines: list[bytes] = []
    errors: list[dict[str, Any]] = []
    ids: set[str] = set()
    models: list[str] = []
    inputs = 0
    for number, raw in json_lines(content):
        lines.append(raw)
        if len(lines) > MAX_LINES:
            message = f"The batch input file contains more than the maximum allowed {MAX_LINES} requests."
            return CheckedInput(errors=(batch_error("too_many_tasks", message),))
        try:
            line = orjson.loads(raw)
        except orjson.JSONDecodeError:
            line = None
        if not isinstance(line, dict):
            errors.append(batch_error("invalid_json_line", "This line is not parseable as valid JSON.", number))
            continue
        errors += _line_errors(line, number, endpoint, ids, models)
        if endpoint == "/v1/embeddings":
            inputs += _count_inputs(line)
    if not lines:
        errors.append(
            batch_error(
                "empty_file", "The input file is empty. Please ensure that the batch contains at least one request."
            )
        )
    if inputs > MAX_INPUTS:
        message = f"The batch contains {inputs} embedding inputs; at most {MAX_INPUTS} are allowed."
        errors.append(batch_error("too_many_embedding_inputs", message))
    return CheckedInput(tuple(lines), models[0] if models else None, tuple(errors[:MAX_ERRORS]))


def _line_errors(
    line: dict[str, Any], number: int, endpoint: str, ids: set[str], models: list[str]
) -> Iterator[dict[str, Any]]:
    """The errors of one line; adds its id to `ids`, and the first model to `models`."""
    custom_id = line.get("custom_id")
    if not isinstance(custom_id, str):
        yield batch_error("missing_required_parameter", "Missing required parameter: 'custom_id'.", number, "custom_id")
    elif custom_id in ids:
        message = f"The custom_id '{custom_id}' was used before in this file; each must be unique."
        yield batch_error("duplicate_custom_id", message, number, "custom_id")
    else:
        ids.add(custom_id)
    if line.get("method") != "POST":
        yield batch_error("invalid_method", "Invalid method: only 'POST' is supported.", number, "method")
    if line.get("url") != endpoint:
        message = f"The URL provided for this request does not match the batch endpoint '{endpoint}'."
        yield batch_error("mismatched_url", message, number, "url")
    body = line.get("body")
    if not isinstance(body, dict):
        yield batch_error("missing_required_parameter", "Missing required parameter: 'body'.", number, "body")
        return
    model = body.get("model")
    if not isinstance(model, str):
        return
    if not models:
        models.append(model)
    elif model != models[0]:
        message = f"The model '{model}' does not match '{models[0]}' of the requests before; a batch has one model."
        yield batch_error("mismatched_model", message, number, "body.model")


def _count_inputs(line: dict[str, Any]) -> int:
    """The number of texts in a line; a list of token ids is one text."""
    body = line.get("body")
    texts = body.get("input") if isinstance(body, dict) else None
    if not isinstance(texts, list) or all(isinstance(item, int) for item in texts):
        return 1
    return len(texts)
