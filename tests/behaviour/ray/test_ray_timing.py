"""The time breakdown of a run on Ray: the senders of all workers are counted."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pipelines.monitoring.bottleneck import SENDER_STATES

pytestmark = pytest.mark.ray
Read = Callable[..., list[dict[str, Any]]]


def times_of(folder: Path) -> dict[str, Any]:
    with closing(sqlite3.connect(folder / ".rowmill/ledger.sqlite")) as db:
        ((report,),) = db.execute("select report from runs").fetchall()
    times: dict[str, Any] = json.loads(report)["times"]
    return times


def test_the_time_of_the_senders_is_summed_over_all_workers(
    workspace: Any, provider: Any, ray_run: Any, cli: Any, read: Read
) -> None:
    workspace.csv(1200)
    provider.latency = 0.05
    job = workspace.job(limits="{concurrency: 12}")
    assert ray_run(job).ended()["rows_ok"] == 1200
    times = times_of(workspace.folder)
    assert (times["senders"], times["workers"]) == (12, 4)
    assert sum(times[name] for name in SENDER_STATES) == pytest.approx(12 * times["sending"], rel=0.05)
    waited = sum(row["latency_ms"] for row in read(workspace.folder / "out", "usage")) / 1000
    assert times["network"] == pytest.approx(waited, rel=0.001)
    assert min(times["ledger"], times["cpu"], times["starting"]) > 0
    assert times["limits"] < times["network"]
    page = workspace.folder / "report.html"
    assert cli("report", job, "--out", page) == 0
    assert "What 12 senders on 4 workers did" in page.read_text()


def test_the_report_names_the_limit_that_bounds_the_workers(workspace: Any, ray_run: Any) -> None:
    file = workspace.folder / "rowmill.yaml"
    file.write_text(file.read_text().replace('v1"}', 'v1", limits: {requests_per_minute: 3000}}'))
    workspace.csv(400)
    assert ray_run(workspace.job()).ended()["rows_ok"] == 400
    assert "the limit of test, 3,000 requests a minute" in times_of(workspace.folder)["bound_by"]
