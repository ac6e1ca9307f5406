"""Packed requests: several items in one conversation, each answered as if it were alone."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from msgspec import Struct
from msgspec.structs import replace

from connectors.emulator.api import digest_of
from connectors.emulator.chat.answers import AnswerRequest, schema_in_prompt
from connectors.emulator.chat.request_checks import content_text
from connectors.emulator.chat.schemas import CompiledSchema, compile_schema


class PackedItem(Struct, frozen=True):
    """One item of a packed request."""

    id: str
    request: AnswerRequest
    """The item's request as if it were alone."""
    has_text_answer: bool
    """Whether its answer is a text, the property `answer`."""


def packed_items(request: AnswerRequest) -> Sequence[PackedItem]:
    """Return the items of a packed request; empty for any other.

    It is one whose schema has a list `answers` of objects with an `id`, and whose last message ends with a JSON object
    of `id` and `content` on each line.
    """
    item_schema = _item_schema(request)
    if item_schema is None:
        return ()
    properties = {name: schema for name, schema in item_schema["properties"].items() if name != "id"}
    has_text_answer = list(properties) == ["answer"] and properties["answer"] == {"type": "string"}
    schema: CompiledSchema | None = None
    if not has_text_answer:
        form = {**item_schema, "properties": properties, "required": list(properties)}
        schema = compile_schema(form, "an item of answers", request.is_strict, "response_format")
    items: list[PackedItem] = []
    for identity, content in _lines(content_text(request.messages[-1].get("content"))):
        alone = replace(
            request,
            messages=[*request.messages[:-1], {"role": "user", "content": content}],
            digest=digest_of(request.digest.hex(), identity),
            schema=schema,
            json_object=False,
            max_tokens=None,
        )
        items.append(PackedItem(identity, alone, has_text_answer))
    return items


def packed_text(items: Sequence[PackedItem], texts: Sequence[str]) -> str:
    """Return the packed answer from the answers of the items."""
    answers = [
        {"id": item.id, **({"answer": text} if item.has_text_answer else json.loads(text))}
        for item, text in zip(items, texts, strict=True)
        # An item whose answer is filtered has none.
        if text
    ]
    return orjson.dumps({"answers": answers}).decode()


def _item_schema(request: AnswerRequest) -> Mapping[str, Any] | None:
    """Return the schema of one item of `answers`; None if the request has none."""
    if not request.messages or request.tools:
        return None
    document = None if request.schema is None else request.schema.document
    if document is None:
        prompt = "\n".join(
            content_text(message.get("content")) for message in request.messages if message["role"] == "system"
        )
        document = schema_in_prompt(prompt)
    answers = document.get("properties", {}).get("answers") if isinstance(document, Mapping) else None
    item = answers.get("items") if isinstance(answers, Mapping) else None
    is_packed = isinstance(item, Mapping) and "id" in item.get("properties", {})
    return item if is_packed else None


def _lines(text: str) -> list[tuple[str, str]]:
    """Return id and content of the JSON objects at the end of a text, one a line."""
    items: list[tuple[str, str]] = []
    for line in reversed(text.splitlines()):
        try:
            value = json.loads(line)
        except ValueError:
            break
        if not isinstance(value, dict) or value.keys() != {"id", "content"}:
            break
        items.append((str(value["id"]), str(value["content"])))
    return items[::-1]
