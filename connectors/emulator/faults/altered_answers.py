"""Answers as some providers and models write them: named faults of chat completions, one entry each."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from msgspec import Struct

Choice = dict[str, Any]


class AlteredAnswer(Struct, frozen=True):
    """A change of every choice of a completion."""

    change: Callable[[Choice, str], None]
    """Changes a choice in place; with it: its text."""
    outcome: str | None = None
    """The class of the error that Rowmill makes of a typed answer; None: it is an answer all the same."""
    max_choices: int | None = None


def _ending(reason: str | None, **more: Any) -> Callable[[Choice, str], None]:
    """Return a change that cuts the text in half and states this finish reason."""

    def change(choice: Choice, text: str) -> None:
        choice.update(finish_reason=reason, **more)
        choice["message"]["content"] = text[: len(text) // 2]

    return change


def _text(form: str) -> Callable[[Choice, str], None]:
    """Return a change that puts the text into a form with `TEXT` in it."""

    def change(choice: Choice, text: str) -> None:
        choice["message"]["content"] = form.replace("TEXT", text)

    return change


def _no_reason(choice: Choice, text: str) -> None:
    choice["finish_reason"] = None


def _reasoning(choice: Choice, text: str) -> None:
    choice["message"].update(content=None, reasoning_content=text)


def _parts(choice: Choice, text: str) -> None:
    choice["message"]["content"] = [{"type": "text", "text": text}]


def _tool(choice: Choice, text: str) -> None:
    call = {"id": "call_schema", "type": "function", "function": {"name": "answer", "arguments": text}}
    choice["message"].update(content=None, tool_calls=[call])
    choice["finish_reason"] = "tool_calls"


ALTERED_ANSWERS: Mapping[str, AlteredAnswer] = {
    # vLLM; OpenRouter; DeepSeek.
    "abort": AlteredAnswer(_ending("abort"), "server"),
    "choice-error": AlteredAnswer(_ending("error", error={"code": 502, "message": "Provider disconnected"}), "server"),
    "no-resources": AlteredAnswer(_ending("insufficient_system_resource"), "server"),
    # Gemini.
    "max-tokens": AlteredAnswer(_ending("MAX_TOKENS"), "length"),
    "safety": AlteredAnswer(_ending("SAFETY"), "content_filter"),
    # Local servers.
    "no-reason": AlteredAnswer(_no_reason),
    "empty-answer": AlteredAnswer(_text(""), "invalid_answer"),
    "schema-ignored": AlteredAnswer(_text("That is hard to say."), "invalid_answer"),
    "one-choice": AlteredAnswer(lambda choice, text: None, max_choices=1),
    # Models.
    "think-block": AlteredAnswer(_text("<think>\nIs it {}?\n</think>\n\nTEXT")),
    "fence": AlteredAnswer(_text("Here is the JSON:\n\n```json\nTEXT\n```\nLet me know if you need more.")),
    "end-token": AlteredAnswer(_text("TEXT<|im_end|>")),
    "half-surrogate": AlteredAnswer(_text("TEXT \ud83d")),
    # Servers with a reasoning parser, with content parts, and those that turn a schema into a tool.
    "reasoning-only": AlteredAnswer(_reasoning),
    "content-parts": AlteredAnswer(_parts),
    "tool-answer": AlteredAnswer(_tool),
}


def alter_completion(kind: str, body: bytes) -> bytes:
    """Return a completion changed as the entry states; any other body is returned unchanged."""
    completion = orjson.loads(body)
    entry = ALTERED_ANSWERS[kind]
    if not isinstance(completion, dict) or "choices" not in completion:
        return body
    completion["choices"] = completion["choices"][: entry.max_choices]
    for choice in completion["choices"]:
        entry.change(choice, choice["message"]["content"] or "")
    return json.dumps(completion).encode()


def alter_chunk(kind: str, event: bytes) -> bytes:
    """Return an event of a streamed completion with the ending that the entry states."""
    data = event.removeprefix(b"data: ").strip()
    if data == b"[DONE]":
        return event
    chunk = orjson.loads(data)
    for choice in chunk.get("choices", ()):
        if choice.get("finish_reason") is not None:
            changed: Choice = {"finish_reason": choice["finish_reason"], "message": {}}
            ALTERED_ANSWERS[kind].change(changed, "")
            choice.update({key: value for key, value in changed.items() if key != "message"})
    return b"data: " + orjson.dumps(chunk) + b"\n\n"
