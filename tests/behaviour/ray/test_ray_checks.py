"""`check`, `repairs` and `evidence` on a Ray cluster."""

from typing import Any

import pytest

from tests.behaviour.quality.test_checks import checked_job
from tests.behaviour.runs.test_checked_runs import CHECKED, every_third_wrong, places, quoted
from tests.conftest import ReadTable, ScriptedProvider, Workspace

pytestmark = pytest.mark.ray


def test_workers_check_answers_request_repairs_and_find_the_evidence(
    workspace: Workspace, provider: ScriptedProvider, ray_run: Any, read: ReadTable
) -> None:
    provider.script = lambda path, body, count: every_third_wrong(body)
    workspace.csv(600)
    job = checked_job(workspace, CHECKED)
    report = ray_run(job).ended()
    assert (report["exit_code"], report["rows_ok"], report["requests"]) == (0, 600, 800)
    assert places(read, workspace) == {number: quoted(number) for number in range(1, 601)}
    assert ray_run(job).ended()["requests"] == 0
