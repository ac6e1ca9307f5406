"""Prices: what a model charges, what an exchange cost, and the maximum that it can cost.

Money is in whole pico-dollars (10**-12 USD), so that sums are exact; fractions are rounded up.
"""

from dataclasses import astuple, dataclass, replace
from decimal import ROUND_CEILING, Decimal
from math import ceil
from typing import Annotated, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from connectors.errors import FieldError

PICO = 10**12
"""Pico-dollars in a dollar."""

_MILLION = 10**6
_MINUTE = 60 * _MILLION  # microseconds

CACHED_FROM = 1024
"""Shortest prompt that OpenAI caches, in tokens: https://developers.openai.com/api/docs/guides/prompt-caching."""


def usd(pico: int) -> float:
    """Convert to dollars, for tables and for people; never for sums."""
    return pico / PICO


class BilledUsage(Protocol):
    """Usage of an exchange; None if the reply does not report it."""

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
    """What a model charges, in pico-dollars for each unit; None if a kind of usage has no known price."""

    input_per_million: int | None = None
    cached_input_per_million: int | None = None
    """None: cached tokens cost as much as all others."""
    output_per_million: int | None = None
    per_image: int | None = None
    audio_per_minute: int | None = None
    per_million_characters: int | None = None
    cache_write_per_million: int | None = None
    """Replaces the input rate if the provider charges more for tokens that it writes to its cache unasked."""
    tiers: tuple[Tier, ...] = ()
    """Rates of long requests, by rising start."""
    image_sizes: tuple[tuple[str, int], ...] = ()
    """("1024x1024", rate) or ("hd 1024x1024", rate), if images differ; per_image is the highest of them."""
    batch: "Price | None" = None
    """The published prices of the Batch API; None: half of these."""


FREE = Price(0, 0, 0, 0, 0, 0)
"""The price of a model that runs on this machine."""

Dollars = Annotated[float, Field(strict=True, ge=0, le=1e6, allow_inf_nan=False)]


class PriceEntry(BaseModel):
    """What a model charges, in US dollars; a kind of usage that is not named has no known price."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"minProperties": 1})

    input_per_million: Dollars | None = Field(default=None, description="USD for a million input tokens.")
    cached_input_per_million: Dollars | None = Field(
        default=None, description="USD for a million input tokens that the provider had cached; default: as all others."
    )
    output_per_million: Dollars | None = Field(default=None, description="USD for a million output tokens.")
    per_image: Dollars | None = Field(default=None, description="USD for a generated image.")
    audio_per_minute: Dollars | None = Field(default=None, description="USD for a minute of audio, to the second.")
    per_million_characters: Dollars | None = Field(default=None, description="USD for a million characters spoken.")

    @model_validator(mode="after")
    def _require_a_rate(self) -> Self:
        if all(rate is None for _, rate in self):
            raise FieldError("a price without a number", "name at least one, such as input_per_million")
        return self

    def price(self) -> Price:
        """The same in pico-dollars."""
        rates = [None if rate is None else pico_dollars(Decimal(repr(float(rate)))) for _, rate in self]
        input_rate, cached_rate, output_rate, image, minute, characters = rates
        return Price(input_rate, cached_rate, output_rate, image, minute, characters)


def batch_price(price: Price) -> Price:
    """Return the price of the Batch API: the published one, else half of every rate."""
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
    """Return the price for images of one size and quality (None: the default); the highest for unlisted sizes."""
    name = size or "1024x1024"
    rate = dict(price.image_sizes).get(f"hd {name}" if quality == "hd" else name)
    return price if rate is None else replace(price, per_image=rate, image_sizes=())


def cost(price: Price | None, usage: BilledUsage) -> int | None:
    """Return the cost of an exchange in pico-dollars; None if a kind of its usage has no price, or none was counted.

    Tokens, images, characters and audio may measure the same thing: if only tokens have a price and tokens were
    counted, the rest is not charged again, and vice versa. OpenAI writes prompts of at least 1,024 tokens into its
    cache unasked; if that has a separate rate, it applies to all tokens that were not read from the cache.
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
    """Return the maximum cost of a request in pico-dollars; None if the price or a bound is not known.

    It assumes that no token is read from the cache, and every token is written to a cache that charges for it. A tier
    applies from half its start, since the provider may count more tokens than Rowmill.
    """
    if price is None:
        return None
    rates: Price | Tier = price
    for tier in price.tiers:
        if 2 * input_tokens > tier.start and price_level(tier) > price_level(rates):
            rates = tier
    if output_bound is None and rates.output_per_million:
        return None
    tokens: int | None = 0
    if input_tokens:
        if rates.input_per_million is None:
            tokens = None
        else:
            other_rates = rates.cached_input_per_million or 0, rates.cache_write_per_million or 0
            tokens = input_tokens * max(rates.input_per_million, *other_rates)
    if output_bound:
        rate = rates.output_per_million
        tokens = None if rate is None or tokens is None else tokens + output_bound * rate
    # Audio is billed by started seconds.
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
    """Add up all kinds; `tokens`: their cost in pico-dollars times a million, None if one of their rates is missing."""
    total = 0
    is_charged = is_unpriced = False
    microseconds = round(seconds * _MILLION) if seconds else 0
    for count, rate, unit in (
        (images, price.per_image, 1),
        (characters, price.per_million_characters, _MILLION),
        (microseconds, price.audio_per_minute, _MINUTE),
    ):
        if count and rate is None:
            is_unpriced = True
        elif count and rate is not None:
            is_charged = True
            total += -(-count * rate // unit)
    has_token_rate = price.input_per_million is not None or price.output_per_million is not None
    if has_token_rate:
        if tokens is None or (is_unpriced and not spent):
            return None
        if counted or is_charged:
            return total - (-tokens // _MILLION)
    elif is_unpriced:
        return None
    elif is_charged:
        return total
    # Nothing was counted: the cost is zero only if all stated rates are zero.
    return 0 if tokens is not None and price_level(price) == 0 else None


def price_level(rates: Price | Tier) -> int:
    """Return a sum of rates, to compare prices."""
    level = (rates.input_per_million or 0) + (rates.output_per_million or 0)
    if isinstance(rates, Price):
        level += (rates.per_image or 0) + (rates.audio_per_minute or 0) + (rates.per_million_characters or 0)
    return level


def _half(rate: int | None) -> int | None:
    return None if rate is None else -(-rate // 2)


def pico_dollars(dollars: Decimal) -> int:
    """Convert dollars, rounded up."""
    return int((dollars * PICO).to_integral_value(ROUND_CEILING))
