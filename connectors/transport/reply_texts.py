"""Texts in the messages of replies: content in every shape that servers give it, and reasoning."""

from collections.abc import Mapping
from typing import Any

import orjson

REASONING_KEYS = ("reasoning_content", "reasoning")
"""Keys of the reasoning in a message: vLLM, SGLang, DeepSeek; OpenRouter and Ollama."""
_REASONING_TYPES = ("thinking", "reasoning", "reasoning_text")


def content_text(content: Any) -> str | None:
    """Return the text of a content: a text, parts, or an object, which is an answer as JSON; None without one."""
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [text for text in map(_part_text, content) if text is not None]
        return "".join(texts) if texts else None
    if isinstance(content, Mapping):
        text = _part_text(content) if "type" in content else None
        return orjson.dumps(content).decode() if text is None else text
    return None


def reasoning_text(message: Mapping[str, Any]) -> str | None:
    """Return the reasoning next to the content; None without one."""
    texts = (message.get(key) for key in REASONING_KEYS)
    return next((text for text in texts if isinstance(text, str) and text), None)


def transcript(message: Mapping[str, Any]) -> str | None:
    """Return the text of a spoken answer; None without one."""
    audio = message.get("audio")
    text = audio.get("transcript") if isinstance(audio, Mapping) else None
    return text if isinstance(text, str) else None


def _part_text(part: Any) -> str | None:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping) or part.get("type") in _REASONING_TYPES:
        return None
    text = part.get("text")
    return text if isinstance(text, str) else None
