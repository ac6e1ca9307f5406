"""POST /responses of the emulator in the reference's dialect (section 2), with the reference's examples."""

import json
from typing import Any

import httpx2 as httpx
import pytest

STRUCTURED = {
    "type": "object",
    "properties": {
        "summary": {"type": "string", "description": "Brief summary of the analysis"},
        "insights": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "category": {"type": "string"},
                    "finding": {"type": "string"},
                    "confidence": {"type": "number", "minimum": 0, "maximum": 1},
                },
            },
        },
        "recommendations": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["summary", "insights"],
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather_data",
        "description": "Get current weather data for analysis",
        "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
    },
}
HISTORY = {
    "type": "function",
    "function": {
        "name": "get_historical_weather",
        "description": "Get historical weather patterns",
        "parameters": {
            "type": "object",
            "properties": {
                "location": {"type": "string"},
                "days_back": {"type": "integer", "minimum": 1, "maximum": 30},
            },
            "required": ["location", "days_back"],
        },
    },
}


class Asker:
    """A client for the reference's dialect."""

    def __init__(self, http: httpx.Client, base_url: str) -> None:
        self._http, self._url = http, f"{base_url}/responses"

    def __call__(self, text: str = "Generate a response about artificial intelligence.", **more: Any) -> httpx.Response:
        body = {"model": "gpt-4", "messages": [{"role": "user", "content": text}], **more}
        return self._http.post(self._url, json=body)

    def response(self, *given: str, **more: Any) -> dict[str, Any]:
        reply = self(*given, **more)
        assert reply.status_code == 200, reply.text
        response: dict[str, Any] = reply.json()["response"]
        return response

    def error(self, *given: str, **more: Any) -> tuple[int, dict[str, Any]]:
        reply = self(*given, **more)
        return reply.status_code, reply.json()["error"]


@pytest.fixture
def ask(http: httpx.Client, base_url: str) -> Asker:
    return Asker(http, base_url)


def test_a_basic_response_is_as_in_2_5_1(ask: Asker) -> None:
    whole = ask(max_tokens=500, temperature=0.7).json()
    assert whole["id"].startswith("resp-")
    assert (whole["object"], whole["model"], whole["finish_reason"]) == ("response", "gpt-4", "stop")
    assert set(whole["usage"]) == {"prompt_tokens", "completion_tokens", "total_tokens"}
    assert whole["response"] == {
        "role": "assistant",
        "content": "[local] Generate a response about artificial intelligence.",
        "metadata": {
            "content_type": "informational",
            "confidence_score": whole["response"]["metadata"]["confidence_score"],
            "word_count": 7,
            "reading_time": "0.0 minutes",
            "language": "en",
        },
    }


def test_a_structured_response_fits_its_schema(ask: Asker) -> None:
    response = ask.response(
        "Sales rose by 35%. Mobile leads.", response_format={"type": "structured", "schema": STRUCTURED}
    )
    assert set(response["content"]) == {"summary", "insights", "recommendations"}
    assert response["content"]["summary"] == "Sales rose by 35%."
    assert response["metadata"] == {
        "structure_compliance": True,
        "validation_passed": True,
        "schema_version": "1.0",
        "field_completeness": 1.0,
    }


def test_a_json_schema_is_followed(ask: Asker) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": STRUCTURED, "strict": True}}
    assert set(ask.response(response_format=form)["content"]) >= {"summary", "insights"}


def test_tool_calls_come_with_a_text(ask: Asker) -> None:
    response = ask.response(
        "Create a comprehensive weather report for Boston.",
        tools=[WEATHER, HISTORY],
        response_format={"type": "enhanced", "include_metadata": True, "include_confidence": True},
        parallel_tool_calls=True,
    )
    calls = {call["function"]["name"]: json.loads(call["function"]["arguments"]) for call in response["tool_calls"]}
    assert set(calls) == {"get_weather_data", "get_historical_weather"}
    assert {arguments["location"] for arguments in calls.values()} == {"Boston"}
    assert response["content"].startswith("[local] ")
    assert response["metadata"]["data_sources"] == ["get_historical_weather", "get_weather_data"]
    assert 0 <= response["metadata"]["confidence_score"] <= 1


@pytest.mark.parametrize("name", ["project_status_report", "project_status", "sales_report", "technical_doc"])
def test_a_template_is_filled_with_its_variables(ask: Asker, name: str) -> None:
    variables = {"project_name": "AI Integration Project", "reporting_period": "Q4 2024", "project_manager": "J"}
    response = ask.response(response_format={"type": "template", "template_id": name, "variables": variables})
    assert response["content"]["template_name"] == name
    assert response["content"]["generated_content"]["header"].items() >= variables.items()
    assert response["metadata"] == {
        "template_version": "2.1",
        "auto_generated": True,
        "customization_level": "high",
        "template_compliance": 1.0,
    }


def test_an_unknown_template_is_not_found(ask: Asker) -> None:
    form = {"type": "template", "template_id": "analysis_report"}
    assert ask.error(response_format=form) == (
        404,
        {
            "message": "Template 'analysis_report' not found",
            "type": "invalid_request_error",
            "param": "response_format.template_id",
            "code": "template_not_found",
            "available_templates": ["project_status", "sales_report", "technical_doc"],
        },
    )


def test_a_required_field_without_a_description_fails_the_validation(ask: Asker) -> None:
    schema = {"type": "object", "properties": {"insights": {"type": "string"}}, "required": ["summary"]}
    assert ask.error(response_format={"type": "structured", "schema": schema}) == (
        422,
        {
            "message": "Response format validation failed: missing required field 'summary'",
            "type": "validation_error",
            "param": "response_format.schema",
            "code": "format_validation_failed",
            "details": {"missing_fields": ["summary"], "schema_path": "$.properties.summary"},
        },
    )


def conversation(result: str) -> list[dict[str, Any]]:
    call = {"id": "call_abc123", "type": "function", "function": {"name": "get_weather_data", "arguments": "{}"}}
    return [
        {"role": "user", "content": "How is the weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_abc123", "content": result},
    ]


def test_a_failed_tool_is_an_error_with_its_call(ask: Asker) -> None:
    messages = conversation('{"error": "API rate limit exceeded"}')
    assert ask.error(messages=messages, tools=[WEATHER]) == (
        422,
        {
            "message": "Tool execution failed: API rate limit exceeded",
            "type": "tool_execution_error",
            "param": "tools[0].function.name",
            "code": "tool_rate_limit",
            "tool_call_id": "call_abc123",
        },
    )


def test_the_answer_after_tool_calls_repeats_their_results(ask: Asker) -> None:
    response = ask.response(messages=conversation("It is sunny."), tools=[WEATHER])
    assert response["content"] == "[local] It is sunny."
    assert "tool_calls" not in response
    form = {"type": "structured", "schema": STRUCTURED}
    typed = ask.response(messages=conversation("It is sunny."), response_format=form)
    assert typed["content"]["summary"] == "It is sunny."


def events_of(reply: httpx.Response) -> list[dict[str, Any]]:
    *events, done, end = reply.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


@pytest.mark.parametrize("form", [{"type": "standard"}, {"type": "structured", "schema": STRUCTURED}])
def test_a_stream_has_the_same_response(ask: Asker, form: dict[str, Any]) -> None:
    whole = ask.response("One day. Another day.", response_format=form)
    events = events_of(ask("One day. Another day.", response_format=form, stream=True))
    assert {event["object"] for event in events} == {"response.chunk"}
    assert events[0]["delta"]["role"] == "assistant"
    text = "".join(event["delta"].get("content", "") for event in events)
    assert (text if isinstance(whole["content"], str) else json.loads(text)) == whole["content"]
    assert [event["delta"]["metadata"] for event in events if "metadata" in event["delta"]] == [whole["metadata"]]
    assert (events[-1]["delta"], events[-1]["finish_reason"]) == ({}, "stop")


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        ({"n": 2}, "n", "unknown_parameter"),
        ({"messages": []}, "messages", "empty_array"),
        ({"temperature": 3}, "temperature", "decimal_above_max_value"),
        ({"response_format": {"type": "poem"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "structured"}}, "response_format.schema", "missing_required_parameter"),
        ({"response_format": {"type": "template"}}, "response_format.template_id", "missing_required_parameter"),
        ({"response_format": {"type": "standard", "x": 1}}, "response_format.x", "unknown_parameter"),
        ({"tool_choice": "auto"}, "tool_choice", "invalid_value"),
        ({"max_tokens": "5"}, "max_tokens", "invalid_type"),
    ],
)
def test_an_invalid_parameter_is_named_in_the_error(ask: Asker, more: dict[str, Any], param: str, code: str) -> None:
    status, error = ask.error(**more)
    assert (status, error["param"], error["code"]) == (400, param, code)


def test_a_truncated_answer_has_finish_reason_length(ask: Asker) -> None:
    whole = ask("A long way to Tipperary, as they used to sing.", max_tokens=5).json()
    assert (whole["finish_reason"], whole["usage"]["completion_tokens"]) == ("length", 5)
