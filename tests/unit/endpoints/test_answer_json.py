"""Typed answers in free text: the one object that fits is found, whatever surrounds it; otherwise none is."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.endpoints.conversation.structured.answer_json import json_objects
from connectors.endpoints.conversation.structured.structured_output import TypedOutput

LABEL = TypedOutput(
    {
        "topic": {"type": "string"},
        "urgency": {"type": "integer", "minimum": 1, "maximum": 5},
        "tags": {"type": "array", "items": {"type": "string"}, "nullable": True},
    },
    ("steps", "label", "output"),
)
GOOD = '{"topic": "bug", "urgency": 3, "tags": null}'
OTHER = '{"topic": "bill", "urgency": 4, "tags": []}'


@pytest.mark.parametrize(
    "text",
    [
        f"<think>\nA label is asked for.\n</think>\n\n{GOOD}",
        f"<think>first {OTHER}</think>{GOOD}",
        f"<think>one</think> <think>two {OTHER}</think>\n{GOOD}",
        f"{GOOD}\n<think>was that right? {OTHER}</think>",
        f"I begin with {OTHER}\n</think>\n{GOOD}",
        f"<thinking>{OTHER}</thinking>{GOOD}",
        f"<reasoning>{OTHER}</reasoning>{GOOD}",
        f"<Thought>{OTHER}</Thought>{GOOD}",
        f"<seed:think>{OTHER}</seed:think>{GOOD}",
        f"◁think▷{OTHER}◁/think▷{GOOD}",
        f"[THINK]{OTHER}[/THINK]{GOOD}",
        f"<|channel|>analysis<|message|>{OTHER}<|end|><|start|>assistant<|channel|>final<|message|>{GOOD}<|return|>",
        f"<|channel|>final <|constrain|>json<|message|>{GOOD}",
        f"analysisThe user wants {OTHER}assistantfinal{GOOD}",
        f"<think>\n{GOOD}",
        f"<think>{GOOD}</think>",
        f"<think>{GOOD}</think><|im_end|>",
    ],
)
def test_reasoning_is_no_answer_unless_there_is_nothing_else(text: str) -> None:
    assert LABEL.parse(text) == ("bug", 3, None)


@pytest.mark.parametrize(
    "text",
    [
        f"Here is the JSON:\n\n```json\n{GOOD}\n```\nLet me know if you need more.",
        f"```\n{GOOD}\n```",
        f"~~~json\n{GOOD}\n~~~",
        f"{GOOD}<|im_end|>",
        f"{GOOD}</s>",
        f"{GOOD}<|eot_id|>{GOOD}",
        f"[/INST] {GOOD} [INST]",
        f"<｜Assistant｜>{GOOD}<｜end▁of▁sentence｜>",
        f"<answer>{GOOD}</answer>",
        f"\ufeff{GOOD}",
        f"\ufeff```json\n{GOOD}\n```",
        f"[{GOOD}]",
        f"{{{GOOD}}}",
        f'Format: {{"topic": ..., "urgency": ...}}\n{GOOD}',
        f"Replace {{name}} and {{ }} by your own. {GOOD}",
        f'{{"topic": "bug"}} lacks a key, so: {GOOD}',
        json.dumps(GOOD),
        '{"topic": "bug", "urgency": 3, "tags": null,}',
        'Sure: {"topic": "bug", "urgency": 3, "tags": null,\n}.',
        f'{{"answer": {GOOD}}}',
        f'{{"properties": {GOOD}}}',
        f'{{"name": "label", "arguments": {GOOD}}}',
        f'<tool_call>\n{{"type": "function", "function": {{"name": "label", "parameters": {GOOD}}}}}\n</tool_call>',
        "{'topic': 'bug', 'urgency': 3, 'tags': None}",
        "I choose {'topic': \"bug\", 'urgency': 3, 'tags': None}, as {'topic': 'bill'} is wrong.",
    ],
)
def test_the_only_object_that_fits_is_the_answer(text: str) -> None:
    assert LABEL.parse(text) == ("bug", 3, None)


def test_line_breaks_and_tabs_in_strings_are_kept() -> None:
    assert LABEL.parse('{"topic": "one\ntwo\tthree", "urgency": 3, "tags": ["a,]\n"],}') == (
        "one\ntwo\tthree",
        3,
        ["a,]\n"],
    )


def test_a_backslash_before_what_needs_none_stays_in_the_text() -> None:
    assert LABEL.parse(r'{"topic": "it\'s C:\data \" \\ \u0041", "urgency": 3, "tags": null}') == (
        "it's C:\\data \" \\ A",
        3,
        None,
    )


def test_half_a_surrogate_pair_is_replaced() -> None:
    for text in (
        '{"topic": "a\\ud83d", "urgency": 3, "tags": null}',
        'So: {"topic": "a\\uDE00", "urgency": 3, "tags": null}',
    ):
        assert LABEL.parse(text) == ("a\ufffd", 3, None)


@pytest.mark.parametrize(
    "text",
    [
        f"{GOOD} or {OTHER}",
        f"[{GOOD}, {OTHER}]",
        f'[{GOOD}, {{"topic": "bi',
        f'{{"first": {GOOD}, "second',
        f'{{"first": {GOOD}, "second": {OTHER}}}',
        f'{{"example": {GOOD}, "topic": "bill"}}',
        "{'topic': 'bug', 'urgency': 3, 'tags': " + "{" * 5000,
        "{'topic': 'bug', 'urgency': {3}, 'tags': None}",
        f'<think>{GOOD}</think>{{"topic": "bug"}}',
        f"<think>{GOOD}</think>I cannot tell.",
        f"<|channel|>analysis<|message|>{GOOD}<|end|><|channel|>final<|message|>I cannot tell.",
        '{"topic": "bug", "urgency": 9, "tags": null}',
        '{"topic": "bug",, "urgency": 3, "tags": null}',
        '{"topic": "bug", "urgency": NaN, "tags": null}',
        '{"topic": "bug", "urgency": 1e999, "tags": null}',
        "<think>",
        "bug",
        "",
        '{"a":' * 5000,
        "{" * 5000,
    ],
)
def test_a_text_without_exactly_one_answer_has_none(text: str) -> None:
    assert isinstance(LABEL.parse(text), str)


def test_a_number_too_large_for_its_column_is_named() -> None:
    large = TypedOutput({"n": "integer"}, ("output",))
    assert large.parse(f'So: {{"n": {10**30}}}') == f"{10**30} is too large for a whole number of 64 bits"


def test_objects_within_objects_are_not_listed() -> None:
    assert json_objects('a {"b": {"c": 1}} {} {d} {"e": [{}]}') == [{"b": {"c": 1}}, {}, {"e": [{}]}]


# No braces, quotes, marks of reasoning or special tokens: what a sentence has besides these.
sentence = st.text(st.characters(blacklist_characters='{}"<>[]|◁▷`\\', blacklist_categories=("Cs",)), max_size=30)
labels = st.fixed_dictionaries(
    {
        "topic": st.text(st.characters(blacklist_characters="<◁[", blacklist_categories=("Cs",)), max_size=20),
        "urgency": st.integers(1, 5),
        "tags": st.none() | st.lists(st.sampled_from(["a", "{", "}", '"', "\n", "```", ",}"]), max_size=3),
    }
)
Decoration = tuple[str, str]
decorations: st.SearchStrategy[Decoration] = st.one_of(
    st.sampled_from(
        [
            ("```json\n", "\n```"),
            ("```\n", "\n```"),
            ("<think>so {so}</think>", ""),
            (f"<think>{OTHER}</think>\n", ""),
            (f"{OTHER}</think>\n", ""),
            ("", f"<reasoning>{OTHER}</reasoning>"),
            ("", "<|im_end|>"),
            ("<s>", "</s>"),
            ("[", "]"),
            ("<|channel|>final<|message|>", "<|return|>"),
        ]
    ),
    st.tuples(sentence, sentence),
)


@given(labels, st.lists(decorations, max_size=4), st.booleans())
def test_any_object_that_fits_is_found_in_any_decoration(
    label: dict[str, Any], around: list[Decoration], is_indented: bool
) -> None:
    text = json.dumps(label, ensure_ascii=False, indent=2 if is_indented else None)
    for before, after in around:
        text = f"{before}{text}{after}"
    assert LABEL.parse(text) == (label["topic"], label["urgency"], label["tags"])


@given(st.lists(sentence | st.sampled_from(["<think>", "</think>", "```json", "<|im_end|>", "[", "]", '{"a": 1}'])))
def test_a_text_without_an_object_that_fits_has_no_answer(pieces: list[str]) -> None:
    assert isinstance(LABEL.parse("".join(pieces)), str)


@given(st.text(st.sampled_from('{}[]",:\\ \n1a<>/|think')))
def test_no_text_breaks_the_search(text: str) -> None:
    LABEL.parse(text)
