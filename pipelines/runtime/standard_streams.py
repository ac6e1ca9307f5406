"""Standard output and error of a command: a reader that goes away, a full disk or a closed stream ends nothing."""

import io
import os
import select
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class OutputFile(io.FileIO):
    """A descriptor whose writes never fail; after the first error everything goes to the null device."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.error: OSError | None = None
        """What lost a part of the output; None as well if the reader has closed its end, such as `head`."""

    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            written = super().write(data)
            while written is None:
                # Another process has made the shared pipe non-blocking.
                select.select([], [self.fileno()], [])
                written = super().write(data)
        except BrokenPipeError:
            self._discard()
            return memoryview(data).nbytes
        except OSError as exc:
            self.error = exc
            self._discard()
            return memoryview(data).nbytes
        return written

    def _discard(self) -> None:
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, self.fileno())
        os.close(null)


def protect_standard_streams() -> None:
    """Replace `sys.stdout` and `sys.stderr` by streams whose writes never fail."""
    _open_missing_descriptors()
    sys.stdout = _stream(1, sys.stdout)
    sys.stderr = _stream(2, sys.stderr)


def lost_output() -> str | None:
    """Return one line if a part of standard output could not be written; not if its reader has closed it."""
    file = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    sys.stdout.flush()
    if not isinstance(file, OutputFile) or file.error is None:
        return None
    return f"standard output: cannot be written ({file.error.strerror}); make room and run the command again"


def _open_missing_descriptors() -> None:
    """Open the null device for closed descriptors: a file of the run must not take the place of one."""
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            return
        os.set_inheritable(descriptor, True)


def _stream(descriptor: int, replaced: "io.TextIOBase | object | None") -> io.TextIOWrapper:
    """Return a stream in place of Python's own, with the same encoding and buffering."""
    raw = OutputFile(descriptor)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(replaced, "encoding", None) or "utf-8",
        errors=getattr(replaced, "errors", None) or "backslashreplace",
        line_buffering=descriptor == 2 or raw.isatty(),
    )
