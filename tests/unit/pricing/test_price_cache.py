"""Price cache: prices are looked up once a day, and again if the price list has changed."""

from pathlib import Path

import pytest

from pipelines.pricing import price_cache
from pipelines.pricing.price_cache import cached_published_price
from pipelines.pricing.prices import Price
from pipelines.pricing.published_prices import published_price


@pytest.mark.parametrize("model", ["gpt-4o-mini", "dall-e-3", "gpt-5.4", "tts-1", "no-such-model"])
def test_a_cached_price_equals_the_published_one(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prices.json"
    published = published_price(model)
    assert cached_published_price(model, file) == published

    def fail(name: str) -> Price | None:
        raise AssertionError(f"{name} was looked up again")

    monkeypatch.setattr(price_cache, "published_price", fail)
    assert cached_published_price(model, file) == published


def test_a_new_edition_of_the_price_list_is_looked_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prices.json"
    cached_published_price("gpt-4o", file)
    monkeypatch.setattr(price_cache, "_price_list_edition", lambda: "tomorrow")
    monkeypatch.setattr(price_cache, "published_price", lambda name: Price(input_per_million=1))
    assert cached_published_price("gpt-4o", file) == Price(input_per_million=1)


def test_a_damaged_file_and_an_unwritable_folder_are_ignored(tmp_path: Path) -> None:
    file = tmp_path / "prices.json"
    file.write_text("{")
    assert cached_published_price("gpt-4o", file) == published_price("gpt-4o")
    (tmp_path / "taken").write_text("")
    assert cached_published_price("gpt-4o", tmp_path / "taken" / "prices.json") == published_price("gpt-4o")
