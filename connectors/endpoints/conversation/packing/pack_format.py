"""The format of packs: one message with an id for each row, the schema of their answers, and answers found by id."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

import orjson
from msgspec import Struct, field

from connectors.transport.bounded_json import parse_json, replace_lone_surrogates

ID_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
"""Five bits a character, without some that a model might confuse."""
ID_CHARACTERS = 6
"""Length of an id: 30 bits, so that few requests need longer ones."""
MAX_ID_CHARACTERS = 12
_PAIRS = tuple(first + second for first in ID_ALPHABET for second in ID_ALPHABET)
"""The two characters of each ten bits."""
ANSWERS_KEY = "answers"
MAX_LISTS = 10_000
"""Lists `answers` that are read in one reply: a thousand rows may have some each, and a broken reply any number."""
_LIST_START = re.compile(rf'"{ANSWERS_KEY}"\s*:\s*\[')
_LINE_SEPARATORS = "\x85\u2028\u2029"
"""What also ends a line for many readers, and what JSON writes as it is."""
TEXT_KEY = "answer"
"""The property of an untyped answer."""
ITEM_TOKENS = 24
"""Output tokens that an item takes besides its answer: id, keys and punctuation."""
WRAPPING_TOKENS = 32
"""Output tokens that the reply takes besides its items."""

INSTRUCTION = (
    "Each of the following lines is a JSON object with the id and the content of one item. Treat every item by itself, "
    "as if it were the only one, and give each its own answer. Return one object: its list `answers` has exactly one "
    "entry for each item, with the item's id copied character by character."
)


def row_ids(fingerprints: Iterable[bytes]) -> list[str]:
    """Return a short id for each request fingerprint, different from one another unless the fingerprints are equal."""
    return list(_row_ids(tuple(fingerprints)))


@lru_cache(maxsize=512)  # Those of a pack are needed twice: for its request, and for its reply.
def _row_ids(fingerprints: tuple[bytes, ...]) -> tuple[str, ...]:
    bits = [int.from_bytes(fingerprint[:4], "big") for fingerprint in fingerprints]
    ids = [_PAIRS[each >> 22] + _PAIRS[each >> 12 & 1023] + _PAIRS[each >> 2 & 1023] for each in bits]
    for characters in range(ID_CHARACTERS + 1, MAX_ID_CHARACTERS + 1):
        if len(set(ids)) == len(ids):
            break
        ids = [_long_id(fingerprint)[:characters] for fingerprint in fingerprints]
    return tuple(ids)


def packed_content(ids: Sequence[str], texts: Sequence[bytes]) -> str:
    """Return the user message of a packed request: the instruction, then one JSON object a line for each row.

    `texts`: of the rows, as JSON.
    """
    lines = [b'{"id":"%b","content":%b}' % (each.encode(), text) for each, text in zip(ids, texts, strict=True)]
    content = f"{INSTRUCTION}\n\n" + b"\n".join(lines).decode()
    for separator in _LINE_SEPARATORS:
        content = content.replace(separator, f"\\u{ord(separator):04x}")
    return content


def packed_schema(properties: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the strict JSON Schema of a packed reply; `properties`: those of a typed answer, None for a text.

    It depends on the step alone: providers compile every new schema.
    """
    item = {"id": {"type": "string"}, **({TEXT_KEY: {"type": "string"}} if properties is None else properties)}
    return _strict_object({ANSWERS_KEY: {"type": "array", "items": _strict_object(item)}})


def packed_output_tokens(row_tokens: int, rows: int) -> int:
    """Return the output tokens that a reply with so many answers needs; `row_tokens`: of one answer."""
    return (row_tokens + ITEM_TOKENS) * rows + WRAPPING_TOKENS


class PackedReply(Struct):
    """The items of a packed reply by id; an id that is missing, repeated or unknown has no answer."""

    answers: dict[str, str] = field(default_factory=dict)
    """Id -> the answer as a single request's reply would have it: text, or JSON of the typed columns."""


def read_packed_reply(text: str, ids: Sequence[str], is_typed: bool) -> PackedReply:
    """Return the answers of a packed reply: complete items before a cut count, order means nothing.

    Whether an answer fits the step's columns is for the caller to check.
    """
    items = packed_items(text, ids)
    if not is_typed and (found := _plain_answers(items, ids)) is not None:
        return PackedReply(found)
    wanted = {identity for identity, count in Counter(ids).items() if count == 1}
    seen, repeated = set[str](), set[str]()
    answers: dict[str, str] = {}
    for item in items:
        identity = item.get("id")
        if not isinstance(identity, str) or identity not in wanted:
            continue
        if identity in seen:
            repeated.add(identity)
        seen.add(identity)
        answer = _answer_text(item, is_typed)
        if answer is not None:
            answers[identity] = answer
    for identity in repeated:
        answers.pop(identity, None)
    return PackedReply(answers)


def packed_items(text: str, ids: Sequence[str]) -> Sequence[Mapping[str, Any]]:
    """Return the complete items of a packed reply, whole or cut off, with text before and after it or not.

    `ids`: of the rows. Of several lists `answers`, the items are those of the one with most of them, or the last such:
    a model drafts its answer before it writes it, and an output may be named `answers` too.
    """
    try:
        whole = parse_json(text)
    except orjson.JSONDecodeError:
        text, wanted = replace_lone_surrogates(text), frozenset(ids)
        starts = _LIST_START.finditer(text)
        lists = [list(_scanned_items(text, start.end())) for start in islice(starts, MAX_LISTS)]
        return max(reversed(lists), key=lambda items: sum(_has_id(item, wanted) for item in items), default=())
    items = whole.get(ANSWERS_KEY) if isinstance(whole, dict) else whole
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else ()


def _plain_answers(items: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> dict[str, str] | None:
    """Return id -> text if the items are exactly as requested, with distinct ids and a text each; else None."""
    try:
        answers = {item["id"]: item[TEXT_KEY] for item in items}
    except (KeyError, TypeError):
        return None
    is_plain = len(answers) == len(items) == len(ids) and answers.keys() == set(ids)
    return answers if is_plain and set(map(type, answers.values())) <= {str} else None


def _has_id(item: Mapping[str, Any], ids: frozenset[str]) -> bool:
    identity = item.get("id")
    return isinstance(identity, str) and identity in ids


def _scanned_items(text: str, position: int) -> Iterator[Mapping[str, Any]]:
    """Yield the items of the list that begins before a position of a text, up to the first that is incomplete."""
    decoder = json.JSONDecoder(strict=False)
    while position < len(text):
        while position < len(text) and text[position] in " \t\r\n,":
            position += 1
        if position >= len(text) or text[position] != "{":
            return
        try:
            item, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            return
        yield item


def _answer_text(item: Mapping[str, Any], is_typed: bool) -> str | None:
    if is_typed:
        try:
            return orjson.dumps({name: value for name, value in item.items() if name != "id"}).decode()
        except TypeError:  # a number of more than 64 bits, half a surrogate pair, or too many levels
            return None
    text = item.get(TEXT_KEY)
    return text if isinstance(text, str) else None


def _long_id(fingerprint: bytes) -> str:
    bits = int.from_bytes(fingerprint[:8], "big")
    return "".join(_PAIRS[bits >> shift & 1023] for shift in range(54, 0, -10))


def _strict_object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }
