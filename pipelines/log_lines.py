"""The lines of `--log json`: one event each, on stderr."""

import sys
from datetime import UTC, datetime
from typing import Literal

import orjson

Level = Literal["info", "warning", "error"]


def log_line(event: str, job: str | None, run_id: str | None, level: Level = "info", **facts: object) -> None:
    """Print one event. Facts are counts, times and words of ours: nothing that a row, a key or a header held."""
    told = {"ts": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": level, "event": event, "job": job}
    line = orjson.dumps({**told, "run_id": run_id, **facts}, default=str).decode()
    print(line, file=sys.stderr, flush=True)  # noqa: T201
