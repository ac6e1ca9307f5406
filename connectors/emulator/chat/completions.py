"""POST /chat/completions: request in, completion or stream out."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import orjson
from aiohttp import web

from connectors.emulator.api import LOCAL_NAME, ApiRequest, ApiRoute, derived_id, json_answer, served_tier
from connectors.emulator.chat.answerer import answer_choices
from connectors.emulator.chat.answers import (
    Answer,
    AnswerRequest,
    Tool,
    ToolCall,
    digest_of_request,
)
from connectors.emulator.chat.logprobs import answer_logprobs, synthetic_logprobs
from connectors.emulator.chat.request_checks import check_chat
from connectors.emulator.chat.schemas import compile_schema
from connectors.emulator.chat.stored import ROUTES as STORED
from connectors.emulator.chat.stored import store_completion
from connectors.emulator.rate_limits import USED_TOKENS
from connectors.emulator.sse_stream import DONE, event, event_stream
from connectors.emulator.validation import check_model, refuse
from connectors.tokens import chat_tokens, context_window, count_tokens, max_output_tokens, token_pieces

IGNORED_PARAMETERS = frozenset(
    {"stream", "stream_options", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
)
"""Parameters on which no answer depends."""
LONG_PROMPT_TOKENS = 4_000
"""Prompts above this size are compared with the model's context window."""
SAMPLING_PARAMETERS = (
    "temperature",
    "top_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
)
"""Parameters that a real model samples with."""


async def chat(api_request: ApiRequest) -> web.StreamResponse:
    """Answer with one completion, whole or streamed."""
    body = api_request.body
    check_chat(body)
    check_model(body, "chat")
    request = answer_request(body)
    prompt = prompt_tokens(request, body.get("tools") or body.get("functions"), body.get("response_format"))
    count = body.get("n") or 1
    answers = await answer_choices(request, count)
    prompt = answers[0].prompt_tokens or prompt
    output = sum(answer.tokens for answer in answers)
    api_request.http_request[USED_TOKENS] = prompt + output
    head: dict[str, Any] = {
        "id": derived_id("chatcmpl-", request.digest.hex()),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request.model,
    }
    tail = {"service_tier": served_tier(body), "system_fingerprint": LOCAL_NAME}
    choices = [
        {
            "index": index,
            "message": _message(answer, "functions" in body),
            "logprobs": _logprobs(body, answer),
            "finish_reason": _finish(answer, "functions" in body),
        }
        for index, answer in enumerate(answers)
    ]
    completion = {**head, "choices": choices, "usage": usage_object(prompt, output), **tail}
    if body.get("store"):
        store_completion(api_request.state, completion, body)
    if body.get("stream"):
        includes_usage = (body.get("stream_options") or {}).get("include_usage", False)
        return await event_stream(
            api_request, _events({**head, **tail}, body, answers, completion["usage"], includes_usage)
        )
    return json_answer(completion)


def answer_request(body: Mapping[str, Any]) -> AnswerRequest:
    """The AnswerRequest of a validated body; ApiError 400 for invalid schemas and unknown tool names."""
    form = body.get("response_format") or {}
    schema, strict = None, False
    if form.get("type") == "json_schema":
        json_schema = form["json_schema"]
        strict = bool(json_schema.get("strict"))
        schema = compile_schema(
            json_schema.get("schema", {"type": "object"}),
            f"response_format '{json_schema['name']}'",
            strict,
            "response_format",
        )
    tools = tuple(_tools(body))
    choice, forced_tool, allowed = _choice(body)
    if forced_tool is not None and forced_tool not in [tool.name for tool in tools]:
        raise refuse("tool_choice", f"Tool choice '{forced_tool}' not found in 'tools' parameter.", "invalid_value")
    limits = [body[name] for name in ("max_tokens", "max_completion_tokens") if body.get(name) is not None]
    stop = body.get("stop") or ()
    return AnswerRequest(
        model=body["model"],
        messages=body["messages"],
        digest=digest_of_request(body, IGNORED_PARAMETERS),
        schema=schema,
        is_strict=strict,
        json_object=form.get("type") == "json_object",
        tools=tools if allowed is None else tuple(tool for tool in tools if tool.name in allowed),
        tool_choice=choice,
        forced_tool=forced_tool,
        allows_parallel_calls=body.get("parallel_tool_calls", "functions" not in body),
        max_tokens=min(limits) if limits else None,
        stops=(stop,) if isinstance(stop, str) else stop,
        sampling={name: body[name] for name in SAMPLING_PARAMETERS if body.get(name) is not None},
    )


def prompt_tokens(request: AnswerRequest, tools: Any, form: Any) -> int:
    """Tokens of the messages, the tools and the schema; ApiError 400 if they and the answer exceed the model's limits.

    `form`: the part of the body that has the schema, if there is one.
    """
    model = request.model
    prompt = chat_tokens(request.messages, model)
    for part in (tools, None if request.schema is None else form):
        if part:
            prompt += count_tokens(orjson.dumps(part).decode(), model)
    if request.max_tokens is not None:
        max_output = max_output_tokens(model)
        if max_output is not None and request.max_tokens > max_output:
            raise refuse(
                "max_tokens",
                f"max_tokens is too large: {request.max_tokens}. This model supports at most {max_output} completion "
                f"tokens, whereas you provided {request.max_tokens}.",
                "invalid_value",
            )
    if prompt > LONG_PROMPT_TOKENS:
        window = context_window(model)
        if window is not None and prompt + (request.max_tokens or 0) > window:
            raise refuse(
                "messages",
                f"This model's maximum context length is {window} tokens. However, your messages resulted in {prompt} "
                "tokens. Please reduce the length of the messages.",
                "context_length_exceeded",
            )
    return prompt


def usage_object(prompt: int, output: int) -> dict[str, Any]:
    """The `usage` object, with the details that the API returns."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _tools(body: Mapping[str, Any]) -> Iterator[Tool]:
    for index, tool in enumerate(body.get("tools") or ()):
        if tool["type"] == "custom":
            custom = tool["custom"]
            yield Tool(custom["name"], f"{custom['name']} {custom.get('description', '')}", None)
        else:
            yield _function(tool["function"], f"tools[{index}].function.parameters")
    for index, function in enumerate(body.get("functions") or ()):
        yield _function(function, f"functions[{index}].parameters")


def _function(function: Mapping[str, Any], param: str) -> Tool:
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    schema = compile_schema(parameters, f"function '{function['name']}'", bool(function.get("strict")), param)
    return Tool(function["name"], f"{function['name']} {function.get('description') or ''}", schema)


def _choice(
    body: Mapping[str, Any],
) -> tuple[Literal["none", "auto", "required"], str | None, frozenset[str] | None]:
    """(tool choice, name of the forced tool, names of the allowed tools)."""
    choice = body.get("tool_choice", body.get("function_call", "auto"))
    if choice in ("none", "auto", "required"):
        return choice, None, None
    if choice.get("type") == "allowed_tools":
        allowed = choice["allowed_tools"]
        known = frozenset(str((tool.get(tool.get("type")) or {}).get("name")) for tool in allowed["tools"])
        return allowed["mode"], None, known
    return "required", choice.get("name") or choice[choice["type"]]["name"], None


def _message(answer: Answer, uses_functions: bool) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None, "annotations": []}
    if answer.calls and uses_functions:
        message["function_call"] = {"name": answer.calls[0].name, "arguments": answer.calls[0].arguments}
    elif answer.calls:
        message["tool_calls"] = [call_object(call) for call in answer.calls]
    return message


def call_object(call: ToolCall) -> dict[str, Any]:
    """A tool call as a message contains it."""
    if call.is_custom:
        return {"id": call.id, "type": "custom", "custom": {"name": call.name, "input": call.arguments}}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _finish(answer: Answer, uses_functions: bool) -> str:
    return "function_call" if uses_functions and answer.calls else answer.finish_reason


def _logprobs(body: Mapping[str, Any], answer: Answer) -> dict[str, Any] | None:
    if not body.get("logprobs") or answer.text is None:
        return None
    return {"content": answer_logprobs(answer, body["model"], body.get("top_logprobs") or 0), "refusal": None}


def _text_parts(body: Mapping[str, Any], answer: Answer) -> Iterator[tuple[str, Any]]:
    """(part of the text, its log probabilities); a single part if a real model returned its own tokens."""
    if answer.text and answer.logprobs is not None:
        yield answer.text, _logprobs(body, answer)
        return
    for piece, _ in token_pieces(answer.text or "", body["model"]):
        logprobs = None
        if body.get("logprobs"):
            logprobs = {
                "content": synthetic_logprobs(piece, body["model"], body.get("top_logprobs") or 0),
                "refusal": None,
            }
        yield piece, logprobs


def _events(
    head: Mapping[str, Any],
    body: Mapping[str, Any],
    answers: Sequence[Answer],
    usage: Mapping[str, Any],
    includes_usage: bool,
) -> Iterator[bytes]:
    """The events: role, deltas and finish reason of each choice, the usage if requested, and the end."""
    more = {"usage": None} if includes_usage else {}

    def chunk(index: int, delta: Mapping[str, Any], finish: str | None = None, logprobs: Any = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return event({**head, "object": "chat.completion.chunk", "choices": [choice], **more})

    uses_functions = "functions" in body
    for index, answer in enumerate(answers):
        start = None if answer.calls else ""
        yield chunk(index, {"role": "assistant", "content": start, "refusal": None})
        for piece, logprobs in _text_parts(body, answer):
            yield chunk(index, {"content": piece}, logprobs=logprobs)
        for number, call in enumerate(answer.calls):
            for delta in call_deltas(number, call, uses_functions, body["model"]):
                yield chunk(index, delta)
        yield chunk(index, {}, _finish(answer, uses_functions))
    if includes_usage:
        yield event({**head, "object": "chat.completion.chunk", "choices": [], "usage": usage})
    yield DONE


def call_deltas(number: int, call: ToolCall, uses_functions: bool, model: str) -> Iterator[dict[str, Any]]:
    """The deltas of a call: first with empty arguments, then the arguments in parts."""
    pieces = [piece for piece, _ in token_pieces(call.arguments, model)]
    if uses_functions:
        yield {"function_call": {"name": call.name, "arguments": ""}}
        yield from ({"function_call": {"arguments": piece}} for piece in pieces)
        return
    kind, text = ("custom", "input") if call.is_custom else ("function", "arguments")
    yield {"tool_calls": [{"index": number, "id": call.id, "type": kind, kind: {"name": call.name, text: ""}}]}
    yield from ({"tool_calls": [{"index": number, kind: {text: piece}}]} for piece in pieces)


ROUTES: tuple[ApiRoute, ...] = (ApiRoute("POST", "/chat/completions", chat), *STORED)
