"""Order of a prompt: the constant text that follows row text, which a provider's prompt cache cannot use."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from connectors.tokens import count_tokens

MAX_PROMPTS = 8
"""Different requests of a step that are compared."""
MIN_TOKENS = 16
"""Fewer tokens, such as a closing `Answer:`, are not worth a warning."""


def constant_tokens_after_rows(bodies: Sequence[bytes], model: str) -> int:
    """Return the tokens of text that is the same in all requests and follows text that is not; 0 if it is short.

    `bodies`: different requests of one step, as JSON. Providers cache the longest common beginning of prompts:
    https://developers.openai.com/api/docs/guides/prompt-caching.
    """
    prompts = [_texts(orjson.loads(body)) for body in bodies]
    if len(prompts) < 2 or len({len(texts) for texts in prompts}) > 1:
        return 0
    tokens, follows_row = 0, False
    for texts in zip(*prompts, strict=True):
        if len(set(texts)) > 1:
            follows_row = True
            constant = os.path.commonprefix([text[::-1] for text in texts])[::-1]  # noqa: RUF071 - texts, not paths
        else:
            constant = texts[0]
        if follows_row and constant.strip():
            tokens += count_tokens(constant, model)
    return tokens if tokens >= MIN_TOKENS else 0


def _texts(body: Mapping[str, Any]) -> list[str]:
    """Return the texts of a request in the order in which a provider reads them, one for each message."""
    messages = body.get("messages", body.get("input"))
    if not isinstance(messages, str | list):
        return []
    turns = [messages] if isinstance(messages, str) else messages
    instructions = body.get("instructions")
    return [*([instructions] if isinstance(instructions, str) else []), *(_text(turn) for turn in turns)]


def _text(turn: Any) -> str:
    content = turn.get("content") if isinstance(turn, Mapping) else turn
    if isinstance(content, str):
        return content
    # Parts as JSON: a picture's name differs from row to row, which is what counts.
    return orjson.dumps(content).decode()
