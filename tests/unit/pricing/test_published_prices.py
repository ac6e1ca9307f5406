"""Published prices: names, makers and hosts, dates, times of day, and the order of all prices."""

import subprocess
import sys
from decimal import Decimal

import pytest
from genai_prices import data_snapshot
from genai_prices.types import ClauseEquals, ModelInfo, Provider

from connectors.records import Usage
from pipelines.pricing.prices import (
    PICO,
    Price,
    PriceEntry,
    cost,
    max_cost,
)
from pipelines.pricing.published_prices import resolve_price

MILLION = 10**6


def pico(dollars: str) -> int:
    return int(Decimal(dollars) * PICO)


def published(model: str) -> Price:
    price = resolve_price(model, {}, {})
    assert price is not None
    return price


def test_the_providers_price_precedes_the_workspaces_and_the_published_one() -> None:
    own, shared = {"gpt-4o": PriceEntry(input_per_million=1)}, {"gpt-4o": PriceEntry(input_per_million=2)}
    assert resolve_price("gpt-4o", own, shared) == Price(input_per_million=PICO)
    assert resolve_price("gpt-4o", {}, shared) == Price(input_per_million=2 * PICO)
    assert published("gpt-4o").input_per_million == pico("2.5")


def test_an_entry_replaces_the_whole_published_price() -> None:
    price = resolve_price("gpt-4o", {"gpt-4o": PriceEntry(per_image=0.01)}, {})
    assert price == Price(per_image=pico("0.01"))


@pytest.mark.parametrize("model", ["my-model", "gpt-99", "mystery-1", "local", ""])
def test_an_unlisted_model_has_no_price_and_no_cost(model: str) -> None:
    price = resolve_price(model, {}, {})
    assert price is None
    assert cost(price, Usage(input_tokens=1, output_tokens=1)) is None
    assert max_cost(price, 1, 1) is None


@pytest.mark.parametrize("model", ["omni-moderation-latest", "sonar", "mistral-ocr-latest"])
def test_a_model_whose_rates_no_reply_counts_has_no_price(model: str) -> None:
    assert resolve_price(model, {}, {}) is None


def test_a_listed_model_without_rates_has_no_price() -> None:
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


def test_a_dated_name_with_a_separate_price_keeps_it() -> None:
    price = published("gpt-4o-2024-05-13")
    assert (price.input_per_million, price.output_per_million) == (pico("5"), pico("15"))


def test_models_of_other_makers_and_hosts_are_found_by_name() -> None:
    assert published("claude-opus-4-5").input_per_million == pico("5")  # its maker's, though a host takes 5.5
    assert published("llama-3.3-70b-versatile").input_per_million == pico("0.59")


def test_a_price_that_depends_on_the_time_is_the_highest_of_the_day() -> None:
    price = published("deepseek-chat")
    assert (price.input_per_million, price.output_per_million) == (pico("0.27"), pico("1.1"))


def test_no_large_module_is_imported_before_a_published_price_is_needed() -> None:
    code = (
        "import sys, pipelines.pricing.published_prices as p, pipelines.pricing.prices as q, connectors.tokens\n"
        "assert p.resolve_price('m', {'m': q.PriceEntry(input_per_million=1)}, {}) is not None\n"
        "print([m for m in ('genai_prices', 'toktok', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
