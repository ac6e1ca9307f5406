"""POST /responses in the reference's dialect (its section 2): messages in, a `response` with metadata out."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import orjson
from aiohttp import web
from msgspec.structs import replace

from connectors.emulator.api import ApiError, ApiRequest, derived_id, json_answer
from connectors.emulator.api_schemas import (
    BOOLEAN,
    NON_EMPTY,
    NULLABLE_BOOLEAN,
    OBJECT,
    TEXT,
    enum,
    record,
    request_schema,
)
from connectors.emulator.chat.answerer import answer_choice
from connectors.emulator.chat.answers import Answer, AnswerRequest, ConversationFacts, conversation_facts
from connectors.emulator.chat.completions import answer_request, call_deltas, call_object, prompt_tokens
from connectors.emulator.chat.languages import language_of
from connectors.emulator.chat.request_checks import check_messages, content_text
from connectors.emulator.chat.schemas import CompiledSchema, compile_schema
from connectors.emulator.chat.sentiment import compound, strength
from connectors.emulator.chat.text_facts import first_sentence, sentences
from connectors.emulator.rate_limits import USED_TOKENS
from connectors.emulator.real_models.catalogue import run_in_model_thread
from connectors.emulator.sse_stream import DONE, event, event_stream
from connectors.emulator.validation import check_body, check_model, refuse
from connectors.tokens import count_tokens, token_pieces

TEMPLATES = ("project_status", "sales_report", "technical_doc")
"""Template ids, each also valid with the suffix `_report`."""


def fill_template(form: Mapping[str, Any], facts: ConversationFacts, digest: bytes) -> dict[str, Any]:
    """`{template_name, generated_content}`; ApiError 404 for an unknown template."""
    name = form["template_id"]
    template = next((each for each in TEMPLATES if name in (each, f"{each}_report")), None)
    if template is None:
        raise ApiError(
            404,
            f"Template '{name}' not found",
            param="response_format.template_id",
            code="template_not_found",
            extra_keys={"available_templates": list(TEMPLATES)},
        )
    header = {**(form.get("variables") or {}), "report_date": time.strftime("%Y-%m-%d", time.gmtime())}
    parts = {"project_status": _status, "sales_report": _sales, "technical_doc": _document}[template](facts, digest)
    return {"template_name": name, "generated_content": {"header": header, **parts}}


def _status(facts: ConversationFacts, digest: bytes) -> dict[str, Any]:
    percentage = digest[0] % 101
    return {
        "status_overview": {
            "overall_status": "On Track" if digest[1] % 3 else "At Risk",
            "completion_percentage": percentage,
            "budget_utilization": digest[2] % 101,
        },
        "key_milestones": [
            {"milestone": first_sentence(facts.subject), "status": "Completed" if percentage == 100 else "In Progress"}
        ],
        "risks_and_issues": [
            {
                "type": "risk",
                "description": "This report is local: no model was called.",
                "severity": ("low", "medium", "high")[digest[3] % 3],
                "mitigation": "Ask another provider.",
            }
        ],
    }


def _sales(facts: ConversationFacts, digest: bytes) -> dict[str, Any]:
    return {
        "summary": first_sentence(facts.subject),
        "key_metrics": {"total_revenue": int.from_bytes(digest[:3], "big"), "growth_rate": digest[3] / 1000},
        "recommendations": [{"action": "Ask another provider.", "priority": "low"}],
    }


def _document(facts: ConversationFacts, digest: bytes) -> dict[str, Any]:
    return {
        "abstract": first_sentence(facts.subject),
        "sections": [
            {"title": f"Part {index}", "text": text} for index, text in enumerate(sentences(facts.subject), 1)
        ],
    }


WORDS_PER_MINUTE = 200


def response_metadata(
    form: Mapping[str, Any], content: Any, answer: Answer, facts: ConversationFacts
) -> dict[str, Any]:
    """The metadata object for a response format."""
    if form["type"] == "template":
        level = form.get("customization_level") or ("high" if len(form.get("variables") or {}) > 2 else "medium")
        return {
            "template_version": "2.1",
            "auto_generated": True,
            "customization_level": level,
            "template_compliance": 1.0,
        }
    if form["type"] in ("structured", "json_schema"):
        is_object = not isinstance(content, str)
        metadata: dict[str, Any] = {
            "structure_compliance": is_object,
            "validation_passed": is_object,
            "schema_version": "1.0",
        }
        return {**metadata, "field_completeness": 1.0} if is_object else metadata
    text = content if isinstance(content, str) else orjson.dumps(content).decode()
    metadata = {"content_type": "informational"}
    if form["type"] != "enhanced" or form.get("include_confidence", True):
        metadata["confidence_score"] = strength(compound(facts.subject))
    if form["type"] != "enhanced" or form.get("include_metadata", True):
        words = len(text.split())
        metadata |= {
            "word_count": words,
            "reading_time": f"{words / WORDS_PER_MINUTE:.1f} minutes",
            "language": language_of(text),
        }
    if answer.calls or facts.tool_results or (form["type"] == "enhanced" and form.get("include_sources")):
        metadata |= {
            "data_sources": sorted({call.name for call in answer.calls}) or ["rowmill-local"],
            "accuracy_level": "medium",
            "last_updated": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        if answer.calls:
            metadata["tool_execution_time"] = "0.0s"
    if form["type"] == "enhanced" and form.get("include_reasoning"):
        metadata["reasoning"] = "The answer repeats the first sentences of the last message; no model was called."
    return metadata


_FORMAT = {
    "anyOf": [
        record("type", type=enum("standard", "text")),
        record("type schema", type=enum("structured"), schema=OBJECT, strict=NULLABLE_BOOLEAN),
        record(
            "type",
            type=enum("enhanced"),
            include_metadata=BOOLEAN,
            include_confidence=BOOLEAN,
            include_sources=BOOLEAN,
            include_reasoning=BOOLEAN,
        ),
        record(
            "type template_id",
            type=enum("template"),
            template_id=NON_EMPTY,
            variables=OBJECT,
            customization_level=enum("high", "medium", "low"),
        ),
        record(
            "type json_schema",
            type=enum("json_schema"),
            json_schema=record("name schema", name=NON_EMPTY, description=TEXT, schema=OBJECT, strict=NULLABLE_BOOLEAN),
        ),
        {"type": "null"},
    ]
}

REQUEST = request_schema(
    "CreateChatCompletionRequest",
    {"model": NON_EMPTY, "response_format": _FORMAT},
    only="model messages max_tokens temperature top_p stream stop presence_penalty frequency_penalty response_format "
    "tools tool_choice parallel_tool_calls seed user",
)


async def respond_in_reference_dialect(api_request: ApiRequest) -> web.StreamResponse:
    """Answer with one response, whole or streamed."""
    body = api_request.body
    check_body(body, REQUEST)
    check_messages(body["messages"])
    check_model(body, "chat")
    if "tool_choice" in body and not body.get("tools"):
        raise refuse("tool_choice", "'tool_choice' is only allowed when 'tools' are specified.", "invalid_value")
    _check_tool_results(body)
    form = body.get("response_format") or {"type": "standard"}
    request = _answer_request(body, form)
    prompt = prompt_tokens(request, body.get("tools"), form)
    answer, content, facts = await run_in_model_thread(request.model, lambda: _generate_answer(request, form))
    prompt = answer.prompt_tokens or prompt
    api_request.http_request[USED_TOKENS] = prompt + answer.tokens
    head = {
        "id": derived_id("resp-", request.digest.hex()),
        "object": "response",
        "created": int(time.time()),
        "model": request.model,
    }
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": answer.tokens,
        "total_tokens": prompt + answer.tokens,
    }
    metadata = response_metadata(form, content, answer, facts)
    if body.get("stream"):
        return await event_stream(api_request, _events(head, answer, content, metadata, usage))
    response: dict[str, Any] = {"role": "assistant", "content": content}
    if answer.calls:
        response["tool_calls"] = [call_object(call) for call in answer.calls]
    response["metadata"] = metadata
    return json_answer({**head, "response": response, "usage": usage, "finish_reason": answer.finish_reason})


def _answer_request(body: Mapping[str, Any], form: Mapping[str, Any]) -> AnswerRequest:
    request = answer_request({key: value for key, value in body.items() if key != "response_format"})
    schema: CompiledSchema | None = None
    strict = False
    if form["type"] == "structured":
        schema = compile_schema(form["schema"], "response_format", False, "response_format.schema")
        strict = form.get("strict") is not False
    elif form["type"] == "json_schema":
        json_schema = form["json_schema"]
        strict = bool(json_schema.get("strict"))
        schema = compile_schema(
            json_schema["schema"],
            f"response_format '{json_schema['name']}'",
            False,
            "response_format.json_schema.schema",
        )
    return replace(request, schema=schema, is_strict=strict)


def _generate_answer(request: AnswerRequest, form: Mapping[str, Any]) -> tuple[Answer, Any, ConversationFacts]:
    """(answer, content as text or object, facts of the conversation)."""
    facts = conversation_facts(request.messages)
    if form["type"] == "template":
        content: Any = fill_template(form, facts, request.digest)
        tokens = count_tokens(orjson.dumps(content).decode(), request.model)
        return Answer(None, tokens=tokens), content, facts
    if request.schema is not None and request.is_strict:
        _check_required_fields(request.schema.document, form)
    answer = answer_choice(request, facts)
    if answer.calls:
        # Section 2.5.3: a response with tool calls has text as well.
        text_answer = answer_choice(replace(request, tools=(), forced_tool=None, schema=None), facts)
        return replace(answer, tokens=answer.tokens + text_answer.tokens), text_answer.text, facts
    if request.schema is not None and answer.text is not None and answer.finish_reason == "stop":
        return answer, orjson.loads(answer.text), facts
    return answer, answer.text, facts


def _check_required_fields(schema: Any, form: Mapping[str, Any]) -> None:
    """Raise the error of section 2.11.1 for a required field that the schema does not describe."""
    properties = schema.get("properties", {})
    missing_fields = [name for name in schema.get("required", ()) if name not in properties]
    if missing_fields:
        param = "response_format.schema" if form["type"] == "structured" else "response_format.json_schema.schema"
        raise ApiError(
            422,
            f"Response format validation failed: missing required field '{missing_fields[0]}'",
            type="validation_error",
            param=param,
            code="format_validation_failed",
            extra_keys={
                "details": {"missing_fields": missing_fields, "schema_path": f"$.properties.{missing_fields[0]}"}
            },
        )


def _check_tool_results(body: Mapping[str, Any]) -> None:
    """Raise the error of section 2.11.3 for a tool result of the form `{"error": …}`."""
    names = [tool[tool["type"]]["name"] for tool in body.get("tools") or ()]
    tool_of_call: dict[str, str] = {}
    for message in body["messages"]:
        for call in message.get("tool_calls") or ():
            tool_of_call[call["id"]] = call[call["type"]]["name"]
        if message["role"] != "tool":
            continue
        failure = _tool_error(content_text(message["content"]))
        if failure is not None:
            call_id = message["tool_call_id"]
            name = tool_of_call.get(call_id)
            index = names.index(name) if name in names else 0
            is_rate_limited = "rate limit" in failure.lower()
            raise ApiError(
                422,
                f"Tool execution failed: {failure}",
                type="tool_execution_error",
                param=f"tools[{index}].function.name",
                code="tool_rate_limit" if is_rate_limited else "tool_execution_failed",
                extra_keys={"tool_call_id": call_id},
            )


def _tool_error(result: str) -> str | None:
    try:
        value = orjson.loads(result)
    except orjson.JSONDecodeError:
        return None
    error = value.get("error") if isinstance(value, dict) else None
    if isinstance(error, dict):
        error = error.get("message")
    return str(error) if error else None


def _events(
    head: Mapping[str, Any], answer: Answer, content: Any, metadata: Mapping[str, Any], usage: Mapping[str, Any]
) -> Iterator[bytes]:
    """The stream of section 2.6: role and text, calls, metadata, end; an object is streamed as its JSON."""

    def chunk(delta: Mapping[str, Any], **extra_keys: Any) -> bytes:
        return event({**head, "object": "response.chunk", "delta": delta, **extra_keys})

    text = content if content is None or isinstance(content, str) else orjson.dumps(content).decode()
    pieces = [piece for piece, _ in token_pieces(text or "", str(head["model"]))]
    yield chunk({"role": "assistant", "content": "".join(pieces[:1])})
    yield from (chunk({"content": piece}) for piece in pieces[1:])
    for index, call in enumerate(answer.calls):
        yield from (chunk(delta) for delta in call_deltas(index, call, False, str(head["model"])))
    yield chunk({"metadata": metadata})
    yield chunk({}, finish_reason=answer.finish_reason, usage=usage)
    yield DONE
