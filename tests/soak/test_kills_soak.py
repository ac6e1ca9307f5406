"""Runs killed at every named point and at random moments: every row once, nothing kept is asked again, all books agree.

The quick half kills at each point once. The soak (`pytest -m soak tests/soak`) does so with every signal in every kind
of job, compares with undisturbed runs, and prints how many kills there were at which point.
"""

import itertools
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("tests.soak.scenarios", "tests.soak.accounts")

from tests.conftest import Workspace  # noqa: E402
from tests.soak.counting_server import CountingServer  # noqa: E402
from tests.soak.launcher import POINTS, RANDOM  # noqa: E402
from tests.soak.scenarios import OF_DUCKDB, SCENARIOS, SIGNALS, Ordeal, csv_of  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what its sockets have sent")

AT_RANDOM = 3
"""Kills at random moments, of each scenario with each signal."""
IN_ALL = 200
"""Kills that the soak makes at least."""


@dataclass(slots=True)
class Score:
    """What all scenarios together came to."""

    done: Counter[tuple[str, str]] = field(default_factory=Counter)
    cut_short: Counter[tuple[str, str]] = field(default_factory=Counter)
    facts: Counter[str] = field(default_factory=Counter)

    def add(self, ordeal: Ordeal, seconds: float) -> None:
        self.done += ordeal.kills
        self.cut_short += ordeal.cut_short
        self.facts.update(ordeal.accounts.facts())
        self.facts["seconds"] += round(seconds)

    def lines(self) -> Iterator[str]:
        yield f"{'survived (and cut short)':28}" + "".join(f"{by:>12}" for by in SIGNALS)
        for point in (*POINTS, RANDOM):
            cells = (f"{self.done[point, by]} ({self.cut_short[point, by]})" for by in SIGNALS)
            yield f"{point:28}" + "".join(f"{cell:>12}" for cell in cells)
        yield f"{self.done.total()} kills; " + ", ".join(f"{name} {count:,}" for name, count in self.facts.items())


@pytest.fixture(scope="session")
def score(request: pytest.FixtureRequest) -> Iterator[Score]:
    """Told at the end."""
    added = Score()
    yield added
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("", *added.lines(), sep="\n")


@pytest.fixture
def server() -> Iterator[CountingServer]:
    """A provider that counts."""
    counting = CountingServer()
    yield counting
    counting.close()


@pytest.fixture
def ordeal(tmp_path: Path, server: CountingServer, request: pytest.FixtureRequest) -> Iterator[Ordeal]:
    """A job of the scenario that the test is given."""
    suffering = Ordeal(request.param, Workspace(tmp_path, server.base_url), server, seed=1)
    yield suffering
    suffering.close()


@pytest.mark.parametrize("ordeal", [SCENARIOS[2]], ids=lambda scenario: scenario.name, indirect=True)
def test_a_run_survives_a_kill_at_each_named_point_of_a_parquet_sink(ordeal: Ordeal) -> None:
    plan = list(zip(ordeal.scenario.points, itertools.cycle(("KILL", "TERM", "KILL", "INT", "KILL", "TWICE"))))
    ordeal.survive(plan)
    assert ordeal.kills == Counter(plan)


@pytest.mark.parametrize("ordeal", [SCENARIOS[1]], ids=lambda scenario: scenario.name, indirect=True)
def test_a_run_survives_a_kill_at_each_named_point_of_a_duckdb_sink(ordeal: Ordeal) -> None:
    plan = [(point, "KILL") for point in (*OF_DUCKDB, "commit noted", "committed")]
    ordeal.survive(plan)
    assert ordeal.kills == Counter(plan)


def test_the_soak_kills_at_every_point_with_every_signal_and_often_enough() -> None:
    plans = {scenario: scenario.plan(AT_RANDOM) for scenario in SCENARIOS}
    assert {point for plan in plans.values() for point, _ in plan} == {*POINTS, RANDOM}
    assert sum(map(len, plans.values())) >= IN_ALL


@pytest.mark.soak
@pytest.mark.parametrize("ordeal", SCENARIOS, ids=lambda scenario: scenario.name, indirect=True)
def test_a_run_survives_every_signal_at_every_point_and_equals_an_undisturbed_one(
    ordeal: Ordeal, cli: Any, score: Score
) -> None:
    plan, began = ordeal.scenario.plan(AT_RANDOM), time.monotonic()
    ordeal.survive(plan)
    assert ordeal.kills == Counter(plan)
    assert all(ordeal.cut_short[cell] == count for cell, count in ordeal.kills.items() if cell[1] == "KILL")
    assert ordeal.accounts.left_at_once > 0
    assert without_run(ordeal.table("results")) == without_run(undisturbed(ordeal, cli))
    score.add(ordeal, time.monotonic() - began)


def undisturbed(ordeal: Ordeal, cli: Any) -> list[dict[str, Any]]:
    """The results of the same rows in a workspace without kills, generation after generation."""
    (calm := ordeal.workspace.folder / "calm").mkdir()
    workspace = Workspace(calm, ordeal.server.base_url)
    job = ordeal.scenario.job_in(workspace)
    for generation in range(ordeal.generation + 1):
        workspace.write("rows.csv", csv_of(generation))
        assert cli.run(job)["exit_code"] == 0
    return ordeal.scenario.table(calm, "results")


def without_run(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sorted, without the columns that differ between runs."""
    return sorted(
        ({name: value for name, value in row.items() if name != "_run_id"} for row in rows), key=lambda row: row["id"]
    )
