"""Prices: entries, the cost of an exchange, and the maximum cost of a request."""

from decimal import Decimal
from typing import Any

import genai_prices
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from pydantic import ValidationError

from connectors.records import Usage
from connectors.transport.token_usage import token_usage
from pipelines.pricing.prices import (
    FREE,
    PICO,
    Price,
    PriceEntry,
    Tier,
    batch_price,
    cost,
    image_price,
    max_cost,
    most_token_rates,
    tokens_cost,
    usd,
)
from pipelines.pricing.published_prices import resolve_price

MILLION = 10**6


def published(model: str) -> Price:
    price = resolve_price(model, {}, {})
    assert price is not None
    return price


def pico(dollars: str) -> int:
    return int(Decimal(dollars) * PICO)


def test_an_entry_of_zero_costs_nothing_and_is_not_ignored() -> None:
    price = resolve_price("gpt-4o", {"gpt-4o": PriceEntry(input_per_million=0, output_per_million=0)}, {})
    assert cost(price, Usage(input_tokens=1000, output_tokens=1000)) == 0


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"input_per_million": None},
        {"input_per_million": -0.1},
        {"input_per_million": "0.1"},
        {"input_per_million": True},
        {"input_per_million": float("inf")},
        {"input_per_million": float("nan")},
        {"input_per_million": 0.1, "output_per_milion": 0.1},
        {"tiers": {}},
        {"input_per_million": 0.1, "tiers": {"flex": -0.5}},
        {"input_per_million": 0.1, "tiers": {"flex": "half"}},
        {"input_per_million": 0.1, "per_call": {"": 0.1}},
        {"input_per_million": 0.1, "per_call": {"web_search_call": 0.1}},
        {"input_per_million": 0.1, "per_call": {"web_search": -1}},
    ],
)
def test_an_entry_that_is_empty_misspelt_or_not_a_price_is_refused(entry: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PriceEntry.model_validate(entry)


def test_an_entry_is_converted_to_whole_pico_dollars() -> None:
    entry = PriceEntry.model_validate(
        {
            "input_per_million": 0.1,
            "output_per_million": 0.4,
            "per_image": 0.04,
            "audio_per_minute": 0.006,
            "per_million_characters": 15,
        }
    )
    assert entry.price() == Price(
        input_per_million=100_000_000_000,
        output_per_million=400_000_000_000,
        per_image=40_000_000_000,
        audio_per_minute=6_000_000_000,
        per_million_characters=15_000_000_000_000,
    )


def test_every_key_of_an_entry_is_described_in_its_json_schema() -> None:
    properties = PriceEntry.model_json_schema()["properties"]
    assert set(properties) == set(PriceEntry.model_fields)
    descriptions = {name: each["description"] for name, each in properties.items()}
    assert descriptions.pop("tiers").startswith("Service tier -> factor")
    assert descriptions.pop("per_call").endswith("USD a call.")
    assert all(text.startswith("USD for a") for text in descriptions.values())


@pytest.mark.parametrize(
    ("usage", "dollars"),
    [
        (Usage(input_tokens=MILLION, output_tokens=MILLION), "0.75"),
        (Usage(input_tokens=1000, output_tokens=200), "0.00027"),
        (Usage(input_tokens=1000, cached_tokens=400, output_tokens=0), "0.00012"),
        (Usage(input_tokens=1000, cached_tokens=5000), "0.000075"),
        (Usage(input_tokens=1000, output_tokens=200, reasoning_tokens=150), "0.00027"),
        (Usage(input_tokens=1), "0.00000015"),
        (Usage(input_tokens=0, output_tokens=0), "0"),
    ],
)
def test_gpt_4o_mini_costs_15_cents_a_million_input_tokens_and_60_for_output(usage: Usage, dollars: str) -> None:
    assert cost(published("gpt-4o-mini"), usage) == pico(dollars)


@pytest.mark.parametrize(
    ("model", "usage", "dollars"),
    [
        ("whisper-1", Usage(audio_seconds=90.0), "0.009"),
        ("whisper-1", Usage(audio_seconds=0.25), "0.000025"),
        ("whisper-1", Usage(audio_seconds=90.0, input_tokens=12), "0.009"),
        ("tts-1", Usage(characters=1000), "0.015"),
        ("openai/tts-1-1106", Usage(characters=1000), "0.015"),
        ("tts-1-hd", Usage(characters=1), "0.00003"),
        ("tts-1-hd-1106", Usage(characters=1), "0.00003"),
        ("text-embedding-3-small", Usage(input_tokens=MILLION), "0.02"),
        ("gpt-4o-transcribe", Usage(input_tokens=1000, output_tokens=100, audio_seconds=60.0), "0.007"),
        ("gpt-image-1", Usage(input_tokens=50, output_tokens=1056, images=1), "0.04274"),
    ],
)
def test_audio_speech_and_images_cost_what_the_price_list_says(model: str, usage: Usage, dollars: str) -> None:
    assert cost(published(model), usage) == pico(dollars)


@pytest.mark.parametrize(
    ("model", "size", "quality", "dollars"),
    [
        ("dall-e-2", "256x256", None, "0.016"),
        ("dall-e-2", "512x512", None, "0.018"),
        ("dall-e-2", None, None, "0.020"),
        ("dall-e-3", None, None, "0.04"),
        ("dall-e-3", "1024x1024", "standard", "0.04"),
        ("dall-e-3", "1792x1024", None, "0.08"),
        ("dall-e-3", None, "hd", "0.08"),
        ("dall-e-3", "1024x1792", "hd", "0.12"),
        ("dall-e-3", "640x480", None, "0.12"),
    ],
)
def test_dall_e_costs_depend_on_size_and_quality(
    model: str, size: str | None, quality: str | None, dollars: str
) -> None:
    price = image_price(published(model), size, quality)
    assert cost(price, Usage(images=3)) == 3 * pico(dollars)


def test_images_of_an_unlisted_size_have_the_highest_price() -> None:
    assert cost(published("dall-e-3"), Usage(images=1)) == pico("0.12")
    assert image_price(published("gpt-4o"), "1024x1024") == published("gpt-4o")


@pytest.mark.parametrize(
    ("model", "usage"),
    [
        ("gpt-4o-mini", Usage()),
        ("whisper-1", Usage()),
        ("whisper-1", Usage(input_tokens=0, output_tokens=0)),
        ("whisper-1", Usage(input_tokens=10, output_tokens=10)),
        ("whisper-1", Usage(characters=10)),
        ("tts-1", Usage(audio_seconds=1.0)),
        ("tts-1", Usage(characters=10, images=1)),
        ("gpt-4o-mini-tts", Usage(characters=100)),
        ("gpt-image-1", Usage(images=1)),
        ("gpt-image-1", Usage(images=1, input_tokens=0, output_tokens=0)),
        ("text-embedding-3-small", Usage(input_tokens=10, output_tokens=1)),
    ],
)
def test_usage_without_a_price_has_no_cost_rather_than_zero(model: str, usage: Usage) -> None:
    assert cost(published(model), usage) is None


@pytest.mark.parametrize(
    "usage", [Usage(), Usage(input_tokens=9, output_tokens=9), Usage(images=2), Usage(audio_seconds=1.0, characters=3)]
)
def test_a_free_price_costs_nothing_for_any_usage(usage: Usage) -> None:
    assert cost(FREE, usage) == 0
    assert max_cost(FREE, 9, None) == 0


def test_a_price_may_charge_both_tokens_and_images() -> None:
    price = PriceEntry(input_per_million=1, output_per_million=2, per_image=0.5).price()
    assert cost(price, Usage(input_tokens=100, output_tokens=10, images=2)) == pico("1.00012")


def test_long_requests_pay_the_rates_of_their_tier_for_every_token() -> None:
    price = published("gpt-5.4")
    assert cost(price, Usage(input_tokens=272_000, output_tokens=1000)) == pico("0.695")
    assert cost(price, Usage(input_tokens=272_001, output_tokens=1000)) == pico("1.382505")


def test_prompts_of_1024_tokens_and_more_pay_for_cache_writes_if_these_are_charged() -> None:
    price = Price(PICO, PICO // 10, 4 * PICO, cache_write_per_million=5 * PICO // 4, writes_cache_unasked=True)
    assert cost(price, Usage(input_tokens=1023, output_tokens=0)) == pico("0.001023")
    assert cost(price, Usage(input_tokens=1024, output_tokens=0)) == pico("0.00128")
    assert cost(price, Usage(input_tokens=2000, cached_tokens=1000, output_tokens=0)) == pico("0.00135")
    assert published("gpt-5.6").cache_write_per_million == published("gpt-5.6").input_per_million * 5 // 4  # type: ignore[operator]


def test_cache_writes_that_a_reply_counts_are_charged_exactly() -> None:
    price = Price(PICO, PICO // 10, 4 * PICO, cache_write_per_million=5 * PICO // 4)
    usage = Usage(input_tokens=2000, cached_tokens=1000, cache_write_tokens=400, output_tokens=0)
    assert cost(price, usage) == pico("0.0012")
    assert cost(replace(price, writes_cache_unasked=True), usage) == pico("0.0012")
    assert cost(price, replace(usage, cache_write_tokens=None)) == pico("0.0011")
    assert cost(replace(price, cache_write_per_million=None), usage) == pico("0.0011")


def test_fractions_are_rounded_up() -> None:
    assert cost(PriceEntry(input_per_million=1e-12).price(), Usage(input_tokens=1)) == 1
    assert cost(PriceEntry(input_per_million=1e-13).price(), Usage(input_tokens=MILLION + 1)) == 2
    assert cost(PriceEntry(audio_per_minute=1e-12).price(), Usage(audio_seconds=61.0)) == 2


def test_a_million_small_costs_add_up_without_rounding() -> None:
    one = cost(published("gpt-4o-mini"), Usage(input_tokens=17, output_tokens=3))
    assert one is not None
    assert usd(one * MILLION) == 4.35


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4.1-nano", "o3-mini", "gpt-5", "claude-3-5-haiku-latest"])
def test_costs_agree_with_genai_prices(model: str) -> None:
    theirs = genai_prices.calc_price(
        genai_prices.Usage(input_tokens=12_345, cache_read_tokens=2_345, output_tokens=678), model
    )
    ours = cost(published(model), Usage(input_tokens=12_345, cached_tokens=2_345, output_tokens=678))
    assert ours == theirs.total_price * PICO


def test_the_maximum_cost_counts_all_input_and_the_output_bound() -> None:
    assert max_cost(published("gpt-4o-mini"), 1000, 16_384) == pico("0.016634")  # of the tier priority


def test_there_is_no_maximum_cost_without_a_bound_if_output_costs_something() -> None:
    assert max_cost(published("gpt-4o-mini"), 1000, None) is None
    assert max_cost(published("text-embedding-3-small"), 1000, None) == pico("0.00002")
    assert max_cost(published("text-embedding-3-small"), 1000, 1) is None


def test_the_maximum_cost_of_audio_speech_and_images_is_by_their_units() -> None:
    assert max_cost(published("whisper-1"), 20, 0, audio_seconds=90.0) == pico("0.009")
    assert max_cost(published("tts-1"), 0, None, characters=1000) == pico("0.015")
    assert max_cost(published("dall-e-3"), 20, None, images=2) == pico("0.24")
    assert max_cost(published("whisper-1"), 0, 0) is None
    assert max_cost(published("gpt-4o-mini-tts"), 20, None, characters=100) is None


def test_the_maximum_cost_takes_the_more_expensive_tier_well_before_it_is_reached() -> None:
    price = replace(published("gpt-5.4"), service_tiers=())
    assert max_cost(price, 136_000, 1000) == pico("0.355")
    assert max_cost(price, 136_001, 1000) == pico("0.702505")


MODELS = ["gpt-4o-mini", "claude-3-5-haiku-latest", "gpt-5.4", "gpt-5.6", "text-embedding-3-large"]
tokens = st.integers(0, 600_000)
rates = st.none() | st.integers(0, 50 * PICO)


@given(
    tokens,
    tokens,
    tokens,
    st.sampled_from(MODELS),
)
def test_no_exchange_costs_more_than_its_maximum(read: int, cached: int, written: int, model: str) -> None:
    usage = Usage(input_tokens=read, cached_tokens=cached, output_tokens=written)
    paid, worst = cost(published(model), usage), max_cost(published(model), read, written)
    assert (paid is None) == (worst is None)
    assert paid is None or worst is None or 0 <= paid <= worst


@given(rates, rates, rates, tokens, tokens, tokens)
def test_no_entry_makes_an_exchange_cost_more_than_its_maximum(
    fresh: int | None, cached_rate: int | None, output: int | None, read: int, cached: int, written: int
) -> None:
    price = Price(fresh, cached_rate, output)
    paid = cost(price, Usage(input_tokens=read, cached_tokens=cached, output_tokens=written))
    worst = max_cost(price, read, written)
    assert paid is None or (worst is not None and paid <= worst)


@given(
    st.lists(st.builds(Price, rates, rates, rates, cache_write_per_million=rates), min_size=1, max_size=3),
    st.sampled_from([None, "auto", "tier 1", "unknown"]),
    st.booleans(),
    st.integers(0, 600_000),
    st.integers(0, 600_000),
)
def test_the_maximum_cost_of_tokens_alone_is_the_same_by_its_rates(
    prices: list[Price], requested: str | None, has_long_rates: bool, inputs: int, output_bound: int
) -> None:
    tiers = tuple((f"tier {place}", price) for place, price in enumerate(prices[1:], 1))
    long = (Tier(1000, 1, None, 2 * PICO, None),) if has_long_rates else ()
    price = replace(prices[0], service_tiers=tiers, requested_tier=requested, tiers=long)
    for has_output, bound in ((True, output_bound), (False, 0)):
        found = most_token_rates(price, has_output)
        if found is not None:
            assert tokens_cost(found, inputs, bound) == max_cost(price, inputs, bound)


def test_the_rates_of_tokens_are_unknown_if_one_is_missing_or_depends_on_the_length() -> None:
    tier = Tier(1000, 1, None, 2, None)
    assert most_token_rates(Price(3, 1, 4, cache_write_per_million=5)) == ((5, 4),)
    assert most_token_rates(Price(3, None, 4, service_tiers=(("fast", Price(2, None, 9)),))) == ((3, 4), (2, 9))
    assert [most_token_rates(each) for each in (Price(3), Price(3, None, 4, tiers=(tier,)))] == [None, None]
    assert most_token_rates(Price(3), has_output=False) == ((3, 0),)


def test_the_batch_api_halves_a_price_and_its_tiers() -> None:
    price = Price(10, 5, 41, 4, 6, 8, 12, tiers=(Tier(100, 20, 10, None, 25),), image_sizes=(("256x256", 3),))
    assert batch_price(price) == Price(
        5, 3, 21, 2, 3, 4, 6, tiers=(Tier(100, 10, 5, None, 13),), image_sizes=(("256x256", 2),)
    )


def test_the_batch_api_has_its_published_prices_if_there_are_any() -> None:
    usage = Usage(input_tokens=MILLION, cached_tokens=MILLION // 2, output_tokens=MILLION)
    assert cost(batch_price(published("gpt-4o-mini")), usage) == pico("0.375")  # cached input is not halved again
    assert cost(batch_price(published("gpt-5-mini")), usage) == pico("1.06875")
    assert cost(batch_price(published("text-embedding-3-small")), Usage(input_tokens=MILLION)) == pico("0.01")


TIERED = PriceEntry.model_validate(
    {
        "input_per_million": 1,
        "cached_input_per_million": 0.5,
        "output_per_million": 10,
        "per_image": 0.04,
        "tiers": {"flex": 0.5, "priority": 2.0},
        "per_call": {"web_search": 0.01, "file_search": 0.0025},
    }
).price()
assert TIERED is not None
ON_TIER = Usage(input_tokens=1000, cached_tokens=400, output_tokens=100)


@pytest.mark.parametrize(
    ("requested", "answered", "dollars"),
    [
        (None, None, "0.0018"),
        (None, "default", "0.0018"),
        (None, "standard", "0.0018"),
        (None, "flex", "0.0009"),
        (None, "priority", "0.0036"),
        ("auto", None, "0.0018"),
        ("auto", "priority", "0.0036"),
        ("flex", "flex", "0.0009"),
        ("flex", "default", "0.0018"),
        ("flex", None, "0.0009"),
        ("priority", "default", "0.0018"),
        # Without a price: as it was reserved.
        (None, "scale", "0.0036"),
        ("default", "scale", "0.0018"),
        ("flex", "scale", "0.0009"),
        ("scale", "scale", "0.0036"),
    ],
)
def test_the_tier_of_the_reply_sets_the_price(requested: str | None, answered: str | None, dollars: str) -> None:
    price = replace(TIERED, requested_tier=requested)
    assert cost(price, replace(ON_TIER, service_tier=answered)) == pico(dollars)


@pytest.mark.parametrize(
    ("requested", "dollars"),
    [
        (None, "0.004"),
        ("auto", "0.004"),
        ("priority", "0.004"),
        ("default", "0.002"),
        ("standard", "0.002"),
        ("flex", "0.001"),
        ("scale", "0.004"),
    ],
)
def test_the_maximum_cost_is_at_the_most_expensive_tier_that_may_serve(requested: str | None, dollars: str) -> None:
    assert max_cost(replace(TIERED, requested_tier=requested), 1000, 100) == pico(dollars)


def test_a_factor_applies_to_tokens_only() -> None:
    at_flex = dict(TIERED.service_tiers)["flex"]
    assert (at_flex.per_image, at_flex.per_call) == (TIERED.per_image, ())
    assert cost(replace(TIERED, service_tiers=()), ON_TIER) == 2 * (cost(at_flex, ON_TIER) or 0)


def test_calls_of_hosted_tools_cost_what_the_entry_says() -> None:
    calls = (("web_search", 2), ("file_search", 1))
    assert cost(TIERED, replace(ON_TIER, hosted_calls=calls)) == pico("0.0243")
    assert cost(TIERED, replace(ON_TIER, hosted_calls=calls, service_tier="flex")) == pico("0.0234")
    assert cost(TIERED, replace(ON_TIER, hosted_calls=(("code_interpreter", 1),))) is None
    assert max_cost(TIERED, 1000, 100, hosted_tools=["web_search", "file_search"], max_tool_calls=3) == pico("0.034")
    assert max_cost(TIERED, 1000, 100, hosted_tools=["code_interpreter"], max_tool_calls=3) is None


def test_an_entry_without_a_rate_adds_to_the_published_price() -> None:
    entry = PriceEntry.model_validate({"tiers": {"flex": 0.25}, "per_call": {"web_search": 0.01}})
    price = resolve_price("gpt-4.1", {"gpt-4.1": entry}, {})
    plain = published("gpt-4.1")
    assert price is not None and price.input_per_million == plain.input_per_million
    assert dict(price.service_tiers)["priority"] == dict(plain.service_tiers)["priority"]
    assert dict(price.service_tiers)["flex"].input_per_million == (plain.input_per_million or 0) // 4
    assert resolve_price("unlisted", {"unlisted": entry}, {}) is None


def test_the_price_list_knows_the_tiers_of_openais_models() -> None:
    usage = Usage(input_tokens=MILLION // 10, output_tokens=MILLION // 10)
    tiers = {
        tier: cost(published("gpt-5"), replace(usage, service_tier=tier)) for tier in ("default", "flex", "priority")
    }
    assert tiers == {"default": pico("1.125"), "flex": pico("0.5625"), "priority": pico("2.25")}


def test_the_batch_api_has_no_tiers_and_the_same_price_of_calls() -> None:
    price = batch_price(TIERED)
    assert cost(price, replace(ON_TIER, service_tier="default")) == pico("0.0009")
    assert cost(price, replace(ON_TIER, service_tier="batch", hosted_calls=(("web_search", 1),))) == pico("0.0109")
    assert max_cost(price, 1000, 100) == pico("0.001")


def test_an_exchange_costs_no_less_than_the_reply_states() -> None:
    assert cost(TIERED, replace(ON_TIER, reported_usd=0.5)) == pico("0.5")
    assert cost(TIERED, replace(ON_TIER, reported_usd=0.0001)) == pico("0.0018")
    assert cost(None, replace(ON_TIER, reported_usd=0.5)) == pico("0.5")
    assert cost(None, replace(ON_TIER, reported_usd=0.0)) is None


counts = st.none() | st.integers(0, 10**6) | st.floats(0, 1e6) | st.text(max_size=3)


@given(
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.dictionaries(
        st.sampled_from(
            [
                "total_tokens",
                "reasoning_tokens",
                "cached_tokens",
                "prompt_cache_hit_tokens",
                "cache_read_input_tokens",
                "cache_creation_input_tokens",
                "citation_tokens",
                "cost",
            ]
        ),
        counts,
    ),
    st.dictionaries(st.sampled_from(["reasoning_tokens", "audio_tokens"]), counts),
)
def test_no_shape_of_a_usage_makes_it_cheaper_than_its_prompt_and_its_completion(
    prompt: int, completion: int, others: dict[str, Any], details: dict[str, Any]
) -> None:
    counted = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "completion_tokens_details": details,
        **others,
    }
    price = Price(PICO, None, 4 * PICO)
    paid = cost(price, token_usage({"usage": counted}, None))
    assert paid is not None and paid >= prompt * MILLION + 4 * completion * MILLION
