"""The OpenAI format of responses: messages to input items, output items to answers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from connectors.contracts import MalformedReply
from connectors.endpoints.conversation.output_columns import ReplyChoice
from connectors.endpoints.conversation.structured.structured_modes import STRUCTURED_MODES
from connectors.endpoints.conversation.tool_calls import parse_call_items
from connectors.transport.finish_reasons import ending, finish_reason
from connectors.transport.reply_body import excerpt
from connectors.transport.sse import Event
from connectors.transport.stream_assembly import assemble_response


class OpenAIResponsesFormat:
    """The wire format of responses at OpenAI."""

    path = "/responses"
    messages_key = "input"
    modes = STRUCTURED_MODES
    max_token_params = ("max_output_tokens",)

    def __init__(self, input_is_text: bool) -> None:
        """`input_is_text`: the job file's input is one text, not a list."""
        self._input_is_text = input_is_text

    def render_messages(self, messages: Sequence[Mapping[str, Any]]) -> Any:
        """Return a single text, or items."""
        if self._input_is_text and len(messages) == 1:
            return messages[0]["content"]
        return [item for message in messages for item in input_items(message)]

    def with_schema(self, body: Mapping[str, Any], way: str, name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
        """Use `text.format`."""
        if way == "prompt":
            return dict(body)
        form: dict[str, Any] = {"type": "json_object"}
        if way == "schema":
            form = {"type": "json_schema", "name": name, "strict": True, "schema": schema}
        return {**body, "text": {**body.get("text", {}), "format": form}}

    def answer_body(self, text: str, model: str | None) -> dict[str, Any]:
        """Return the reply whose answer is this text."""
        part = {"type": "output_text", "text": text}
        item = {"type": "message", "role": "assistant", "content": [part]}
        return {"object": "response", "status": "completed", "model": model, "output": [item]}

    def assemble(self, events: Iterable[Event]) -> dict[str, Any]:
        """Return the response in the last event."""
        return assemble_response(events)

    def parse_choices(self, reply: Mapping[str, Any]) -> Sequence[ReplyChoice]:
        """Return one answer from all output items."""
        output = reply.get("output")
        if not isinstance(output, list):
            raise MalformedReply(f"the reply has no output: {excerpt(reply)}")
        items = [item for item in output if isinstance(item, dict)]
        parts = [part for item in _answer_messages(items) for part in _parts(item.get("content"))]
        texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
        if not parts and isinstance(reply.get("output_text"), str):
            texts = [reply["output_text"]]
        refusals = [part["refusal"] for part in parts if isinstance(part.get("refusal"), str)]
        logprobs = [token for part in parts if isinstance(part.get("logprobs"), list) for token in part["logprobs"]]
        calls = parse_call_items(items)
        return [
            ReplyChoice(
                "".join(texts) if texts else None,
                status_reason(reply) or ("tool_calls" if calls else "stop"),
                "".join(refusals) or None,
                calls,
                logprobs or None,
                reasoning=None if any(texts) else _reasoning(items),
            )
        ]


def input_items(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Convert a message from the format of chat completions: its text, then its calls. An item stays as it is.

    Items have no `name`; it is left out.
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
        item_keys = {key: message[key] for key in ("type", "id", "status", "phase") if key in message}
        items.append({**item_keys, "role": role, "content": _content(content, role)})
    for call in message.get("tool_calls", ()):
        if call["type"] == "custom":
            item = {"type": "custom_tool_call", "name": call["custom"]["name"], "input": call["custom"]["input"]}
        else:
            item = {"type": "function_call", **call["function"]}
        items.append({**item, "call_id": call["id"]})
    return items


def _content(content: Any, role: str) -> Any:
    return [_part(part, role) for part in content] if isinstance(content, list) else content


def _part(part: Mapping[str, Any], role: str) -> Mapping[str, Any]:
    """Convert the kinds of parts that responses name differently."""
    match part.get("type"):
        case "text":
            return {"type": "output_text" if role == "assistant" else "input_text", "text": part.get("text")}
        case "image_url":
            image = part.get("image_url")
            source = image if isinstance(image, Mapping) else {"url": image}
            detail = source.get("detail") or "auto"
            return {"type": "input_image", "image_url": source.get("url"), "detail": detail}
        case "file":
            return {"type": "input_file", **part.get("file", {})}
    return part


def _answer_messages(items: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Return the messages of an answer; without the model's commentary, if one is marked as the final answer."""
    messages = [item for item in items if item.get("type") == "message"]
    if any(message.get("phase") == "final_answer" for message in messages):
        return [message for message in messages if message.get("phase") != "commentary"]
    return messages


def _parts(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"text": content}]
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def status_reason(reply: Mapping[str, Any]) -> str | None:
    """Return the finish reason that a response's `status` states; None for one that is complete.

    An incomplete response without a reason was cut off. Any other status (failed, cancelled, queued, in_progress ...)
    is a reason of its own, which no whole answer has.
    """
    status = reply.get("status")
    if not isinstance(status, str) or ending(finish_reason(status)) == "stop":
        return None
    if status.lower() != "incomplete":
        return status
    details = reply.get("incomplete_details")
    reason = finish_reason(details.get("reason")) if isinstance(details, dict) else finish_reason(details)
    return "length" if reason in (None, "max_output_tokens") else reason


def _reasoning(items: Iterable[Mapping[str, Any]]) -> str | None:
    parts = [part for item in items if item.get("type") == "reasoning" for part in _parts(item.get("content"))]
    return "".join(part["text"] for part in parts if isinstance(part.get("text"), str)) or None
