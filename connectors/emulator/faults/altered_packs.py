"""Packed answers as models get them wrong: named faults of a reply whose JSON has a list `answers`, one entry each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orjson
from msgspec import Struct

Item = dict[str, Any]
UNKNOWN_ID = "zzzzzz"


class AlteredPack(Struct, frozen=True):
    """A change of the items of a packed answer."""

    change: Callable[[Sequence[Item]], Sequence[Item]] = lambda items: items
    """Returns the items that are answered."""
    is_cut: bool = False
    """Whether the text ends in the middle, as by `max_tokens`."""


ALTERED_PACKS: Mapping[str, AlteredPack] = {
    "pack-drop": AlteredPack(lambda items: items[1:]),
    "pack-repeat": AlteredPack(lambda items: [*items, items[0]]),
    "pack-rename": AlteredPack(lambda items: [{**items[0], "id": UNKNOWN_ID}, *items[1:]]),
    "pack-reorder": AlteredPack(lambda items: items[::-1]),
    "pack-cut": AlteredPack(is_cut=True),
}


def alter_pack(kind: str, body: bytes) -> bytes:
    """Return a reply whose packed answer is changed as the entry states; any other reply is returned unchanged."""
    reply = orjson.loads(body)
    entry = ALTERED_PACKS[kind]
    for holder, key in _texts(reply) if isinstance(reply, dict) else ():
        items = _items(holder[key])
        if not items:
            continue
        text = orjson.dumps({"answers": entry.change(items)}).decode()
        holder[key] = text[: len(text) // 2] if entry.is_cut else text
        if entry.is_cut:
            _end_early(reply)
    return orjson.dumps(reply)


def _texts(reply: Item) -> Iterator[tuple[Item, str]]:
    """Yield (object, key) of each text in a completion or a response."""
    for choice in reply.get("choices", ()):
        yield choice.get("message", {}), "content"
    for output in reply.get("output", ()):
        yield from ((part, "text") for part in output.get("content") or () if isinstance(part, dict))


def _items(text: Any) -> Sequence[Item]:
    """Return the items of a packed answer; empty for any other text."""
    try:
        value = orjson.loads(text) if isinstance(text, str) else None
    except orjson.JSONDecodeError:
        return ()
    items = value.get("answers") if isinstance(value, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) and "id" in item for item in items):
        return ()
    return items


def _end_early(reply: Item) -> None:
    for choice in reply.get("choices", ()):
        choice["finish_reason"] = "length"
    if "output" in reply:
        reply.update(status="incomplete", incomplete_details={"reason": "max_output_tokens"})
