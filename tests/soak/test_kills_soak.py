"""Runs killed at named points and at random moments, over and over: every row once, nothing kept is asked again."""

import sys
from typing import Any

import pytest

pytest.register_assert_rewrite("tests.soak.ordeal")

from tests.conftest import Workspace  # noqa: E402
from tests.soak.ordeal import SCENARIOS, Ordeal, Scenario  # noqa: E402

SHORT = 6
LONG = 36
"""Kills of each scenario; in all more than 200."""


def hardened(workspace: Any, provider: Any, scenario: Scenario, kills: int, seed: int) -> Ordeal:
    ordeal = Ordeal(scenario, workspace, provider, seed)
    ordeal.rows()
    ordeal.survive(kills)
    assert ordeal.kills.total() == kills
    return ordeal


@pytest.mark.parametrize("scenario", SCENARIOS[1:3], ids=lambda scenario: scenario.name)
def test_a_run_survives_a_few_kills(workspace: Any, provider: Any, scenario: Scenario) -> None:
    hardened(workspace, provider, scenario, SHORT, seed=7)


@pytest.mark.soak
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
@pytest.mark.parametrize("seed", [1])
def test_a_run_survives_kills_at_every_point_and_equals_an_undisturbed_one(
    workspace: Any, provider: Any, scenario: Scenario, seed: int
) -> None:
    ordeal = hardened(workspace, provider, scenario, LONG, seed)
    calm_folder = workspace.folder / "calm"
    calm_folder.mkdir()
    calm = Ordeal(scenario, Workspace(calm_folder, provider.base_url), provider, seed)
    for calm.generation in range(ordeal.generation + 1):
        calm.rows()
        calm.finish()

    def without_run(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(
            ({name: value for name, value in row.items() if name != "_run_id"} for row in rows),
            key=lambda row: row["id"],
        )

    assert without_run(ordeal.table("results")) == without_run(calm.table("results"))
    print(f"\n{scenario.name}: {ordeal.kills.total()} kills survived", file=sys.stderr)
