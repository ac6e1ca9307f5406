"""Every named fault of the emulator, over HTTP: class, exit code, requests, and what the next run sends."""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from connectors.emulator.faults.error_bodies import ERROR_REPLIES
from connectors.emulator.server import EmulatorOptions, EmulatorServer
from tests.conftest import Cli, Workspace
from tests.support.exhaustive import marks

Read = Callable[..., list[dict[str, Any]]]

OUTCOMES: dict[str, tuple[str, int, dict[str, int], int, int]] = {
    # class -> (script; NAME: the fault), exit code, errors by class, requests, requests of the next run
    "content_filter": ("200, NAME", 1, {"content_filter": 1}, 4, 0),
    "bad_request": ("200, NAME", 1, {"bad_request": 1}, 4, 0),
    "quota": ("200, NAME", 3, {"quota": 1}, 2, 3),
    "access_denied": ("200, NAME", 3, {"access_denied": 1}, 2, 3),
    "server": ("200, NAME", 0, {}, 5, 0),
    "rate_limit": ("200, NAME*2", 0, {}, 6, 0),
    "setup": ("NAME", 3, {"setup": 1}, 1, 4),
}
PAGE = Path(__file__).parents[3] / "jobs" / "docs" / "errors-and-faults.md"
LONG_WAITS = {"wait-of-a-day": ("200, NAME", 3, {"rate_limit": 1}, 2, 3)}


def chosen_first(names: Iterable[str]) -> list[Any]:
    """Names as parameters: the first of each class and status, and of each other wait, is not `exhaustive`."""
    seen: set[tuple[Any, ...]] = set()
    chosen = []
    for name in names:
        kind = (ERROR_REPLIES[name].error_class, ERROR_REPLIES[name].status, name in LONG_WAITS)
        chosen.append(pytest.param(name, marks=marks(kind in seen)))
        seen.add(kind)
    return chosen


@pytest.mark.parametrize("name", chosen_first(ERROR_REPLIES))
def test_a_run_treats_every_named_fault_by_its_class(workspace: Workspace, cli: Cli, read: Read, name: str) -> None:
    script, exit_code, errors, requests, again = LONG_WAITS.get(name, OUTCOMES[ERROR_REPLIES[name].error_class])
    workspace.csv(4)
    job = workspace.job(limits="{concurrency: 1}")
    with EmulatorServer(EmulatorOptions(script=script.replace("NAME", name))) as server:
        workspace.write("rowmill.yaml", f'providers: {{test: {{base_url: "{server.base_url}"}}}}\n')
        first = cli.run(job)
        found = Counter(row["error_class"] for row in read(workspace.folder / "out", "errors"))
        second = cli.run(job)
    assert (first["exit_code"], found, first["requests"]) == (exit_code, errors, requests)
    assert second["requests"] == again
    assert second["rows_failed"] == (0 if again else sum(errors.values()))


@pytest.mark.parametrize(
    "name",
    chosen_first(name for name, it in ERROR_REPLIES.items() if it.error_class == "setup" and it.status in (404, 405)),
)
def test_a_model_that_has_answered_is_gone_after_three_replies_in_a_row(
    workspace: Workspace, cli: Cli, read: Read, name: str
) -> None:
    workspace.csv(8)
    job = workspace.job(limits="{concurrency: 1}")
    with EmulatorServer(EmulatorOptions(script=f"200*2, {name}, 200, {name}*3")) as server:
        workspace.write("rowmill.yaml", f'providers: {{test: {{base_url: "{server.base_url}"}}}}\n')
        first = cli.run(job)
        found = Counter(row["error_class"] for row in read(workspace.folder / "out", "errors"))
        second = cli.run(job)
    assert (first["exit_code"], first["requests"], first["rows_ok"], found) == (3, 7, 3, {"setup": 4})
    # The lone one met the same fault: it is the set-up's as well.
    assert (second["exit_code"], second["requests"], second["rows_ok"]) == (0, 5, 8)


def test_a_503_that_denies_the_model_is_sent_again_until_it_comes_three_times_in_a_row(
    workspace: Workspace, cli: Cli, read: Read
) -> None:
    workspace.csv(8)
    job = workspace.job(limits="{concurrency: 1}", retry="{attempts: 5, longest_wait: 0.01}")
    with EmulatorServer(EmulatorOptions(script="200*2, no-channel, 200, no-channel*3")) as server:
        workspace.write("rowmill.yaml", f'providers: {{test: {{base_url: "{server.base_url}"}}}}\n')
        first = cli.run(job)
        found = Counter(row["error_class"] for row in read(workspace.folder / "out", "errors"))
        second = cli.run(job)
    assert (first["exit_code"], first["requests"], first["rows_ok"], found) == (3, 7, 3, {"setup": 1})
    assert (second["exit_code"], second["requests"], second["rows_ok"]) == (0, 5, 8)


def test_the_page_lists_every_named_fault() -> None:
    rows = [f"| `{name}` | {reply.status} | `{reply.error_class}` |" for name, reply in ERROR_REPLIES.items()]
    assert "\n".join(rows) in PAGE.read_text()
