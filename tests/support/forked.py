"""Our command in a process of its own that has not to be started: forked from one that has imported everything."""

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND = "from pipelines.cli import main; main()"
# What a run imports; a fork of the server that has done so begins at once, where Python's own start takes a second.
FROM = multiprocessing.get_context("forkserver")
FROM.set_forkserver_preload(
    [
        "pipelines.cli",
        "pipelines.commands.run",
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
        for path in (self._out, self._err):
            path.touch()
        words = [str(argument) for argument in arguments]
        streams = {1: str(self._out), 2: str(self._err)}
        given = (code, words, str(cwd), {**os.environ, **environment}, streams)
        self._process: BaseProcess = FROM.Process(target=_become, args=given)
        self._process.start()
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


def _become(
    code: str, arguments: list[str], cwd: str, environment: Mapping[str, str], streams: Mapping[int, str]
) -> None:
    for number, path in streams.items():
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = ["-c", *arguments]
    sys.orig_argv[:] = [sys.executable, *sys.argv]
    exec(compile(code, "<the test>", "exec"), {"__name__": "__main__"})
