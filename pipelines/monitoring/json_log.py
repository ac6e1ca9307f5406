"""The lines of `--log json`: one event each, on stderr."""

import sys
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

import orjson

from pipelines.formatting import escape_control_characters

LogLevel = Literal["info", "warning", "error"]
DEFECT_MESSAGE = "a defect of Rowmill, told on stderr: please report it; what was answered is kept, run again to go on"


def log_event(event: str, job: str | None, run_id: str | None, level: LogLevel = "info", **facts: object) -> None:
    """Print one event. Facts are counts, times and words of ours: nothing that a row, a key or a header held."""
    told = {"ts": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": level, "event": event, "job": job}
    line = orjson.dumps({**told, "run_id": run_id, **facts}, default=str).decode()
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def print_problem(words: str, as_lines: bool, job: str | None = None, run_id: str | None = None) -> None:
    """A mistake or a warning, on stderr: an event where lines are asked for, else the words alone."""
    if as_lines:
        log_event("problem", job, run_id, "error", message=words)
    else:
        print(escape_control_characters(words), file=sys.stderr, flush=True)  # noqa: T201


def print_defect(defect: Exception, as_lines: bool, job: str | None, run_id: str | None) -> None:
    """What nobody expected, on stderr: where to report it, and all that helps to find it."""
    told = "".join(traceback.format_exception(defect)).rstrip()
    if as_lines:
        log_event("defect", job, run_id, "error", message=type(defect).__name__, traceback=told)
    else:
        where = "rowmill" if job is None else job
        remedy = "please report it with what follows, as an issue of Rowmill's repository"
        print(f"{where}: a defect of Rowmill; {remedy}", told, sep="\n", file=sys.stderr, flush=True)  # noqa: T201


def wants_json_log(arguments: Sequence[str]) -> bool:
    """Whether a command line, which may be wrong otherwise, says `--log json`; the last one counts."""
    said = [
        word.partition("=")[2] or following
        for word, following in zip(arguments, [*arguments[1:], ""], strict=False)
        if word == "--log" or word.startswith("--log=")
    ]
    return said[-1:] == ["json"]
