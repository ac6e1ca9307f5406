"""Our command in a process of its own that has not to be started: forked from one that has imported everything."""

import atexit
import contextlib
import functools
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

from pipelines.runtime import child_process
from tests.support import forked_command

ROOT = Path(__file__).parents[2]
COMMAND = "from pipelines.cli import main; main()"
# What a run imports; a fork of the server that has done so begins at once, where Python's own start takes a second.
FROM = multiprocessing.get_context("forkserver")
FROM.set_forkserver_preload(
    [
        "pipelines.cli",
        "pipelines.commands.jobs.run",
        "pipelines.execution.invocation",
        "connectors.emulator.server",
        "uvloop",
    ]
)


class Forked:
    """Python code that runs as `python -c` would, with its own pid, signals and exit code."""

    def __init__(self, code: str, *arguments: str | Path, cwd: Path = ROOT, **environment: str) -> None:
        """Start it now, with this process's environment and the given variables."""
        self._output = tempfile.TemporaryDirectory()
        self._out, self._err = Path(self._output.name, "out"), Path(self._output.name, "err")
        words = [str(argument) for argument in arguments]
        with self._out.open("a") as out, self._err.open("a") as err:
            streams = {1: out.fileno(), 2: err.fileno()}
            self._process = _start(code, words, str(cwd), {**os.environ, **environment}, streams)
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def first_line(self) -> str:
        """What it says first, on stdout or stderr, as soon as it has."""
        while "\n" not in (result := self._out.read_text() + self._err.read_text()):
            assert self.poll() is None, result
            time.sleep(0.005)
        return result.partition("\n")[0]

    def send_signal(self, number: int) -> None:
        """As by `kill`; not to one that has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def ended(self, timeout: float = 60) -> tuple[int, str, str]:
        """(exit code, stdout, stderr) once it has ended; one that hangs is killed, and fails the test."""
        self._process.join(timeout)
        hung = self.poll() is None
        self.send_signal(signal.SIGKILL)
        self._process.join()
        code, out, err = self._process.exitcode, self._out.read_text(), self._err.read_text()
        self._output.cleanup()
        assert code is not None
        assert not hung, f"it did not end within {timeout} s: {err}"
        return code, out, err


def run(job: Path, *flags: str) -> Forked:
    """`rowmill run JOB --json --quiet`, begun."""
    return Forked(COMMAND, "run", job, "--json", "--quiet", *flags)


def ended(process: Forked) -> tuple[int, str]:
    """(exit code, stdout) of one that ends, and not by a traceback."""
    code, out, err = process.ended()
    assert "Traceback" not in err, err
    return code, out


def command_line(code: str = COMMAND) -> list[str]:
    """Return the first words of a command line that runs the code, forked as well."""
    return _command_line(_serve(), code)


def _command_line(address: str, code: str) -> list[str]:
    return [sys.executable, "-I", "-S", forked_command.__file__, address, code]


@functools.cache
def _serve() -> str:
    """Start processes for `forked_command` as long as this process lives; return the address."""
    folder = tempfile.mkdtemp(prefix="forked-")
    atexit.register(shutil.rmtree, folder)
    server = socket.socket(socket.AF_UNIX)
    server.bind(address := f"{folder}/socket")
    server.listen(64)

    def accept() -> None:
        while True:
            client, _ = server.accept()
            threading.Thread(target=_start_for, args=(client,), daemon=True).start()

    threading.Thread(target=accept, name="forked-commands", daemon=True).start()
    return address


def _start_for(client: socket.socket) -> None:
    """Start a process with the streams of the client; send its pid, and its exit code when it has ended."""
    with client, client.makefile("rb") as sent:
        size, streams, _, _ = socket.recv_fds(client, 8, 3)
        code, arguments, cwd, environment = json.loads(sent.read(int.from_bytes(size, "big")))
        process = _start(code, arguments, cwd, environment, dict(enumerate(streams)))
        for stream in streams:
            os.close(stream)
        # The client may have been killed.
        with contextlib.suppress(BrokenPipeError):
            client.sendall(f"{process.pid}\n".encode())
        if process.sentinel not in connection.wait([process.sentinel, client]):
            process.kill()
        process.join()
        with contextlib.suppress(BrokenPipeError):
            client.sendall(f"{process.exitcode}\n".encode())


def _start(
    code: str, arguments: Sequence[str], cwd: str, environment: Mapping[str, str], streams: Mapping[int, int]
) -> BaseProcess:
    process = _Start(target=_become, args=(code, arguments, cwd, environment, _serve(), streams))
    process.start()
    return process


class _Start(FROM.Process):  # type: ignore[name-defined,misc,unused-ignore]
    """A process that gets copies of streams."""

    def __getstate__(self) -> dict[str, Any]:
        # Descriptors can be copied only while the process is being started.
        *given, streams = self._args
        copied = {number: DupFd(descriptor) for number, descriptor in streams.items()}
        return {**self.__dict__, "_args": (*given, copied)}


def _become(
    code: str,
    arguments: Sequence[str],
    cwd: str,
    environment: Mapping[str, str],
    address: str,
    streams: Mapping[int, Any],
) -> None:
    for number, stream in streams.items():
        descriptor = stream.detach()
        os.dup2(descriptor, number)
        os.close(descriptor)
    if 0 in streams:
        # multiprocessing has replaced it.
        sys.stdin = os.fdopen(0, closefd=False)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = ["-c", *arguments]
    sys.orig_argv[:] = [sys.executable, *sys.argv]
    # Its own children run the same code.
    child_process.COMMAND = tuple(_command_line(address, code))
    exec(compile(code, "<the test>", "exec"), {"__name__": "__main__"})
