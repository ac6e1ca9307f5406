"""POST /responses in the reference's dialect (its section 2): messages in, a `response` with metadata out."""

import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

import orjson
from aiohttp import web

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
"""Also under their names with `_report`."""


def report(form: Mapping[str, Any], facts: ConversationFacts, digest: bytes) -> dict[str, Any]:
    """`{template_name, generated_content}`; ApiError 404 for a template that there is none of."""
    name = form["template_id"]
    known = next((one for one in TEMPLATES if name in (one, f"{one}_report")), None)
    if known is None:
        raise ApiError(
            404,
            f"Template '{name}' not found",
            param="response_format.template_id",
            code="template_not_found",
            more={"available_templates": list(TEMPLATES)},
        )
    header = {**(form.get("variables") or {}), "report_date": time.strftime("%Y-%m-%d", time.gmtime())}
    parts = {"project_status": _status, "sales_report": _sales, "technical_doc": _document}[known](facts, digest)
    return {"template_name": name, "generated_content": {"header": header, **parts}}


def _status(facts: ConversationFacts, digest: bytes) -> dict[str, Any]:
    done = digest[0] % 101
    return {
        "status_overview": {
            "overall_status": "On Track" if digest[1] % 3 else "At Risk",
            "completion_percentage": done,
            "budget_utilization": digest[2] % 101,
        },
        "key_milestones": [
            {"milestone": first_sentence(facts.subject), "status": "Completed" if done == 100 else "In Progress"}
        ],
        "risks_and_issues": [
            {
                "type": "risk",
                "description": "This report is local: no model was asked.",
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
            {"title": f"Part {place}", "text": text} for place, text in enumerate(sentences(facts.subject), 1)
        ],
    }


WORDS_PER_MINUTE = 200


def response_metadata(form: Mapping[str, Any], content: Any, made: Answer, facts: ConversationFacts) -> dict[str, Any]:
    """What belongs to the format of the response."""
    if form["type"] == "template":
        level = form.get("customization_level") or ("high" if len(form.get("variables") or {}) > 2 else "medium")
        return {
            "template_version": "2.1",
            "auto_generated": True,
            "customization_level": level,
            "template_compliance": 1.0,
        }
    if form["type"] in ("structured", "json_schema"):
        whole = not isinstance(content, str)
        told: dict[str, Any] = {"structure_compliance": whole, "validation_passed": whole, "schema_version": "1.0"}
        return {**told, "field_completeness": 1.0} if whole else told
    text = content if isinstance(content, str) else orjson.dumps(content).decode()
    told = {"content_type": "informational"}
    if form["type"] != "enhanced" or form.get("include_confidence", True):
        told["confidence_score"] = strength(compound(facts.subject))
    if form["type"] != "enhanced" or form.get("include_metadata", True):
        words = len(text.split())
        told |= {
            "word_count": words,
            "reading_time": f"{words / WORDS_PER_MINUTE:.1f} minutes",
            "language": language_of(text),
        }
    if made.calls or facts.tool_results or (form["type"] == "enhanced" and form.get("include_sources")):
        told |= {
            "data_sources": sorted({call.name for call in made.calls}) or ["rowmill-local"],
            "accuracy_level": "medium",
            "last_updated": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        if made.calls:
            told["tool_execution_time"] = "0.0s"
    if form["type"] == "enhanced" and form.get("include_reasoning"):
        told["reasoning"] = "The first sentences of the last message were taken; no model was asked."
    return told


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
    """One response, whole or streamed."""
    body = api_request.body
    check_body(body, REQUEST)
    check_messages(body["messages"])
    check_model(body, "chat")
    if "tool_choice" in body and not body.get("tools"):
        raise refuse("tool_choice", "'tool_choice' is only allowed when 'tools' are specified.", "invalid_value")
    _check_tool_results(body)
    form = body.get("response_format") or {"type": "standard"}
    request = _asked(body, form)
    given = prompt_tokens(request, body.get("tools"))
    made, content, facts = await run_in_model_thread(request.model, lambda: _made(request, form))
    given = made.prompt_tokens or given
    api_request.http_request[USED_TOKENS] = given + made.tokens
    head = {
        "id": derived_id("resp-", request.digest.hex()),
        "object": "response",
        "created": int(time.time()),
        "model": request.model,
    }
    usage = {
        "prompt_tokens": given,
        "completion_tokens": made.tokens,
        "total_tokens": given + made.tokens,
    }
    metadata = response_metadata(form, content, made, facts)
    if body.get("stream"):
        return await event_stream(api_request, _events(head, made, content, metadata, usage))
    response: dict[str, Any] = {"role": "assistant", "content": content}
    if made.calls:
        response["tool_calls"] = [call_object(call) for call in made.calls]
    response["metadata"] = metadata
    return json_answer({**head, "response": response, "usage": usage, "finish_reason": made.finish_reason})


def _asked(body: Mapping[str, Any], form: Mapping[str, Any]) -> AnswerRequest:
    request = answer_request({key: value for key, value in body.items() if key != "response_format"})
    schema: CompiledSchema | None = None
    strict = False
    if form["type"] == "structured":
        schema = compile_schema(form["schema"], "response_format", False, "response_format.schema")
        strict = form.get("strict") is not False
    elif form["type"] == "json_schema":
        told = form["json_schema"]
        strict = bool(told.get("strict"))
        schema = compile_schema(
            told["schema"], f"response_format '{told['name']}'", False, "response_format.json_schema.schema"
        )
    return dataclasses.replace(request, schema=schema, is_strict=strict)


def _made(request: AnswerRequest, form: Mapping[str, Any]) -> tuple[Answer, Any, ConversationFacts]:
    """(answer, its content: text or an object, what was heard)."""
    facts = conversation_facts(request.messages)
    if form["type"] == "template":
        content: Any = report(form, facts, request.digest)
        tokens = count_tokens(orjson.dumps(content).decode(), request.model)
        return Answer(None, tokens=tokens), content, facts
    if request.schema is not None and request.is_strict:
        _check_reachable(request.schema.document, form)
    made = answer_choice(request, facts)
    if made.calls:
        # Section 2.5.3: a response that calls tools says something as well.
        said = answer_choice(dataclasses.replace(request, tools=(), forced_tool=None, schema=None), facts)
        return dataclasses.replace(made, tokens=made.tokens + said.tokens), said.text, facts
    if request.schema is not None and made.text is not None and made.finish_reason == "stop":
        return made, orjson.loads(made.text), facts
    return made, made.text, facts


def _check_reachable(schema: Any, form: Mapping[str, Any]) -> None:
    """Section 2.11.1: a field that is required and nowhere described cannot be answered."""
    properties = schema.get("properties", {})
    missing = [name for name in schema.get("required", ()) if name not in properties]
    if missing:
        param = "response_format.schema" if form["type"] == "structured" else "response_format.json_schema.schema"
        raise ApiError(
            422,
            f"Response format validation failed: missing required field '{missing[0]}'",
            type="validation_error",
            param=param,
            code="format_validation_failed",
            more={"details": {"missing_fields": missing, "schema_path": f"$.properties.{missing[0]}"}},
        )


def _check_tool_results(body: Mapping[str, Any]) -> None:
    """Section 2.11.3: a tool whose result is `{"error": …}` has failed."""
    names = [tool[tool["type"]]["name"] for tool in body.get("tools") or ()]
    called: dict[str, str] = {}
    for message in body["messages"]:
        for call in message.get("tool_calls") or ():
            called[call["id"]] = call[call["type"]]["name"]
        if message["role"] != "tool":
            continue
        failure = _failure(content_text(message["content"]))
        if failure is not None:
            call_id = message["tool_call_id"]
            name = called.get(call_id)
            place = names.index(name) if name in names else 0
            is_rate_limited = "rate limit" in failure.lower()
            raise ApiError(
                422,
                f"Tool execution failed: {failure}",
                type="tool_execution_error",
                param=f"tools[{place}].function.name",
                code="tool_rate_limit" if is_rate_limited else "tool_execution_failed",
                more={"tool_call_id": call_id},
            )


def _failure(result: str) -> str | None:
    try:
        told = orjson.loads(result)
    except orjson.JSONDecodeError:
        return None
    error = told.get("error") if isinstance(told, dict) else None
    if isinstance(error, dict):
        error = error.get("message")
    return str(error) if error else None


def _events(
    head: Mapping[str, Any], made: Answer, content: Any, metadata: Mapping[str, Any], usage: Mapping[str, Any]
) -> Iterator[bytes]:
    """Section 2.6: role and text, calls, metadata, the end; a content that is an object comes as its JSON."""

    def chunk(delta: Mapping[str, Any], **more: Any) -> bytes:
        return event({**head, "object": "response.chunk", "delta": delta, **more})

    text = content if content is None or isinstance(content, str) else orjson.dumps(content).decode()
    pieces = [piece for piece, _ in token_pieces(text or "", str(head["model"]))]
    yield chunk({"role": "assistant", "content": "".join(pieces[:1])})
    yield from (chunk({"content": piece}) for piece in pieces[1:])
    for place, call in enumerate(made.calls):
        yield from (chunk(delta) for delta in call_deltas(place, call, False, str(head["model"])))
    yield chunk({"metadata": metadata})
    yield chunk({}, finish_reason=made.finish_reason, usage=usage)
    yield DONE
