"""A run on Ray is paused, given other limits and drained: its workers follow."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from connectors.errors import JobError
from pipelines.control.client import send_request
from pipelines.control.protocol import ControlRequest

pytestmark = pytest.mark.ray


def test_workers_pause_take_other_limits_and_drain(workspace: Any, provider: Any, ray_run: Any, cli: Any) -> None:
    workspace.csv(3000)
    provider.latency = 0.05
    job = workspace.job(limits="{concurrency: 8}")
    state = workspace.folder / ".rowmill"

    def send(request: ControlRequest) -> dict[str, Any]:
        reply = send_request(state, "job", request)
        if reply.error is not None:
            raise JobError("", reply.error)
        return dict(reply.state or {})

    def wait_for(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    run = ray_run(job)
    run.wait_for(provider, 50)
    with pytest.raises(JobError, match="a run on Ray that began without a budget takes none"):
        send(ControlRequest("set", {"budget.usd": 1.0}))
    assert send(ControlRequest("pause"))["paused_since"] is not None
    wait_for(lambda: send(ControlRequest("state"))["in_flight"] == 0 and provider.in_flight == 0)
    time.sleep(1.0)
    seen = len(provider.seen)
    time.sleep(1.0)
    assert len(provider.seen) == seen
    provider.most_in_flight = 0
    send(ControlRequest("set", {"limits.concurrency": 20}))
    assert send(ControlRequest("resume"))["paused_since"] is None
    wait_for(lambda: provider.most_in_flight > 8)
    send(ControlRequest("drain"))
    report = run.ended()
    assert (report["exit_code"], len(provider.seen)) == (3, len(provider.answered))
    assert report["stopped"].startswith("drained by `rowmill control`: ")
    assert provider.most_in_flight <= 20
    assert [event["command"] for event in report["control"]] == ["pause", "set", "resume", "drain"]
    assert cli.run(job)["rows_ok"] == 3000
    assert len(provider.seen) == 3000
