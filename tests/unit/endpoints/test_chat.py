"""Chat: the request of a row, and the columns from a reply."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest

from connectors.contracts import Endpoint, MalformedReply, MediaColumn, StepContext
from connectors.endpoints.chat import ChatStep
from connectors.endpoints.conversation.chat_params import CHAT_PARAMS
from connectors.endpoints.conversation.conversation_endpoint import ConversationEndpoint
from connectors.errors import JobError
from connectors.records import Media, Reply, Request, RowError, Usage

REPLIES = Path(__file__).parents[2] / "replies"
HISTORY = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
COLUMNS = {
    "text": pa.string(),
    "city": pa.string(),
    "pic": pa.string(),
    "pics": pa.list_(pa.binary()),
    "history": HISTORY,
    "as_json": pa.string(),
    "number": pa.int64(),
    "calls": pa.list_(pa.struct([("id", pa.string()), ("name", pa.string()), ("arguments", pa.string())])),
}
HELLO = "Hello! How can I assist you today?"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
PNG = Media(hashlib.sha256(b"png").hexdigest(), 3, "image/png", "png", data=b"png", pixels=(32, 32))
GIF = Media(hashlib.sha256(b"gif").hexdigest(), 3, "image/gif", "gif", data=b"gif", pixels=(512, 512))


def chat(way: str | None = None, /, **keys: Any) -> ConversationEndpoint:
    step = {"name": "ask", "endpoint": "chat", "model": "gpt-4o-mini", "messages": [{"user": "{{ text }}"}], **keys}
    return ChatStep.model_validate(step).build(StepContext("t@here", COLUMNS, Path("/w"), (), (), way))


def request_of(endpoint: Endpoint, **row: Any) -> Request:
    request = endpoint.request({"text": "Hi", **row}, "1")
    assert isinstance(request, Request), request
    return request


def sent(endpoint: Endpoint, **row: Any) -> Any:
    body = endpoint.call([request_of(endpoint, **row)]).body
    assert body is not None
    return orjson.loads(body)


def refused(endpoint: Endpoint, **row: Any) -> str:
    error = endpoint.request({"text": "Hi", **row}, "1")
    assert isinstance(error, RowError)
    assert error.error_class == "input"
    return error.message


def recorded(name: str) -> bytes:
    return (REPLIES / name).read_bytes()


def reply(body: Any) -> Reply:
    return Reply(200, {}, body if isinstance(body, bytes) else orjson.dumps(body), 1.0)


def completion(*messages: Any, finish: str | None = "stop", **more: Any) -> dict[str, Any]:
    choices = [
        {"index": place, "message": {"role": "assistant", "content": None, **message}, "finish_reason": finish}
        for place, message in enumerate(messages)
    ]
    return {"choices": choices, **more}


def as_stream(body: dict[str, Any]) -> bytes:
    """Return a reply as the stream that a server sends in its place."""
    chunks: list[dict[str, Any]] = []
    for choice in body["choices"]:
        message = choice.pop("message")
        chunks += [{"choices": [{"index": choice["index"], "delta": {key: value}}]} for key, value in message.items()]
        chunks.append({"choices": [{**choice, "delta": {}}]})
    chunks.append({**body, "choices": []})
    lines = [b"data: " + orjson.dumps(chunk) for chunk in chunks]
    return b"\n\n".join([*lines, b"data: [DONE]", b""])


def read(endpoint: Endpoint, body: Any) -> dict[str, Any]:
    """Return the row from a reply."""
    (answer,) = endpoint.answers([request_of(endpoint)], reply(body))
    assert isinstance(answer, bytes)
    values = endpoint.values(answer)
    assert not isinstance(values, RowError), values
    columns = endpoint.arrays([values, None])
    assert [array.type for array in columns] == [field.type for field in endpoint.fields]
    assert all(array[1].as_py() is None for array in columns)
    return {field.name: array[0].as_py() for field, array in zip(endpoint.fields, columns, strict=True)}


def failed(endpoint: Endpoint, body: Any) -> tuple[str, str]:
    (answer,) = endpoint.answers([request_of(endpoint)], reply(body))
    assert isinstance(answer, bytes)
    error = endpoint.values(answer)
    assert isinstance(error, RowError)
    return error.error_class, error.message


# Requests: parameters.

SCALARS: dict[str, Any] = {
    "frequency_penalty": -2,
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "max_completion_tokens": 9,
    "max_tokens": 9,
    "metadata": {"a": "b"},
    "moderation": {"model": "omni-moderation-latest"},
    "n": 2,
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "a"},
    "presence_penalty": 2,
    "prompt_cache_key": "k",
    "prompt_cache_options": {"ttl": "1h"},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "low",
    "safety_identifier": "s",
    "seed": 7,
    "service_tier": "flex",
    "stop": ["a", "b"],
    "store": False,
    "temperature": 0.5,
    "top_logprobs": 3,
    "top_p": 0.5,
    "user": "u",
    "verbosity": "low",
    "web_search_options": {"search_context_size": "low"},
}


@pytest.mark.parametrize(("name", "value"), SCALARS.items(), ids=SCALARS)
def test_every_parameter_is_in_the_body_under_its_name(name: str, value: Any) -> None:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]}
    params = {"logprobs": True, name: value} if name == "top_logprobs" else {name: value}
    assert sent(chat(params=params)) == {**body, **params}


def test_the_table_above_has_every_parameter() -> None:
    # stream_options needs a stream; it is tested with it.
    assert {*SCALARS, "stream_options"} == set(CHAT_PARAMS)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"params": {"response_format": {"type": "text"}}}, {"response_format": {"type": "text"}}),
        ({"params": {"response_format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        (
            {"params": {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
        ),
        ({"tools": [WEATHER]}, {"tools": [WEATHER]}),
        ({"params": {"tools": [WEATHER], "tool_choice": "none"}}, {"tools": [WEATHER], "tool_choice": "none"}),
        ({"tools": [WEATHER], "tool_choice": "required"}, {"tools": [WEATHER], "tool_choice": "required"}),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
            {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
        ),
        ({"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
        ({"params": {"stream": True}}, {"stream": True, "stream_options": {"include_usage": True}}),
        (
            {"stream": True, "params": {"stream_options": {"include_obfuscation": False}}},
            {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
        ),
        ({"extra_body": {"top_k": 5}}, {"top_k": 5}),
        ({"params": {"logit_bias": {50256: -100}}}, {"logit_bias": {"50256": -100}}),
    ],
)
def test_every_other_key_of_a_step_is_in_the_body(keys: dict[str, Any], expected: dict[str, Any]) -> None:
    body = sent(chat(**keys))
    assert {key: body[key] for key in body if key not in ("model", "messages")} == expected


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"params": {"temprature": 1}}, "steps.ask.params.temprature: no such parameter; did you mean temperature?"),
        ({"params": {"n": 2}, "output": {"a": "string"}}, "steps.ask.params.n: a typed output has one answer a row"),
        (
            {"params": {"response_format": {"type": "json_object"}}, "output": {"a": "string"}},
            "steps.ask.params.response_format: a typed output has its own; leave it out",
        ),
        ({"params": {"response_format": {"type": "jsn_object"}}}, "did you mean json_object?"),
        ({"params": {"stream_options": {}}}, "steps.ask.params.stream_options: the step does not stream"),
        ({"params": {"top_logprobs": 3}}, "steps.ask.params.top_logprobs: requires logprobs"),
        ({"params": {"stream": "yes"}}, "steps.ask.params.stream: found 'yes', expected true or false"),
        ({"tools": [WEATHER], "params": {"tools": [WEATHER]}}, "steps.ask.params.tools: is also a key of the step"),
        ({"tools": []}, "steps.ask.tools: found [], expected a list of tools"),
        ({"tools": [{"function": {}}]}, "steps.ask.tools.0: found"),
        ({"tools": [{"type": "funktion"}]}, "steps.ask.tools.0.type: found \"funktion\"; did you mean function?"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "steps.ask.tools.0.function.name: found"),
        ({"tools": [WEATHER, WEATHER]}, "steps.ask.tools: two tools are called get_weather"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "objekt"}}}]},
            "steps.ask.tools.0.function.parameters: is not a JSON Schema",
        ),
        ({"tool_choice": "auto"}, "steps.ask.tool_choice: the step has no tools"),
        ({"tools": [WEATHER], "tool_choice": "requird"}, "steps.ask.tool_choice: found \"requird\"; did you mean"),
        ({"tools": [WEATHER], "tool_choice": "get_weather"}, "write {type: function, function: {name: get_weather}}"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "get_wether"}}},
            "steps.ask.tool_choice: no tool \"get_wether\" in tools; did you mean get_weather?",
        ),
        ({"messages": [{"user": "{{ txt }}"}]}, "steps.ask.messages.0.user: no column txt here; did you mean text?"),
        ({"messages": [{"usr": "a"}]}, "steps.ask.messages.0.usr: no such role; did you mean user?"),
        ({"messages": [{"role": "user", "contnt": "a"}]}, "steps.ask.messages.0.contnt: no such key of a message"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0: a tool's message has no tool_call_id"),
        ({"messages": [{"user": [{"image": "pik"}]}]}, "steps.ask.messages.0.user.0.image: no column pik and no URL"),
        ({"messages": [{"system": [{"image": "pic"}]}]}, "only a user's message has pictures"),
        ({"messages": [{"user": [{"image": "pic", "detail": "best"}]}]}, "found 'best', expected low, high or auto"),
        ({"messages": [{"user": [{"imag": "pic"}]}]}, "steps.ask.messages.0.user.0.imag: no such part"),
        ({"messages": [{"user": [{"image": "pic"}, {"text": "{{ pic }}"}]}]}, "pic is both a file and a part"),
        ({"messages": [{"user": {"fil": "p.md"}}]}, "steps.ask.messages.0.user.fil: no such key; write {file: PATH}"),
        ({"messages": {"column": "histry"}}, "steps.ask.messages.column: no column histry here; did you mean history?"),
        ({"messages": {"column": "number"}}, "steps.ask.messages.column: number is int64; a conversation is"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]}, "a tool call has no name"),
        ({"params": {"modalities": ["text"]}}, "steps.ask.params.modalities: its column is a text; leave it out, or"),
        ({"params": {"functions": []}}, "steps.ask.params.functions: replaced by tools; write tools: in the step"),
    ],
)  # fmt: skip
def test_a_key_that_does_not_fit_is_an_error_with_its_path(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError) as caught:
        chat(**keys)
    assert message in str(caught.value)


# Requests: messages.


def test_short_and_full_messages_have_templates_in_all_their_texts() -> None:
    turns = [
        {"system": "Be brief."},
        {"developer": "{{ city }}"},
        {"role": "user", "content": "{{ text }} there", "name": "user_{{ number }}"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "call_{{ number }}", "type": "function", "function": {"name": "get", "arguments": '{"a": 1}'}},
                {"id": "y", "name": "get", "arguments": {"city": "{{ city }}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "call_{{ number }}", "content": "{{ city }}: rain"},
    ]
    assert sent(chat(messages=turns), city='"B"', number=7)["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": '"B"'},
        {"role": "user", "content": "Hi there", "name": "user_7"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "call_7", "type": "function", "function": {"name": "get", "arguments": '{"a": 1}'}},
                {"id": "y", "type": "function", "function": {"name": "get", "arguments": '{"city":"\\"B\\""}'}},
            ],
        },
        {"role": "tool", "tool_call_id": "call_7", "content": '"B": rain'},
    ]


def test_official_parts_pass_with_their_templates_rendered() -> None:
    parts = [
        {"type": "text", "text": "{{ text }}"},
        {"type": "input_audio", "input_audio": {"data": "{{ city }}", "format": "wav"}},
        {"type": "file", "file": {"file_id": "file-{{ number }}"}},
        {"type": "image_url", "image_url": {"url": "https://h/{{ number }}.png", "detail": "low"}},
    ]
    assert sent(chat(messages=[{"user": parts}]), city="UklG", number=7)["messages"][0]["content"] == [
        {"type": "text", "text": "Hi"},
        {"type": "input_audio", "input_audio": {"data": "UklG", "format": "wav"}},
        {"type": "file", "file": {"file_id": "file-7"}},
        {"type": "image_url", "image_url": {"url": "https://h/7.png", "detail": "low"}},
    ]


def test_calls_of_an_earlier_step_come_from_its_column() -> None:
    turns = [{"user": "{{ text }}"}, {"role": "assistant", "tool_calls": {"column": "calls"}}]
    endpoint = chat(messages=turns)
    calls = [{"id": "x", "name": "get", "arguments": "{}"}]
    assert sent(endpoint, calls=calls)["messages"][1] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "x", "type": "function", "function": {"name": "get", "arguments": "{}"}}],
    }
    assert sent(endpoint, calls=None)["messages"][1] == {"role": "assistant", "content": ""}


def test_a_conversation_comes_from_a_column_of_structs_or_of_json() -> None:
    call = {"id": "x", "type": "function", "function": {"name": "get", "arguments": "{}"}}
    turns = [
        {"role": "user", "content": "a", "tool_calls": None, "tool_call_id": None},
        {"role": "assistant", "content": None, "tool_calls": [call], "tool_call_id": None},
        {"role": "tool", "content": "b", "tool_calls": None, "tool_call_id": "x"},
    ]
    expected = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "b", "tool_call_id": "x"},
    ]
    endpoint = chat(messages={"column": "history"})
    assert endpoint.input_columns == {"history"}
    assert sent(endpoint, history=turns)["messages"] == expected
    as_json = orjson.dumps([*turns, {"user": "c"}, {"role": "user", "content": [{"text": "d"}]}]).decode()
    assert sent(chat(messages={"column": "as_json"}), as_json=as_json)["messages"] == [
        *expected,
        {"role": "user", "content": "c"},
        {"role": "user", "content": [{"type": "text", "text": "d"}]},
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "found null"),
        ([], "found an empty list"),
        ("{", "invalid JSON"),
        ('{"role": "user"}', "found dict"),
        ('["a"]', "a message is 'a'"),
        ('[{"role": "usr", "content": "a"}]', "a message has the role 'usr'"),
        ('[{"role": "user"}]', "a message of the user has no content"),
        ('[{"role": "tool", "content": "a"}]', "a tool's message has no tool_call_id"),
        ('[{"role": "user", "content": 5}]', "a message's content is 5"),
        ('[{"role": "user", "content": "a", "when": "now"}]', "a message has the key 'when'"),
        ('[{"role": "assistant", "tool_calls": [{"name": "a"}]}]', "a tool call has no id"),
        ('[{"role": "user", "content": [{"image": "/etc/passwd"}]}]', "a picture in it is not a URL"),
    ],
)
def test_an_invalid_conversation_is_an_error_row(value: Any, message: str) -> None:
    error = refused(chat(messages={"column": "as_json"}), as_json=value)
    assert error.startswith("as_json is not a conversation: ")
    assert message in error


# Requests: pictures.


def test_pictures_are_named_in_the_request_and_sent_as_data_urls() -> None:
    endpoint = chat(messages=[{"user": [{"text": "{{ text }}"}, {"image": "pic", "detail": "low"}, {"image": "pics"}]}])
    assert endpoint.media == {name: MediaColumn("image", 20 << 20, passes_urls=True) for name in ("pic", "pics")}
    assert endpoint.input_columns == {"text", "pic", "pics"}
    request = request_of(endpoint, pic=PNG, pics=[GIF, None, PNG])
    assert request.media == (PNG, GIF)
    assert orjson.loads(request.body)["messages"][0]["content"] == [
        {"type": "text", "text": "Hi"},
        {"type": "image_url", "image_url": {"url": PNG.name, "detail": "low"}},
        {"type": "image_url", "image_url": {"url": GIF.name}},
        {"type": "image_url", "image_url": {"url": PNG.name}},
    ]
    png, gif = (f"data:image/{kind};base64,{base64.b64encode(kind.encode()).decode()}" for kind in ("png", "gif"))
    assert [
        part["image_url"]["url"] for part in sent(endpoint, pic=PNG, pics=[GIF, PNG])["messages"][0]["content"][1:]
    ] == [
        png,
        gif,
        png,
    ]


def test_urls_are_passed_on_and_null_adds_no_part() -> None:
    endpoint = chat(messages=[{"user": [{"text": "a"}, {"image": "pic"}, {"image": "https://h/fixed.png"}]}])
    url = {"type": "image_url", "image_url": {"url": "https://h/fixed.png"}}
    text = {"type": "text", "text": "a"}
    assert sent(endpoint, pic=None)["messages"][0]["content"] == [text, url]
    row = {"type": "image_url", "image_url": {"url": "https://h/row.png"}}
    assert sent(endpoint, pic="https://h/row.png")["messages"][0]["content"] == [text, row, url]


def test_a_message_of_nothing_but_a_null_picture_or_of_another_kind_is_an_error_row() -> None:
    endpoint = chat(messages=[{"user": [{"image": "pic"}]}])
    assert "a message has no content" in refused(endpoint, pic=None)
    assert "image/bmp; expected png, jpeg, webp or gif" in refused(endpoint, pic=Media("0" * 64, 1, "image/bmp", "bmp"))
    assert "neither a file nor a URL" in refused(endpoint, pic="cat.png")


def test_a_text_that_quotes_a_pictures_name_is_unchanged() -> None:
    endpoint = chat(messages=[{"user": [{"text": "{{ text }}"}, {"image": "pic"}]}])
    text = f'{{"url":"{PNG.name}"}}'
    assert sent(endpoint, text=text, pic=PNG)["messages"][0]["content"][0]["text"] == text


def test_pictures_count_by_their_pixels() -> None:
    endpoint = chat(model="gpt-4o", messages=[{"user": [{"text": "a"}, {"image": "pic"}]}])
    small, large = (request_of(endpoint, pic=picture).input_tokens for picture in (PNG, "https://h/any.png"))
    assert (small, large - small) == (8 + 85 + 170, 7 * 170)


# Replies.


@pytest.mark.parametrize(
    ("name", "keys", "expected"),
    [
        ("chat-default.json", {"detail": True}, {"ask": HELLO, "ask_finish_reason": "stop"}),
        ("chat-1-5-1.json", {"output": "answer"}, {"answer": HELLO}),
        (
            "chat-functions.json",
            {"tools": [WEATHER]},
            {
                "ask": None,
                "ask_tool_calls": [
                    {"id": "call_abc123", "name": "get_current_weather", "arguments": '{\n"location": "Boston, MA"\n}'}
                ],
            },
        ),
        (
            "chat-1-5-2.json",
            {"tools": [WEATHER], "output": {"topic": "string"}, "detail": True},
            {
                "topic": None,
                "ask_tool_calls": [
                    {"id": "call_abc123", "name": "get_current_weather", "arguments": '{"location": "Boston, MA"}'}
                ],
                "ask_finish_reason": "tool_calls",
            },
        ),
        ("chat-default.json", {"tools": [WEATHER]}, {"ask": HELLO, "ask_tool_calls": None}),
        ("chat-streaming.sse", {"stream": True, "detail": True}, {"ask": "Hello", "ask_finish_reason": "stop"}),
        ("chat-1-6.sse", {"stream": True}, {"ask": "Hello"}),
    ],
)  # fmt: skip
def test_a_recorded_reply_fills_the_declared_columns(name: str, keys: Any, expected: Any) -> None:
    assert read(chat(**keys), recorded(name)) == expected


def test_logprobs_become_a_column_of_structs() -> None:
    row = read(chat(params={"logprobs": True, "top_logprobs": 2}), recorded("chat-logprobs.json"))
    assert row["ask"] == "Hello! How can I assist you today?"
    assert row["ask_logprobs"][2] == {
        "token": " How",
        "logprob": -0.000054669687,
        "bytes": [32, 72, 111, 119],
        "top_logprobs": [
            {"token": " How", "logprob": -0.000054669687},
            {"token": "<|end|>", "logprob": -10.953937},
        ],
    }


def test_several_answers_are_lists_in_the_order_of_their_indexes() -> None:
    body = completion({"content": "a"}, {"content": "b"}, {"refusal": "no"})
    body["choices"].reverse()
    row = read(chat(params={"n": 3, "logprobs": True}, tools=[WEATHER], detail=True), body)
    assert row == {
        "ask": ["a", "b", None],
        "ask_tool_calls": [None, None, None],
        "ask_logprobs": [None, None, None],
        "ask_finish_reason": ["stop", "stop", "stop"],
    }


def test_a_streamed_answer_is_stored_like_one_without_a_stream() -> None:
    endpoint = chat(stream=True, tools=[WEATHER])
    request = request_of(endpoint)
    assert endpoint.call([request]).stream
    plain = recorded("chat-default.json")
    assert read(endpoint, plain) == read(chat(tools=[WEATHER]), plain)
    received = reply(recorded("chat-streaming.sse"))
    (answer,) = endpoint.answers([request], received)
    assert isinstance(answer, bytes)
    assert orjson.loads(answer)["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert endpoint.usage([request], received) == Usage(model_version="gpt-4o-mini", finish_reason="stop")


@pytest.mark.parametrize(
    ("typed", "body", "error_class", "words"),
    [
        (False, completion({}), "invalid_answer", "no text and calls no tool"),
        (False, completion({"function_call": {"name": "f"}}), "invalid_answer", "calls f, and the step has no tools"),
        (False, completion({}, finish="length"), "length", "raise max_tokens"),
        (False, completion({"content": ""}, finish="length"), "length", "raise max_tokens"),
        (False, completion({}, finish="content_filter"), "content_filter", "the answer was filtered"),
        (False, completion({"content": "Hel"}, finish="content_filter"), "content_filter", "the answer was filtered"),
        (False, completion({"refusal": "I can't"}), "content_filter", "the model refused: I can't"),
        (True, completion({"content": '{"a": "x'}, finish="length"), "length", "was cut off"),
        (True, completion({"content": '{"a": "x"}'}, finish="content_filter"), "content_filter", "was filtered"),
        (True, completion({"refusal": "no"}), "content_filter", "the model refused: no"),
        (True, completion({"content": "well"}), "invalid_answer", "this is no JSON"),
        (True, completion({}), "invalid_answer", "no text"),
    ],
)
def test_an_invalid_answer_is_an_error_row(typed: bool, body: Any, error_class: str, words: str) -> None:
    actual, message = failed(chat(output={"a": "string"} if typed else "answer"), body)
    assert actual == error_class
    assert words in message


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("reason", ["MAX_TOKENS", "max_tokens", "model_length", "LENGTH"])
def test_a_cut_answer_is_one_under_any_providers_name(typed: bool, reason: str) -> None:
    endpoint = chat(output={"a": "string"} if typed else "answer")
    cut = completion({"content": '{"a": "x' if typed else ""}, finish=reason)
    message = f"the answer was cut off at max_tokens (finish_reason {reason}); raise max_tokens"
    assert failed(endpoint, cut) == ("length", message)


@pytest.mark.parametrize("reason", ["SAFETY", "PROHIBITED_CONTENT", "refusal", "ERROR_TOXIC"])
def test_a_filtered_answer_is_one_under_any_providers_name(reason: str) -> None:
    cut = completion({"content": "Hel"}, finish=reason)
    assert failed(chat(), cut) == ("content_filter", f"the answer was filtered (finish_reason {reason})")


@pytest.mark.parametrize("message", [None, {"role": "assistant"}])
def test_a_filtered_answer_may_lack_its_message(message: Any) -> None:
    body = completion({"content": "x"}, finish="content_filter: PROHIBITED_CONTENT")
    body["choices"][0]["message"] = message
    assert failed(chat(), body)[0] == "content_filter"


def test_an_answer_in_the_form_of_a_completion_is_one() -> None:
    body = completion({"content": "x"})
    body["choices"][0] = {"index": 0, "text": "Hello", "finish_reason": "stop"}
    assert read(chat(), body) == {"ask": "Hello"}


def test_a_reply_without_answers_costs_what_it_reports() -> None:
    endpoint = chat()
    body = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 0}}
    with pytest.raises(MalformedReply, match="no choices") as caught:
        endpoint.answers([request_of(endpoint)], reply(body))
    assert caught.value.usage == Usage(9, output_tokens=0)


@pytest.mark.parametrize("reason", [None, "", "null", "eos", "STOP", "end_turn", "COMPLETE"])
def test_a_whole_reply_without_a_reason_or_with_another_name_for_stop_is_an_answer(reason: str | None) -> None:
    assert read(chat(), completion({"content": "Hello"}, finish=reason)) == {"ask": "Hello"}
    assert read(chat(output={"n": "integer"}), completion({"content": '{"n": 1}'}, finish=reason)) == {"n": 1}


def test_the_reason_of_the_provider_behind_a_router_counts_if_the_router_states_none() -> None:
    body = completion({"content": ""}, finish=None)
    body["choices"][0]["native_finish_reason"] = "MAX_TOKENS"
    assert failed(chat(), body)[0] == "length"
    body["choices"][0]["native_finish_reason"] = "anything"
    body["choices"][0]["message"]["content"] = "Hello"
    assert read(chat(), body) == {"ask": "Hello"}


BROKEN_OFF = [
    ({"finish_reason": "abort"}, "the answer broke off (finish_reason abort)", "abort"),
    ({"finish_reason": "insufficient_system_resource"}, "resource)", "insufficient_system_resource"),
    ({"finish_reason": {"type": "abort"}}, "the answer broke off (finish_reason abort)", "abort"),
    (
        {"finish_reason": "error", "error": {"code": 502, "message": "Provider disconnected"}},
        "the answer broke off: Provider disconnected",
        "error",
    ),
    ({"error": {"message": "lost"}}, "the answer broke off: lost", "stop"),
    ({"error": "lost"}, "the answer broke off: lost", "stop"),
]


@pytest.mark.parametrize(("broken", "message", "reason"), BROKEN_OFF)
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_an_answer_that_broke_off_is_sent_again_and_costs_what_it_reports(
    broken: Any, message: str, reason: str, streamed: bool, n: int
) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 3}
    body = completion(*({"content": f"Hel{place}"} for place in range(n)), usage=usage)
    body["choices"][-1] |= broken
    endpoint = chat(stream=streamed, params={"n": n})
    with pytest.raises(MalformedReply) as caught:
        endpoint.answers([request_of(endpoint)], reply(as_stream(body) if streamed else body))
    error = caught.value.error
    assert error is not None
    assert (error.error_class, error.message.endswith(message)) == ("server", True)
    assert caught.value.usage == Usage(9, output_tokens=3, finish_reason=reason)


def test_a_filter_that_breaks_an_answer_off_is_a_content_filter() -> None:
    body = completion({"content": "Hel"}, finish="error")
    body["choices"][0]["error"] = {"code": "content_filter", "message": "flagged"}
    with pytest.raises(MalformedReply) as caught:
        chat().answers([], reply(body))
    assert caught.value.error is not None
    assert caught.value.error.error_class == "content_filter"


@pytest.mark.parametrize("error", [None, "", {}, {"code": None, "message": ""}, {"code": 0, "message": "ok"}, False])
def test_an_error_key_without_an_error_is_none(error: Any) -> None:
    body = {**completion({"content": "Hello"}), "error": error}
    body["choices"][0]["error"] = error
    assert read(chat(), body) == {"ask": "Hello"}


def test_an_error_next_to_the_answers_is_an_error() -> None:
    body = {**completion({"content": "Hel"}), "error": {"code": 502, "message": "upstream lost"}}
    with pytest.raises(MalformedReply) as caught:
        chat().answers([], reply(body))
    assert caught.value.error is not None
    assert (caught.value.error.error_class, caught.value.error.message) == ("server", "upstream lost")


@pytest.mark.parametrize("content", ["", " \n", None])
def test_an_answer_without_text_is_one_only_if_the_step_allows_it(content: str | None) -> None:
    body = completion({"content": content})
    message = "the answer has no text and calls no tool (finish_reason stop)"
    assert failed(chat(), body) == ("invalid_answer", message)
    assert read(chat(allow_empty=True), body) == {"ask": content or ""}
    assert read(chat(allow_empty=True, output={"n": "integer"}), body) == {"n": None}
    assert failed(chat(allow_empty=True), completion({"content": content}, finish="length"))[0] == "length"


def test_allow_empty_is_part_of_the_row_fingerprint_only_if_set_and_of_no_request() -> None:
    assert request_of(chat(allow_empty=True)).fingerprint == request_of(chat()).fingerprint
    assert chat(allow_empty=False).config_bytes() == chat().config_bytes()
    assert chat(allow_empty=True).config_bytes() != chat().config_bytes()


def test_an_empty_answer_that_an_earlier_release_put_into_a_table_is_rebuilt() -> None:
    assert chat().committed_values(orjson.dumps(completion({"content": ""}))) == ("",)
    several = chat(params={"n": 2})
    assert several.committed_values(orjson.dumps(completion({"content": "a"}))) == (["a"],)
    assert isinstance(chat().committed_values(orjson.dumps(completion({}))), RowError)


@pytest.mark.parametrize(
    ("message", "finish", "values"),
    [
        ({"content": '{"n": 3}'}, "MAX_TOKENS", (3,)),
        ({"content": '{"n": 3}'}, "SAFETY", (3,)),
        ({"content": '{"n": 3}'}, "abort", (3,)),
        ({"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}, "tool_calls", (None,)),
        ({"tool_calls": [{"function": {"name": "f", "arguments": '{"n": 3}'}}]}, "tool_calls", (3,)),
    ],
)
def test_what_an_earlier_release_took_for_an_answer_is_rebuilt(message: Any, finish: str, values: Any) -> None:
    answer = orjson.dumps(completion(message, finish=finish))
    assert chat(output={"n": "integer"}).committed_values(answer) == values


def test_fewer_answers_than_n_are_an_error() -> None:
    message = "the server sent 1 of 3 answers; it does not support n; leave n out"
    assert failed(chat(params={"n": 3}), completion({"content": "a"})) == ("invalid_answer", message)


def test_an_untyped_answer_that_was_cut_off_is_stored_with_its_finish_reason() -> None:
    row = read(chat(detail=True), completion({"content": "Hel"}, finish="length"))
    assert row == {"ask": "Hel", "ask_finish_reason": "length"}


def test_arguments_that_are_not_json_are_stored_unchanged() -> None:
    call = {"id": "x", "function": {"name": "f", "arguments": "{city:"}}
    row = read(chat(tools=[WEATHER]), completion({"tool_calls": [call], "content": ""}, finish="tool_calls"))
    assert row == {"ask": None, "ask_tool_calls": [{"id": "x", "name": "f", "arguments": "{city:"}]}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, ("ab", None)),
        ({"content": "a", "reasoning_content": "hm", "tool_calls": None}, ("a", None)),
        ({"content": "a", "tool_calls": "none"}, ("a", None)),
        ({"function_call": {"name": "f", "arguments": {"a": 1}}}, (None, [(None, "f", '{"a":1}')])),
        ({"tool_calls": [5, {"id": "x", "custom": {"name": "f", "input": "i"}}]}, (None, [("x", "f", "i")])),
        ({"tool_calls": [{"id": "x", "type": "new", "new": {"a": 1}}]}, (None, [("x", "new", '{"a":1}')])),
        ({"content": None, "audio": {"id": "y", "data": "AA==", "transcript": "a"}}, ("a", None)),
    ],
)  # fmt: skip
def test_the_answer_formats_of_other_servers_are_parsed(message: Any, expected: Any) -> None:
    row = read(chat(tools=[WEATHER]), completion(message))
    calls = row["ask_tool_calls"]
    actual = None if calls is None else [(call["id"], call["name"], call["arguments"]) for call in calls]
    assert (row["ask"], actual) == expected


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 8,
                "prompt_tokens_details": {"cached_tokens": 4},
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
            Usage(9, 4, 8, 3, finish_reason="stop"),
        ),
        (None, Usage(finish_reason="stop")),
        ([], Usage(finish_reason="stop")),
        ({"prompt_tokens": "9", "completion_tokens": 8.0}, Usage(9, output_tokens=8, finish_reason="stop")),
        ({"prompt_tokens": "9 tokens", "completion_tokens": 8.0}, Usage(finish_reason="stop")),
        ({"completion_tokens": 8.0, "total_tokens": 17}, Usage(9, output_tokens=8, finish_reason="stop")),
        ({"prompt_tokens": 9, "total_tokens": 9}, Usage(9, output_tokens=0, finish_reason="stop")),
        ({"prompt_tokens": 9, "total_tokens": 8}, Usage(finish_reason="stop")),
        ({"prompt_tokens": -1, "completion_tokens": True}, Usage(finish_reason="stop")),
        ({"prompt_tokens": 9.5, "prompt_tokens_details": "x"}, Usage(finish_reason="stop")),
    ],
)
def test_usage_is_read_and_an_invalid_count_is_unknown(usage: Any, expected: Usage) -> None:
    endpoint = chat()
    assert endpoint.usage([request_of(endpoint)], reply(completion({"content": "a"}, usage=usage))) == expected


@pytest.mark.parametrize("body", [b"{", b"[]", b"", b'{"choices": []}', b'{"choices": [{}]}', b'{"choices": [NaN]}'])
def test_an_invalid_reply_is_malformed(body: bytes) -> None:
    endpoint = chat()
    with pytest.raises(MalformedReply) as caught:
        endpoint.answers([request_of(endpoint)], reply(body))
    assert caught.value.error is None


@pytest.mark.parametrize("streamed", [False, True])
def test_an_error_in_a_200_is_reported_as_an_error(streamed: bool) -> None:
    body = orjson.dumps({"error": {"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}})
    endpoint = chat(stream=streamed)
    with pytest.raises(MalformedReply) as caught:
        endpoint.answers([request_of(endpoint)], reply(b"data: " + body + b"\n\n" if streamed else body))
    assert caught.value.error is not None
    assert (caught.value.error.error_class, caught.value.error.message) == ("rate_limit", "slow down")


# Typed answers.


def test_a_typed_output_uses_a_strict_schema_and_fills_its_columns() -> None:
    endpoint = chat(output={"topic": {"type": "string", "enum": ["a", "b"]}, "n": "integer"})
    form = sent(endpoint)["response_format"]
    assert (form["type"], form["json_schema"]["strict"], form["json_schema"]["name"]) == ("json_schema", True, "ask")
    assert read(endpoint, completion({"content": '{"topic": "a", "n": 3}'})) == {"topic": "a", "n": 3}


@pytest.mark.parametrize(
    ("way", "form"), [("json_object", {"type": "json_object"}), ("prompt", None)]
)  # fmt: skip
def test_servers_without_schemas_get_the_schema_in_the_prompt(way: str, form: Any) -> None:
    body = sent(chat(way, output={"n": "integer"}))
    assert body.get("response_format") == form
    assert body["messages"][0]["role"] == "system"
    assert '"additionalProperties":false' in body["messages"][0]["content"]


def test_a_refused_mode_leads_to_the_next() -> None:
    refusal = RowError("bad_request", "Invalid parameter: 'response_format' of type 'json_schema'", 400)
    assert chat(output={"n": "integer"}).fallback_mode(refusal) == "json_object"
    assert chat("json_object", output={"n": "integer"}).fallback_mode(refusal) == "prompt"
    assert chat("prompt", output={"n": "integer"}).fallback_mode(refusal) is None
    assert chat(output={"n": "integer"}, structured="schema").fallback_mode(refusal) is None
    assert chat().fallback_mode(refusal) is None


def test_a_repair_request_quotes_what_does_not_fit() -> None:
    endpoint = chat(output={"n": "integer"}, messages=[{"user": [{"text": "{{ text }}"}, {"image": "pic"}]}])
    request = request_of(endpoint, pic=PNG)
    answer = orjson.dumps(completion({"content": "three"}))
    problem = endpoint.values(answer)
    assert isinstance(problem, RowError)
    again = endpoint.repair(request, answer, problem)
    assert again is not None
    assert (again.repair_of, again.media, again.keys) == (request.fingerprint, (PNG,), ("1",))
    turns = orjson.loads(again.body)["messages"]
    assert turns[0] == orjson.loads(request.body)["messages"][0]
    assert turns[1] == {"role": "assistant", "content": "three"}
    begins = "This answer does not fit: this is no JSON: invalid literal"
    ends = ". Answer again, with nothing but JSON that fits this JSON Schema: "
    assert turns[2]["content"].startswith(begins)
    _, _, schema = turns[2]["content"].partition(ends)
    assert orjson.loads(schema)["required"] == ["n"]
    former = again.former
    assert former is not None
    assert (former.repair_of, former.media, former.keys, former.former) == (request.fingerprint, (PNG,), ("1",), None)
    turn = turns[2]["content"].removesuffix(f"{ends}{schema}")
    turn += ". Answer again, with nothing but JSON that fits the schema."
    assert orjson.loads(former.body)["messages"] == [*turns[:2], {"role": "user", "content": turn}]
    second = endpoint.repair(again, answer, problem)
    assert second is not None
    assert orjson.loads(second.body)["messages"] == [*turns, *turns[1:]]
    assert chat().repair(request, answer, problem) is None


@pytest.mark.parametrize(
    ("output", "ends"),
    [
        ("said", ".\nAnswer again."),
        ({"n": "integer"}, ".\nAnswer again, with nothing but JSON that fits this JSON Schema: "),
    ],
)
def test_a_repair_request_after_a_failed_check_has_its_advice(output: Any, ends: str) -> None:
    endpoint = chat(output=output)
    request = request_of(endpoint)
    problem = RowError("invalid_answer", "Copy the quote.", code="check_failed")
    again = endpoint.repair(request, orjson.dumps(completion({"content": "three"})), problem)
    assert again is not None
    assert again.former is None
    turns = orjson.loads(again.body)["messages"]
    assert turns[1] == {"role": "assistant", "content": "three"}
    assert turns[2]["content"].startswith(f"This answer does not meet a condition: Copy the quote{ends}")


TYPED: dict[str, Any] = {"n": {"type": "integer", "minimum": 1}}


@pytest.mark.parametrize(
    "message",
    [
        {"content": '<think>1?</think>{"n": 3}'},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": '{"n": 1}'}]}, {"text": '{"n": 3}'}]},
        {"content": ['{"n"', ": 3}"]},
        {"content": {"n": 3}},
        {"content": {"type": "text", "text": '{"n": 3}'}},
        {"content": None, "reasoning_content": '{"n": 3}'},
        {"content": "", "reasoning": '```json\n{"n": 3}\n```'},
        {"content": None, "tool_calls": [{"id": "x", "function": {"name": "ask", "arguments": '{"n": 3}'}}]},
        {"content": "As asked:", "tool_calls": [{"function": {"name": "ask", "arguments": {"n": 3}}}]},
        {"content": None, "function_call": {"name": "ask", "arguments": '{"n": 3}'}},
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_typed_answer_is_found_wherever_a_server_puts_it(message: Any, streamed: bool) -> None:
    body = completion(message)
    assert read(chat(output=TYPED, stream=streamed), as_stream(body) if streamed else body) == {"n": 3}


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"reasoning_content": "hm"}, "calls no tool (finish_reason stop); it has reasoning of 2 characters"),
        ({"reasoning_content": '{"n": 3}', "content": "hm"}, "this is no JSON"),
        ({"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}, "a tool call that does not fit the schema"),
    ],
)
def test_what_has_no_typed_answer_anywhere_is_an_error(message: Any, words: str) -> None:
    error_class, text = failed(chat(output=TYPED), completion(message))
    assert (error_class, words in text) == ("invalid_answer", True), text


def test_a_call_of_the_steps_own_tools_is_no_typed_answer() -> None:
    call = {"id": "x", "function": {"name": "get_weather", "arguments": '{"n": 3}'}}
    row = read(chat(output=TYPED, tools=[WEATHER]), completion({"tool_calls": [call]}))
    assert (row["n"], len(row["ask_tool_calls"])) == (None, 1)


def test_a_text_keeps_its_reasoning_and_is_never_read_from_it() -> None:
    assert read(chat(), completion({"content": "<think>hm</think>yes"})) == {"ask": "<think>hm</think>yes"}
    message = failed(chat(), completion({"reasoning_content": "yes"}))[1]
    assert message.endswith("it has reasoning of 3 characters")


def test_what_is_no_unicode_is_replaced_and_an_answer_all_the_same() -> None:
    raw = orjson.dumps(completion({"content": "a HALF b"}))
    for half in (b"\\ud83d", b"\\uDE00", b"\xed\xa0\xbd", b"\xff"):
        expected = {b"\xed\xa0\xbd": "\ufffd" * 3}.get(half, "\ufffd")
        assert read(chat(), raw.replace(b"HALF", half)) == {"ask": f"a {expected} b"}
    kept = raw.replace(b"HALF", b"\\\\ud83d \\ud83d\\ude00")
    assert read(chat(), kept) == {"ask": "a \\ud83d \U0001f600 b"}


def test_a_character_split_among_two_events_is_whole_again() -> None:
    event = b'data: {"choices": [{"index": 0, "delta": {"content": "%b"}, "finish_reason": null}]}\n\n'
    pieces = (b"a \\ud83d", b"\\ude00 b \\ud83d", b" c")
    streamed = b"".join(event % piece for piece in pieces) + b"data: [DONE]\n\n"
    assert read(chat(stream=True), streamed) == {"ask": "a \U0001f600 b \ufffd c"}


@pytest.mark.parametrize("way", ["json_object", "prompt"])
def test_a_repair_after_a_prompt_with_the_schema_does_not_repeat_it(way: str) -> None:
    endpoint = chat(way, output={"n": "integer"})
    request, answer = request_of(endpoint), orjson.dumps(completion({"content": "three"}))
    problem = endpoint.values(answer)
    assert isinstance(problem, RowError)
    again = endpoint.repair(request, answer, problem)
    assert again is not None
    assert again.former is None
    assert orjson.loads(again.body)["messages"][-1]["content"].endswith("with nothing but JSON that fits the schema.")


# Fingerprints and bounds for the ledger and the budget.


def test_config_bytes_contain_all_that_can_change_an_answer() -> None:
    first = chat()
    assert chat(name="other", when="true", detail=True, reuse=False, stream=True).config_bytes() == first.config_bytes()
    changed = [
        chat(model="gpt-4o"),
        chat(messages=[{"user": "{{ text }}!"}]),
        chat(params={"seed": 1}),
        chat(extra_body={"seed": 1}),
        chat(tools=[WEATHER]),
        chat(tools=[WEATHER], tool_choice="required"),
        chat(output={"a": "string"}),
        chat(output={"a": "string"}, structured="prompt"),
    ]
    assert len({endpoint.config_bytes() for endpoint in [first, *changed]}) == 9


def test_an_answers_tokens_are_bounded_by_the_parameters_times_n_or_by_the_model() -> None:
    assert chat(params={"max_tokens": 10, "n": 3}).output_bound == 30
    assert chat(params={"max_completion_tokens": 10}).output_bound == 10
    assert chat(extra_body={"max_tokens": 10}).output_bound == 10
    assert chat().output_bound == 16_384
    assert chat(model="unheard-of").output_bound is None


def test_tools_count_as_input() -> None:
    assert request_of(chat(tools=[WEATHER])).input_tokens > request_of(chat()).input_tokens + 20


def test_a_rows_key_is_in_the_fingerprint_only_without_reuse() -> None:
    for reuse, several in ((True, 1), (False, 2)):
        endpoint = chat(reuse=reuse)
        prints = {endpoint.request({"text": "a"}, key).fingerprint for key in ("1", "2")}  # type: ignore[union-attr]
        assert len(prints) == several


def test_a_text_without_utf_8_is_an_error_row() -> None:
    assert "cannot be written as UTF-8" in refused(chat(), text="\ud800")


ROWS: list[dict[str, Any]] = [
    {"text": "half a pair: \ud800", "number": 1},
    {"text": "Hi", "number": 1},
    {"text": "", "number": None},
    {"text": 'größer \u2028 "quoted"', "number": -3},
    {"text": None, "number": 2},
    {"text": "max_tokens", "number": 10**17},
]


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("one text", {}),
        ("an expression", {"messages": [{"system": "Be brief."}, {"user": "{{ text | upper }}{{ number + 1 }}"}]}),
        ("two texts", {"messages": [{"system": "{{ number }}"}, {"user": "{{ text }}"}]}),
        ("no text", {"messages": [{"user": "Hello"}]}),
        ("ends with an answer", {"messages": [{"user": "Hello"}, {"assistant": "{{ text }}"}]}),
        ("never reused", {"reuse": False}),
        ("typed", {"output": {"label": {"type": "string"}}, "structured": "prompt"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_requests_of_many_rows_are_those_of_each_row(name: str, keys: dict[str, Any]) -> None:
    row_keys = [str(place) for place in range(len(ROWS))]
    each = [chat(**keys).request(row, key) for row, key in zip(ROWS, row_keys, strict=True)]
    together = chat(**keys)
    assert list(together.requests(ROWS, row_keys)) == each
    assert list(together.requests(ROWS, row_keys)) == each
    assert list(together.requests([], [])) == []


@pytest.mark.parametrize("keys", [{}, {"detail": True}, {"allow_empty": True}], ids=["text", "detail", "allow_empty"])
@pytest.mark.parametrize("text", ["yes", "", " \n"], ids=["text", "empty", "blank"])
def test_a_packed_answer_has_the_values_of_a_reply_with_it(keys: dict[str, Any], text: str) -> None:
    endpoint = chat(**keys)
    answer = endpoint.answers([request_of(endpoint)], reply(completion({"content": text})))[0]
    assert isinstance(answer, bytes)
    assert endpoint._packed_values(text) == endpoint.values(answer)
