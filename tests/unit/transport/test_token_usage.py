"""Usage of replies, in the names and places of every provider."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.records import Usage
from connectors.transport.token_usage import (
    INPUT,
    MAX_TOKENS,
    OUTPUT,
    StreamedUsage,
    any_token_usage,
    parse_count,
    token_usage,
)


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
        ("5", 5),
        ("-5", None),
        ("5 tokens", None),
        ("9" * 20, None),
        (None, None),
        (float("nan"), None),
        (float("inf"), None),
    ],
)
def test_a_count_is_a_whole_number_within_bounds(value: object, expected: int | None) -> None:
    assert parse_count(value) == expected


SHAPES: dict[str, tuple[dict[str, Any], Usage]] = {
    "xAI, reasoning in addition to the completion": (
        {
            "usage": {
                "prompt_tokens": 30,
                "completion_tokens": 8,
                "total_tokens": 538,
                "completion_tokens_details": {"reasoning_tokens": 500},
            }
        },
        Usage(30, output_tokens=508, reasoning_tokens=500),
    ),
    "OpenAI, reasoning within the completion": (
        {
            "usage": {
                "prompt_tokens": 30,
                "completion_tokens": 508,
                "total_tokens": 538,
                "completion_tokens_details": {"reasoning_tokens": 500},
            }
        },
        Usage(30, output_tokens=508, reasoning_tokens=500),
    ),
    "reasoning in addition, without a total": (
        {
            "usage": {
                "prompt_tokens": 3,
                "completion_tokens": 8,
                "completion_tokens_details": {"reasoning_tokens": 500},
            }
        },
        Usage(3, output_tokens=508, reasoning_tokens=500),
    ),
    "reasoning next to the completion, without a total": (
        {"usage": {"prompt_tokens": 3, "completion_tokens": 8, "reasoning_tokens": 5}},
        Usage(3, output_tokens=13, reasoning_tokens=5),
    ),
    "Perplexity": (
        {
            "usage": {
                "prompt_tokens": 33,
                "completion_tokens": 700,
                "total_tokens": 733,
                "citation_tokens": 200,
                "reasoning_tokens": 900,
                "cost": {"input_tokens_cost": 0.1, "total_cost": 0.4},
            }
        },
        Usage(233, output_tokens=1600, reasoning_tokens=900, reported_usd=0.4),
    ),
    "DeepSeek": (
        {
            "usage": {
                "prompt_tokens": 1000,
                "completion_tokens": 6,
                "total_tokens": 1006,
                "prompt_cache_hit_tokens": 896,
                "prompt_cache_miss_tokens": 104,
            }
        },
        Usage(1000, 896, 6),
    ),
    "DeepSeek without the sum": (
        {"usage": {"completion_tokens": 6, "prompt_cache_hit_tokens": 896, "prompt_cache_miss_tokens": 104}},
        Usage(1000, 896, 6),
    ),
    "Moonshot": (
        {"usage": {"prompt_tokens": 1000, "completion_tokens": 6, "total_tokens": 1006, "cached_tokens": 512}},
        Usage(1000, 512, 6),
    ),
    "Moonshot, the last chunk of a stream": (
        {"choices": [{"index": 0, "usage": {"prompt_tokens": 10, "completion_tokens": 6, "total_tokens": 16}}]},
        Usage(10, output_tokens=6),
    ),
    "Anthropic": (
        {
            "usage": {
                "input_tokens": 12,
                "cache_creation_input_tokens": 300,
                "cache_read_input_tokens": 2000,
                "output_tokens": 40,
                "service_tier": "standard",
                "server_tool_use": {"web_search_requests": 2},
            }
        },
        Usage(
            2312,
            2000,
            40,
            service_tier="standard",
            cache_write_tokens=300,
            hosted_calls=(("web_search", 2),),
        ),
    ),
    "LiteLLM, which includes what Anthropic cached": (
        {
            "usage": {
                "prompt_tokens": 2312,
                "completion_tokens": 40,
                "total_tokens": 2352,
                "prompt_tokens_details": {"cached_tokens": 2000, "cache_creation_tokens": 300},
                "cache_creation_input_tokens": 300,
                "cache_read_input_tokens": 2000,
            }
        },
        Usage(2312, 2000, 40, cache_write_tokens=300),
    ),
    "a gateway that excludes what Anthropic cached": (
        {
            "usage": {
                "prompt_tokens": 12,
                "completion_tokens": 40,
                "total_tokens": 52,
                "cache_creation_input_tokens": 300,
                "cache_read_input_tokens": 2000,
            }
        },
        Usage(2312, 2000, 40, cache_write_tokens=300),
    ),
    "Gemini": (
        {
            "usageMetadata": {
                "promptTokenCount": 100,
                "cachedContentTokenCount": 60,
                "candidatesTokenCount": 7,
                "thoughtsTokenCount": 50,
                "totalTokenCount": 157,
            }
        },
        Usage(100, 60, 57, 50),
    ),
    "Gemini, thoughts without an answer": (
        {"usageMetadata": {"promptTokenCount": 100, "thoughtsTokenCount": 50, "totalTokenCount": 150}},
        Usage(100, None, 50, 50),
    ),
    "Gemini in the form of OpenAI": (
        {"usage": {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 157}},
        Usage(100, output_tokens=57),
    ),
    "OpenRouter": (
        {
            "usage": {
                "prompt_tokens": 100,
                "completion_tokens": 7,
                "total_tokens": 107,
                "cost": 0.00123,
                "is_byok": False,
                "prompt_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 20},
                "cost_details": {"upstream_inference_cost": 0.5},
            }
        },
        Usage(100, 5, 7, cache_write_tokens=20, reported_usd=0.00123),
    ),
    "OpenRouter with the user's own key": (
        {
            "usage": {
                "prompt_tokens": 100,
                "completion_tokens": 7,
                "cost": 0.25,
                "is_byok": True,
                "cost_details": {"upstream_inference_cost": 0.5},
            }
        },
        Usage(100, output_tokens=7, reported_usd=0.75),
    ),
    "Mistral": (
        {"usage": {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107, "num_cached_tokens": 64}},
        Usage(100, 64, 7),
    ),
    "Cohere, version 1": (
        {
            "meta": {
                "billed_units": {"input_tokens": 12.0, "output_tokens": 7.0},
                "tokens": {"input_tokens": 80.0, "output_tokens": 7.0},
            }
        },
        Usage(12, output_tokens=7),
    ),
    "Cohere, version 2": (
        {
            "usage": {
                "billed_units": {"input_tokens": 12, "output_tokens": 7},
                "tokens": {"input_tokens": 80, "output_tokens": 7},
            }
        },
        Usage(12, output_tokens=7),
    ),
    "Cohere without billed units": (
        {"meta": {"tokens": {"input_tokens": 80, "output_tokens": 7}}},
        Usage(80, output_tokens=7),
    ),
    "Groq, the last chunk of a stream": (
        {"x_groq": {"id": "req_1", "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}}},
        Usage(9, output_tokens=4),
    ),
    "Ollama": (
        {"prompt_eval_count": 26, "eval_count": 298},
        Usage(26, output_tokens=298),
    ),
    "tokens that have no name of their own": (
        {"usage": {"prompt_tokens": 10, "completion_tokens": 5, "audio_units": 100, "total_tokens": 115}},
        Usage(10, output_tokens=105),
    ),
    "texts, fractions and nulls": (
        {
            "usage": {
                "prompt_tokens": "10",
                "completion_tokens": 5.0,
                "total_tokens": None,
                "prompt_tokens_details": None,
                "completion_tokens_details": {"reasoning_tokens": -4},
            }
        },
        Usage(10, output_tokens=5),
    ),
    "negative counts": ({"usage": {"prompt_tokens": -10, "completion_tokens": -5}}, Usage()),
    "an empty object before the real one": (
        {"usage": {}, "meta": {"billed_units": {"input_tokens": 3, "output_tokens": 4}}},
        Usage(3, output_tokens=4),
    ),
    "hosted tools and the tier of responses": (
        {
            "service_tier": "flex",
            "output": [
                {"type": "web_search_call", "id": "ws_1"},
                {"type": "web_search_call", "id": "ws_2"},
                {"type": "function_call", "name": "look_up"},
                {"type": "code_interpreter_call", "id": "ci_1"},
                {"type": "message", "content": []},
            ],
            "usage": {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15},
        },
        Usage(
            10,
            output_tokens=5,
            service_tier="flex",
            hosted_calls=(("web_search", 2), ("code_interpreter", 1)),
        ),
    ),
}


@pytest.mark.parametrize(("reply", "expected"), SHAPES.values(), ids=SHAPES)
def test_the_usage_of_every_provider_is_read(reply: dict[str, Any], expected: Usage) -> None:
    assert token_usage(reply, None) == expected


@pytest.mark.parametrize(
    ("reply", "tokens"),
    [
        ({"usage": {"prompt_tokens": 12, "total_tokens": 12}}, 12),
        ({"usage": {"total_tokens": 12}}, 12),
        ({"usage": {"prompt_tokens": 0, "total_tokens": 12}}, 12),
        ({"usage": {"prompt_tokens": None, "total_tokens": 12}}, 12),
        ({"usage": {"input_tokens": 12}}, 12),
        ({"meta": {"billed_units": {"input_tokens": 12}}}, 12),
        ({"usageMetadata": {"promptTokenCount": 12}}, 12),
        ({"prompt_eval_count": 12}, 12),
        ({"usage": {}}, None),
        ({}, None),
    ],
)
def test_all_tokens_of_an_embedding_are_input(reply: dict[str, Any], tokens: int | None) -> None:
    usage = token_usage(reply, None, has_output=False)
    assert (usage.input_tokens, usage.output_tokens) == (tokens, None if tokens is None else 0)


def chunk(outputs: int | None, text: str = "") -> dict[str, Any]:
    """A chunk with a usage of 10 input tokens and so many output tokens; None: without usage."""
    usage = None if outputs is None else {"prompt_tokens": 10, "completion_tokens": outputs}
    return {"choices": [{"index": 0, "delta": {"content": text} if text else {}}], "usage": usage}


@pytest.mark.parametrize(
    ("chunks", "outputs"),
    [
        ([chunk(None, "a"), chunk(None, "b"), chunk(7)], 7),
        ([chunk(1, "a"), chunk(2, "b"), chunk(3, "c")], 3),
        ([chunk(1, "a"), chunk(2, "b"), chunk(2)], 2),
        ([chunk(5, "a"), chunk(5)], 5),
        ([chunk(1, "a"), chunk(1, "b"), chunk(1, "c")], 3),
        ([chunk(3, "a"), chunk(2, "b"), chunk(4, "c"), chunk(0)], 9),
        ([chunk(1, "a"), chunk(1, "b"), chunk(1)], 3),
        ([chunk(1, "a"), chunk(1, "b"), chunk(9)], 9),
        ([chunk(9, "a"), chunk(None)], 9),
        ([chunk(None, "a")], None),
    ],
)
def test_the_usage_of_a_stream_is_that_of_all_chunks_together(chunks: list[Any], outputs: int | None) -> None:
    stream = StreamedUsage()
    for each in chunks:
        stream.add(each)
    usage = token_usage({"usage": stream.total()}, None)
    assert (usage.input_tokens, usage.output_tokens) == (None if outputs is None else 10, outputs)


def test_an_empty_usage_in_the_last_chunk_does_not_hide_the_earlier_one() -> None:
    stream = StreamedUsage()
    stream.add({"usage": {"prompt_tokens": 10, "completion_tokens": 1}, "choices": [{"delta": {"role": "assistant"}}]})
    stream.add({"usage": {"prompt_tokens": 0, "completion_tokens": 20}, "choices": []})
    stream.add({"usage": {}, "choices": []})
    assert stream.total() == {"prompt_tokens": 10, "completion_tokens": 20}


COUNTS = st.one_of(st.integers(-1, 6), st.sampled_from([None, True, 2.0, "3", MAX_TOKENS, MAX_TOKENS + 1, {}, []]))
INPUT_DETAILS = st.dictionaries(st.sampled_from(["cached_tokens", "audio_tokens", "cache_write_tokens"]), COUNTS)
OUTPUT_DETAILS = st.dictionaries(st.sampled_from(["reasoning_tokens", "audio_tokens", "others"]), COUNTS)
USUAL_USAGE = st.fixed_dictionaries(
    {"prompt_tokens": COUNTS, "completion_tokens": COUNTS},
    optional={
        "total_tokens": COUNTS,
        "prompt_tokens_details": st.one_of(COUNTS, INPUT_DETAILS),
        "completion_tokens_details": st.one_of(COUNTS, OUTPUT_DETAILS),
        "cached_tokens": COUNTS,
        "reasoning_tokens": COUNTS,
        "cost": COUNTS,
        "service_tier": COUNTS,
    },
)


@given(
    st.fixed_dictionaries(
        {"usage": st.one_of(USUAL_USAGE, COUNTS)},
        optional={
            "model": st.sampled_from(["m", 1, None]),
            "service_tier": st.sampled_from(["flex", "", 1, None]),
            "output": st.just([{"type": "web_search_call"}]),
            "prompt_eval_count": COUNTS,
        },
    ),
    st.sampled_from([None, "stop"]),
)
def test_the_usual_counts_are_read_like_those_of_any_other_shape(reply: dict[str, Any], reason: str | None) -> None:
    assert token_usage(reply, reason) == any_token_usage(reply, reason)
    usage = reply["usage"]
    inputs, outputs = (usage.get(name) if isinstance(usage, dict) else None for name in (INPUT[0], OUTPUT[0]))
    if type(inputs) is int and type(outputs) is int:
        whole = {**reply, "usage": {**usage, "total_tokens": inputs + outputs}}
        assert token_usage(whole, reason) == any_token_usage(whole, reason)
