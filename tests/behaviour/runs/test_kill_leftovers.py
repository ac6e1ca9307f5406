"""What killed and interrupted runs leave: nothing that stays, and no traceback."""

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from connectors.errors import JobError
from pipelines.cli import rowmill
from pipelines.runtime import interrupts
from pipelines.runtime.event_loop import run_loop
from pipelines.runtime.interrupts import raise_interrupts


@pytest.fixture
def number(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A signal, handled as the command line does."""
    before = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(interrupts, "_was_interrupted", False)
    raise_interrupts()
    yield request.param
    for number, handler in before.items():
        signal.signal(number, handler)


both = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], indirect=True, ids=["SIGINT", "SIGTERM"])


@both
@pytest.mark.parametrize(
    "error",
    [RuntimeError("Query interrupted"), JobError("job.yaml", "the schema cannot be read: KeyboardInterrupt", "fix it")],
    ids=["query", "schema"],
)
def test_a_signal_that_a_library_takes_for_an_error_ends_the_command_in_silence(
    number: int, error: Exception, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(**_: Any) -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt as exc:
            raise error from exc

    monkeypatch.setattr(rowmill, "main", interrupted)
    assert (cli("run", "job.yaml"), cli.out, cli.err) == (130, "", "")


@both
def test_a_signal_while_the_loop_is_taken_down_leaves_no_loop_running(number: int) -> None:
    ended: list[str] = []

    async def lingering() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            os.kill(os.getpid(), number)
            await asyncio.sleep(0.05)
            ended.append("lingering")

    async def work() -> None:
        left = asyncio.create_task(lingering())
        await asyncio.sleep(0)
        assert not left.done()

    before = [signal.getsignal(one) for one in interrupts.SIGNALS]
    with pytest.raises(KeyboardInterrupt):
        run_loop(work())
    assert ended == ["lingering"]
    assert [signal.getsignal(one) for one in interrupts.SIGNALS] == before


def test_the_next_run_removes_what_a_killed_one_copied_and_nothing_of_a_living_one(workspace: Any, cli: Any) -> None:
    workspace.csv(3)
    state: Path = workspace.folder / ".rowmill"
    for name in ("scratch-dead", "scratch-living", "running"):
        (state / name).mkdir(parents=True)
        (state / name / "rows.parquet").write_bytes(b"rows")
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=subprocess.PIPE, check=True)
    parts = [state / "running" / f"other.json.{pid}.part" for pid in (int(gone.stdout), os.getpid(), "9" * 20, "²")]
    for part in parts:
        part.write_bytes(b"{")
    held = os.open(state / "scratch-living", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert cli.run(workspace.job())["exit_code"] == 0
    os.close(held)
    assert [path.name for path in state.glob("scratch-*")] == ["scratch-living"]
    assert (state / "scratch-living" / "rows.parquet").read_bytes() == b"rows"
    assert [part.exists() for part in parts] == [False, True, False, True]


PRESSED_IN_A_CALLBACK = """
import os, signal
from pipelines import cli

class Callback:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            pass

def command(**_):
    Callback()
    return 0

cli.rowmill.main = command
cli.main(["run"])
"""


def test_a_signal_during_a_callback_that_cannot_raise_still_ends_the_command() -> None:
    command = [sys.executable, "-c", PRESSED_IN_A_CALLBACK]
    ended = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


PRESSED_IN_AN_IMPORT = """
import signal, sys
from pipelines import cli

class Pressed:
    def find_spec(self, name, path=None, target=None):
        if name == "duckdb":
            sys.meta_path.remove(self)
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Pressed())
cli.main(["run", "jobs/quickstart.yaml"])
"""


def test_a_signal_during_an_import_ends_the_command_in_silence() -> None:
    command = [sys.executable, "-c", PRESSED_IN_AN_IMPORT]
    ended = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    # The line of `^C` ends.
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "\n")
