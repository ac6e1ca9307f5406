"""Optional parameters that a provider refuses: left out from then on, for its model alone."""

from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from connectors.records import Call, RowError
from pipelines.dispatch.faults.optional_parameters import OptionalParameters

BODY = {"model": "m", "stream": True, "stream_options": {"include_usage": True}, "messages": []}
CALL = Call("POST", "/chat/completions", orjson.dumps(BODY), stream=True)


def member_of(provider: str, model: str = "m") -> Any:
    return SimpleNamespace(provider=SimpleNamespace(name=provider), model=model)


@pytest.mark.parametrize(
    ("status", "message", "param", "is_learned"),
    [
        (422, "stream_options.include_usage: Extra inputs are not permitted", None, True),
        (400, "Unrecognized request argument supplied: stream_options", None, True),
        (400, "Unknown parameter", "stream_options", True),
        (400, "messages must not be empty", None, False),
        (429, "stream_options", None, False),
    ],
)
def test_a_refusal_that_names_the_parameter_is_learned(
    status: int, message: str, param: str | None, is_learned: bool
) -> None:
    parameters, test = OptionalParameters(), member_of("test")
    error = RowError("bad_request", message, status, param=param)
    assert parameters.learn(test, CALL, error) is is_learned
    sent = orjson.loads(parameters.without_refused(test, CALL).body or b"")
    assert sent == {name: value for name, value in BODY.items() if name != "stream_options" or not is_learned}
    assert parameters.without_refused(member_of("test", "other"), CALL) is CALL
    assert parameters.without_refused(member_of("other"), CALL) is CALL


def test_a_request_without_the_parameter_is_refused_for_good() -> None:
    parameters, test = OptionalParameters(), member_of("test")
    error = RowError("bad_request", "stream_options is not known", 400)
    quoting = replace(CALL, body=orjson.dumps({"messages": ['"stream_options":']}))
    assert not parameters.learn(test, quoting, error)
    assert not parameters.learn(test, replace(CALL, body=None), error)
