"""Child processes of `rowmill`: the command, the environment, and the pipe that ends with the parent."""

import os
import signal
import subprocess
import sys

import pytest

from pipelines.runtime.child_process import (
    PARENT_PIPE_VARIABLE,
    exit_with_parent,
    parent_pipe,
    rowmill_command,
    rowmill_environment,
)
from tests.support.forked import command_line

CHILD = """
import sys, threading
from pipelines.runtime.child_process import exit_with_parent
exit_with_parent()
print("started", flush=True)
threading.Event().wait()
"""


def start_child(stdin: int, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Start a child and wait until it watches the pipe."""
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdin=stdin, stdout=subprocess.PIPE, env=environment)
    assert child.stdout is not None
    assert child.stdout.readline() == b"started\n"
    return child


def test_a_child_ends_as_on_sigterm_when_the_parent_pipe_closes() -> None:
    with parent_pipe() as stdin:
        child = start_child(stdin, rowmill_environment())
        assert child.poll() is None
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGTERM


def test_a_process_whose_stdin_is_not_a_parent_pipe_goes_on_when_it_closes() -> None:
    with parent_pipe() as stdin:
        child = start_child(stdin, dict(os.environ))
    assert child.poll() is None
    child.kill()
    child.communicate(timeout=60)


def test_the_variable_does_not_reach_the_children_of_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rowmill_environment()[PARENT_PIPE_VARIABLE] == "stdin"
    monkeypatch.setenv(PARENT_PIPE_VARIABLE, "stdin")
    monkeypatch.setattr("threading.Thread.start", lambda self: None)
    exit_with_parent()
    assert PARENT_PIPE_VARIABLE not in os.environ


def test_a_forked_command_has_the_streams_and_the_end_of_its_process() -> None:
    repeat = "import sys; print(sys.stdin.read(), sys.argv[1:]); sys.exit(7)"
    done = subprocess.run([*command_line(repeat), "a b"], input="text", capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (7, "text ['a b']\n", "")
    wait = "import time; print('ready', flush=True); time.sleep(60)"
    for number in (signal.SIGTERM, signal.SIGKILL):
        with subprocess.Popen(command_line(wait), stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(number)
            # Its end closes the pipe.
            assert process.stdout.read() == ""
        assert process.returncode == -number


@pytest.mark.usefixtures("started_children")
def test_the_command_imports_nothing_from_the_current_folder() -> None:
    assert rowmill_command() == [sys.executable, "-P", "-m", "pipelines.cli"]
