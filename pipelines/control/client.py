"""The client of a run's control socket, for commands and pages."""

import contextlib
import socket
import time
from pathlib import Path

from connectors.errors import JobError
from pipelines.control.protocol import MAX_REPLY_BYTES, ControlReply, ControlRequest
from pipelines.control.socket_file import connect, socket_path
from pipelines.runtime.locks import is_running

START_SECONDS = 5.0
"""Time that a run which has begun may take to open its socket."""

REPLY_SECONDS = 10.0

_POLL_SECONDS = 0.05


def send_request(state: Path, job: str, request: ControlRequest, start_seconds: float = START_SECONDS) -> ControlReply:
    """Send a request to the run of a job in this state folder, and return its reply; JobError if there is no run.

    `start_seconds`: how long to wait for a run that is starting.
    """
    with contextlib.closing(_connect(state, job, start_seconds)) as connection:
        try:
            connection.sendall(request.to_line())
            reply = ControlReply.from_line(_read_line(connection))
        except (OSError, ValueError) as exc:
            problem = "did not answer" if isinstance(exc, TimeoutError) else "ended before it answered"
            raise JobError(job, f"the run {problem}", "look at it with: rowmill status") from exc
    return reply


def _connect(state: Path, job: str, start_seconds: float) -> socket.socket:
    path, deadline = socket_path(state, job), time.monotonic() + start_seconds
    while is_running(state, job):
        try:
            return connect(path, REPLY_SECONDS)
        except PermissionError as exc:
            raise JobError(job, "another user runs this job", "ask that user to do it") from exc
        except OSError as exc:
            # A run that is starting has none yet, or still that of a run before, which was killed.
            if time.monotonic() > deadline:
                found = "its run takes no commands at the moment: it is starting or ending"
                raise JobError(job, found, "look at it with: rowmill status") from exc
            time.sleep(_POLL_SECONDS)
    raise JobError(job, "this job is not running", "start it with: rowmill run")


def _read_line(connection: socket.socket) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        received = connection.recv(64 << 10)
        if not received or len(line) > MAX_REPLY_BYTES:
            raise ConnectionError("no whole line")
        line += received
    return bytes(line)
