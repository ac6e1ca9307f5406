"""POST /responses of the emulator in OpenAI's dialect, through the official SDK."""

import base64
import io
import json
from typing import Any, Literal

import httpx2 as httpx
import openai
import pytest
from pydantic import BaseModel

from connectors.tokens import chat_tokens, count_tokens

WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather in a given location",
    "strict": False,
    "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
}


class Label(BaseModel):
    sentiment: Literal["positive", "negative"]


def respond(client: openai.OpenAI, given: Any = "Hello there. How are you?", **more: Any) -> Any:
    return client.responses.create(**{"model": "gpt-4o-mini", "input": given, **more})


def test_a_text_is_answered_and_counted(client: openai.OpenAI) -> None:
    got = respond(client, instructions="Be brief.", metadata={"a": "b"}, temperature=0)
    assert got.id.startswith("resp_")
    assert (got.object, got.status, got.error, got.incomplete_details) == ("response", "completed", None, None)
    assert got.output_text == "[local] Hello there. How are you?"
    (message,) = got.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    assert (got.instructions, got.metadata, got.temperature, got.top_p) == ("Be brief.", {"a": "b"}, 0, 1)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello there. How are you?"}]
    assert got.usage.input_tokens == chat_tokens(turns, "gpt-4o-mini")
    assert got.usage.output_tokens == count_tokens(got.output_text, "gpt-4o-mini")
    assert got.usage.total_tokens == got.usage.input_tokens + got.usage.output_tokens


def test_a_pydantic_model_is_filled(client: openai.OpenAI) -> None:
    got = client.responses.parse(model="rowmill-sentiment", input="I love it!", text_format=Label)
    assert got.output_parsed == Label(sentiment="positive")


def test_json_mode_gives_an_object(client: openai.OpenAI) -> None:
    got = respond(client, "Say it in JSON.", text={"format": {"type": "json_object"}})
    assert json.loads(got.output_text) == {"answer": "[local] Say it in JSON."}


def test_a_tool_is_called_and_its_result_is_repeated(client: openai.OpenAI) -> None:
    first = respond(client, "Weather in Boston and New York?", tools=[WEATHER])
    assert [(item.type, item.name, json.loads(item.arguments)) for item in first.output] == [
        ("function_call", "get_weather", {"location": "Boston"}),
        ("function_call", "get_weather", {"location": "New York"}),
    ]
    outputs: Any = [
        {"type": "function_call_output", "call_id": item.call_id, "output": f"{place} degrees."}
        for place, item in enumerate(first.output)
    ]
    again = respond(client, outputs, previous_response_id=first.id, tools=[WEATHER])
    assert again.output_text == "[local] 0 degrees. 1 degrees."
    question = {"role": "user", "content": "Weather in Boston and New York?"}
    items = [question, *(item.to_dict() for item in first.output), *outputs]
    assert respond(client, items, tools=[WEATHER]).output_text == again.output_text


def test_tool_choice_is_respected(client: openai.OpenAI) -> None:
    custom: Any = {"type": "custom", "name": "shell"}
    assert respond(client, tools=[WEATHER], tool_choice="none").output[0].type == "message"
    named = respond(client, tools=[WEATHER, custom], tool_choice={"type": "custom", "name": "shell"})
    assert [(item.type, item.name) for item in named.output] == [("custom_tool_call", "shell")]
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_weather"}]}
    got = respond(client, tools=[custom, WEATHER], tool_choice=allowed)
    assert [item.name for item in got.output] == ["get_weather"]


def test_truncated_and_filtered_answers_are_incomplete(client: openai.OpenAI) -> None:
    cut = respond(client, "A long way to Tipperary, as they used to sing, " * 3, max_output_tokens=16)
    assert (cut.status, cut.incomplete_details.reason, cut.usage.output_tokens) == (
        "incomplete",
        "max_output_tokens",
        16,
    )
    filtered = respond(client, "[[rowmill:refuse]]")
    assert (filtered.status, filtered.incomplete_details.reason) == ("incomplete", "content_filter")
    assert filtered.output == []


def test_log_probabilities_are_included_on_request(client: openai.OpenAI) -> None:
    got = respond(client, include=["message.output_text.logprobs"], top_logprobs=2)
    logprobs = got.output[0].content[0].logprobs
    assert "".join(one.token for one in logprobs) == got.output_text
    assert {len(one.top_logprobs) for one in logprobs} == {2}


def test_images_are_described_by_data_url_and_by_file(client: openai.OpenAI) -> None:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (60, 40), "red").save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    uploaded = client.files.create(file=("red.png", file.getvalue()), purpose="vision")
    for image in ({"image_url": url}, {"file_id": uploaded.id}):
        parts: Any = [{"type": "input_text", "text": "What?"}, {"type": "input_image", "detail": "low", **image}]
        got = respond(client, [{"role": "user", "content": parts}])
        assert got.output_text == "[local] I see a PNG image of 60 x 40 pixels, mostly red."


def test_a_stream_has_every_event_in_order(client: openai.OpenAI) -> None:
    events = list(respond(client, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    deltas = kinds.count("response.output_text.delta")
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text == "[local] Hello there. How are you?"
    assert events[0].response.status == "in_progress" and events[0].response.output == []


def test_a_stream_of_calls_is_joined_by_the_sdk(client: openai.OpenAI) -> None:
    with client.responses.stream(model="gpt-4o-mini", input="Weather in Boston?", tools=[WEATHER]) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    assert {"response.function_call_arguments.delta", "response.function_call_arguments.done"} <= kinds
    (call,) = final.output
    assert call.type == "function_call" and json.loads(call.arguments) == {"location": "Boston"}
    with client.responses.stream(model="m", input="I love it!", text_format=Label) as typed:
        assert typed.get_final_response().output_parsed == Label(sentiment="positive")


def test_a_truncated_stream_ends_as_incomplete(client: openai.OpenAI) -> None:
    events = list(respond(client, "A long way to Tipperary, as they used to sing", stream=True, max_output_tokens=16))
    assert events[-1].type in ("response.completed", "response.incomplete")
    long = list(respond(client, "word " * 100, stream=True, max_output_tokens=16))
    assert long[-1].type == "response.incomplete"


def test_responses_are_stored_and_deleted(client: openai.OpenAI) -> None:
    got = respond(client, "Keep this.")
    assert client.responses.retrieve(got.id) == got
    (item,) = client.responses.input_items.list(got.id).data
    assert item.content[0].text == "Keep this."  # type: ignore[union-attr]
    again = respond(client, "Keep this.")
    assert again.id != got.id and again.output_text == got.output_text
    client.responses.delete(got.id)
    for ask in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        with pytest.raises(openai.NotFoundError):
            ask(got.id)
    assert client.responses.retrieve(again.id).id == again.id
    unkept = respond(client, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unkept.id)


def test_deleting_returns_what_was_deleted(client: openai.OpenAI, base_url: str, http: httpx.Client) -> None:
    got = respond(client, "Delete this.")
    reply = http.delete(f"{base_url}/responses/{got.id}")
    assert reply.json() == {"id": got.id, "object": "response", "deleted": True}


def test_a_stored_response_is_streamed_again_from_any_event(client: openai.OpenAI) -> None:
    got = respond(client, "Stream this.")
    events = list(client.responses.retrieve(got.id, stream=True, starting_after=3))
    assert events[0].sequence_number == 4
    assert events[-1].type == "response.completed" and events[-1].response == got


def test_a_conversation_continues_from_a_stored_response(client: openai.OpenAI) -> None:
    first = respond(client, "First thing.", instructions="Forgotten later.")
    second = respond(client, "Second thing.", previous_response_id=first.id)
    turns = [
        {"role": "user", "content": "First thing."},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "Second thing."},
    ]
    assert second.usage.input_tokens == chat_tokens(turns, "gpt-4o-mini")
    assert second.previous_response_id == first.id
    assert [item.type for item in client.responses.input_items.list(second.id, order="asc")] == ["message"] * 3
    with pytest.raises(openai.BadRequestError) as caught:
        respond(client, previous_response_id="resp_none")
    assert caught.value.code == "previous_response_not_found"


def test_an_item_of_a_stored_response_can_be_referenced(client: openai.OpenAI) -> None:
    first = respond(client, "First thing.")
    items = [{"type": "item_reference", "id": first.output[0].id}, {"role": "user", "content": "Go on."}]
    assert respond(client, items).output_text == "[local] Go on."
    with pytest.raises(openai.NotFoundError):
        respond(client, [{"type": "item_reference", "id": "msg_none"}])


def test_a_background_response_is_queued_then_done_or_cancelled(client: openai.OpenAI) -> None:
    first, second = (respond(client, f"Later {place}.", background=True) for place in (1, 2))
    assert (first.status, first.output) == ("queued", [])
    done = client.responses.retrieve(first.id)
    assert (done.status, done.output_text) == ("completed", "[local] Later 1.")
    assert client.responses.cancel(second.id).status == "cancelled"
    assert client.responses.retrieve(second.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(respond(client).id)


def test_input_tokens_are_counted_without_an_answer(client: openai.OpenAI) -> None:
    counted = client.responses.input_tokens.count(model="gpt-4o-mini", input="Hello there. How are you?")
    assert counted.input_tokens == respond(client).usage.input_tokens


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        ({"foo": 1}, "foo", "unknown_parameter"),
        ({"input": None}, "input", "missing_required_parameter"),
        ({"input": []}, "input", "empty_array"),
        ({"input": 5}, "input", "invalid_type"),
        ({"input": [{"type": "dream"}]}, "input[0].type", "invalid_value"),
        ({"input": [{"role": "user", "content": 5}]}, "input[0].content", "invalid_type"),
        (
            {"input": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
            "input[0].content[0].type",
            "invalid_value",
        ),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input", "invalid_value"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:x"}]}]},
            "input[0].content[0].image_url",
            "invalid_image",
        ),
        ({"max_tokens": 5}, "max_tokens", "unknown_parameter"),
        ({"max_output_tokens": 5}, "max_output_tokens", "integer_below_min_value"),
        ({"max_output_tokens": 10**6}, "max_output_tokens", "invalid_value"),
        ({"temperature": 3}, "temperature", "decimal_above_max_value"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_value"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].name", "missing_required_parameter"),
        (
            {"tools": [{"type": "function", "name": "f", "strict": True, "parameters": {"type": "object"}}]},
            "tools[0].parameters",
            "invalid_json_schema",
        ),
        (
            {"text": {"format": {"type": "json_schema", "name": "x"}}},
            "text.format.schema",
            "missing_required_parameter",
        ),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "strict": True, "schema": {"type": "object"}}}},
            "text.format",
            "invalid_json_schema",
        ),
        ({"text": {"format": {"type": "json_object"}}}, "input", "invalid_value"),
        ({"include": ["everything"]}, "include[0]", "invalid_value"),
        ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
        ({"model": "no-such-model"}, "model", "model_not_found"),
    ],
)
def test_an_invalid_parameter_is_named_in_the_error(
    base_url: str, http: httpx.Client, more: dict[str, Any], param: str, code: str
) -> None:
    reply = http.post(f"{base_url}/responses", json={"model": "gpt-4o-mini", "input": "Hello.", **more})
    assert reply.status_code == (404 if code == "model_not_found" else 400)
    assert (reply.json()["error"]["param"], reply.json()["error"]["code"]) == (param, code)
