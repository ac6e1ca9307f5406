"""The Unix socket of a run in the state folder: only the user who runs the job may use it."""

import contextlib
import hashlib
import os
import socket
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

MAX_ADDRESS_BYTES = 103
"""Longest path of a socket: 103 bytes on macOS, 107 on Linux."""

MAX_NAME_BYTES = 60
"""A longer name of a job is replaced by its hash, so that the name of its socket fits into any short address."""

BACKLOG = 64

_PROCESS_FOLDERS = Path("/proc/self/fd")


def socket_path(state: Path, job: str) -> Path:
    """Return the socket of a job's run."""
    name = job
    if len(job) > MAX_NAME_BYTES:
        name = hashlib.blake2b(job.encode(), digest_size=16).hexdigest()
    return state / "control" / f"{name}.sock"


def listen(path: Path) -> socket.socket:
    """Return a socket that listens at the path, non-blocking; replaces the socket of a run that was killed.

    The caller holds the lock of the job. OSError if the file system has no sockets.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # On Linux the file begins with the mode of its descriptor: no other user can connect before `chmod`.
        os.fchmod(listener.fileno(), 0o600)
        with _short_address(path) as address:
            listener.bind(address)
        path.chmod(0o600)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def connect(path: Path, timeout: float) -> socket.socket:
    """Return a connection to the socket at the path; `timeout` in seconds applies to every call on it."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        with _short_address(path) as address:
            connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


def is_from_own_user(connection: socket.socket) -> bool:
    """Whether the other end belongs to the user of this process, or to root, where the system names it."""
    if sys.platform != "linux":
        return True
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return user in (0, os.geteuid())


@contextlib.contextmanager
def _short_address(path: Path) -> Iterator[str]:
    """Yield an address of the path that is short enough for a socket: through its open folder, or through a link."""
    if len(os.fsencode(path)) <= MAX_ADDRESS_BYTES:
        yield str(path)
    elif _PROCESS_FOLDERS.exists():
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield str(_PROCESS_FOLDERS / str(folder) / path.name)
        finally:
            os.close(folder)
    else:
        with tempfile.TemporaryDirectory(prefix="rm-") as links:
            link = Path(links, "c")
            link.symlink_to(path.parent.absolute())
            yield str(link / path.name)
