"""The lines between a client and a run."""

import pytest

from connectors.errors import JobError
from pipelines.control.protocol import ControlReply, ControlRequest


@pytest.mark.parametrize(
    "request_", [ControlRequest("pause"), ControlRequest("set", {"limits.concurrency": 5, "budget.usd": 0.5})]
)
def test_a_request_is_read_as_it_was_written(request_: ControlRequest) -> None:
    assert ControlRequest.from_line(request_.to_line()) == request_


@pytest.mark.parametrize(
    "reply", [ControlReply({"rows": 3}, notice="fewer files"), ControlReply(error="job: the run is ending; wait")]
)
def test_a_reply_is_read_as_it_was_written(reply: ControlReply) -> None:
    assert reply.to_line().endswith(b"\n")
    assert ControlReply.from_line(reply.to_line()) == reply


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"\xff\n", "control: a line that is not JSON; "),
        (b"[]\n", "control: no such command; send one of state, pause, resume, drain, set"),
        (b'{"command": "stop"}\n', "control: no such command; "),
        (b'{"command": {}}\n', "control: no such command; "),
        (b'{"command": "set", "values": null}\n', "control: values is not an object; "),
        (b"[" * 60_000 + b"\n", "control: a line that is not JSON; "),
    ],
)
def test_anything_else_is_refused_in_one_line(line: bytes, message: str) -> None:
    with pytest.raises(JobError) as refused:
        ControlRequest.from_line(line)
    assert str(refused.value).startswith(message)
