"""Altered answers: each is served as its entry states, and has the outcome that the entry states."""

from pathlib import Path
from typing import Any

import httpx2 as httpx
import orjson
import pytest

from connectors.contracts import MalformedReply, StepContext
from connectors.emulator.faults.altered_answers import ALTERED_ANSWERS
from connectors.emulator.server import EmulatorOptions, EmulatorServer
from connectors.endpoints.chat import ChatStep
from connectors.records import Reply, Request, RowError


def outcome(http: httpx.Client, name: str, **keys: Any) -> str | None:
    """Return the class of the error that a step gets from an emulator with this fault; None for an answer."""
    step = {"name": "ask", "endpoint": "chat", "model": "gpt-4o-mini", "messages": [{"user": "Hello there."}], **keys}
    endpoint = ChatStep.model_validate(step).build(StepContext("local@here", {}, Path("/w"), (), ()))
    request = endpoint.request({}, "1")
    assert isinstance(request, Request)
    with EmulatorServer(EmulatorOptions(script=name)) as server:
        raw = http.post(f"{server.base_url}/chat/completions", json=orjson.loads(request.body))
    try:
        (answer,) = endpoint.answers([request], Reply(raw.status_code, dict(raw.headers), raw.content, 1.0))
    except MalformedReply as exc:
        return "malformed_reply" if exc.error is None else exc.error.error_class
    assert isinstance(answer, bytes)
    values = endpoint.values(answer)
    return values.error_class if isinstance(values, RowError) else None


@pytest.mark.parametrize("name", ALTERED_ANSWERS)
def test_a_typed_answer_has_the_outcome_of_its_entry(http: httpx.Client, name: str) -> None:
    typed = {"topic": {"type": "string", "enum": ["billing", "other"]}, "urgency": "integer"}
    assert outcome(http, name, output=typed) == ALTERED_ANSWERS[name].outcome


@pytest.mark.parametrize(
    ("name", "expected"),
    [("abort", "server"), ("choice-error", "server"), ("safety", "content_filter"), ("max-tokens", None),
     ("no-reason", None)],
)  # fmt: skip
def test_the_ending_of_a_stream_has_the_same_outcome(http: httpx.Client, name: str, expected: str | None) -> None:
    assert outcome(http, name, stream=True) == expected


def test_fewer_answers_than_requested_are_an_error(http: httpx.Client) -> None:
    assert outcome(http, "one-choice", params={"n": 3}) == "invalid_answer"
    assert outcome(http, "200", params={"n": 3}) is None
