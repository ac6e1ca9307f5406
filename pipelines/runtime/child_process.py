"""How `rowmill` starts itself once more, and how what was started ends when its starter is gone."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

LIFELINE = "ROWMILL_LIFELINE"
"""The variable that says to a process that its stdin is a lifeline."""


def rowmill_command() -> list[str]:
    """How to start `rowmill` by this interpreter; -P: never the modules of the folder that it is started in."""
    return [sys.executable, "-P", "-m", "pipelines.cli"]


def rowmill_environment() -> dict[str, str]:
    """The environment of what is started with a lifeline as its stdin."""
    return {**os.environ, LIFELINE: "stdin"}


@contextlib.contextmanager
def lifeline() -> Iterator[int]:
    """A stdin for what is started, which ends when this process does, by SIGKILL as well: nobody else can write to
    it."""
    reading, writing = os.pipe()
    try:
        yield reading
    finally:
        os.close(reading)
        os.close(writing)


def end_with_starter() -> None:
    """Where stdin is a lifeline: once it ends, the same happens here as on SIGTERM."""
    # Not for what this process starts: its stdin is another.
    if os.environ.pop(LIFELINE, None) is not None:
        threading.Thread(target=_await_the_end, name="lifeline", daemon=True).start()


def _await_the_end() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
