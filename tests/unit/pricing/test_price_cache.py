"""Prices that were looked up are remembered, and those that changed are looked up again."""

from pathlib import Path

import pytest

from pipelines.pricing import price_cache
from pipelines.pricing.price_cache import cached_published_price
from pipelines.pricing.prices import Price, published_price


@pytest.mark.parametrize("model", ["gpt-4o-mini", "dall-e-3", "gpt-5.4", "tts-1", "no-such-model"])
def test_a_price_is_remembered_as_it_was_published(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prices.json"
    published = published_price(model)
    assert cached_published_price(model, file) == published

    def never(name: str) -> Price | None:
        raise AssertionError(f"{name} was looked up again")

    monkeypatch.setattr(price_cache, "published_price", never)
    assert cached_published_price(model, file) == published


def test_another_day_looks_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prices.json"
    cached_published_price("gpt-4o", file)
    monkeypatch.setattr(price_cache, "_edition", lambda: "tomorrow")
    monkeypatch.setattr(price_cache, "published_price", lambda name: Price(input_per_million=1))
    assert cached_published_price("gpt-4o", file) == Price(input_per_million=1)


def test_a_damaged_file_and_a_folder_that_cannot_be_written_are_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "prices.json"
    file.write_text("{")
    assert cached_published_price("gpt-4o", file) == published_price("gpt-4o")
    (tmp_path / "taken").write_text("")
    assert cached_published_price("gpt-4o", tmp_path / "taken" / "prices.json") == published_price("gpt-4o")
