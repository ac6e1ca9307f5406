"""Order of a prompt: the constant text that follows row text, which a provider's prompt cache cannot use."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from connectors.templating.template import constant_texts
from connectors.tokens import count_tokens

MAX_PROMPTS = 8
"""Different requests of a step that are compared."""
MIN_TOKENS = 16
"""Fewer tokens, such as a closing `Answer:`, are not worth a warning."""
_PROMPT_KEYS = ("instructions", "input", "messages")


def constant_tokens_after_rows(bodies: Sequence[bytes], model: str, constants: Iterable[str] = ()) -> int:
    """Return the tokens of text that is the same in all requests and follows text that is not; 0 if it is short.

    Providers cache the longest common beginning of prompts:
    https://developers.openai.com/api/docs/guides/prompt-caching.

    Args:
        bodies: different requests of one step, as JSON.
        constants: texts of its templates, which may be between texts of the row.
    """
    prompts = [_texts(orjson.loads(body)) for body in bodies]
    if len(prompts) < 2 or len({len(texts) for texts in prompts}) > 1:
        return 0
    long = [text for text in dict.fromkeys(map(str.strip, constants)) if count_tokens(text, model) >= MIN_TOKENS]
    tokens, follows_row = 0, False
    for texts in zip(*prompts, strict=True):
        if len(set(texts)) == 1:
            found = [texts[0]] if follows_row else []
        else:
            start, middles, end = _parts(texts)
            found = [start] if follows_row else []
            found += [text for text in long if all(text in middle for middle in middles)]
            found.append(end)
            follows_row = True
        tokens += sum(count_tokens(text, model) for text in found if text.strip())
    return tokens if tokens >= MIN_TOKENS else 0


def prompt_constants(step: object) -> Iterator[str]:
    """Yield the constant texts of a step's templates."""
    for source in _strings([getattr(step, key, None) for key in _PROMPT_KEYS]):
        yield from constant_texts(source)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings(list(value.values()))
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _strings(inner)


def _parts(texts: Sequence[str]) -> tuple[str, Sequence[str], str]:
    """Return the common beginning of texts, what is between, and their common end."""
    start = os.path.commonprefix(texts)  # noqa: RUF071 - texts, not paths
    rests = [text[len(start) :] for text in texts]
    end = os.path.commonprefix([rest[::-1] for rest in rests])[::-1]  # noqa: RUF071
    return start, [rest.removesuffix(end) for rest in rests], end


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
    if not isinstance(content, list):
        return orjson.dumps(content).decode()
    # Other parts as JSON: a picture's name differs from row to row, which is what counts.
    texts = (part.get("text") if isinstance(part, Mapping) else None for part in content)
    return "\n".join(
        text if isinstance(text, str) else orjson.dumps(part).decode()
        for text, part in zip(texts, content, strict=True)
    )
