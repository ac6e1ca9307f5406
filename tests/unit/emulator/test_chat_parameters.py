"""Every parameter of POST /chat/completions: accepted if valid, named in the error if not."""

from typing import Any

import httpx2 as httpx
import openai
import pytest

from tests.unit.emulator.conftest import WEATHER


def chat_body(text: str = "Hello there. How are you?", **more: Any) -> dict[str, Any]:
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}], **more}


def complete(client: openai.OpenAI, text: str = "Hello there. How are you?", **more: Any) -> Any:
    return client.chat.completions.create(**chat_body(text, **more))


ACCEPTED: dict[str, Any] = {
    "temperature": 0.7,
    "top_p": 0.5,
    "n": 1,
    "stream": False,
    "stop": "x",
    "presence_penalty": -2.0,
    "frequency_penalty": 2,
    "seed": 7,
    "logit_bias": {"50256": -100},
    "logprobs": False,
    "user": "me",
    "metadata": {"a": "b"},
    "store": False,
    "service_tier": "auto",
    "reasoning_effort": "low",
    "verbosity": "low",
    "prediction": {"type": "content", "content": "x"},
    "modalities": ["text"],
    "response_format": {"type": "text"},
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "max_tokens": 100,
}


def test_every_parameter_is_accepted(client: openai.OpenAI) -> None:
    assert complete(client, **ACCEPTED).choices[0].finish_reason == "stop"
    assert complete(client, extra_body=dict.fromkeys(ACCEPTED.keys() - {"user", "response_format"})).choices


REJECTED: list[tuple[dict[str, Any], str, str]] = [
    ({"foo": 1}, "foo", "unknown_parameter"),
    ({"model": None}, "model", "missing_required_parameter"),
    ({"messages": []}, "messages", "empty_array"),
    ({"messages": "hi"}, "messages", "invalid_type"),
    ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
    ({"messages": [{"role": "user", "content": "x", "mood": "y"}]}, "messages[0].mood", "unknown_parameter"),
    (
        {"messages": [{"role": "tool", "content": "x", "tool_call_id": "c"}]},
        "messages[0].tool_call_id",
        "invalid_value",
    ),
    ({"temperature": 2.5}, "temperature", "decimal_above_max_value"),
    ({"temperature": "hot"}, "temperature", "invalid_type"),
    ({"temperature": True}, "temperature", "invalid_type"),
    ({"top_p": -1}, "top_p", "decimal_below_min_value"),
    ({"n": 0}, "n", "integer_below_min_value"),
    ({"n": 1.5}, "n", "invalid_type"),
    ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
    ({"max_tokens": 1_000_000}, "max_tokens", "invalid_value"),
    ({"stop": list("abcde")}, "stop", "array_above_max_length"),
    ({"presence_penalty": 3}, "presence_penalty", "decimal_above_max_value"),
    ({"stream": "yes"}, "stream", "invalid_type"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"1": 200}}, "logit_bias.1", "decimal_above_max_value"),
    ({"tool_choice": "auto"}, "tool_choice", "invalid_value"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
    ({"tools": [{"type": "robot"}]}, "tools[0].type", "invalid_value"),
    ({"tools": [WEATHER], "tool_choice": "maybe"}, "tool_choice", "invalid_value"),
    (
        {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}},
        "tool_choice",
        "invalid_value",
    ),
    (
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        "tools[0].function.name",
        "invalid_value",
    ),
    (
        {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "nothing"}}}]},
        "tools[0].function.parameters",
        "invalid_json_schema",
    ),
    ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
    ({"response_format": {"type": "json_object"}}, "messages", "invalid_value"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}},
        "response_format.json_schema.name",
        "missing_required_parameter",
    ),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "strict": True, "schema": {"type": "object"}},
            }
        },
        "response_format",
        "invalid_json_schema",
    ),
    ({"modalities": ["text", "audio"]}, "modalities", "unsupported_value"),
    ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
    ({"service_tier": "slow"}, "service_tier", "invalid_value"),
    ({"model": "o3", "max_tokens": 5}, "max_tokens", "unsupported_parameter"),
    ({"model": "o3", "temperature": 0}, "temperature", "unsupported_value"),
]


@pytest.mark.parametrize(("more", "param", "code"), REJECTED)
def test_an_invalid_parameter_is_named_in_the_error(
    base_url: str, http: httpx.Client, more: dict[str, Any], param: str, code: str
) -> None:
    reply = http.post(f"{base_url}/chat/completions", json={**chat_body(), **more})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert set(error) == {"message", "type", "param", "code"}


def test_a_tool_call_without_its_result_is_rejected(client: openai.OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages: Any = [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "user", "content": "So?"}]
    with pytest.raises(openai.BadRequestError, match="must be followed by tool messages"):
        client.chat.completions.create(model="m", messages=messages)


def test_messages_above_the_context_window_are_rejected(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, "word " * 9000, extra_body={"model": "gpt-4"})
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


def test_unknown_models_are_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "x"}])
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
