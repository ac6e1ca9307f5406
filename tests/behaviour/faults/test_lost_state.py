"""State that another program removes, moves or replaces during a run: the run stops, and no answer is paid twice."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.runtime import state_watch
from tests.conftest import Body, Cli, ScriptedProvider, Workspace, table

ROWS = 120


def remove_ledger(folder: Path) -> None:
    for path in (folder / ".rowmill").glob("ledger.sqlite*"):
        path.unlink()


LOSSES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "the state folder is removed": (".rowmill", lambda folder: shutil.rmtree(folder / ".rowmill")),
    "the state folder is moved": (".rowmill", lambda folder: (folder / ".rowmill").rename(folder / "moved")),
    "the ledger is removed": (".rowmill/ledger.sqlite", remove_ledger),
    "the locks are removed": (".rowmill/locks/job.lock", lambda folder: shutil.rmtree(folder / ".rowmill" / "locks")),
    "the sink is removed": ("out", lambda folder: shutil.rmtree(folder / "out")),
    "the sink is replaced": (
        "out",
        lambda folder: shutil.copytree((folder / "out").rename(folder / "old"), folder / "out"),
    ),
}


def lose_after(provider: ScriptedProvider, lose: Callable[[], object]) -> None:
    """Call `lose` once, at the 40th request; from then on the provider is slow enough for the run to notice."""

    def script(path: str, body: Body, count: int) -> None:
        if count == 40:
            provider.latency = 0.05
            lose()

    provider.script = script


@pytest.mark.parametrize("name", LOSSES)
def test_the_run_stops_with_one_line_and_the_next_completes_it(
    name: str, workspace: Workspace, provider: ScriptedProvider, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_watch, "WATCH_SECONDS", 0.01)
    lost, lose = LOSSES[name]
    workspace.csv(ROWS)
    job = workspace.job(limits="{concurrency: 4}")
    lose_after(provider, lambda: lose(workspace.folder))
    assert cli("run", job, "--quiet") == 3
    (line,) = cli.err.splitlines()
    path = workspace.folder / lost
    reason = f"{path}: was removed, moved or replaced while the run was using it; run again to continue"
    assert line == f"job: stopped: {reason}"
    assert len(provider.seen) < ROWS
    provider.latency = 0.0
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"]) == (0, ROWS)
    assert sorted(provider.prompts()) == sorted(f"text {n}" for n in range(1, ROWS + 1))
    assert len(table(workspace.folder / "out")) == ROWS
    assert len(table(workspace.folder / "out", "usage")) == ROWS


def test_a_ledger_in_the_place_of_the_lost_one_is_not_overwritten(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_watch, "WATCH_SECONDS", 0.01)
    workspace.csv(ROWS)
    job, state = workspace.job(limits="{concurrency: 4}"), workspace.folder / ".rowmill"

    def replace() -> None:
        remove_ledger(workspace.folder)
        (state / "ledger.sqlite").write_bytes(b"")

    lose_after(provider, replace)
    assert cli("run", job, "--quiet") == 3
    (saved,) = state.glob("ledger-*.sqlite")
    (line,) = cli.err.splitlines()
    assert line.endswith(f"run again to continue; what the run had written there is in {saved}")
    assert (state / "ledger.sqlite").read_bytes() == b""
