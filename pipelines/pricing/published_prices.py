"""Published prices of models, from genai-prices and `published_prices.toml`, and the choice among all prices."""

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from pipelines.pricing.prices import Price, PriceEntry, Tier, pico_dollars, price_level

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, TieredPrices


def resolve_price(
    model: str,
    provider_prices: Mapping[str, PriceEntry],
    workspace_prices: Mapping[str, PriceEntry],
    published: Callable[[str], Price | None] | None = None,
) -> Price | None:
    """Return the provider's price of a model, else the workspace's, else the `published` one, else None.

    An entry that names nothing but tiers and calls adds them to the published price.
    """
    entry = provider_prices.get(model) or workspace_prices.get(model)
    look_up = published or published_price
    if entry is None:
        return look_up(model)
    return entry.price(look_up(model) if entry.has_no_rates else None)


def published_price(model: str) -> Price | None:
    """Return today's published price."""
    return _published_on(model, datetime.now(UTC).date())


_DATE = re.compile(r"-\d{4}-\d{2}-\d{2}$")


@cache
def _price_data() -> Mapping[str, Any]:
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


@cache
def _additional_prices() -> Mapping[str, Price]:
    """Prices that genai-prices lacks."""
    prices: dict[str, Price] = {}
    for model, rates in _price_data()["prices"].items():
        sizes = tuple((size, pico_dollars(Decimal(rate))) for size, rate in rates.get("image_sizes", {}).items())
        characters = rates.get("per_million_characters")
        prices[model] = Price(
            per_image=max((rate for _, rate in sizes), default=None),
            image_sizes=sizes,
            per_million_characters=None if characters is None else pico_dollars(Decimal(characters)),
        )
    return prices


@lru_cache(maxsize=1024)
def _published_on(model: str, today: date) -> Price | None:
    """Return a model's published price by its name: OpenAI's, else its maker's, else that of the most expensive host.

    A dated name that is not listed has the price of the name without its date.
    """
    name = model.removeprefix("openai/")
    if name in _additional_prices():
        return _additional_prices()[name]
    undated = _DATE.sub("", name)
    return _look_up(name, today) or (_look_up(undated, today) if undated != name else None)


def _look_up(name: str, today: date) -> Price | None:
    from genai_prices.data_snapshot import get_snapshot  # 0.2 s, and only for published prices

    snapshot = get_snapshot()
    for provider in ("openai", None):
        try:
            owner, model = snapshot.find_provider_model(name, None, provider, None)
        except LookupError:
            continue
        price = _model_price(model, today, caches=owner.id == "openai")
        if price is not None:
            return price
    hosted = (host.find_model(name) for host in snapshot.providers)
    return _most_expensive(_model_price(model, today, caches=False) for model in hosted if model is not None)


def _model_price(model: "ModelInfo", today: date, *, caches: bool) -> Price | None:
    """Return a model's price today; the highest of the day if it depends on the time."""
    from genai_prices.types import TimeOfDateConstraint

    if model.prices == []:
        return None
    listed = [entry.constraint for entry in model.prices] if isinstance(model.prices, list) else []
    hours = (time(tzinfo=UTC), *(each.start_time for each in listed if isinstance(each, TimeOfDateConstraint)))
    moments = [datetime.combine(today, hour) for hour in hours]
    is_media = any(word in model.id for word in _price_data()["media_words"])
    price = _most_expensive(_parse_rates(model.get_prices(moment), is_media, caches) for moment in moments)
    if price is None:
        return None

    def variant(when: dict[str, str]) -> Price | None:
        return _most_expensive(_parse_rates(model.get_prices(moment, when), is_media, caches) for moment in moments)

    listed_variants = [each.when for each in model.price_variants or ()]
    tiers = {when["service_tier"]: variant(when) for when in listed_variants if set(when) == {"service_tier"}}
    return replace(
        price,
        batch=variant({"processing": "batch"}) if {"processing": "batch"} in listed_variants else None,
        service_tiers=tuple((name, at_tier) for name, at_tier in tiers.items() if at_tier is not None),
    )


def _most_expensive(prices: Iterable[Price | None]) -> Price | None:
    return max((price for price in prices if price is not None), key=price_level, default=None)


def _parse_rates(rates: "ModelPrice", is_media: bool, caches: bool) -> Price | None:
    """Convert one list of rates.

    Replies do not split tokens by text, audio and image, so the text rate applies, for media models the highest.
    `caches`: the provider writes prompts into its cache unasked.
    """
    if any(getattr(rates, kind) is not None for kind in _price_data()["uncounted_kinds"]):
        return None
    # In the order of Tier's rates.
    kinds = [["input_mtok"], ["cache_read_mtok"], ["output_mtok"], ["cache_write_mtok"]]
    if is_media:
        kinds[0] += ["input_audio_mtok", "input_image_mtok"]
        kinds[1] += ["cache_audio_read_mtok", "cache_image_read_mtok"]
        kinds[2] += ["output_audio_mtok", "output_image_mtok"]
    listed = [[found for kind in each if (found := getattr(rates, kind)) is not None] for each in kinds]

    def rates_at(input_tokens: int) -> list[int | None]:
        return [max((_rate(each, input_tokens) for each in found), default=None) for found in listed]

    starts = {tier.start for found in listed for each in found if not isinstance(each, Decimal) for tier in each.tiers}
    hour = rates.audio_hours if rates.input_audio_hours is None else rates.input_audio_hours
    letters = rates.input_mchars
    fresh, cached, output, write = rates_at(0)
    price = Price(
        input_per_million=fresh,
        cached_input_per_million=cached,
        output_per_million=output,
        audio_per_minute=None if hour is None else -(-_rate(hour, 0) // 60),
        per_million_characters=None if letters is None else _rate(letters, 0),
        cache_write_per_million=write,
        tiers=tuple(Tier(start, *rates_at(start + 1)) for start in sorted(starts)),
    )
    return None if price == Price() else replace(price, writes_cache_unasked=caches)


def _rate(listed: "Decimal | TieredPrices", input_tokens: int) -> int:
    """Return the rate, in pico-dollars, for all tokens of a request."""
    if isinstance(listed, Decimal):
        return pico_dollars(listed)
    return pico_dollars(next((t.price for t in reversed(listed.tiers) if input_tokens > t.start), listed.base))
