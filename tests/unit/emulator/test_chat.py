"""POST /chat/completions of the emulator, through the official SDK."""

import base64
import io
import json
from typing import Any, Literal

import httpx2 as httpx
import openai
import pytest
from pydantic import BaseModel, Field

from connectors.tokens import chat_tokens, count_tokens
from tests.unit.emulator.conftest import WEATHER

STOCKS = {
    "type": "function",
    "function": {
        "name": "stock_price",
        "description": "Latest price of a share",
        "parameters": {"type": "object", "properties": {"ticker": {"type": "string"}}, "required": ["ticker"]},
    },
}


def chat_body(text: str = "Hello there. How are you?", **more: Any) -> dict[str, Any]:
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}], **more}


def complete(client: openai.OpenAI, text: str = "Hello there. How are you?", **more: Any) -> Any:
    return client.chat.completions.create(**chat_body(text, **more))


@pytest.mark.parametrize(("requested", "served"), [("flex", "flex"), ("priority", "priority"), ("auto", "default")])
def test_a_reply_states_the_service_tier(client: openai.OpenAI, requested: Any, served: str) -> None:
    assert complete(client, service_tier=requested).service_tier == served
    response = client.responses.create(model="gpt-4o-mini", input="Hello.", service_tier=requested)
    assert response.service_tier == served


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
    assert got.usage.prompt_tokens == chat_tokens(chat_body()["messages"], "gpt-4o-mini")
    assert got.usage.completion_tokens == count_tokens(choice.message.content, "gpt-4o-mini")
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens
    assert got.usage.prompt_tokens_details.cached_tokens == 0
    assert got.usage.completion_tokens_details.reasoning_tokens == 0


def test_equal_requests_have_equal_answers(client: openai.OpenAI) -> None:
    form = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    typed = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": form}}
    first, again, other = (complete(client, seed=seed, response_format=typed) for seed in (1, 1, 2))
    assert first.choices == again.choices
    assert first.id == again.id != other.id
    assert first.choices != other.choices


def test_choices_differ_if_the_text_has_several_sentences(client: openai.OpenAI) -> None:
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
def test_an_answer_is_truncated_at_max_tokens(client: openai.OpenAI, name: str) -> None:
    got = complete(client, "A long way to Tipperary, as they used to sing.", **{name: 5})
    assert got.choices[0].finish_reason == "length"
    assert got.usage.completion_tokens == 5
    assert got.choices[0].message.content == "[local] A long"


def test_an_answer_ends_before_a_stop_sequence(client: openai.OpenAI) -> None:
    got = complete(client, "One and two and three.", stop=["three", " two"])
    assert (got.choices[0].message.content, got.choices[0].finish_reason) == ("[local] One and", "stop")


def test_log_probabilities_cover_every_token(client: openai.OpenAI) -> None:
    got = complete(client, "Un café 🦕.", logprobs=True, top_logprobs=3)
    entries = got.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries) == got.choices[0].message.content
    for entry in entries:
        assert bytes(entry.bytes).decode() == entry.token
        assert entry.top_logprobs[0].token == entry.token
        logprobs = [top.logprob for top in entry.top_logprobs]
        assert len(logprobs) == 3 and logprobs == sorted(logprobs, reverse=True) and logprobs[0] <= 0
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
def test_a_sentiment_question_is_answered_with_the_bare_label(client: openai.OpenAI, text: str, label: str) -> None:
    assert complete(client, text).choices[0].message.content == label


class Review(BaseModel):
    sentiment: Literal["positive", "negative", "neutral"]
    confidence: float = Field(ge=0, le=1)
    stars: int = Field(ge=1, le=5)
    summary: str


def test_the_sentiment_lexicon_fills_a_pydantic_model(client: openai.OpenAI) -> None:
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


@pytest.mark.parametrize(
    ("text", "topic"), [("My flight was delayed", "flights"), ("Bake the bread for an hour", "baking")]
)
def test_a_label_is_selected_by_the_words_of_the_text(client: openai.OpenAI, text: str, topic: str) -> None:
    form = {
        "type": "object",
        "properties": {"topic": {"type": "string", "enum": ["money", "flights", "baking"]}},
        "required": ["topic"],
        "additionalProperties": False,
    }
    typed = {"type": "json_schema", "json_schema": {"name": "topic", "strict": True, "schema": form}}
    assert json.loads(complete(client, text, response_format=typed).choices[0].message.content) == {"topic": topic}


def test_a_schema_in_the_prompt_is_followed(client: openai.OpenAI) -> None:
    schema = json.dumps({"type": "object", "properties": {"sentiment": {"enum": ["positive", "negative"]}}})
    instruction = {"role": "system", "content": f"Answer with nothing but JSON that fits this JSON Schema: {schema}"}
    messages: Any = [instruction, {"role": "user", "content": "Lovely!"}]
    for more in ({}, {"response_format": {"type": "json_object"}}):
        got = client.chat.completions.create(model="m", messages=messages, **more)  # type: ignore[call-overload]
        assert json.loads(got.choices[0].message.content) == {"sentiment": "positive"}


def test_json_mode_gives_an_object(client: openai.OpenAI) -> None:
    got = complete(client, "Who won? Tell me in JSON.", response_format={"type": "json_object"})
    assert json.loads(got.choices[0].message.content) == {"answer": "[local] Who won? Tell me in JSON."}


def test_strings_are_shortened_if_a_typed_answer_exceeds_max_tokens(client: openai.OpenAI) -> None:
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


def test_a_tool_is_called_once_per_name_if_parallel_calls_are_allowed(client: openai.OpenAI) -> None:
    text = "Get weather for Boston and New York"
    many = called(complete(client, text, tools=[WEATHER]))
    assert [arguments["location"] for _, arguments in many] == ["Boston", "New York"]
    one = called(complete(client, text, tools=[WEATHER], parallel_tool_calls=False))
    assert [arguments["location"] for _, arguments in one] == ["Boston"]


def test_tool_choice_is_respected(client: openai.OpenAI) -> None:
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


def test_the_answer_after_tool_calls_repeats_their_results(client: openai.OpenAI) -> None:
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
def test_an_image_is_described_correctly(client: openai.OpenAI, form: str, colour: str, word: str) -> None:
    parts: Any = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": picture(form, colour), "detail": "low"}},
    ]
    got = client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": parts}])
    text = f"[local] I see a {form} image of 60 x 40 pixels, mostly {word}."
    assert got.choices[0].message.content == text
    assert got.usage is not None and got.usage.prompt_tokens > 85


def test_typed_answers_contain_the_facts_of_an_image(client: openai.OpenAI) -> None:
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


def test_an_image_url_is_not_fetched_and_the_answer_says_so(client: openai.OpenAI) -> None:
    parts: Any = [{"type": "image_url", "image_url": {"url": "https://example.com/cat.jpg"}}]
    got = client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": parts}])
    text = got.choices[0].message.content
    assert text == "[local] I see an image at https://example.com/cat.jpg that was not fetched."


@pytest.mark.parametrize(
    "url",
    ["data:image/png;base64,####", "data:image/png;base64,aGVsbG8=", "data:image/png,abc", "ftp://x/y.png", "C:/x.png"],
)
def test_an_unreadable_image_is_rejected(client: openai.OpenAI, url: str) -> None:
    parts: Any = [{"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": parts}])
    assert (caught.value.code, caught.value.param) == ("invalid_image", "messages[0].content[0].image_url.url")


def test_a_stream_has_the_same_answer(client: openai.OpenAI) -> None:
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
        streamed = [entry for delta in deltas if delta.logprobs for entry in delta.logprobs.content]
        assert streamed == choice.logprobs.content


def test_tool_calls_are_streamed_in_parts(client: openai.OpenAI) -> None:
    text = "Get weather for Boston and New York"
    whole = complete(client, text, tools=[WEATHER])
    with client.chat.completions.stream(**chat_body(text, tools=[WEATHER])) as stream:
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
    reply = http.post(f"{base_url}/chat/completions", json=chat_body(stream=True))
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = reply.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all("usage" not in json.loads(event.removeprefix("data: ")) for event in events[:-2])


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
def test_the_sdk_raises_the_same_errors_as_for_the_api(serve: Any, kind: str, raised: type[Exception]) -> None:
    with (
        openai.OpenAI(base_url=serve(script=kind), api_key="any", max_retries=0) as sdk,
        pytest.raises((raised, httpx.RemoteProtocolError)),
    ):
        complete(sdk)


def test_the_sdk_retries_and_succeeds(serve: Any) -> None:
    with openai.OpenAI(base_url=serve(script="429,500,dropped"), api_key="any", max_retries=3) as sdk:
        assert complete(sdk).choices[0].finish_reason == "stop"


def test_some_quotations_are_invented_until_they_are_corrected(client: openai.OpenAI) -> None:
    schema = {
        "type": "object", "properties": {"quote": {"type": "string"}}, "required": ["quote"],
        "additionalProperties": False,
    }  # fmt: skip
    form: Any = {"type": "json_schema", "json_schema": {"name": "find", "strict": True, "schema": schema}}
    right = 0
    for number in range(30):
        text = f"The film number {number} was long. I slept."
        got = complete(client, text, response_format=form).choices[0].message.content
        right += json.loads(got)["quote"] in text
        messages = [
            {"role": "user", "content": text},
            {"role": "assistant", "content": got},
            {"role": "user", "content": "This answer does not meet a condition: copy it.\nAnswer again."},
        ]
        body: Any = chat_body(response_format=form) | {"messages": messages}
        assert json.loads(client.chat.completions.create(**body).choices[0].message.content)["quote"] in text
    assert 15 < right < 30
