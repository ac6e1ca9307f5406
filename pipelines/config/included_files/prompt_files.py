"""Prompts in files: `{file: prompts/label.md}` in place of a text or template of a step."""

from collections.abc import Iterator, Mapping
from typing import Any

from connectors.errors import JobError, KeyPath

PROMPT_KEYS = ("messages", "input", "instructions", "prompt")
"""Keys of a step, and of its params, that contain texts and templates."""
_OTHER_KEYS = frozenset({"tool_calls", "function_call", "arguments"})
"""Keys of messages whose values may have a key `file` of their own."""


_TEXT_KEYS = frozenset({*PROMPT_KEYS, "system", "developer", "user", "assistant", "content"})
"""Keys whose value is a text or a list, never other keys."""


def prompt_references(step: Mapping[str, Any]) -> Iterator[tuple[KeyPath, Any]]:
    """Yield the key path below the step, and the path, of each file that takes the place of a text.

    In a list `{file: …}` is no prompt but a part: a document. JobError below the step for messages in a file.
    """
    sections: list[tuple[KeyPath, Any]] = [((), step), (("params",), step.get("params"))]
    rungs = step.get("rescue")
    for place, rung in enumerate(rungs if isinstance(rungs, list) else ()):
        if isinstance(rung, Mapping):
            sections.append((("rescue", place, "params"), rung.get("params")))
    for path, section in sections:
        for key in PROMPT_KEYS if isinstance(section, Mapping) else ():
            if key in section:
                yield from _references((*path, key), section[key])


def _references(path: KeyPath, value: Any) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(value, list):
        for place, inner in enumerate(value):
            if is_reference(inner):
                if path[-1] in ("messages", "input"):
                    file = inner["file"]
                    raise JobError((*path, place), "a file is a text, not a message", f"write user: {{file: {file}}}")
                continue
            yield from _references((*path, place), inner)
    elif is_reference(value):
        if path[-1] == "messages":
            found = f"{value['file']} is a text, and messages are a list"
            raise JobError(path, found, f"write messages: [{{user: {{file: {value['file']}}}}}]")
        yield path, value["file"]
    elif isinstance(value, Mapping):
        if path[-1] in _TEXT_KEYS and isinstance(value.get("file"), str):
            other = next(key for key in value if key != "file")
            raise JobError((*path, other), "{file: PATH} takes the place of a text and has no other key", "delete it")
        for key, inner in value.items():
            if key not in _OTHER_KEYS:
                yield from _references((*path, key), inner)


def is_reference(value: Any) -> bool:
    """Whether a value is `{file: PATH}`."""
    return isinstance(value, Mapping) and value.keys() == {"file"} and not isinstance(value["file"], Mapping)


def replaced(value: Any, path: KeyPath, new: Any) -> Any:
    """Return a copy of nested values with another value at a key path."""
    if not path:
        return new
    inner = replaced(value[path[0]], path[1:], new)
    if isinstance(value, list):
        return [inner if place == path[0] else other for place, other in enumerate(value)]
    return {**value, path[0]: inner}
