"""`rescue` on a Ray cluster: workers request failed rows again by the rungs."""

from typing import Any

import pytest

from tests.behaviour.runs.test_rescue import LONGER, OTHER_MODEL, Hard, asked, rescue_job, rungs
from tests.conftest import ReadTable, ScriptedProvider, Workspace

pytestmark = pytest.mark.ray


def test_failed_rows_are_requested_again_by_the_rungs_and_a_new_rung_the_next_night(
    workspace: Workspace, provider: ScriptedProvider, ray_run: Any, read: ReadTable
) -> None:
    provider.script = hard = Hard()
    workspace.csv(600)
    hard.faults = {(2, "m", 20): "length", (3, "m", 20): "content_filter", (4, "m", 20): "bad_request"}
    first = ray_run(rescue_job(workspace, f"[{LONGER}]")).ended()
    assert (first["exit_code"], first["rows_ok"], first["requests"]) == (1, 598, 601)
    assert rungs(read, workspace)[2] == ("m 200", 1)
    provider.seen.clear()
    second = ray_run(rescue_job(workspace, f"[{LONGER}, {OTHER_MODEL}]")).ended()
    assert asked(provider) == [(3, "big", 20)]
    assert (second["rows_ok"], second["rows_failed"]) == (599, 1)
    assert {rung for _, rung in rungs(read, workspace).values()} == {0, 1, 2}
