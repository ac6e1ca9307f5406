"""Token counts of replies, in the words of chat completions and of responses."""

from typing import Any

import pytest

from connectors.records import Usage
from connectors.transport.token_usage import MAX_TOKENS, parse_count, token_usage


def test_the_counts_of_chat_completions_are_read() -> None:
    counts = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    assert token_usage({"usage": counts, "model": "gpt-4o-2024-08-06"}, "stop") == Usage(
        input_tokens=10,
        cached_tokens=4,
        output_tokens=5,
        reasoning_tokens=3,
        model_version="gpt-4o-2024-08-06",
        finish_reason="stop",
    )


def test_the_counts_of_responses_are_read() -> None:
    counts = {
        "input_tokens": 10,
        "output_tokens": 5,
        "input_tokens_details": {"cached_tokens": 4},
        "output_tokens_details": {"reasoning_tokens": 3},
    }
    assert token_usage({"usage": counts}, None) == Usage(
        input_tokens=10, cached_tokens=4, output_tokens=5, reasoning_tokens=3
    )


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"prompt_tokens": 10, "total_tokens": 15}, (10, 5)),
        ({"completion_tokens": 5, "total_tokens": 15}, (10, 5)),
        ({"prompt_tokens": 10}, (None, None)),
        ({"prompt_tokens": 10, "total_tokens": 9}, (None, None)),
        ({"prompt_tokens": 0, "completion_tokens": 0}, (0, 0)),
        ("none", (None, None)),
        (None, (None, None)),
    ],
)
def test_half_a_count_is_completed_from_the_total_or_is_unknown(
    counts: Any, expected: tuple[int | None, int | None]
) -> None:
    usage = token_usage({"usage": counts}, None)
    assert (usage.input_tokens, usage.output_tokens) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0),
        (5.0, 5),
        (MAX_TOKENS, MAX_TOKENS),
        (MAX_TOKENS + 1, None),
        (-1, None),
        (1.5, None),
        (True, None),
        ("5", None),
        (None, None),
        (float("nan"), None),
        (float("inf"), None),
    ],
)
def test_a_count_is_a_whole_number_within_bounds(value: object, expected: int | None) -> None:
    assert parse_count(value) == expected
