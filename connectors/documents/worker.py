"""A worker process: reads one document after the other from the socket at its stdin, within its limits.

It ends with its parent: an idle one when the socket closes, a busy one by a signal.
"""

import contextlib
import ctypes
import os
import resource
import signal
import socket
import sys
from importlib import import_module
from pathlib import Path

import orjson

from connectors.documents.frames import receive_frame, send_frame
from connectors.media.document_types import DocumentError

MAX_TEXT_CHARACTERS = 64 << 20
"""Of one document: they become one value of a row."""
_OPEN_FILES = 64
_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux."""


def main() -> None:
    """Read documents until the parent closes the socket. Arguments: the parent's process id, bytes of memory."""
    parent, memory_bytes = map(int, sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent decides.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    with socket.socket(fileno=0) as connection:
        send_frame(connection, orjson.dumps(_readiness()))
        while (received := receive_frame(connection)) is not None:
            request, descriptors = received
            (descriptor,) = descriptors
            signal.setitimer(signal.ITIMER_PROF, request["seconds"])
            # Ends endless waiting even if no caller waits for it any more.
            signal.alarm(request["wait_seconds"] + 1)
            reply = _reply(descriptor, request["pictures"])
            signal.alarm(0)
            signal.setitimer(signal.ITIMER_PROF, 0)
            send_frame(connection, orjson.dumps(reply))


def _readiness() -> dict[str, object]:
    """Import the libraries, inside the limits; return what is missing, if anything is."""
    try:
        import_module("connectors.documents.formats")
    except ImportError as exc:
        return {"missing": str(exc)}
    return {}


def _reply(descriptor: int, pictures: str | None) -> dict[str, object]:
    """Return the reply to one request."""
    try:
        with os.fdopen(descriptor, "rb") as file:
            from connectors.documents.formats import read_document

            document = read_document(file, None if pictures is None else Path(pictures))
        if sum(len(page) for page in document.pages) > MAX_TEXT_CHARACTERS:
            raise DocumentError(f"has more than {MAX_TEXT_CHARACTERS:,} characters of text; split it")
        return {"media_type": document.media_type, "pages": document.pages, "pictures": document.pictures}
    except DocumentError as exc:
        return {"error": _valid(str(exc))}
    except MemoryError:
        # What it still holds may be missing for the next document.
        return {"error": "needs too much memory; split it", "is_last": True}
    except Exception as exc:  # noqa: BLE001 - a broken file may break a library in any way
        return {"error": _valid(f"cannot be read ({type(exc).__name__}: {exc})"[:500])}


def _valid(text: str) -> str:
    """Replace halves of surrogate pairs, which JSON cannot have."""
    return text.encode("utf-8", "replace").decode()


if __name__ == "__main__":
    main()
