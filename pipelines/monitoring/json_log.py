"""Problems and events on stderr: plain text, or one JSON line each with `--log json`."""

import sys
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

import orjson

from connectors.transport.access.secret_mask import mask_traceback
from pipelines.formatting import escape_control_characters

LogLevel = Literal["info", "warning", "error"]
DEFECT_MESSAGE = (
    "a defect of Rowmill, printed on stderr: please report it; all answers are stored, run again to continue"
)


def log_event(event: str, job: str | None, run_id: str | None, level: LogLevel = "info", **facts: object) -> None:
    """Print one event as JSON. Facts are counts, times and Rowmill's own words, never content of rows or headers."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    head = {"ts": time, "level": level, "event": event, "job": job, "run_id": run_id}
    line = orjson.dumps({**head, **facts}, default=str).decode()
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def print_problem(
    message: str, as_json: bool, job: str | None = None, run_id: str | None = None, level: LogLevel = "error"
) -> None:
    """Print an error or a warning."""
    if as_json:
        log_event("problem", job, run_id, level, message=message)
    else:
        print(escape_control_characters(message), file=sys.stderr, flush=True)  # noqa: T201


def print_defect(defect: Exception, as_json: bool, job: str | None, run_id: str | None) -> None:
    """Print an unexpected exception with its traceback and where to report it."""
    trace = mask_traceback("".join(traceback.format_exception(defect)).rstrip())
    if as_json:
        log_event("defect", job, run_id, "error", message=type(defect).__name__, traceback=trace)
    else:
        where = "rowmill" if job is None else job
        remedy = "please report it with the following lines, as an issue of Rowmill's repository"
        print(f"{where}: a defect of Rowmill; {remedy}", trace, sep="\n", file=sys.stderr, flush=True)  # noqa: T201


def wants_json_log(arguments: Sequence[str]) -> bool:
    """Whether a command line, even an invalid one, has `--log json`; the last --log counts."""
    values = [
        word.partition("=")[2] or following
        for word, following in zip(arguments, [*arguments[1:], ""], strict=False)
        if word == "--log" or word.startswith("--log=")
    ]
    return values[-1:] == ["json"]
