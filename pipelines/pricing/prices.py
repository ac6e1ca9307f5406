"""Money: what a model charges, what an exchange cost, and the most that it can cost.

All money is whole pico-dollars (10**-12 USD), so adding up never rounds; what does not divide is rounded up.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass, replace
from datetime import UTC, date, datetime, time
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache
from math import ceil
from typing import TYPE_CHECKING, Annotated, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from connectors.errors import FieldError

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, TieredPrices

PICO = 10**12
"""Pico-dollars in a dollar."""

_MILLION = 10**6
_MINUTE = 60 * _MILLION  # microseconds

CACHED_FROM = 1024
"""Shortest prompt that OpenAI caches: https://developers.openai.com/api/docs/guides/prompt-caching."""


def usd(pico: int) -> float:
    """Dollars, for tables and for people; never for adding up."""
    return pico / PICO


class Usage(Protocol):
    """What an exchange used; None where the reply says nothing of it."""

    @property
    def input_tokens(self) -> int | None: ...
    @property
    def cached_tokens(self) -> int | None: ...
    @property
    def output_tokens(self) -> int | None: ...
    @property
    def audio_seconds(self) -> float | None: ...
    @property
    def characters(self) -> int | None: ...
    @property
    def images(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Tier:
    """The rates of every token of a request with more than `start` input tokens, in pico-dollars a million."""

    start: int
    input_per_million: int | None
    cached_input_per_million: int | None
    output_per_million: int | None
    cache_write_per_million: int | None


@dataclass(frozen=True, slots=True)
class Price:
    """What a model charges, in pico-dollars for each unit; None where a kind of usage has no known price."""

    input_per_million: int | None = None
    cached_input_per_million: int | None = None
    """None: cached tokens are charged as all others."""
    output_per_million: int | None = None
    per_image: int | None = None
    audio_per_minute: int | None = None
    per_million_characters: int | None = None
    cache_write_per_million: int | None = None
    """In place of the input's rate where the provider charges more for what it puts into its cache by itself."""
    tiers: tuple[Tier, ...] = ()
    """Rates of long requests, by rising start."""
    image_sizes: tuple[tuple[str, int], ...] = ()
    """("1024x1024", rate) or ("hd 1024x1024", rate), where images differ; per_image is the dearest of them."""
    batch: "Price | None" = None
    """The published prices of the Batch API; None: half of these."""


FREE = Price(0, 0, 0, 0, 0, 0)
"""The price of what runs on this machine: every kind costs nothing."""

Dollars = Annotated[float, Field(strict=True, ge=0, le=1e6, allow_inf_nan=False)]


class PriceEntry(BaseModel):
    """What a model charges, in US dollars; a kind of usage that is not named has no known price."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"minProperties": 1})

    input_per_million: Dollars | None = Field(default=None, description="USD for a million input tokens.")
    cached_input_per_million: Dollars | None = Field(
        default=None, description="USD for a million input tokens that the provider had cached; default: as all others."
    )
    output_per_million: Dollars | None = Field(default=None, description="USD for a million output tokens.")
    per_image: Dollars | None = Field(default=None, description="USD for an image made.")
    audio_per_minute: Dollars | None = Field(default=None, description="USD for a minute of audio, to the second.")
    per_million_characters: Dollars | None = Field(default=None, description="USD for a million characters spoken.")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if all(rate is None for _, rate in self):
            raise FieldError("a price without a number", "name at least one, such as input_per_million")
        return self

    def price(self) -> Price:
        """The same in pico-dollars."""
        rates = [None if rate is None else _pico(Decimal(repr(float(rate)))) for _, rate in self]
        given, cached, made, image, minute, characters = rates
        return Price(given, cached, made, image, minute, characters)


def resolve_price(
    model: str,
    provider_prices: Mapping[str, PriceEntry],
    workspace_prices: Mapping[str, PriceEntry],
    published: Callable[[str], Price | None] | None = None,
) -> Price | None:
    """The provider's own price of a model, else the workspace's, else the `published` one; None if nobody has any."""
    entry = provider_prices.get(model) or workspace_prices.get(model)
    return entry.price() if entry is not None else (published or published_price)(model)


def published_price(model: str) -> Price | None:
    """Today's published price."""
    return _published(model, datetime.now(UTC).date())


def batch_price(price: Price) -> Price:
    """What the Batch API charges: the published price where there is one, else half of everything."""
    if price.batch is not None:
        return price.batch
    return replace(
        price,
        input_per_million=_half(price.input_per_million),
        cached_input_per_million=_half(price.cached_input_per_million),
        output_per_million=_half(price.output_per_million),
        per_image=_half(price.per_image),
        audio_per_minute=_half(price.audio_per_minute),
        per_million_characters=_half(price.per_million_characters),
        cache_write_per_million=_half(price.cache_write_per_million),
        tiers=tuple(Tier(tier.start, *map(_half, astuple(tier)[1:])) for tier in price.tiers),
        image_sizes=tuple((size, -(-rate // 2)) for size, rate in price.image_sizes),
    )


def image_price(price: Price, size: str | None = None, quality: str | None = None) -> Price:
    """The price for images of one size and quality (None: the API's defaults); the dearest for sizes not listed."""
    name = size or "1024x1024"
    rate = dict(price.image_sizes).get(f"hd {name}" if quality == "hd" else name)
    return price if rate is None else replace(price, per_image=rate, image_sizes=())


def cost(price: Price | None, usage: Usage) -> int | None:
    """Pico-dollars that an exchange cost; None where a kind of usage that occurred has no price, or none was counted.

    Tokens, images, characters and audio may measure one thing: where the price goes by tokens alone and tokens were
    counted, the rest is not charged again, and the other way round. OpenAI writes prompts of at least 1,024 tokens
    into its cache by itself; where that has a rate of its own, all that was not read from the cache takes it.
    """
    if price is None:
        return None
    read, written = usage.input_tokens, usage.output_tokens
    rates: Price | Tier = price
    if price.tiers and read:
        for tier in price.tiers:
            if read > tier.start:
                rates = tier
    tokens: int | None = 0
    if read:
        rate = rates.input_per_million
        if rate is None:
            tokens = None
        else:
            cached = min(usage.cached_tokens or 0, read)
            cached_rate = rates.cached_input_per_million
            tokens = cached * (rate if cached_rate is None else cached_rate)
            if rates.cache_write_per_million is not None and read >= CACHED_FROM:
                rate = rates.cache_write_per_million
            tokens += (read - cached) * rate
    if written:
        rate = rates.output_per_million
        tokens = None if rate is None or tokens is None else tokens + written * rate
    counted = read is not None or written is not None
    seconds, characters, images = usage.audio_seconds, usage.characters, usage.images
    if tokens and not seconds and not characters and not images:
        return -(-tokens // _MILLION)
    return _total(price, tokens, counted, bool(read or written), seconds, characters, images)


def max_cost(
    price: Price | None,
    input_tokens: int,
    output_bound: int | None,
    *,
    audio_seconds: float | None = None,
    characters: int | None = None,
    images: int | None = None,
) -> int | None:
    """The most that a request can cost, in pico-dollars; None where the price or a bound is not known.

    Nothing is taken as cached, everything as written to a cache that charges for it. A tier counts as reached from
    half its start on: the provider may find more tokens in a request than were counted here.
    """
    if price is None:
        return None
    rates: Price | Tier = price
    for tier in price.tiers:
        if 2 * input_tokens > tier.start and _weight(tier) > _weight(rates):
            rates = tier
    if output_bound is None and rates.output_per_million:
        return None
    tokens: int | None = 0
    if input_tokens:
        if rates.input_per_million is None:
            tokens = None
        else:
            dearer = rates.cached_input_per_million or 0, rates.cache_write_per_million or 0
            tokens = input_tokens * max(rates.input_per_million, *dearer)
    if output_bound:
        rate = rates.output_per_million
        tokens = None if rate is None or tokens is None else tokens + output_bound * rate
    # Sound is billed by the second begun.
    seconds = None if audio_seconds is None else ceil(audio_seconds)
    return _total(price, tokens, True, bool(input_tokens or output_bound), seconds, characters, images)


def _total(
    price: Price,
    tokens: int | None,
    counted: bool,
    spent: bool,
    seconds: float | None,
    characters: int | None,
    images: int | None,
) -> int | None:
    """All kinds together; `tokens` is their pico-dollars times a million, None where a rate of theirs is missing."""
    total = 0
    charged = unpriced = False
    microseconds = round(seconds * _MILLION) if seconds else 0
    for count, rate, unit in (
        (images, price.per_image, 1),
        (characters, price.per_million_characters, _MILLION),
        (microseconds, price.audio_per_minute, _MINUTE),
    ):
        if count and rate is None:
            unpriced = True
        elif count and rate is not None:
            charged = True
            total += -(-count * rate // unit)
    by_token = price.input_per_million is not None or price.output_per_million is not None
    if by_token:
        if tokens is None or (unpriced and not spent):
            return None
        if counted or charged:
            return total - (-tokens // _MILLION)
    elif unpriced:
        return None
    elif charged:
        return total
    # Nothing was counted: there is nothing to pay only where all prices that are named are zero.
    return 0 if tokens is not None and _weight(price) == 0 else None


def _weight(rates: Price | Tier) -> int:
    """How dear rates are, for comparing them."""
    weight = (rates.input_per_million or 0) + (rates.output_per_million or 0)
    if isinstance(rates, Price):
        weight += (rates.per_image or 0) + (rates.audio_per_minute or 0) + (rates.per_million_characters or 0)
    return weight


def _half(rate: int | None) -> int | None:
    return None if rate is None else -(-rate // 2)


def _pico(dollars: Decimal) -> int:
    return int((dollars * PICO).to_integral_value(ROUND_CEILING))


def _sized(*sizes: tuple[str, str]) -> Price:
    rates = tuple((size, _pico(Decimal(dollars))) for size, dollars in sizes)
    return Price(per_image=max(rate for _, rate in rates), image_sizes=rates)


# Published prices, from here to the end.
_OWN: Mapping[str, Price] = {
    "dall-e-2": _sized(("256x256", "0.016"), ("512x512", "0.018"), ("1024x1024", "0.020")),
    "dall-e-3": _sized(
        *(("1024x1024", "0.04"), ("1024x1792", "0.08"), ("1792x1024", "0.08")),
        *(("hd 1024x1024", "0.08"), ("hd 1024x1792", "0.12"), ("hd 1792x1024", "0.12")),
    ),
    "tts-1-1106": Price(per_million_characters=15 * PICO),
    "tts-1-hd-1106": Price(per_million_characters=30 * PICO),
}
"""What genai-prices lacks, from https://developers.openai.com/api/docs/pricing."""

_DATE = re.compile(r"-\d{4}-\d{2}-\d{2}$")

_MEDIA_MODEL = re.compile(r"audio|realtime|-live|sonic|transcribe|image|banana")
"""Models whose tokens are mostly sound or pictures."""

_UNCOUNTED = ("requests_kcount", "input_text_messages_kcount", "input_document_kpages")
"""Kinds that are charged always and that no reply counts: such a model has no price here."""


@lru_cache(maxsize=1024)
def _published(model: str, today: date) -> Price | None:
    """A model's published price by its name alone: OpenAI's, else its maker's, else that of the dearest host.

    A dated name that is not listed goes by the name without its date.
    """
    name = model.removeprefix("openai/")
    if name in _OWN:
        return _OWN[name]
    undated = _DATE.sub("", name)
    return _listed(name, today) or (_listed(undated, today) if undated != name else None)


def _listed(name: str, today: date) -> Price | None:
    from genai_prices.data_snapshot import get_snapshot  # 0.2 s, and only for published prices

    snapshot = get_snapshot()
    for provider in ("openai", None):
        try:
            owner, model = snapshot.find_provider_model(name, None, provider, None)
        except LookupError:
            continue
        price = _of_model(model, today, caches=owner.id == "openai")
        if price is not None:
            return price
    hosted = (host.find_model(name) for host in snapshot.providers)
    return _dearest(_of_model(model, today, caches=False) for model in hosted if model is not None)


def _of_model(model: "ModelInfo", today: date, *, caches: bool) -> Price | None:
    """A model's price today: the dearest of the day where it goes by the time of day."""
    from genai_prices.types import TimeOfDateConstraint

    if model.prices == []:
        return None
    listed = [entry.constraint for entry in model.prices] if isinstance(model.prices, list) else []
    hours = (time(tzinfo=UTC), *(each.start_time for each in listed if isinstance(each, TimeOfDateConstraint)))
    moments = [datetime.combine(today, hour) for hour in hours]
    media = _MEDIA_MODEL.search(model.id) is not None
    price = _dearest(_of_rates(model.get_prices(moment), media, caches) for moment in moments)
    if price is None or not any(variant.when == {"processing": "batch"} for variant in model.price_variants or ()):
        return price
    batch = (_of_rates(model.get_prices(moment, {"processing": "batch"}), media, caches) for moment in moments)
    return replace(price, batch=_dearest(batch))


def _dearest(prices: Iterable[Price | None]) -> Price | None:
    return max((price for price in prices if price is not None), key=_weight, default=None)


def _of_rates(rates: "ModelPrice", media: bool, caches: bool) -> Price | None:
    """One list of prices. Replies do not split tokens by text, sound and picture: text's rate, for media the dearest.

    `caches`: the provider writes prompts into its cache unasked.
    """
    if any(getattr(rates, kind) is not None for kind in _UNCOUNTED):
        return None
    # In the order of Tier's rates.
    kinds = [["input_mtok"], ["cache_read_mtok"], ["output_mtok"], ["cache_write_mtok"] if caches else []]
    if media:
        kinds[0] += ["input_audio_mtok", "input_image_mtok"]
        kinds[1] += ["cache_audio_read_mtok", "cache_image_read_mtok"]
        kinds[2] += ["output_audio_mtok", "output_image_mtok"]
    listed = [[found for kind in each if (found := getattr(rates, kind)) is not None] for each in kinds]

    def at(input_tokens: int) -> list[int | None]:
        return [max((_rate(each, input_tokens) for each in found), default=None) for found in listed]

    starts = {tier.start for found in listed for each in found if not isinstance(each, Decimal) for tier in each.tiers}
    hour = rates.audio_hours if rates.input_audio_hours is None else rates.input_audio_hours
    letters = rates.input_mchars
    fresh, cached, output, write = at(0)
    price = Price(
        input_per_million=fresh,
        cached_input_per_million=cached,
        output_per_million=output,
        audio_per_minute=None if hour is None else -(-_rate(hour, 0) // 60),
        per_million_characters=None if letters is None else _rate(letters, 0),
        cache_write_per_million=write,
        tiers=tuple(Tier(start, *at(start + 1)) for start in sorted(starts)),
    )
    return None if price == Price() else price


def _rate(listed: "Decimal | TieredPrices", input_tokens: int) -> int:
    """The rate, in pico-dollars, that all tokens of a request take."""
    if isinstance(listed, Decimal):
        return _pico(listed)
    return _pico(next((t.price for t in reversed(listed.tiers) if input_tokens > t.start), listed.base))
