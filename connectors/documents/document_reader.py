"""Reader of documents in worker processes: a hostile file ends its worker, and never the run."""

import asyncio
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Self

import orjson
from msgspec import Struct

from connectors.documents.document import Document
from connectors.documents.frames import receive_frame, send_frame
from connectors.media.document_types import DocumentError

EXTRA = "pip install 'rowmill[documents]'"

_START_SECONDS = 60
_PASSED_VARIABLES = ("PATH", "PYTHON", "LD_", "LANG", "LC_", "TMPDIR")
"""Starts of the names of variables that worker processes see. Keys are not among them."""


class ReaderUnavailable(Exception):
    """A document was not read through no fault of its own."""


class ReadLimits(Struct, frozen=True):
    """What reading one document may take."""

    seconds: int = 120
    """CPU time: a machine that is busy with other work makes no document unreadable."""
    wait_seconds: int = 600
    """Time in all, for a document that is not read although nothing is computed."""
    memory_bytes: int = 2 << 30
    """Address space of a worker process, with its libraries (0.3 GB)."""
    workers: int = 2
    """Documents that are read at the same time."""


USUAL_LIMITS = ReadLimits()


class DocumentReader:
    """Reads documents, a few at a time. Processes start with the first document and end with `close`."""

    def __init__(self, limits: ReadLimits = USUAL_LIMITS) -> None:
        self._limits = limits
        self._threads = ThreadPoolExecutor(limits.workers, "documents")
        self._workers = [_Worker(limits) for _ in range(limits.workers)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)

    async def __aenter__(self) -> Self:
        """Return the reader."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        await self.close()

    async def read(self, file: BinaryIO, pictures: Path | None = None) -> Document:
        """Return an open file's document; DocumentError if it is none, broken, or needs more than the limits.

        ReaderUnavailable if no process starts, or `close` is called meanwhile.

        `pictures`: a folder for a PNG of each page; then a file that is not a PDF is an error as well.
        """
        # The thread may need the file for longer than a cancelled caller.
        descriptor = os.dup(file.fileno())
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, descriptor, pictures)

    def _read(self, descriptor: int, pictures: Path | None) -> Document:
        try:
            worker = self._idle.get()
            try:
                return worker.read(descriptor, pictures)
            finally:
                self._idle.put(worker)
        finally:
            os.close(descriptor)

    async def close(self) -> None:
        """End the processes at once, and so whatever they read."""
        for worker in self._workers:
            worker.end()
        # Files that still wait are not cancelled: each reports that the run has ended, and closes its descriptor.
        await asyncio.to_thread(self._threads.shutdown)
        for worker in self._workers:
            worker.release()


class _Worker:
    """One worker process, replaced when it has ended. Its methods block."""

    def __init__(self, limits: ReadLimits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._is_closed = False
        self._starting = threading.Lock()

    def read(self, descriptor: int, pictures: Path | None) -> Document:
        limits = self._limits
        folder = None if pictures is None else str(pictures)
        request = {"pictures": folder, "seconds": limits.seconds, "wait_seconds": limits.wait_seconds}
        connection = self._connected()
        connection.settimeout(limits.wait_seconds)
        began = time.monotonic()
        try:
            send_frame(connection, orjson.dumps(request), (descriptor,))
            received = receive_frame(connection)
        except TimeoutError as exc:
            self.release()
            raise DocumentError(_not_read_after(limits.wait_seconds)) from exc
        except OSError:
            received = None
        if received is None:
            if self._is_closed:
                raise ReaderUnavailable("was not read: the run has ended")
            raise DocumentError(self._why_it_ended(time.monotonic() - began))
        reply, _ = received
        if reply.get("is_last"):
            self.release()
        if "error" in reply:
            raise DocumentError(reply["error"])
        names = None if pictures is None else tuple(reply["pictures"])
        return Document(reply["media_type"], tuple(reply["pages"]), names)

    def _connected(self) -> socket.socket:
        if self._process is not None and self._process.poll() is not None:
            self.release()
        if self._connection is None:
            self._connection, theirs = socket.socketpair()
            limits = (str(os.getpid()), str(self._limits.memory_bytes))
            with theirs, self._starting:
                if self._is_closed:
                    raise ReaderUnavailable("was not read: the run has ended")
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "connectors.documents.worker", *limits],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env={name: value for name, value in os.environ.items() if name.startswith(_PASSED_VARIABLES)},
                )
            self._wait_until_ready(self._connection)
        return self._connection

    def _wait_until_ready(self, connection: socket.socket) -> None:
        """Wait for the start of the process, which does not count as reading: a busy machine may need seconds."""
        connection.settimeout(_START_SECONDS)
        try:
            received = receive_frame(connection)
        except OSError:
            received = None
        if received is None:
            self.release()
            raise ReaderUnavailable("was not read: no process could start; run again")
        if "missing" in received[0]:
            self.release()
            raise ImportError(f"{received[0]['missing']}; {EXTRA}")

    def _why_it_ended(self, seconds: float) -> str:
        process = self._process
        code = None if process is None else process.wait()
        self.release()
        if code == -signal.SIGPROF:
            return _not_read_after(self._limits.seconds)
        if code == -signal.SIGALRM:
            return _not_read_after(seconds)
        reason = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        return f"breaks its reader ({reason}): it is broken, or needs more than {self._limits.memory_bytes >> 20} MB"

    def end(self) -> None:
        """End the process, whatever it does; it is not replaced."""
        with self._starting:
            self._is_closed = True
            if self._process is not None:
                self._process.kill()

    def release(self) -> None:
        """End the process and close the connection to it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None


def _not_read_after(seconds: float) -> str:
    return f"is not read after {seconds:.0f} seconds; split it"
