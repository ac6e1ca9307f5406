"""Child processes of `rowmill` itself: how to start one, and how it ends when its parent is gone."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

PARENT_PIPE_VARIABLE = "ROWMILL_PARENT_PIPE"
"""The environment variable of a process whose stdin is a parent pipe."""
COMMAND = (sys.executable, "-P", "-m", "pipelines.cli")
"""It starts `rowmill` by this interpreter; -P: no modules from the current folder."""


def rowmill_command() -> list[str]:
    """Return the words of COMMAND."""
    return [*COMMAND]


def rowmill_environment() -> dict[str, str]:
    """Return the environment of a child whose stdin is a parent pipe."""
    return {**os.environ, PARENT_PIPE_VARIABLE: "stdin"}


@contextlib.contextmanager
def parent_pipe() -> Iterator[int]:
    """Open a stdin for children that closes when this process ends, even by SIGKILL: no other process writes to it."""
    reading, writing = os.pipe()
    try:
        yield reading
    finally:
        os.close(reading)
        os.close(writing)


def exit_with_parent() -> None:
    """Shut down as on SIGTERM when the parent pipe closes; nothing happens if stdin is not a parent pipe."""
    # Children of this process have another stdin, so the variable must not reach them.
    if os.environ.pop(PARENT_PIPE_VARIABLE, None) is not None:
        threading.Thread(target=_wait_for_parent_exit, name="parent-pipe", daemon=True).start()


def _wait_for_parent_exit() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
