"""Responses in both formats: the request of a row, and the columns from a reply."""

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from msgspec.structs import replace

from connectors.contracts import Endpoint, MalformedReply, StepContext
from connectors.endpoints.conversation.chat_params import INCLUDE, REFERENCE_PARAMS, RESPONSES_PARAMS
from connectors.endpoints.conversation.conversation_endpoint import ConversationEndpoint
from connectors.endpoints.conversation.reference_responses import METADATA
from connectors.endpoints.responses import ResponsesStep
from connectors.errors import JobError
from connectors.records import Media, Reply, Request, RowError, Usage
from connectors.transport.error_replies import row_error

REPLIES = Path(__file__).parents[2] / "replies"
COLUMNS = {"text": pa.string(), "project": pa.string(), "pic": pa.binary(), "as_json": pa.string()}
TOOL = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
NESTED = {"type": "function", "function": TOOL}
PNG = Media(hashlib.sha256(b"png").hexdigest(), 3, "image/png", "png", data=b"png", pixels=(32, 32))


def built(way: str | None = None, /, **keys: Any) -> ConversationEndpoint:
    step = {"name": "ask", "endpoint": "responses", "model": "gpt-4o-mini", **keys}
    return ResponsesStep.model_validate(step).build(StepContext("t@here", COLUMNS, Path("/w"), (), (), way))


def openai(way: str | None = None, /, **keys: Any) -> ConversationEndpoint:
    return built(way, **{"input": "{{ text }}", **keys})


def reference(way: str | None = None, /, **keys: Any) -> ConversationEndpoint:
    return built(way, **{"messages": [{"user": "{{ text }}"}], **keys})


def request_of(endpoint: Endpoint, **row: Any) -> Request:
    request = endpoint.request({"text": "Hi", **row}, "1")
    assert isinstance(request, Request), request
    return request


def sent(endpoint: Endpoint, **row: Any) -> Any:
    call = endpoint.call([request_of(endpoint, **row)])
    assert (call.method, call.path) == ("POST", "/responses")
    assert call.body is not None
    return orjson.loads(call.body)


def reply(body: Any) -> Reply:
    return Reply(200, {}, body if isinstance(body, bytes) else orjson.dumps(body), 1.0)


def recorded(name: str) -> bytes:
    return (REPLIES / name).read_bytes()


def read(endpoint: Endpoint, body: Any) -> dict[str, Any]:
    """Return the row from a reply."""
    (answer,) = endpoint.answers([request_of(endpoint)], reply(body))
    assert isinstance(answer, bytes)
    values = endpoint.values(answer)
    assert not isinstance(values, RowError), values
    columns = endpoint.arrays([values, None])
    assert [array.type for array in columns] == [field.type for field in endpoint.fields]
    return {field.name: array[0].as_py() for field, array in zip(endpoint.fields, columns, strict=True)}


def failed(endpoint: Endpoint, body: Any) -> tuple[str, str]:
    (answer,) = endpoint.answers([request_of(endpoint)], reply(body))
    assert isinstance(answer, bytes)
    error = endpoint.values(answer)
    assert isinstance(error, RowError)
    return error.error_class, error.message


def message(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text, **more}]}


def response(*output: Any, **more: Any) -> dict[str, Any]:
    return {"object": "response", "status": "completed", "error": None, "output": list(output), **more}


# OpenAI's format: requests.

OPENAI: dict[str, Any] = {
    "context_management": [{"type": "compaction"}],
    "conversation": "conv_1",
    "include": ["reasoning.encrypted_content"],
    "max_output_tokens": 16,
    "max_tool_calls": 1,
    "metadata": {"a": "b"},
    "moderation": {"model": "omni-moderation-latest"},
    "parallel_tool_calls": False,
    "previous_response_id": "resp_1",
    "prompt": {"id": "pmpt_1"},
    "prompt_cache_key": "k",
    "prompt_cache_options": {"ttl": "1h"},
    "prompt_cache_retention": "in_memory",
    "reasoning": {"effort": "low"},
    "safety_identifier": "s",
    "service_tier": "flex",
    "store": False,
    "temperature": 0.5,
    "top_logprobs": 3,
    "top_p": 0.5,
    "truncation": "auto",
    "user": "u",
}
REFERENCE: dict[str, Any] = {
    "frequency_penalty": -2,
    "max_tokens": 9,
    "parallel_tool_calls": False,
    "presence_penalty": 2,
    "seed": 7,
    "stop": "a",
    "temperature": 0.5,
    "top_p": 0.5,
    "user": "u",
}


@pytest.mark.parametrize(("name", "value"), OPENAI.items(), ids=OPENAI)
def test_every_parameter_of_openai_is_in_the_body(name: str, value: Any) -> None:
    assert sent(openai(params={name: value})) == {"model": "gpt-4o-mini", "input": "Hi", name: value}


@pytest.mark.parametrize(("name", "value"), REFERENCE.items(), ids=REFERENCE)
def test_every_parameter_of_the_reference_is_in_the_body(name: str, value: Any) -> None:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]}
    assert sent(reference(params={name: value})) == {**body, name: value}


def test_the_tables_above_have_every_parameter() -> None:
    assert {*OPENAI, "stream_options"} == set(RESPONSES_PARAMS)
    assert set(REFERENCE) == set(REFERENCE_PARAMS)


FLAT = {"type": "function", "strict": False, **TOOL}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"instructions": "Be brief, {{ text }}."}, {"instructions": "Be brief, Hi."}),
        ({"instructions": "Be brief."}, {"instructions": "Be brief."}),
        ({"text": {"verbosity": "low"}}, {"text": {"verbosity": "low"}}),
        ({"params": {"text": {"format": {"type": "json_object"}}}}, {"text": {"format": {"type": "json_object"}}}),
        ({"tools": [NESTED]}, {"tools": [FLAT]}),
        ({"tools": [{"type": "function", **TOOL, "strict": True}]}, {"tools": [{**FLAT, "strict": True}]}),
        ({"tools": [{"type": "web_search_preview"}]}, {"tools": [{"type": "web_search_preview"}]}),
        ({"tools": [NESTED], "tool_choice": "required"}, {"tools": [FLAT], "tool_choice": "required"}),
        (
            {"tools": [NESTED], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
            {"tools": [FLAT], "tool_choice": {"type": "function", "name": "get_weather"}},
        ),
        ({"stream": True}, {"stream": True}),
        (
            {"stream": True, "params": {"stream_options": {"include_obfuscation": False}}},
            {"stream": True, "stream_options": {"include_obfuscation": False}},
        ),
        ({"extra_body": {"top_k": 5}}, {"top_k": 5}),
    ],
)
def test_every_other_key_of_a_step_in_openais_format(keys: dict[str, Any], expected: dict[str, Any]) -> None:
    assert sent(openai(**keys)) == {"model": "gpt-4o-mini", "input": "Hi", **expected}


def test_messages_become_input_items_and_items_stay() -> None:
    file = {"type": "file", "file": {"file_id": "f"}}
    call = {"id": "x", "name": "get", "arguments": {"a": 1}}
    turns = [
        {"system": "Be brief."},
        {"user": [{"text": "{{ text }}"}, {"image": "pic", "detail": "low"}, file]},
        {"role": "assistant", "content": "Let me see", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "x", "content": "{{ text }}"},
        {"type": "function_call_output", "call_id": "{{ text }}", "output": "o"},
        {"type": "message", "role": "assistant", "content": [{"text": "a"}], "phase": "commentary"},
    ]  # fmt: skip
    endpoint = openai(input=turns)
    assert sent(endpoint, pic=PNG)["input"] == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "Hi"},
                {
                    "type": "input_image",
                    "image_url": f"data:image/png;base64,{base64.b64encode(b'png').decode()}",
                    "detail": "low",
                },
                {"type": "input_file", "file_id": "f"},
            ],
        },
        {"role": "assistant", "content": "Let me see"},
        {"type": "function_call", "name": "get", "arguments": '{"a":1}', "call_id": "x"},
        {"type": "function_call_output", "call_id": "x", "output": "Hi"},
        {"type": "function_call_output", "call_id": "Hi", "output": "o"},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "a"}],
            "phase": "commentary",
        },
    ]
    assert request_of(endpoint, pic=PNG).media == (PNG,)


def test_a_column_contains_messages_or_items() -> None:
    messages = [{"role": "user", "content": "a"}, {"type": "function_call_output", "call_id": "x", "output": "o"}]
    endpoint = openai(input={"column": "as_json"})
    assert sent(endpoint, as_json=orjson.dumps(messages).decode())["input"] == messages
    assert isinstance(endpoint.request({"as_json": "{"}, "1"), RowError)


def test_a_typed_output_uses_text_format_or_the_prompt() -> None:
    body = sent(openai(output={"n": "integer"}, text={"verbosity": "low"}))
    assert body["text"]["verbosity"] == "low"
    form = body["text"]["format"]
    assert (form["type"], form["name"], form["strict"], form["schema"]["required"]) == (
        "json_schema",
        "ask",
        True,
        ["n"],
    )
    assert sent(openai("json_object", output={"n": "integer"}))["text"] == {"format": {"type": "json_object"}}
    in_words = sent(openai("prompt", output={"n": "integer"}))
    assert "text" not in in_words
    assert [turn["role"] for turn in in_words["input"]] == ["system", "user"]
    assert (
        openai(output={"n": "integer"}).fallback_mode(RowError("bad_request", "no text.format here")) == "json_object"
    )


def test_a_repair_request_follows_the_input() -> None:
    endpoint = openai(output={"n": "integer"}, instructions="{{ text }}")
    request = request_of(endpoint)
    answer = orjson.dumps(response(message("three")))
    problem = endpoint.values(answer)
    assert isinstance(problem, RowError)
    again = endpoint.repair(request, answer, problem)
    assert again is not None
    body = orjson.loads(again.body)
    assert body["instructions"] == "Hi"
    assert body["input"][:2] == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "three"}]
    second = endpoint.repair(again, answer, problem)
    assert second is not None
    assert orjson.loads(second.body)["input"] == [*body["input"], *body["input"][1:]]


# OpenAI's format: replies.


@pytest.mark.parametrize(
    ("name", "begins", "usage"),
    [
        ("responses-text-input.json", "In a peaceful grove", Usage(36, 0, 87, 0, model_version="gpt-5.4")),
        ("responses-image-input.json", "The image depicts", Usage(328, 0, 52, 0, model_version="gpt-5.4")),
        ("responses-reasoning.json", "The classic", Usage(81, 0, 1035, 832, model_version="o1-2024-12-17")),
        (
            "responses-web-search.json",
            "As of today",
            Usage(328, 0, 356, 0, model_version="gpt-5.4", hosted_calls=(("web_search", 1),)),
        ),
        (
            "responses-file-search.json",
            "The attributes",
            Usage(18307, 0, 348, 0, model_version="gpt-5.4", hosted_calls=(("file_search", 1),)),
        ),
        ("responses-file-input.json", "The file seems", Usage(8438, 0, 398, 0, model_version="gpt-5.4")),
    ],
)
def test_a_recorded_response_gives_its_text_and_usage(name: str, begins: str, usage: Usage) -> None:
    endpoint = openai(detail=True)
    row = read(endpoint, recorded(name))
    assert set(row) == {"ask", "ask_finish_reason"}
    assert row["ask"].startswith(begins)
    actual = endpoint.usage([request_of(endpoint)], reply(recorded(name)))
    cached = usage.cached_tokens if b"cached_tokens" in recorded(name) else None
    tier = "default" if b"service_tier" in recorded(name) else None
    writes = 0 if b"cache_write_tokens" in recorded(name) else None
    assert actual == replace(
        usage, cached_tokens=cached, cache_write_tokens=writes, finish_reason="stop", service_tier=tier
    )


def test_function_calls_become_the_column_of_calls() -> None:
    row = read(openai(tools=[NESTED], detail=True), recorded("responses-functions.json"))
    assert row == {
        "ask": None,
        "ask_tool_calls": [
            {
                "id": "call_unLAR8MvFNptuiZK6K6HCy5k",
                "name": "get_current_weather",
                "arguments": '{"location":"Boston, MA","unit":"celsius"}',
            }
        ],
        "ask_finish_reason": "tool_calls",
    }


def test_calls_that_the_caller_executes_become_the_column_of_calls_under_their_type() -> None:
    """Every such item of the OpenAPI description; one of another type is known by its `call_id`."""
    items = (
        {"type": "computer_call", "id": "i", "call_id": "1", "action": {"type": "wait"}, "pending_safety_checks": []},
        {"type": "local_shell_call", "id": "i", "call_id": "2", "action": {"type": "exec"}, "status": "completed"},
        {"type": "apply_patch_call", "id": "i", "call_id": "3", "operation": {"path": "a"}, "status": "completed"},
        {"type": "mcp_approval_request", "id": "4", "server_label": "dice", "name": "roll", "arguments": "{}"},
        {"type": "dream_call", "id": "i", "call_id": "5", "of": "sheep"},
        {"type": "web_search_call", "id": "hosted", "status": "completed", "action": {"type": "search"}},
        {"type": "shell_call", "id": "i", "call_id": "executed", "action": {}, "status": "completed"},
        {"type": "shell_call_output", "id": "o", "call_id": "executed", "output": []},
    )
    row = read(openai(tools=[{"type": "computer_use_preview"}], detail=True), response(*items))
    assert (row["ask"], row["ask_finish_reason"]) == (None, "tool_calls")
    assert [tuple(call.values()) for call in row["ask_tool_calls"]] == [
        ("1", "computer", '{"action":{"type":"wait"},"pending_safety_checks":[]}'),
        ("2", "local_shell", '{"action":{"type":"exec"}}'),
        ("3", "apply_patch", '{"operation":{"path":"a"}}'),
        ("4", "roll", "{}"),
        ("5", "dream", '{"of":"sheep"}'),
    ]


def test_a_streamed_response_is_the_one_in_its_last_event() -> None:
    endpoint = openai(stream=True, detail=True)
    assert endpoint.call([request_of(endpoint)]).stream
    body = recorded("responses-streaming.sse")
    assert read(endpoint, body) == {"ask": "Hi there! How can I assist you today?", "ask_finish_reason": "stop"}
    assert endpoint.usage([request_of(endpoint)], reply(body)).output_tokens == 11


def test_logprobs_are_those_of_the_texts() -> None:
    token = {
        "token": "a",
        "logprob": -1.0,
        "bytes": [97],
        "top_logprobs": [{"token": "b", "logprob": -2.0, "bytes": [98]}],
    }
    row = read(openai(params={"include": [INCLUDE[-1]]}), response(message("a", logprobs=[token])))
    assert row == {"ask": "a", "ask_logprobs": [{**token, "top_logprobs": [{"token": "b", "logprob": -2.0}]}]}


def test_several_messages_are_one_text_without_the_reasoning() -> None:
    body = response({"type": "reasoning", "summary": []}, message("a"), message("b"), {"type": "web_search_call"})
    assert read(openai(), body) == {"ask": "ab"}


def test_commentary_is_no_part_of_a_final_answer() -> None:
    commentary, final = {**message("Let me see."), "phase": "commentary"}, {**message("b"), "phase": "final_answer"}
    assert read(openai(), response(commentary, final)) == {"ask": "b"}
    assert read(openai(), response(commentary)) == {"ask": "Let me see."}


def test_a_text_next_to_an_output_without_messages_is_the_answer() -> None:
    assert read(openai(), response(output_text="a")) == {"ask": "a"}
    assert read(openai(), response(message("b"), output_text="a")) == {"ask": "b"}


REFUSAL = {"type": "message", "content": [{"type": "refusal", "refusal": "I can't"}]}


@pytest.mark.parametrize(
    ("typed", "body", "error_class", "words"),
    [
        (False, response(REFUSAL), "content_filter", "the model refused: I can't"),
        (False, response(), "invalid_answer", "no text"),
        (True, response(message("x")), "invalid_answer", "this is no JSON"),
        (
            True,
            response(message('{"a"'), status="incomplete", incomplete_details={"reason": "max_output_tokens"}),
            "length",
            "raise max_output_tokens",
        ),
        (
            False,
            response(status="incomplete", incomplete_details={"reason": "max_output_tokens"}),
            "length",
            "raise max_output_tokens",
        ),
        (
            False,
            response(status="incomplete", incomplete_details={"reason": "content_filter"}),
            "content_filter",
            "was filtered",
        ),
    ],
)
def test_a_response_without_a_valid_answer_is_an_error_row(
    typed: bool, body: Any, error_class: str, words: str
) -> None:
    actual, message = failed(openai(output={"a": "string"} if typed else "answer"), body)
    assert actual == error_class
    assert words in message


INCOMPLETE = [
    ({"status": "incomplete", "incomplete_details": {"reason": "MAX_TOKENS"}}, "length"),
    ({"status": "incomplete", "incomplete_details": None}, "length"),
    ({"status": "incomplete", "incomplete_details": {"reason": "safety"}}, "content_filter"),
]


@pytest.mark.parametrize(("state", "error_class"), INCOMPLETE)
def test_an_incomplete_response_ends_as_its_reason_says(state: Any, error_class: str) -> None:
    typed = openai(output={"a": "string"})
    assert failed(typed, response(message('{"a"'), **state))[0] == error_class
    typed = reference(output={"a": "string"})
    assert failed(typed, {"response": {"content": '{"a"'}, **state})[0] == error_class


@pytest.mark.parametrize("text", ["", " "])
def test_a_response_without_text_is_an_answer_only_if_the_step_allows_it(text: str) -> None:
    for make, body in ((openai, response(message(text))), (reference, {"response": {"content": text}})):
        assert failed(make(), body)[0] == "invalid_answer"
        assert read(make(allow_empty=True), body)["ask"] == text


BROKEN_OFF = [
    {"status": "cancelled"},
    {"status": "failed"},
    {"status": "in_progress"},
    {"status": "incomplete", "incomplete_details": {"reason": "aborted"}},
]


@pytest.mark.parametrize("state", BROKEN_OFF)
def test_a_response_that_broke_off_is_sent_again(state: Any) -> None:
    events = b'data: {"type":"response.cancelled","response":%b}\n\n'
    streamed = events % orjson.dumps(response(message("Hel"), **state))
    bodies = [
        (openai(), response(message("Hel"), **state)),
        (openai(stream=True), streamed),
        (reference(), {"response": {"content": "Hel"}, **state}),
    ]
    for endpoint, body in bodies:
        with pytest.raises(MalformedReply) as caught:
            endpoint.answers([request_of(endpoint)], reply(body))
        assert caught.value.error is not None
        assert caught.value.error.error_class == "server"


def test_an_unknown_reason_of_the_reference_is_sent_again() -> None:
    for body in ({"response": {"content": "Hel"}, "finish_reason": "abort"}, {"response": {"finish_reason": "abort"}}):
        with pytest.raises(MalformedReply) as caught:
            reference().answers([request_of(reference())], reply(body))
        assert caught.value.error is not None
        assert caught.value.error.error_class == "server"


@pytest.mark.parametrize(
    ("code", "error_class"),
    [
        ("server_error", "server"),
        ("rate_limit_exceeded", "rate_limit"),
        ("invalid_prompt", "bad_request"),
        ("image_parse_error", "bad_request"),
        ("image_content_policy_violation", "content_filter"),
        ("vector_store_timeout", "server"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_failed_response_is_reported_as_an_error(streamed: bool, code: str, error_class: str) -> None:
    body = orjson.dumps(response(status="failed", error={"code": code, "message": "m"}))
    if streamed:
        body = b'event: response.failed\ndata: {"type":"response.failed","response":' + body + b"}\n\n"
    endpoint = openai(stream=streamed)
    with pytest.raises(MalformedReply) as caught:
        endpoint.answers([request_of(endpoint)], reply(body))
    assert caught.value.error is not None
    assert (caught.value.error.error_class, caught.value.error.code) == (error_class, code)


@pytest.mark.parametrize("body", [b"{}", b"[]", b"{", b'{"output": 5}', b'{"status": "queued", "output": []}'])
def test_an_invalid_response_is_malformed(body: bytes) -> None:
    for endpoint in (openai(), reference()):
        with pytest.raises(MalformedReply):
            endpoint.answers([request_of(endpoint)], reply(body))


# The reference's format.

FORMATS: list[dict[str, Any]] = [
    {"type": "standard"},
    {"type": "structured", "schema": {"type": "object"}, "strict": True},
    {
        "type": "enhanced",
        "include_metadata": True,
        "include_confidence": True,
        "include_sources": True,
        "include_reasoning": False,
    },
    {"type": "template", "template_id": "t", "variables": {"title": "{{ project }}"}, "customization_level": "high"},
    {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}},
]


@pytest.mark.parametrize("form", FORMATS, ids=[form["type"] for form in FORMATS])
def test_every_format_of_the_reference_is_sent_with_the_rows_values_in_it(form: dict[str, Any]) -> None:
    expected = {**form, "variables": {"title": "AI"}} if "variables" in form else form
    for keys in ({"response_format": form}, {"params": {"response_format": form}}):
        assert sent(reference(**keys), project="AI") == {
            "model": "gpt-4o-mini",
            "messages": [{"role": "user", "content": "Hi"}],
            "response_format": expected,
        }


def test_the_references_tools_stream_and_typed_output() -> None:
    body = sent(reference(tools=[NESTED], tool_choice="none", stream=True, output={"n": "integer"}))
    assert (body["tools"], body["tool_choice"], body["stream"]) == ([NESTED], "none", True)
    form = body["response_format"]
    assert (form["type"], form["json_schema"]["strict"]) == ("json_schema", True)
    for way in ("prompt", "json_object"):
        in_words = sent(reference(way, output={"n": "integer"}))
        assert "response_format" not in in_words
        assert in_words["messages"][0]["role"] == "system"
    assert reference(output={"n": "integer"}).fallback_mode(RowError("bad_request", "json_schema: unknown")) == "prompt"


def test_dialect_overrides_the_keys() -> None:
    assert sent(openai(dialect="reference"))["messages"] == [{"role": "user", "content": "Hi"}]
    assert sent(reference(dialect="openai"))["input"] == [{"role": "user", "content": "Hi"}]


NO_METADATA = {field.name: None for field in METADATA}


@pytest.mark.parametrize(
    ("name", "content", "metadata"),
    [
        (
            "reference-basic.json",
            "Artificial Intelligence (AI) represents one of the most transformative technologies of our time...",
            {
                "confidence_score": 0.92,
                "content_type": "informational",
                "word_count": 245,
                "reading_time": "1.2 minutes",
            },
        ),
        ("reference-structured.json", None, {"structure_compliance": True, "validation_passed": True}),
        (
            "reference-json-schema.json",
            None,
            {"structure_compliance": True, "validation_passed": True, "schema_version": "1.0"},
        ),
        (
            "reference-template.json",
            None,
            {"template_version": "2.1", "auto_generated": True, "customization_level": "high"},
        ),
        ("reference-streaming.sse", "Based on the analysis, the key findings are...", {"confidence_score": 0.89}),
    ],
)
def test_a_reply_of_the_reference_gives_text_and_metadata(name: str, content: str | None, metadata: Any) -> None:
    body = recorded(name)
    text = content or orjson.dumps(orjson.loads(body)["response"]["content"]).decode()
    assert read(reference(), body) == {"ask": text, "ask_metadata": {**NO_METADATA, **metadata}}


def test_calls_and_metadata_are_columns_next_to_the_text() -> None:
    row = read(reference(tools=[NESTED], detail=True), recorded("reference-tools.json"))
    assert [(call["id"], call["name"]) for call in row["ask_tool_calls"]] == [
        ("call_weather_123", "get_weather_data"),
        ("call_historical_456", "get_historical_weather"),
    ]
    assert row["ask_metadata"] == {
        **NO_METADATA,
        "data_sources": ["weather_api", "historical_database"],
        "accuracy_level": "high",
        "last_updated": "2024-01-15T10:30:00Z",
        "confidence_score": 0.94,
    }
    assert row["ask_finish_reason"] == "stop"


def test_metadata_of_another_name_or_type_is_stored_as_json() -> None:
    metadata = {"confidence_score": "high", "word_count": 5.0, "mood": {"a": 1}, "language": None}
    row = read(reference(), {"response": {"content": "a", "metadata": metadata}})
    other = '{"confidence_score":"high","mood":{"a":1}}'
    assert row["ask_metadata"] == {**NO_METADATA, "word_count": 5, "other": other}
    assert read(reference(), {"response": {"content": "a", "metadata": "x"}})["ask_metadata"] is None


def test_a_content_that_is_an_object_fills_typed_columns() -> None:
    row = read(reference(output={"summary": "string", "score": "number"}), {
        "response": {"role": "assistant", "content": {"summary": "s", "score": 1}}
    })  # fmt: skip
    assert row == {"summary": "s", "score": 1.0, "ask_metadata": None}
    error_class, message = failed(reference(output={"summary": "string"}), {"response": {"content": {"summary": 5}}})
    assert (error_class, "summary" in message) == ("invalid_answer", True)


def test_usage_of_the_reference_is_read() -> None:
    endpoint = reference()
    actual = endpoint.usage([request_of(endpoint)], reply(recorded("reference-basic.json")))
    assert actual == Usage(45, None, 245, None, model_version="gpt-4", finish_reason="stop")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "reference-error-format.json",
            (
                "validation_error",
                "response_format.schema",
                "format_validation_failed",
                {"details": {"missing_fields": ["summary"], "schema_path": "$.properties.summary"}},
            ),
        ),
        (
            "reference-error-template.json",
            (
                "invalid_request_error",
                "response_format.template_id",
                "template_not_found",
                {"available_templates": ["project_status", "sales_report", "technical_doc"]},
            ),
        ),
        (
            "reference-error-tool.json",
            ("tool_execution_error", "tools[0].function.name", "tool_rate_limit", {"tool_call_id": "call_abc123"}),
        ),
    ],
)
def test_the_references_errors_keep_all_their_details(name: str, expected: Any) -> None:
    error = row_error(Reply(400, {}, recorded(name), 1.0))
    assert error.error_class == "bad_request"
    assert (error.type, error.param, error.code, orjson.loads(error.details or "")) == expected


# Invalid keys.


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        ({}, "steps.ask.input: missing; write input: or messages:"),
        ({"input": "a", "messages": [{"user": "a"}]}, "steps.ask.messages: is not used with input"),
        ({"input": "{{ txt }}"}, "steps.ask.input: no column txt here; did you mean text?"),
        ({"input": "a", "instructions": "{{ txt }}"}, "steps.ask.instructions: no column txt here"),
        ({"input": [{"usr": "a"}]}, "steps.ask.input.0.usr: no such role; did you mean user?"),
        ({"input": "a", "params": {"max_tokens": 5}}, "steps.ask.params.max_tokens: no such parameter"),
        ({"input": "a", "params": {"max_output_tokens": 5}}, "found 5, expected an integer from 16 to 100000000"),
        ({"input": "a", "params": {"reasoning": {"effort": "hgh"}}}, "params.reasoning: found {"),
        ({"input": "a", "params": {"background": True}}, "params.background: its answer would have to be fetched"),
        ({"input": "a", "text": {"format": {}}, "output": {"a": "string"}}, "steps.ask.text.format: a typed output"),
        ({"messages": [{"user": "a"}], "text": {}}, "steps.ask.text: only OpenAI's format has it"),
        ({"messages": [{"user": "a"}], "instructions": "b"}, "steps.ask.instructions: only OpenAI's format has it"),
        ({"input": "a", "dialect": "openai", "response_format": {"type": "standard"}}, "steps.ask.response_format: "),
        (
            {"messages": [{"user": "a"}], "response_format": {"type": "standard"}, "output": {"a": "string"}},
            "steps.ask.response_format: a typed output has its own",
        ),
        ({"messages": [{"user": "a"}], "response_format": {"type": "standart"}}, "did you mean standard?"),
        ({"messages": [{"user": "a"}], "response_format": {"type": "template"}}, "format.template_id: missing"),
        (
            {"messages": [{"user": "a"}], "response_format": {"type": "enhanced", "include_meta": True}},
            "steps.ask.response_format.include_meta: no such key of the format enhanced; did you mean include_meta",
        ),
        (
            {"messages": [{"user": "a"}], "response_format": {"type": "enhanced", "include_metadata": "yes"}},
            "steps.ask.response_format.include_metadata: found 'yes', expected true or false",
        ),
        ({"messages": [{"user": "a"}], "tools": [{"type": "web_search"}]}, "steps.ask.tools.0.type: found"),
    ],
)  # fmt: skip
def test_a_key_that_does_not_fit_is_an_error_with_its_path(keys: dict[str, Any], place: str) -> None:
    with pytest.raises(JobError) as caught:
        built(**keys)
    assert place in str(caught.value)


def test_an_answers_tokens_are_bounded_by_the_parameter_of_the_format() -> None:
    assert openai(params={"max_output_tokens": 20}).output_bound == 20
    assert reference(params={"max_tokens": 20}).output_bound == 20
    assert openai().output_bound == 16_384


@pytest.mark.parametrize("build", [openai, reference])
def test_the_requests_of_many_rows_are_those_of_each_row(build: Callable[[], ConversationEndpoint]) -> None:
    rows = [{"text": None}, {"text": "one"}, {"text": "half a pair: \ud800"}, {"text": "größer"}]
    each = [build().request(row, str(place)) for place, row in enumerate(rows)]
    together = build()
    assert [list(together.requests(rows, ["0", "1", "2", "3"])) for _ in range(2)] == [each, each]
