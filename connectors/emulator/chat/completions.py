"""POST /chat/completions."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from aiohttp import web

from connectors.emulator.api import LOCAL_NOTE, Incoming, Route, id_of, json_answer
from connectors.emulator.chat.answerer import answers_by_model
from connectors.emulator.chat.answers import (
    Answer,
    Asked,
    Tool,
    ToolCall,
    digest_of_request,
)
from connectors.emulator.chat.logprobs import logprobs_of, told_logprobs
from connectors.emulator.chat.request_checks import check_chat
from connectors.emulator.chat.schemas import schema_of
from connectors.emulator.chat.stored import ROUTES as STORED
from connectors.emulator.chat.stored import keep_completion
from connectors.emulator.rate_limits import USED
from connectors.emulator.sse_stream import DONE, event, event_stream
from connectors.emulator.validation import check_model, refuse
from connectors.tokens import chat_tokens, context_window, count_tokens, max_output_tokens, token_pieces

IGNORED = frozenset(
    {"stream", "stream_options", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
)
"""Parameters that no answer depends on."""
LONG = 4_000
"""Tokens from which on the model's window is looked up."""
SAMPLING = (
    "temperature",
    "top_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
)
"""Parameters by which a real model draws its words."""


async def chat(incoming: Incoming) -> web.StreamResponse:
    """One completion, whole or streamed."""
    body = incoming.body
    check_chat(body)
    check_model(body, "chat")
    asked = asked_of(body)
    given = prompt_tokens(asked, body.get("tools") or body.get("functions"))
    count = body.get("n") or 1
    answers = await answers_by_model(asked, count)
    given = answers[0].given or given
    made = sum(one.tokens for one in answers)
    incoming.request[USED] = given + made
    head: dict[str, Any] = {
        "id": id_of("chatcmpl-", asked.digest.hex()),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": asked.model,
    }
    tail = {"service_tier": "default", "system_fingerprint": LOCAL_NOTE}
    choices = [
        {
            "index": place,
            "message": _message(one, "functions" in body),
            "logprobs": _logprobs(body, one),
            "finish_reason": _finish(one, "functions" in body),
        }
        for place, one in enumerate(answers)
    ]
    told = {**head, "choices": choices, "usage": usage_of(given, made), **tail}
    if body.get("store"):
        keep_completion(incoming.state, told, body)
    if body.get("stream"):
        shown = (body.get("stream_options") or {}).get("include_usage", False)
        return await event_stream(incoming, _events({**head, **tail}, body, answers, told["usage"], shown))
    return json_answer(told)


def asked_of(body: Mapping[str, Any]) -> Asked:
    """A checked body as the request that it is; ApiError 400 for schemas that will not do."""
    form = body.get("response_format") or {}
    schema, strict = None, False
    if form.get("type") == "json_schema":
        told = form["json_schema"]
        strict = bool(told.get("strict"))
        schema = schema_of(
            told.get("schema", {"type": "object"}),
            f"response_format '{told['name']}'",
            strict,
            "response_format",
        )
    tools = tuple(_tools(body))
    choice, named, allowed = _choice(body)
    if named is not None and named not in [tool.name for tool in tools]:
        raise refuse("tool_choice", f"Tool choice '{named}' not found in 'tools' parameter.", "invalid_value")
    limits = [body[name] for name in ("max_tokens", "max_completion_tokens") if body.get(name) is not None]
    stop = body.get("stop") or ()
    return Asked(
        model=body["model"],
        messages=body["messages"],
        digest=digest_of_request(body, IGNORED),
        schema=schema,
        must_fit=strict,
        json_object=form.get("type") == "json_object",
        tools=tools if allowed is None else tuple(tool for tool in tools if tool.name in allowed),
        choice=choice,
        named=named,
        parallel=body.get("parallel_tool_calls", "functions" not in body),
        limit=min(limits) if limits else None,
        stops=(stop,) if isinstance(stop, str) else stop,
        sampling={name: body[name] for name in SAMPLING if body.get(name) is not None},
    )


def prompt_tokens(asked: Asked, tools: Any) -> int:
    """Of the dialogue and the tools; ApiError 400 where they and the answer are more than the model takes."""
    model = asked.model
    given = chat_tokens(asked.messages, model)
    if tools:
        given += count_tokens(str(tools), model)
    if asked.limit is not None:
        most = max_output_tokens(model)
        if most is not None and asked.limit > most:
            raise refuse(
                "max_tokens",
                f"max_tokens is too large: {asked.limit}. This model supports at most {most} completion tokens, "
                f"whereas you provided {asked.limit}.",
                "invalid_value",
            )
    if given > LONG:
        window = context_window(model)
        if window is not None and given + (asked.limit or 0) > window:
            raise refuse(
                "messages",
                f"This model's maximum context length is {window} tokens. However, your messages resulted in {given} "
                "tokens. Please reduce the length of the messages.",
                "context_length_exceeded",
            )
    return given


def usage_of(given: int, made: int) -> dict[str, Any]:
    """Tokens, with the details that the API tells."""
    return {
        "prompt_tokens": given,
        "completion_tokens": made,
        "total_tokens": given + made,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _tools(body: Mapping[str, Any]) -> Iterator[Tool]:
    for place, tool in enumerate(body.get("tools") or ()):
        if tool["type"] == "custom":
            told = tool["custom"]
            yield Tool(told["name"], f"{told['name']} {told.get('description', '')}", None)
        else:
            yield _function(tool["function"], f"tools[{place}].function.parameters")
    for place, told in enumerate(body.get("functions") or ()):
        yield _function(told, f"functions[{place}].parameters")


def _function(told: Mapping[str, Any], where: str) -> Tool:
    parameters = told.get("parameters") or {"type": "object", "properties": {}}
    schema = schema_of(parameters, f"function '{told['name']}'", bool(told.get("strict")), where)
    return Tool(told["name"], f"{told['name']} {told.get('description') or ''}", schema)


def _choice(
    body: Mapping[str, Any],
) -> tuple[Literal["none", "auto", "required"], str | None, frozenset[str] | None]:
    """(choice, the tool that is named, the tools that are allowed)."""
    said = body.get("tool_choice", body.get("function_call", "auto"))
    if said in ("none", "auto", "required"):
        return said, None, None
    if said.get("type") == "allowed_tools":
        allowed = said["allowed_tools"]
        known = frozenset(str((tool.get(tool.get("type")) or {}).get("name")) for tool in allowed["tools"])
        return allowed["mode"], None, known
    return "required", said.get("name") or said[said["type"]]["name"], None


def _message(one: Answer, functions: bool) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": one.text, "refusal": None, "annotations": []}
    if one.calls and functions:
        message["function_call"] = {"name": one.calls[0].name, "arguments": one.calls[0].arguments}
    elif one.calls:
        message["tool_calls"] = [call_object(call) for call in one.calls]
    return message


def call_object(call: ToolCall) -> dict[str, Any]:
    """As a message holds it."""
    if call.custom:
        return {"id": call.id, "type": "custom", "custom": {"name": call.name, "input": call.arguments}}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _finish(one: Answer, functions: bool) -> str:
    return "function_call" if functions and one.calls else one.finish


def _logprobs(body: Mapping[str, Any], one: Answer) -> dict[str, Any] | None:
    if not body.get("logprobs") or one.text is None:
        return None
    return {"content": told_logprobs(one, body["model"], body.get("top_logprobs") or 0), "refusal": None}


def _pieces(body: Mapping[str, Any], one: Answer) -> Iterator[tuple[str, Any]]:
    """(piece of the text, its logprobs) each; in one piece where a real model told them by tokens of its own."""
    if one.text and one.logprobs is not None:
        yield one.text, _logprobs(body, one)
        return
    for piece, _ in token_pieces(one.text or "", body["model"]):
        told = logprobs_of(piece, body["model"], body.get("top_logprobs") or 0) if body.get("logprobs") else None
        yield piece, told and {"content": told, "refusal": None}


def _events(
    head: Mapping[str, Any], body: Mapping[str, Any], answers: Sequence[Answer], usage: Mapping[str, Any], shown: bool
) -> Iterator[bytes]:
    """Role, deltas and finish of each choice, the usage if asked for, and the end."""
    more = {"usage": None} if shown else {}

    def chunk(place: int, delta: Mapping[str, Any], finish: str | None = None, logprobs: Any = None) -> bytes:
        choice = {"index": place, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return event({**head, "object": "chat.completion.chunk", "choices": [choice], **more})

    functions = "functions" in body
    for place, one in enumerate(answers):
        start = None if one.calls else ""
        yield chunk(place, {"role": "assistant", "content": start, "refusal": None})
        for piece, told in _pieces(body, one):
            yield chunk(place, {"content": piece}, logprobs=told)
        for number, call in enumerate(one.calls):
            for delta in call_deltas(number, call, functions, body["model"]):
                yield chunk(place, delta)
        yield chunk(place, {}, _finish(one, functions))
    if shown:
        yield event({**head, "object": "chat.completion.chunk", "choices": [], "usage": usage})
    yield DONE


def call_deltas(number: int, call: ToolCall, functions: bool, model: str) -> Iterator[dict[str, Any]]:
    """The call with empty arguments, then these piece by piece."""
    pieces = [piece for piece, _ in token_pieces(call.arguments, model)]
    if functions:
        yield {"function_call": {"name": call.name, "arguments": ""}}
        yield from ({"function_call": {"arguments": piece}} for piece in pieces)
        return
    kind, text = ("custom", "input") if call.custom else ("function", "arguments")
    yield {"tool_calls": [{"index": number, "id": call.id, "type": kind, kind: {"name": call.name, text: ""}}]}
    yield from ({"tool_calls": [{"index": number, kind: {text: piece}}]} for piece in pieces)


ROUTES: tuple[Route, ...] = (Route("POST", "/chat/completions", chat), *STORED)
