"""POST /chat/completions of the local provider, asked by the official SDK."""

import base64
import io
import json
from typing import Any, Literal

import httpx2 as httpx
import jsonschema_rs
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from connectors.local.schema_answers import Filler
from connectors.local.words import names, sentences, subject_of
from connectors.tokens import chat_tokens, count_tokens

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a given location",
        "parameters": {
            "type": "object",
            "properties": {
                "location": {"type": "string"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["location"],
        },
    },
}
STOCKS = {
    "type": "function",
    "function": {
        "name": "stock_price",
        "description": "Latest price of a share",
        "parameters": {"type": "object", "properties": {"ticker": {"type": "string"}}, "required": ["ticker"]},
    },
}


def asking(text: str = "Hello there. How are you?", **more: Any) -> dict[str, Any]:
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}], **more}


def complete(client: openai.OpenAI, text: str = "Hello there. How are you?", **more: Any) -> Any:
    return client.chat.completions.create(**asking(text, **more))


def picture(form: str = "PNG", colour: str = "red", size: tuple[int, int] = (60, 40)) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def test_a_text_is_answered_with_its_beginning_and_counted(client: openai.OpenAI) -> None:
    got = complete(client)
    assert got.id.startswith("chatcmpl-")
    assert (got.object, got.model, got.system_fingerprint) == ("chat.completion", "gpt-4o-mini", "rowmill-local")
    (choice,) = got.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert (choice.message.role, choice.message.content) == ("assistant", "[local] Hello there. How are you?")
    assert got.usage.prompt_tokens == chat_tokens(asking()["messages"], "gpt-4o-mini")
    assert got.usage.completion_tokens == count_tokens(choice.message.content, "gpt-4o-mini")
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens
    assert got.usage.prompt_tokens_details.cached_tokens == 0
    assert got.usage.completion_tokens_details.reasoning_tokens == 0


def test_the_same_request_has_the_same_answer(client: openai.OpenAI) -> None:
    form = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
    typed = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": form}}
    first, again, other = (complete(client, seed=seed, response_format=typed) for seed in (1, 1, 2))
    assert first.choices == again.choices
    assert first.id == again.id != other.id
    assert first.choices != other.choices


def test_several_choices_differ_where_the_text_has_several_sentences(client: openai.OpenAI) -> None:
    got = complete(client, "One is here. Two is there. Three is gone.", n=3)
    texts = [choice.message.content for choice in got.choices]
    assert texts == [
        "[local] One is here. Two is there. Three is gone.",
        "[local] Two is there. Three is gone.",
        "[local] Three is gone.",
    ]
    assert [choice.index for choice in got.choices] == [0, 1, 2]
    assert got.usage.completion_tokens == sum(count_tokens(text, "gpt-4o-mini") for text in texts)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_an_answer_is_cut_at_the_limit_of_tokens(client: openai.OpenAI, name: str) -> None:
    got = complete(client, "A long way to Tipperary, as they used to sing.", **{name: 5})
    assert got.choices[0].finish_reason == "length"
    assert got.usage.completion_tokens == 5
    assert got.choices[0].message.content == "[local] A long"


def test_an_answer_ends_before_a_stop(client: openai.OpenAI) -> None:
    got = complete(client, "One and two and three.", stop=["three", " two"])
    assert (got.choices[0].message.content, got.choices[0].finish_reason) == ("[local] One and", "stop")


def test_log_probabilities_are_told_for_every_token(client: openai.OpenAI) -> None:
    got = complete(client, "Un café 🦕.", logprobs=True, top_logprobs=3)
    entries = got.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries) == got.choices[0].message.content
    for entry in entries:
        assert bytes(entry.bytes).decode() == entry.token
        assert entry.top_logprobs[0].token == entry.token
        told = [top.logprob for top in entry.top_logprobs]
        assert len(told) == 3 and told == sorted(told, reverse=True) and told[0] <= 0
    assert complete(client, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []


def test_a_marked_text_is_filtered(client: openai.OpenAI) -> None:
    got = complete(client, "Say it. [[rowmill:refuse]]")
    assert (got.choices[0].finish_reason, got.choices[0].message.content) == ("content_filter", None)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Is this positive or negative?\n\nI love it, great phone!", "positive"),
        ("Is this review positive or negative? What a horrible waste of money.", "negative"),
    ],
)
def test_a_question_for_sentiment_gets_the_label_alone(client: openai.OpenAI, text: str, label: str) -> None:
    assert complete(client, text).choices[0].message.content == label


class Review(BaseModel):
    sentiment: Literal["positive", "negative", "neutral"]
    confidence: float = Field(ge=0, le=1)
    stars: int = Field(ge=1, le=5)
    summary: str


def test_a_pydantic_model_is_filled_by_the_lexicon(client: openai.OpenAI) -> None:
    def parsed(text: str) -> Review:
        got = client.chat.completions.parse(
            model="rowmill-sentiment", messages=[{"role": "user", "content": text}], response_format=Review
        )
        review = got.choices[0].message.parsed
        assert review is not None
        return review

    good, bad, plain = (parsed(text) for text in ("I love it, wonderful!", "Awful. I hate it.", "It is a phone."))
    assert (good.sentiment, bad.sentiment, plain.sentiment) == ("positive", "negative", "neutral")
    assert good.stars > plain.stars > bad.stars
    assert good.confidence > 0.8 and plain.confidence == 0.5
    assert bad.summary == "Awful."


SCHEMAS: list[Any] = [
    {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "required": ["a"], "$defs": {"A": {"enum": [1, None]}}},
    {"type": "array", "items": {"type": "integer", "minimum": 3, "maximum": 3}, "minItems": 3, "maxItems": 3},
    {"type": "array", "items": {"enum": ["x", "y", "z"]}, "minItems": 3, "uniqueItems": True},
    {"type": "string", "minLength": 30, "maxLength": 40},
    {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
    {"type": "string", "maxLength": 0},
    {"type": ["null", "number"], "exclusiveMinimum": 0, "exclusiveMaximum": 0.01},
    {"type": "integer", "multipleOf": 7, "minimum": 20, "maximum": 30},
    {"type": "number", "minimum": 1000},
    {"type": "number", "maximum": -5},
    {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    {"const": {"fixed": [1]}},
    {"type": "null"},
    {"allOf": [{"type": "object", "properties": {"x": {"type": "integer"}}}, {"required": ["x"]}]},
    {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "value": {"type": "string"},
                    "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                },
                "required": ["value", "next", "children"],
            }
        },
    },
]


@pytest.mark.parametrize("schema", SCHEMAS)
@given(text=st.text(max_size=60), digest=st.binary(min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_values_fit_their_schema_whatever_the_text(schema: Any, text: str, digest: bytes) -> None:
    value = Filler(schema, text, digest).value()
    assert jsonschema_rs.validator_for(schema).is_valid(value), value
    assert Filler(schema, text, digest).value() == value


@pytest.mark.parametrize(
    ("text", "topic"), [("My flight was delayed", "flights"), ("Bake the bread for an hour", "baking")]
)
def test_a_label_is_chosen_by_the_words_of_the_text(client: openai.OpenAI, text: str, topic: str) -> None:
    form = {
        "type": "object",
        "properties": {"topic": {"type": "string", "enum": ["money", "flights", "baking"]}},
        "required": ["topic"],
        "additionalProperties": False,
    }
    typed = {"type": "json_schema", "json_schema": {"name": "topic", "strict": True, "schema": form}}
    assert json.loads(complete(client, text, response_format=typed).choices[0].message.content) == {"topic": topic}


def test_a_schema_in_words_is_followed_as_well(client: openai.OpenAI) -> None:
    schema = json.dumps({"type": "object", "properties": {"sentiment": {"enum": ["positive", "negative"]}}})
    told = {"role": "system", "content": f"Answer with nothing but JSON that fits this JSON Schema: {schema}"}
    messages: Any = [told, {"role": "user", "content": "Lovely!"}]
    for more in ({}, {"response_format": {"type": "json_object"}}):
        got = client.chat.completions.create(model="m", messages=messages, **more)  # type: ignore[call-overload]
        assert json.loads(got.choices[0].message.content) == {"sentiment": "positive"}


def test_json_mode_gives_an_object(client: openai.OpenAI) -> None:
    got = complete(client, "Who won? Tell me in JSON.", response_format={"type": "json_object"})
    assert json.loads(got.choices[0].message.content) == {"answer": "[local] Who won? Tell me in JSON."}


def test_texts_are_shortened_where_a_typed_answer_would_not_fit_the_limit(client: openai.OpenAI) -> None:
    form = {
        "type": "object",
        "properties": {"remark": {"type": "string"}},
        "required": ["remark"],
        "additionalProperties": False,
    }
    typed = {"type": "json_schema", "json_schema": {"name": "r", "strict": True, "schema": form}}
    got = complete(client, "word " * 100, response_format=typed, max_tokens=20)
    assert got.choices[0].finish_reason == "stop"
    assert json.loads(got.choices[0].message.content)["remark"].startswith("word word")
    assert complete(client, "word " * 100, response_format=typed, max_tokens=3).choices[0].finish_reason == "length"


def called(got: Any) -> list[tuple[str, Any]]:
    assert got.choices[0].finish_reason == "tool_calls"
    assert got.choices[0].message.content is None
    return [(call.function.name, json.loads(call.function.arguments)) for call in got.choices[0].message.tool_calls]


def test_a_tool_is_called_with_arguments_from_the_text(client: openai.OpenAI) -> None:
    got = complete(client, "What's the weather like in Boston?", tools=[STOCKS, WEATHER])
    assert called(got) == [("get_weather", {"location": "Boston", "unit": called(got)[0][1]["unit"]})]


def test_a_tool_is_called_once_for_each_name_unless_that_is_forbidden(client: openai.OpenAI) -> None:
    text = "Get weather for Boston and New York"
    many = called(complete(client, text, tools=[WEATHER]))
    assert [arguments["location"] for _, arguments in many] == ["Boston", "New York"]
    one = called(complete(client, text, tools=[WEATHER], parallel_tool_calls=False))
    assert [arguments["location"] for _, arguments in one] == ["Boston"]


def test_the_choice_of_tools_is_kept_to(client: openai.OpenAI) -> None:
    text = "What's the weather like in Boston?"
    tools = [WEATHER, STOCKS]
    assert complete(client, text, tools=tools, tool_choice="none").choices[0].message.tool_calls is None
    assert called(complete(client, "Hm.", tools=tools, tool_choice="required"))
    named = {"type": "function", "function": {"name": "stock_price"}}
    assert [name for name, _ in called(complete(client, text, tools=tools, tool_choice=named))] == ["stock_price"]
    allowed = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "stock_price"}}]},
    }
    assert {name for name, _ in called(complete(client, text, tools=tools, tool_choice=allowed))} == {"stock_price"}


def test_after_the_tools_answer_their_words_are_told(client: openai.OpenAI) -> None:
    first = complete(client, "What's the weather like in Boston?", tools=[WEATHER])
    (call,) = first.choices[0].message.tool_calls
    messages: Any = [
        {"role": "user", "content": "What's the weather like in Boston?"},
        first.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "22 degrees and sunny."},
    ]
    got = client.chat.completions.create(model="gpt-4o-mini", messages=messages, tools=[WEATHER])  # type: ignore[list-item]
    assert got.choices[0].message.content == "[local] 22 degrees and sunny."
    assert got.choices[0].finish_reason == "stop"


def test_custom_tools_and_old_functions_are_called(client: openai.OpenAI) -> None:
    got = complete(client, "Run it.", tools=[{"type": "custom", "custom": {"name": "shell"}}], tool_choice="required")
    (call,) = got.choices[0].message.tool_calls
    assert (call.type, call.custom.name, call.custom.input) == ("custom", "shell", "Run it.")
    old = complete(client, "Weather in Boston?", functions=[WEATHER["function"]])
    assert old.choices[0].finish_reason == "function_call"
    assert json.loads(old.choices[0].message.function_call.arguments)["location"] == "Boston"


@pytest.mark.parametrize(
    ("form", "colour", "word"),
    [("PNG", "red", "red"), ("JPEG", "blue", "blue"), ("WEBP", "white", "white"), ("GIF", "green", "green")],
)
def test_a_picture_is_described_truly(client: openai.OpenAI, form: str, colour: str, word: str) -> None:
    parts: Any = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": picture(form, colour), "detail": "low"}},
    ]
    got = client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": parts}])
    said = f"[local] I see a {form} image of 60 x 40 pixels, mostly {word}."
    assert got.choices[0].message.content == said
    assert got.usage is not None and got.usage.prompt_tokens > 85


def test_what_is_true_of_a_picture_goes_into_typed_answers(client: openai.OpenAI) -> None:
    class Seen(BaseModel):
        width: int
        height: int
        color: Literal["blue", "red"]
        format: str

    parts: Any = [{"type": "image_url", "image_url": {"url": picture()}}]
    got = client.chat.completions.parse(
        model="gpt-4o", messages=[{"role": "user", "content": parts}], response_format=Seen
    )
    assert got.choices[0].message.parsed == Seen(width=60, height=40, color="red", format="PNG")


def test_a_url_of_a_picture_is_not_fetched_and_that_is_said(client: openai.OpenAI) -> None:
    parts: Any = [{"type": "image_url", "image_url": {"url": "https://example.com/cat.jpg"}}]
    got = client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": parts}])
    said = got.choices[0].message.content
    assert said == "[local] I see an image at https://example.com/cat.jpg that was not fetched."


@pytest.mark.parametrize(
    "url", ["data:image/png;base64,####", "data:image/png;base64,aGVsbG8=", "data:image/png,abc", "ftp://x/y.png", "C:/x.png"]
)
def test_what_is_no_picture_is_refused(client: openai.OpenAI, url: str) -> None:
    parts: Any = [{"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": parts}])
    assert (caught.value.code, caught.value.param) == ("invalid_image", "messages[0].content[0].image_url.url")


def test_a_stream_holds_the_same_answer(client: openai.OpenAI) -> None:
    whole = complete(client, n=2, logprobs=True)
    chunks = list(complete(client, n=2, logprobs=True, stream=True, stream_options={"include_usage": True}))
    assert {chunk.id for chunk in chunks} == {whole.id}
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    for choice in whole.choices:
        deltas = [one for chunk in chunks for one in chunk.choices if one.index == choice.index]
        assert (deltas[0].delta.role, deltas[0].delta.content) == ("assistant", "")
        assert "".join(one.delta.content or "" for one in deltas) == choice.message.content
        assert [one.finish_reason for one in deltas] == [None] * (len(deltas) - 1) + ["stop"]
        told = [entry for one in deltas if one.logprobs for entry in one.logprobs.content]
        assert told == choice.logprobs.content


def test_a_stream_of_tool_calls_comes_in_pieces(client: openai.OpenAI) -> None:
    text = "Get weather for Boston and New York"
    whole = complete(client, text, tools=[WEATHER])
    with client.chat.completions.stream(**asking(text, tools=[WEATHER])) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert kinds.count("tool_calls.function.arguments.done") == 2
    calls, expected = final.choices[0].message.tool_calls, whole.choices[0].message.tool_calls
    assert calls is not None
    assert [(call.id, call.function.name, call.function.arguments) for call in calls] == [
        (call.id, call.function.name, call.function.arguments) for call in expected
    ]
    assert final.choices[0].finish_reason == "tool_calls"


def test_a_stream_ends_with_done(base_url: str, http: httpx.Client) -> None:
    reply = http.post(f"{base_url}/chat/completions", json=asking(stream=True))
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = reply.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all("usage" not in json.loads(event.removeprefix("data: ")) for event in events[:-2])


TAKEN: dict[str, Any] = {
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


def test_every_parameter_is_taken(client: openai.OpenAI) -> None:
    assert complete(client, **TAKEN).choices[0].finish_reason == "stop"
    assert complete(client, extra_body=dict.fromkeys(TAKEN.keys() - {"user", "response_format"})).choices


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"foo": 1}, "foo", "unknown_parameter"),
    ({"model": None}, "model", "missing_required_parameter"),
    ({"messages": []}, "messages", "empty_array"),
    ({"messages": "hi"}, "messages", "invalid_type"),
    ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
    ({"messages": [{"role": "user", "content": "x", "mood": "y"}]}, "messages[0].mood", "unknown_parameter"),
    ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "c"}]}, "messages[0].tool_call_id", "invalid_value"),
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
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "invalid_value"),
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
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {"type": "object"}}}},
        "response_format",
        "invalid_json_schema",
    ),
    ({"modalities": ["text", "audio"]}, "modalities", "unsupported_value"),
    ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
    ({"service_tier": "slow"}, "service_tier", "invalid_value"),
    ({"model": "o3", "max_tokens": 5}, "max_tokens", "unsupported_parameter"),
    ({"model": "o3", "temperature": 0}, "temperature", "unsupported_value"),
]


@pytest.mark.parametrize(("more", "param", "code"), REFUSED)
def test_a_parameter_that_is_wrong_is_named(
    base_url: str, http: httpx.Client, more: dict[str, Any], param: str, code: str
) -> None:
    reply = http.post(f"{base_url}/chat/completions", json={**asking(), **more})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert set(error) == {"message", "type", "param", "code"}


def test_a_call_without_its_tools_answer_is_refused(client: openai.OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages: Any = [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "user", "content": "So?"}]
    with pytest.raises(openai.BadRequestError, match="must be followed by tool messages"):
        client.chat.completions.create(model="m", messages=messages)


def test_a_dialogue_longer_than_the_model_takes_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, "word " * 9000, extra_body={"model": "gpt-4"})
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


def test_models_that_are_not_there_are_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "x"}])
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("kind", "raised"),
    [
        ("400", openai.BadRequestError),
        ("401", openai.AuthenticationError),
        ("403", openai.PermissionDeniedError),
        ("404", openai.NotFoundError),
        ("409", openai.ConflictError),
        ("422", openai.UnprocessableEntityError),
        ("429", openai.RateLimitError),
        ("quota", openai.RateLimitError),
        ("500", openai.InternalServerError),
        ("529", openai.InternalServerError),
        ("dropped", openai.APIConnectionError),
        ("truncated", openai.APIConnectionError),
    ],
)
def test_the_sdk_raises_what_it_raises_for_the_api(serve: Any, kind: str, raised: type[Exception]) -> None:
    with (
        openai.OpenAI(base_url=serve(script=kind), api_key="any", max_retries=0) as sdk,
        pytest.raises((raised, httpx.RemoteProtocolError)),
    ):
        complete(sdk)


def test_the_sdk_tries_again_and_succeeds(serve: Any) -> None:
    with openai.OpenAI(base_url=serve(script="429,500,dropped"), api_key="any", max_retries=3) as sdk:
        assert complete(sdk).choices[0].finish_reason == "stop"


def test_texts_are_cut_into_sentences_names_and_subjects() -> None:
    assert sentences("It costs 3.50 today. Is it so?\nYes!") == ["It costs 3.50 today.", "Is it so?", "Yes!"]
    assert sentences("你好。再见。") == ["你好。", "再见。"]
    assert names("Compare Boston, MA with New York for IBM") == ["Boston, MA", "New York", "IBM"]
    assert subject_of("Label this.\n\nThe body.\n\nMore.") == "The body.\n\nMore."
