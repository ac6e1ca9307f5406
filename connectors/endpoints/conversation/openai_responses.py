"""The OpenAI dialect of responses: turns into input items, output items into answers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from connectors.contracts import MalformedReply
from connectors.endpoints.conversation.conversation_endpoint import STRUCTURED_MODES, shortened
from connectors.endpoints.conversation.output_columns import ReplyChoice
from connectors.endpoints.conversation.tool_calls import tool_call_struct
from connectors.transport.sse import Event
from connectors.transport.stream_assembly import assemble_response

_REASONS: Mapping[str, str] = {"max_output_tokens": "length"}
"""Why an answer is incomplete -> as a finish_reason."""


class OpenAIResponsesFormat:
    """The dialect of responses as OpenAI speaks it."""

    path = "/responses"
    messages_key = "input"
    modes = STRUCTURED_MODES
    max_token_params = ("max_output_tokens",)

    def __init__(self, alone: bool) -> None:
        """`alone`: the input is one text, not a list."""
        self._alone = alone

    def render_messages(self, messages: Sequence[Mapping[str, Any]]) -> Any:
        """A text that stands alone, or items."""
        if self._alone and len(messages) == 1:
            return messages[0]["content"]
        return [item for message in messages for item in input_items(message)]

    def with_schema(self, body: Mapping[str, Any], way: str, name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
        """By `text.format`."""
        if way == "prompt":
            return dict(body)
        form: dict[str, Any] = {"type": "json_object"}
        if way == "schema":
            form = {"type": "json_schema", "name": name, "strict": True, "schema": schema}
        return {**body, "text": {**body.get("text", {}), "format": form}}

    def assemble(self, events: Iterable[Event]) -> dict[str, Any]:
        """What the last event holds."""
        return assemble_response(events)

    def parse_choices(self, reply: Mapping[str, Any]) -> Sequence[ReplyChoice]:
        """One, of all output items."""
        output, status = reply.get("output"), reply.get("status")
        if status in ("queued", "in_progress", "cancelled", "failed"):
            raise MalformedReply(f"the response is {status}, no answer: {shortened(reply)}")
        if not isinstance(output, list):
            raise MalformedReply(f"the reply has no output: {shortened(reply)}")
        items = [item for item in output if isinstance(item, dict)]
        parts = [part for item in items if item.get("type") == "message" for part in _parts(item.get("content"))]
        texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
        refusals = [part["refusal"] for part in parts if isinstance(part.get("refusal"), str)]
        logprobs = [one for part in parts if isinstance(part.get("logprobs"), list) for one in part["logprobs"]]
        calls = [
            tool_call_struct(item.get("call_id") or item.get("id"), item.get("name"), item.get(key))
            for item in items
            for kind, key in (("function_call", "arguments"), ("custom_tool_call", "input"))
            if item.get("type") == kind
        ]
        return [
            ReplyChoice(
                "".join(texts) if texts else None,
                _finish_reason(reply, "tool_calls" if calls else "stop"),
                "".join(refusals) or None,
                calls,
                logprobs or None,
            )
        ]


def input_items(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A turn in chat completions' shape as items: its text, then its calls; what is an item already stays.

    A `name` has no place in an item and is left out.
    """
    role = message.get("role")
    if role is None:
        return [dict(message)]
    if role == "tool":
        return [
            {
                "type": "function_call_output",
                "call_id": message["tool_call_id"],
                "output": _content(message.get("content"), "user"),
            }
        ]
    items: list[dict[str, Any]] = []
    content = message.get("content")
    if content is None and isinstance(message.get("refusal"), str):
        content = message["refusal"]
    if content is not None and (content != "" or not message.get("tool_calls")):
        more = {key: message[key] for key in ("type", "id", "status", "phase") if key in message}
        items.append({**more, "role": role, "content": _content(content, role)})
    for call in message.get("tool_calls", ()):
        if call["type"] == "custom":
            made = {"type": "custom_tool_call", "name": call["custom"]["name"], "input": call["custom"]["input"]}
        else:
            made = {"type": "function_call", **call["function"]}
        items.append({**made, "call_id": call["id"]})
    return items


def _content(content: Any, role: str) -> Any:
    return [_part(part, role) for part in content] if isinstance(content, list) else content


def _part(part: Mapping[str, Any], role: str) -> Mapping[str, Any]:
    """Parts of the kinds that responses call otherwise."""
    match part.get("type"):
        case "text":
            return {"type": "output_text" if role == "assistant" else "input_text", "text": part.get("text")}
        case "image_url":
            image = part.get("image_url")
            shown = image if isinstance(image, Mapping) else {"url": image}
            detail = shown.get("detail") or "auto"
            return {"type": "input_image", "image_url": shown.get("url"), "detail": detail}
        case "file":
            return {"type": "input_file", **part.get("file", {})}
    return part


def _parts(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"text": content}]
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _finish_reason(reply: Mapping[str, Any], usual: str) -> str:
    if reply.get("status") != "incomplete":
        return usual
    details = reply.get("incomplete_details")
    reason = details.get("reason") if isinstance(details, dict) else None
    return _REASONS.get(reason, reason) if isinstance(reason, str) else "length"
