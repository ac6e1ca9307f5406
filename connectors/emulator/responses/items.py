"""Items of responses: the input as a dialogue of chat completions, an answer as output items."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from connectors.emulator.api import ApiError, EmulatorState, derived_id
from connectors.emulator.chat.answers import Answer, AnswerRequest
from connectors.emulator.chat.logprobs import answer_logprobs
from connectors.emulator.store import file_content, find_object
from connectors.emulator.validation import refuse

Message = dict[str, Any]


def input_items_of(given: str | Sequence[Mapping[str, Any]], digest: bytes) -> list[dict[str, Any]]:
    """The input as the API keeps it: every item with type and id, every text in parts."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    return [_kept(item, digest, place) for place, item in enumerate(given)]


def _kept(item: Mapping[str, Any], digest: bytes, place: int) -> dict[str, Any]:
    kind = item.get("type") or ("message" if "role" in item else "item_reference")
    kept = {"type": kind, **{key: value for key, value in item.items() if value is not None}}
    if kind == "item_reference":
        return kept
    prefix = {"message": "msg_", "reasoning": "rs_"}.get(kind, "fc_")
    kept.setdefault("id", derived_id(prefix, digest.hex(), "input", place))
    if kind == "message":
        kept.setdefault("status", "completed")
        if isinstance(kept["content"], str):
            said = kept["role"] == "assistant"
            part: dict[str, Any] = {"type": "output_text" if said else "input_text", "text": kept["content"]}
            kept["content"] = [{**part, "annotations": []} if said else part]
    return kept


def messages_of_items(
    items: Sequence[Mapping[str, Any]], earlier: Mapping[str, Any], state: EmulatorState, start: int
) -> list[Message]:
    """The items as turns; `earlier`: items by id that a reference may name; the input begins at item `start`."""
    turns: list[Message] = []
    open_calls: dict[str, None] = {}
    for place, item in enumerate(items):
        where = f"input[{place - start}]"
        if item["type"] == "item_reference":
            if item["id"] not in earlier:
                raise ApiError(404, f"Item with id '{item['id']}' not found.", param="input")
            item = earlier[item["id"]]
        match item["type"]:
            case "message":
                turns.append(_message(item, where, state))
            case "function_call" | "custom_tool_call":
                open_calls[item["call_id"]] = None
                _add_call(turns, item)
            case "function_call_output" | "custom_tool_call_output":
                if item["call_id"] not in open_calls:
                    raise refuse(
                        "input",
                        f"No tool call found for function call output with call_id {item['call_id']}.",
                        "invalid_value",
                    )
                del open_calls[item["call_id"]]
                output = item["output"]
                content = output if isinstance(output, str) else list(_parts(output, f"{where}.output", state))
                turns.append({"role": "tool", "tool_call_id": item["call_id"], "content": content})
    if open_calls:
        raise refuse("input", f"No tool output found for function call {next(iter(open_calls))}.", "invalid_value")
    return turns


def _message(item: Mapping[str, Any], where: str, state: EmulatorState) -> Message:
    content = item["content"]
    if isinstance(content, str):
        return {"role": item["role"], "content": content}
    parts = list(_parts(content, f"{where}.content", state))
    if len(parts) == 1 and parts[0]["type"] == "text":
        return {"role": item["role"], "content": parts[0]["text"]}
    return {"role": item["role"], "content": parts}


def _parts(content: Sequence[Mapping[str, Any]], where: str, state: EmulatorState) -> Iterator[dict[str, Any]]:
    """The parts as chat completions write them; `where` goes with pictures, for errors about them."""
    for place, part in enumerate(content):
        match part["type"]:
            case "input_text" | "output_text":
                yield {"type": "text", "text": part["text"]}
            case "refusal":
                yield {"type": "text", "text": part["refusal"]}
            case "input_image":
                path = f"{where}[{place}]"
                url = part.get("image_url") or _file_url(part.get("file_id"), path, state)
                yield {"type": "image_url", "image_url": {"url": url}, "where": f"{path}.image_url"}
            case "input_file":
                name = part.get("filename") or part.get("file_id") or part.get("file_url") or ""
                yield {"type": "file", "file": {"filename": name}}


def _file_url(file_id: str | None, where: str, state: EmulatorState) -> str:
    if file_id is None:
        raise refuse(
            f"{where}.image_url", f"Missing '{where}.image_url' or '{where}.file_id'.", "missing_required_parameter"
        )
    find_object(state, "file", file_id, f"{where}.file_id")
    return f"data:image/*;base64,{base64.b64encode(file_content(state, file_id)).decode()}"


def _add_call(turns: list[Message], item: Mapping[str, Any]) -> None:
    """Calls that follow one another are one turn."""
    if item["type"] == "custom_tool_call":
        call = {"type": "custom", "custom": {"name": item["name"], "input": item["input"]}}
    else:
        call = {"type": "function", "function": {"name": item["name"], "arguments": item["arguments"]}}
    call["id"] = item["call_id"]
    if not turns or "tool_calls" not in turns[-1]:
        turns.append({"role": "assistant", "content": None, "tool_calls": []})
    turns[-1]["tool_calls"].append(call)


def output_items(request: AnswerRequest, answer: Answer, logprobs: int | None) -> list[dict[str, Any]]:
    """What was answered; `logprobs`: how many likeliest tokens are told at each, None: nothing of it."""
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
