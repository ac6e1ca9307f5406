"""Constant text that follows row text in a prompt."""

import json

import pytest

from connectors.endpoints.chat import ChatStep
from connectors.tokens import count_tokens
from pipelines.planning.prompt_order import constant_tokens_after_rows, prompt_constants

RULES = "Answer with one of billing, bug or other. " * 4
TOKENS = count_tokens(RULES, "gpt-4o")


def chat(*contents: str) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": content} for content in contents]}).encode()


def test_rules_before_the_row_can_be_cached() -> None:
    assert constant_tokens_after_rows([chat(RULES, "one"), chat(RULES, "two")], "gpt-4o") == 0


def test_a_constant_message_after_the_row_is_counted() -> None:
    assert constant_tokens_after_rows([chat("one", RULES), chat("two", RULES)], "gpt-4o") == TOKENS


def test_the_constant_end_of_the_row_s_message_is_counted() -> None:
    bodies = [chat(f"{text}\n{RULES}") for text in ("first", "seconds", "third!")]
    assert constant_tokens_after_rows(bodies, "gpt-4o") == pytest.approx(TOKENS, abs=1)


def test_the_input_of_responses_is_read_like_messages() -> None:
    bodies = [json.dumps({"input": f"{text} {RULES}", "instructions": "Be brief."}).encode() for text in ("one", "to")]
    assert constant_tokens_after_rows(bodies, "gpt-4o") == pytest.approx(TOKENS, abs=1)


def test_the_constant_beginning_of_a_message_after_the_row_is_counted() -> None:
    bodies = [chat(f"Row {number}", f"{RULES}\n{number}") for number in range(2)]
    assert constant_tokens_after_rows(bodies, "gpt-4o") == pytest.approx(TOKENS, abs=2)


def test_constant_text_between_two_texts_of_the_row_is_counted() -> None:
    bodies = [chat(f"{first}\n{RULES}\nBody: {second}") for first, second in (("one", "x"), ("to", "yy"))]
    template = "{{ subject }}\n" + RULES + "\nBody: {{ body }}"
    constants = prompt_constants(ChatStep(name="a", endpoint="chat", model="m", messages=[{"user": template}]))
    assert constant_tokens_after_rows(bodies, "gpt-4o", constants) == pytest.approx(TOKENS, abs=4)


def test_a_short_end_is_no_matter() -> None:
    assert constant_tokens_after_rows([chat("one\nAnswer:"), chat("two\nAnswer:")], "gpt-4o") == 0


def test_a_single_request_says_nothing() -> None:
    assert constant_tokens_after_rows([chat("one", RULES)], "gpt-4o") == 0


def test_requests_without_a_conversation_have_none() -> None:
    bodies = [json.dumps({"prompt": f"{text} {RULES}"}).encode() for text in ("one", "two")]
    assert constant_tokens_after_rows(bodies, "dall-e-3") == 0
