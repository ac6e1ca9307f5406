"""What models charge, what an exchange cost, and the most that a request can cost."""

import subprocess
import sys
from decimal import Decimal

import genai_prices
import pytest
from genai_prices import data_snapshot
from genai_prices.types import ClauseEquals, ModelInfo, Provider
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from connectors.records import Usage
from pipelines.pricing.prices import (
    FREE,
    PICO,
    Price,
    PriceEntry,
    Tier,
    batch_price,
    cost,
    image_price,
    resolve_price,
    usd,
    max_cost,
)

MILLION = 10**6


def published(model: str) -> Price:
    price = resolve_price(model, {}, {})
    assert price is not None
    return price


def pico(dollars: str) -> int:
    return int(Decimal(dollars) * PICO)


# --- where a price comes from ---


def test_the_providers_price_goes_before_the_workspaces_and_that_before_the_published_one() -> None:
    own, shared = {"gpt-4o": PriceEntry(input_per_million=1)}, {"gpt-4o": PriceEntry(input_per_million=2)}
    assert resolve_price("gpt-4o", own, shared) == Price(input_per_million=PICO)
    assert resolve_price("gpt-4o", {}, shared) == Price(input_per_million=2 * PICO)
    assert published("gpt-4o").input_per_million == pico("2.5")


def test_an_entry_replaces_a_published_price_whole() -> None:
    price = resolve_price("gpt-4o", {"gpt-4o": PriceEntry(per_image=0.01)}, {})
    assert price == Price(per_image=pico("0.01"))


def test_an_entry_of_zero_costs_nothing_and_is_not_passed_over() -> None:
    price = resolve_price("gpt-4o", {"gpt-4o": PriceEntry(input_per_million=0, output_per_million=0)}, {})
    assert cost(price, Usage(input_tokens=1000, output_tokens=1000)) == 0


@pytest.mark.parametrize("model", ["my-model", "gpt-99", "mystery-1", "local", ""])
def test_a_model_that_nobody_lists_has_no_price_and_no_cost(model: str) -> None:
    price = resolve_price(model, {}, {})
    assert price is None
    assert cost(price, Usage(input_tokens=1, output_tokens=1)) is None
    assert max_cost(price, 1, 1) is None


@pytest.mark.parametrize("model", ["omni-moderation-latest", "sonar", "mistral-ocr-latest"])
def test_a_listed_model_without_a_price_that_replies_can_be_charged_by_has_none(model: str) -> None:
    assert resolve_price(model, {}, {}) is None


def test_a_listed_model_without_any_list_of_prices_has_none() -> None:
    bare = ModelInfo(id="bare-model", match=ClauseEquals(equals="bare-model"))
    maker = Provider(id="openai", name="OpenAI", api_pattern="https://api", models=[bare])
    data_snapshot.set_custom_snapshot(data_snapshot.DataSnapshot(providers=[maker], from_auto_update=False))
    try:
        assert resolve_price("bare-model", {}, {}) is None
    finally:
        data_snapshot.set_custom_snapshot(None)


@pytest.mark.parametrize(
    "model",
    ["gpt-4o-mini", "gpt-4o-mini-2024-07-18", "gpt-4o-mini-2031-01-01", "openai/gpt-4o-mini"],
)
def test_dated_and_routed_names_find_the_price_of_the_model(model: str) -> None:
    price = published(model)
    assert (price.input_per_million, price.output_per_million) == (pico("0.15"), pico("0.6"))


def test_a_dated_name_with_a_price_of_its_own_keeps_it() -> None:
    price = published("gpt-4o-2024-05-13")
    assert (price.input_per_million, price.output_per_million) == (pico("5"), pico("15"))


def test_other_makers_and_hosts_are_found_by_the_models_name_alone() -> None:
    assert published("claude-opus-4-5").input_per_million == pico("5")  # its maker's, though a host takes 5.5
    assert published("llama-3.3-70b-versatile").input_per_million == pico("0.59")


def test_a_price_that_goes_by_the_time_of_day_is_the_dearest_of_the_day() -> None:
    price = published("deepseek-chat")
    assert (price.input_per_million, price.output_per_million) == (pico("0.27"), pico("1.1"))


def test_nothing_heavy_is_imported_before_a_published_price_is_asked_for() -> None:
    code = (
        "import sys, pipelines.pricing.prices as p, connectors.tokens\n"
        "assert p.resolve_price('m', {'m': p.PriceEntry(input_per_million=1)}, {}) is not None\n"
        "print([m for m in ('genai_prices', 'bpe_openai', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- entries ---


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
    ],
)
def test_an_entry_that_is_empty_misspelt_or_no_price_is_refused(entry: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PriceEntry.model_validate(entry)


def test_the_entry_of_the_contract_becomes_whole_pico_dollars() -> None:
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
    assert all(each["description"].startswith("USD for a") for each in properties.values())


# --- what an exchange cost ---


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
def test_gpt_4o_mini_costs_15_cents_a_million_in_half_of_it_cached_and_60_out(usage: Usage, dollars: str) -> None:
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
def test_sound_speech_and_pictures_cost_what_the_price_list_says(model: str, usage: Usage, dollars: str) -> None:
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
def test_dall_e_goes_by_size_and_quality(model: str, size: str | None, quality: str | None, dollars: str) -> None:
    price = image_price(published(model), size, quality)
    assert cost(price, Usage(images=3)) == 3 * pico(dollars)


def test_pictures_of_a_size_that_nobody_names_cost_the_dearest() -> None:
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
def test_usage_that_the_price_does_not_cover_has_no_cost_rather_than_a_silent_zero(model: str, usage: Usage) -> None:
    assert cost(published(model), usage) is None


@pytest.mark.parametrize(
    "usage", [Usage(), Usage(input_tokens=9, output_tokens=9), Usage(images=2), Usage(audio_seconds=1.0, characters=3)]
)
def test_what_is_free_costs_nothing_whatever_was_used(usage: Usage) -> None:
    assert cost(FREE, usage) == 0
    assert max_cost(FREE, 9, None) == 0


def test_a_price_may_charge_tokens_and_pictures_both() -> None:
    price = PriceEntry(input_per_million=1, output_per_million=2, per_image=0.5).price()
    assert cost(price, Usage(input_tokens=100, output_tokens=10, images=2)) == pico("1.00012")


def test_long_requests_take_the_rates_of_their_tier_for_every_token() -> None:
    price = published("gpt-5.4")
    assert cost(price, Usage(input_tokens=272_000, output_tokens=1000)) == pico("0.695")
    assert cost(price, Usage(input_tokens=272_001, output_tokens=1000)) == pico("1.382505")


def test_prompts_of_1024_tokens_and_more_pay_for_being_cached_where_that_is_charged() -> None:
    price = Price(PICO, PICO // 10, 4 * PICO, cache_write_per_million=5 * PICO // 4)
    assert cost(price, Usage(input_tokens=1023, output_tokens=0)) == pico("0.001023")
    assert cost(price, Usage(input_tokens=1024, output_tokens=0)) == pico("0.00128")
    assert cost(price, Usage(input_tokens=2000, cached_tokens=1000, output_tokens=0)) == pico("0.00135")
    assert published("gpt-5.6").cache_write_per_million == published("gpt-5.6").input_per_million * 5 // 4  # type: ignore[operator]


def test_what_does_not_divide_is_rounded_up() -> None:
    assert cost(PriceEntry(input_per_million=1e-12).price(), Usage(input_tokens=1)) == 1
    assert cost(PriceEntry(input_per_million=1e-13).price(), Usage(input_tokens=MILLION + 1)) == 2
    assert cost(PriceEntry(audio_per_minute=1e-12).price(), Usage(audio_seconds=61.0)) == 2


def test_a_million_small_costs_add_up_without_rounding() -> None:
    one = cost(published("gpt-4o-mini"), Usage(input_tokens=17, output_tokens=3))
    assert one is not None
    assert usd(one * MILLION) == 4.35


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4.1-nano", "o3-mini", "gpt-5", "claude-3-5-haiku-latest"])
def test_costs_agree_with_genai_prices_own_sum(model: str) -> None:
    theirs = genai_prices.calc_price(
        genai_prices.Usage(input_tokens=12_345, cache_read_tokens=2_345, output_tokens=678), model
    )
    ours = cost(published(model), Usage(input_tokens=12_345, cached_tokens=2_345, output_tokens=678))
    assert ours == theirs.total_price * PICO


# --- the most that a request can cost ---


def test_the_worst_case_counts_input_in_full_and_output_to_its_bound() -> None:
    assert max_cost(published("gpt-4o-mini"), 1000, 16_384) == pico("0.0099804")


def test_there_is_no_worst_case_without_a_bound_where_output_costs_something() -> None:
    assert max_cost(published("gpt-4o-mini"), 1000, None) is None
    assert max_cost(published("text-embedding-3-small"), 1000, None) == pico("0.00002")
    assert max_cost(published("text-embedding-3-small"), 1000, 1) is None


def test_the_worst_case_of_sound_speech_and_pictures_goes_by_their_own_measure() -> None:
    assert max_cost(published("whisper-1"), 20, 0, audio_seconds=90.0) == pico("0.009")
    assert max_cost(published("tts-1"), 0, None, characters=1000) == pico("0.015")
    assert max_cost(published("dall-e-3"), 20, None, images=2) == pico("0.24")
    assert max_cost(published("whisper-1"), 0, 0) is None
    assert max_cost(published("gpt-4o-mini-tts"), 20, None, characters=100) is None


def test_the_worst_case_takes_the_dearer_tier_well_before_it_is_reached() -> None:
    price = published("gpt-5.4")
    assert max_cost(price, 136_000, 1000) == pico("0.355")
    assert max_cost(price, 136_001, 1000) == pico("0.702505")


tokens = st.integers(0, 600_000)
rates = st.none() | st.integers(0, 50 * PICO)


@given(tokens, tokens, tokens, st.sampled_from(["gpt-4o-mini", "gpt-5.4", "gpt-5.6", "text-embedding-3-large"]))
def test_no_exchange_costs_more_than_its_worst_case(read: int, cached: int, written: int, model: str) -> None:
    usage = Usage(input_tokens=read, cached_tokens=cached, output_tokens=written)
    paid, worst = cost(published(model), usage), max_cost(published(model), read, written)
    assert (paid is None) == (worst is None)
    assert paid is None or worst is None or 0 <= paid <= worst


@given(rates, rates, rates, tokens, tokens, tokens)
def test_no_entry_makes_an_exchange_dearer_than_its_worst_case(
    fresh: int | None, cached_rate: int | None, output: int | None, read: int, cached: int, written: int
) -> None:
    price = Price(fresh, cached_rate, output)
    paid = cost(price, Usage(input_tokens=read, cached_tokens=cached, output_tokens=written))
    worst = max_cost(price, read, written)
    assert paid is None or (worst is not None and paid <= worst)


# --- the Batch API ---


def test_the_batch_api_halves_a_price_and_its_tiers() -> None:
    price = Price(10, 5, 41, 4, 6, 8, 12, tiers=(Tier(100, 20, 10, None, 25),), image_sizes=(("256x256", 3),))
    assert batch_price(price) == Price(
        5, 3, 21, 2, 3, 4, 6, tiers=(Tier(100, 10, 5, None, 13),), image_sizes=(("256x256", 2),)
    )


def test_the_batch_api_takes_its_published_prices_where_there_are_any() -> None:
    usage = Usage(input_tokens=MILLION, cached_tokens=MILLION // 2, output_tokens=MILLION)
    assert cost(batch_price(published("gpt-4o-mini")), usage) == pico("0.375")  # cached input is not halved again
    assert cost(batch_price(published("gpt-5-mini")), usage) == pico("1.06875")
    assert cost(batch_price(published("text-embedding-3-small")), Usage(input_tokens=MILLION)) == pico("0.01")
