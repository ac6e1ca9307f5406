"""The format of packs: ids, the packed message and schema, and the matching of answers to rows."""

import json
import random
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.endpoints.conversation.packing.pack_format import (
    ID_ALPHABET,
    MAX_ID_CHARACTERS,
    MAX_LISTS,
    PackedReply,
    packed_content,
    packed_output_tokens,
    packed_schema,
    read_packed_reply,
    row_ids,
)

FINGERPRINTS = [bytes([number]) * 16 for number in range(1, 21)]


def test_ids_are_short_and_made_of_clear_characters() -> None:
    ids = row_ids(FINGERPRINTS)
    assert len(set(ids)) == 20
    assert all(len(each) <= MAX_ID_CHARACTERS and set(each) <= set(ID_ALPHABET) for each in ids)


def test_an_id_depends_on_the_fingerprint_and_not_on_the_place() -> None:
    assert row_ids(FINGERPRINTS[::-1]) == row_ids(FINGERPRINTS)[::-1]


def test_ids_stay_as_they_are_in_batches_under_way() -> None:
    fingerprints = [bytes(range(16)), bytes(range(240, 256))]
    assert row_ids(fingerprints) == ["aaasea", "8d29f6"]
    assert row_ids([fingerprints[0], fingerprints[0][:5] + b"." * 11]) == ["aaasea2ea", "aaasea2ef"]


def test_ids_grow_until_they_differ() -> None:
    base = len(ID_ALPHABET) ** 6
    alike = [number.to_bytes(8, "big") + b"\0" * 8 for number in (5, 5 + base)]
    first, second = row_ids(alike)
    assert first != second
    assert len(first) == len(second) == 7


def test_the_message_has_one_json_object_a_line() -> None:
    contents = ["two\nlines", 'a "quote"', "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"]
    ids = ["abc", "def", "ghi"]
    lines = packed_content(ids, [orjson.dumps(text) for text in contents]).splitlines()[-3:]
    assert [json.loads(line) for line in lines] == [
        {"id": each, "content": text} for each, text in zip(ids, contents, strict=True)
    ]


def test_the_schema_of_typed_answers_adds_the_id() -> None:
    properties = {"topic": {"type": "string", "enum": ["billing", "bug"]}}
    assert packed_schema(properties) == {
        "type": "object",
        "properties": {
            "answers": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"id": {"type": "string"}, **properties},
                    "required": ["id", "topic"],
                    "additionalProperties": False,
                },
            }
        },
        "required": ["answers"],
        "additionalProperties": False,
    }


def test_the_schema_of_text_answers_has_one_string() -> None:
    item = packed_schema(None)["properties"]["answers"]["items"]
    assert item["properties"] == {"id": {"type": "string"}, "answer": {"type": "string"}}


def test_output_tokens_leave_room_for_ids_and_wrapping() -> None:
    longest = orjson.dumps({"answers": [{"id": "x" * MAX_ID_CHARACTERS, "answer": ""} for _ in range(20)]})
    # Two characters a token is a pessimistic count for JSON.
    assert packed_output_tokens(60, 20) - 60 * 20 >= len(longest) / 2.5


def test_an_unknown_id_is_ignored() -> None:
    assert _read([{"id": "zzz", "answer": "stray"}, {"id": "abc", "answer": "yes"}]) == {"abc": "yes"}


def test_a_repeated_id_has_no_answer_even_if_one_item_is_invalid() -> None:
    assert _read([{"id": "abc", "answer": "yes"}, {"id": "abc", "answer": 7}, {"id": "def", "answer": "no"}]) == {
        "def": "no"
    }


def test_a_text_of_another_type_is_no_answer() -> None:
    assert _read([{"id": "abc", "answer": None}, {"id": "def"}]) == {}


def test_a_typed_answer_is_the_item_without_its_id() -> None:
    reply = read_packed_reply('{"answers": [{"topic": "bug", "id": "abc", "urgency": 3}]}', ["abc"], is_typed=True)
    assert reply == PackedReply({"abc": '{"topic":"bug","urgency":3}'})


def test_a_number_beyond_64_bits_is_no_answer() -> None:
    text = '{"answers": [{"id": "abc", "n": 99999999999999999999999}, {"id": "def", "n": 1}], cut'
    assert read_packed_reply(text, ["abc", "def"], is_typed=True).answers == {"def": '{"n":1}'}


def test_complete_items_before_a_cut_count() -> None:
    text = '```json\n{"answers": [{"id": "abc", "answer": "one"}, {"id": "def", "answer": "tw'
    assert read_packed_reply(text, ["abc", "def"], is_typed=False).answers == {"abc": "one"}


def test_answers_in_a_fence_with_prose_around_are_found() -> None:
    text = 'Here you are:\n```json\n{"answers": [{"id": "abc", "answer": "a\nb"}]}\n```\nAnything else?'
    assert read_packed_reply(text, ["abc"], is_typed=False).answers == {"abc": "a\nb"}


def test_a_list_without_its_object_is_read() -> None:
    assert read_packed_reply('[{"id": "abc", "answer": "one"}]', ["abc"], is_typed=False).answers == {"abc": "one"}


def test_half_a_surrogate_pair_in_a_cut_reply_is_replaced() -> None:
    text = '{"answers": [{"id": "abc", "answer": "odd \\ud83d"}, {"id": "def", "ans'
    assert read_packed_reply(text, ["abc", "def"], is_typed=False).answers == {"abc": "odd \ufffd"}


def test_the_list_of_a_cut_reply_is_found_although_an_output_is_named_answers() -> None:
    items = [{"id": each, "answers": [{"id": "x"}]} for each in ("a", "b", "c")]
    text = json.dumps({"answers": items})[:-8]
    assert read_packed_reply(text, ["a", "b", "c"], is_typed=True).answers.keys() == {"a", "b"}


def test_a_broken_reply_is_read_up_to_a_number_of_lists() -> None:
    last = '"answers": [{"id": "abc", "answer": "one"}'
    for before, answers in ((MAX_LISTS - 1, {"abc": "one"}), (MAX_LISTS, {})):
        assert read_packed_reply('"answers": [] ' * before + last, ["abc"], is_typed=False).answers == answers


def test_a_mention_of_answers_in_prose_hides_none() -> None:
    reply = '{"answers": [{"id": "a", "answer": "x"}]}'
    for text in (f'{reply} That is the list "answers".', f'"answers": [{{"id": "draft"}}] {reply} "answers": [...]'):
        assert read_packed_reply(text, ["a"], is_typed=False).answers == {"a": "x"}


def test_text_without_answers_has_none() -> None:
    for text in ("", "I cannot help with that.", "null", "[1, 2]", '{"answers": 3}', '"answers"', '"answers": [{'):
        assert read_packed_reply(text, ["abc"], is_typed=False).answers == {}


@settings(max_examples=120, deadline=None)
@given(
    rows=st.lists(st.text(max_size=20), min_size=1, max_size=12),
    seed=st.integers(0, 2**32),
    cut=st.floats(0, 1),
)
def test_a_row_has_its_own_answer_or_none_whatever_the_server_does(rows: list[str], seed: int, cut: float) -> None:
    """Items are dropped, repeated, reordered and renamed to unknown ids, and the reply may be cut anywhere."""
    rng = random.Random(seed)
    ids = row_ids([rng.randbytes(16) for _ in rows])
    items: list[dict[str, Any]] = []
    damaged = set()
    for identity, text in zip(ids, rows, strict=True):
        fate = rng.choice(["keep", "keep", "drop", "repeat", "rename"])
        if fate != "keep":
            damaged.add(identity)
        item = {"id": "unknown-1" if fate == "rename" else identity, "answer": text}
        items += [] if fate == "drop" else [item, item] if fate == "repeat" else [item]
    rng.shuffle(items)
    whole = json.dumps({"answers": items})
    is_cut = cut < 0.5
    text = whole[: int(len(whole) * cut * 2)] if is_cut else whole
    answers = read_packed_reply(text, ids, is_typed=False).answers
    own = dict(zip(ids, rows, strict=True))
    if is_cut:
        # A repeated id may have lost its second item.
        assert all(own[identity] == answer for identity, answer in answers.items())
    else:
        assert answers == {identity: text for identity, text in own.items() if identity not in damaged}


def _read(items: list[dict[str, Any]]) -> dict[str, str]:
    return read_packed_reply(json.dumps({"answers": items}), ["abc", "def"], is_typed=False).answers
