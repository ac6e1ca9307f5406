"""Items of responses: input items to chat messages, answers to output items."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from connectors.emulator.api import ApiError, EmulatorState, derived_id
from connectors.emulator.chat.answers import Answer, AnswerRequest
from connectors.emulator.chat.logprobs import answer_logprobs
from connectors.emulator.store import file_content, find_object
from connectors.emulator.validation import refuse

Message = dict[str, Any]


def input_items_of(items_or_text: str | Sequence[Mapping[str, Any]], digest: bytes) -> list[dict[str, Any]]:
    """The input as the API stores it: every item with type and id, every text as a content part."""
    if isinstance(items_or_text, str):
        items_or_text = [{"role": "user", "content": items_or_text}]
    return [_stored_item(item, digest, index) for index, item in enumerate(items_or_text)]


def _stored_item(item: Mapping[str, Any], digest: bytes, index: int) -> dict[str, Any]:
    item_type = item.get("type") or ("message" if "role" in item else "item_reference")
    stored = {"type": item_type, **{key: value for key, value in item.items() if value is not None}}
    if item_type == "item_reference":
        return stored
    prefix = {"message": "msg_", "reasoning": "rs_"}.get(item_type, "fc_")
    stored.setdefault("id", derived_id(prefix, digest.hex(), "input", index))
    if item_type == "message":
        stored.setdefault("status", "completed")
        if isinstance(stored["content"], str):
            is_assistant = stored["role"] == "assistant"
            part: dict[str, Any] = {"type": "output_text" if is_assistant else "input_text", "text": stored["content"]}
            stored["content"] = [{**part, "annotations": []} if is_assistant else part]
    return stored


def messages_of_items(
    items: Sequence[Mapping[str, Any]], earlier: Mapping[str, Any], state: EmulatorState, start: int
) -> list[Message]:
    """The items as chat messages.

    `earlier`: items by id that references may use; `start`: index of the first input item.
    """
    messages: list[Message] = []
    open_calls: dict[str, None] = {}
    for index, item in enumerate(items):
        param = f"input[{index - start}]"
        if item["type"] == "item_reference":
            if item["id"] not in earlier:
                raise ApiError(404, f"Item with id '{item['id']}' not found.", param="input")
            item = earlier[item["id"]]
        match item["type"]:
            case "message":
                messages.append(_message(item, param, state))
            case "function_call" | "custom_tool_call":
                open_calls[item["call_id"]] = None
                _add_call(messages, item)
            case "function_call_output" | "custom_tool_call_output":
                if item["call_id"] not in open_calls:
                    raise refuse(
                        "input",
                        f"No tool call found for function call output with call_id {item['call_id']}.",
                        "invalid_value",
                    )
                del open_calls[item["call_id"]]
                output = item["output"]
                content = output if isinstance(output, str) else list(_parts(output, f"{param}.output", state))
                messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": content})
    if open_calls:
        raise refuse("input", f"No tool output found for function call {next(iter(open_calls))}.", "invalid_value")
    return messages


def _message(item: Mapping[str, Any], param: str, state: EmulatorState) -> Message:
    content = item["content"]
    if isinstance(content, str):
        return {"role": item["role"], "content": content}
    parts = list(_parts(content, f"{param}.content", state))
    if len(parts) == 1 and parts[0]["type"] == "text":
        return {"role": item["role"], "content": parts[0]["text"]}
    return {"role": item["role"], "content": parts}


def _parts(content: Sequence[Mapping[str, Any]], param: str, state: EmulatorState) -> Iterator[dict[str, Any]]:
    """The content parts in the format of chat completions; images carry `where` for error messages."""
    for index, part in enumerate(content):
        match part["type"]:
            case "input_text" | "output_text":
                yield {"type": "text", "text": part["text"]}
            case "refusal":
                yield {"type": "text", "text": part["refusal"]}
            case "input_image":
                path = f"{param}[{index}]"
                url = part.get("image_url") or _file_url(part.get("file_id"), path, state)
                yield {"type": "image_url", "image_url": {"url": url}, "where": f"{path}.image_url"}
            case "input_file":
                path = f"{param}[{index}]"
                data = part.get("file_data")
                if data is None and part.get("file_id") is not None:
                    find_object(state, "file", part["file_id"], f"{path}.file_id")
                name = part.get("filename") or part.get("file_id") or part.get("file_url") or ""
                yield {"type": "file", "file": {"filename": name, "file_data": data}, "where": path}


def _file_url(file_id: str | None, param: str, state: EmulatorState) -> str:
    if file_id is None:
        raise refuse(
            f"{param}.image_url", f"Missing '{param}.image_url' or '{param}.file_id'.", "missing_required_parameter"
        )
    find_object(state, "file", file_id, f"{param}.file_id")
    return f"data:image/*;base64,{base64.b64encode(file_content(state, file_id)).decode()}"


def _add_call(messages: list[Message], item: Mapping[str, Any]) -> None:
    """Add a call; consecutive calls share one assistant message."""
    if item["type"] == "custom_tool_call":
        call = {"type": "custom", "custom": {"name": item["name"], "input": item["input"]}}
    else:
        call = {"type": "function", "function": {"name": item["name"], "arguments": item["arguments"]}}
    call["id"] = item["call_id"]
    if not messages or "tool_calls" not in messages[-1]:
        messages.append({"role": "assistant", "content": None, "tool_calls": []})
    messages[-1]["tool_calls"].append(call)


def output_items(request: AnswerRequest, answer: Answer, logprobs: int | None) -> list[dict[str, Any]]:
    """The output items of an answer; `logprobs`: number of top tokens per position, None for no log probabilities."""
    if answer.finish_reason == "content_filter":
        return []
    calls = [
        {
            "type": "custom_tool_call" if call.is_custom else "function_call",
            "id": derived_id("ctc_" if call.is_custom else "fc_", call.id),
            "call_id": call.id,
            "name": call.name,
            ("input" if call.is_custom else "arguments"): call.arguments,
            "status": "completed",
        }
        for call in answer.calls
    ]
    if answer.text is None:
        return calls
    part: dict[str, Any] = {"type": "output_text", "text": answer.text, "annotations": [], "logprobs": []}
    if logprobs is not None:
        part["logprobs"] = answer_logprobs(answer, request.model, logprobs)
    message = {
        "type": "message",
        "id": derived_id("msg_", request.digest.hex()),
        "status": "incomplete" if answer.finish_reason == "length" else "completed",
        "role": "assistant",
        "content": [part],
    }
    return [message, *calls]
