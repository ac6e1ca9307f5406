"""Prices: what a model charges, what an exchange cost, and the maximum that it can cost.

Money is in whole pico-dollars (10**-12 USD), so that sums are exact; fractions are rounded up.
"""

from collections.abc import Iterable, Sequence
from decimal import ROUND_CEILING, Decimal
from fractions import Fraction
from functools import lru_cache
from math import ceil
from typing import Annotated, Protocol, Self

from msgspec import Struct
from msgspec.structs import astuple, replace
from pydantic import BaseModel, ConfigDict, Field, model_validator

from connectors.errors import FieldError

PICO = 10**12
"""Pico-dollars in a dollar."""

_MILLION = 10**6
_MINUTE = 60 * _MILLION  # microseconds

STANDARD_TIERS = frozenset({"default", "standard", "on_demand", "batch"})
"""Service tiers at the price itself, whatever a provider calls them; `batch` has the price of the Batch API."""
AUTOMATIC_TIER = "auto"
"""The provider chooses the tier."""

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
    @property
    def service_tier(self) -> str | None: ...
    @property
    def cache_write_tokens(self) -> int | None: ...
    @property
    def hosted_calls(self) -> Sequence[tuple[str, int]]: ...
    @property
    def reported_usd(self) -> float | None: ...


class Tier(Struct, frozen=True):
    """The rates of every token of a request with more than `start` input tokens, in pico-dollars a million."""

    start: int
    input_per_million: int | None
    cached_input_per_million: int | None
    output_per_million: int | None
    cache_write_per_million: int | None


class Price(Struct, frozen=True):
    """What a model charges, in pico-dollars for each unit; None if a kind of usage has no known price."""

    input_per_million: int | None = None
    cached_input_per_million: int | None = None
    """None: cached tokens cost as much as all others."""
    output_per_million: int | None = None
    per_image: int | None = None
    audio_per_minute: int | None = None
    per_million_characters: int | None = None
    cache_write_per_million: int | None = None
    """Replaces the input rate for tokens that the provider writes to its cache."""
    tiers: tuple[Tier, ...] = ()
    """Rates of long requests, by rising start."""
    image_sizes: tuple[tuple[str, int], ...] = ()
    """("1024x1024", rate) or ("hd 1024x1024", rate), if images differ; per_image is the highest of them."""
    batch: "Price | None" = None
    """The published prices of the Batch API; None: half of these."""
    writes_cache_unasked: bool = False
    """Whether prompts of CACHED_FROM tokens and more are written to the cache, if a reply does not count that."""
    service_tiers: tuple[tuple[str, "Price"], ...] = ()
    """The price of each service tier besides the standard one."""
    requested_tier: str | None = None
    """The service tier that the requests name; None: the provider chooses."""
    per_call: tuple[tuple[str, int], ...] = ()
    """The price of a call of a hosted tool, by its type, such as `web_search`."""
    is_free: bool = False
    """Whether nothing is billed, tool calls included."""

    def __hash__(self) -> int:
        # Each exchange looks its price up in a cache; hashing all fields takes a microsecond.
        return hash((self.input_per_million, self.output_per_million, self.requested_tier))


FREE = Price(0, 0, 0, 0, 0, 0, is_free=True)
"""The price of a model that runs on this machine."""

Dollars = Annotated[float, Field(strict=True, ge=0, le=1e6, allow_inf_nan=False)]
Factor = Annotated[float, Field(strict=True, ge=0, le=1000, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1)]


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

    tiers: dict[Name, Factor] = Field(
        default_factory=dict,
        description="Service tier -> factor on every token price.",
        examples=[{"flex": 0.5, "priority": 2.0}],
    )
    per_call: dict[Name, Dollars] = Field(
        default_factory=dict,
        description="Hosted tool, by the type of its output item without `_call` -> USD a call.",
        examples=[{"web_search": 0.01, "file_search": 0.0025}],
    )

    @model_validator(mode="after")
    def _require_a_rate(self) -> Self:
        if all(rate is None or rate == {} for _, rate in self):
            raise FieldError("a price without a number", "name at least one, such as input_per_million")
        for tool in self.per_call:
            if tool.endswith("_call"):
                raise FieldError(f"per_call has {tool}", f"write {tool.removesuffix('_call')}, without _call")
        return self

    @property
    def has_no_rates(self) -> bool:
        """Whether it names nothing but tiers and calls."""
        return all(getattr(self, name) is None for name in _RATES)

    def price(self, published: Price | None = None) -> Price | None:
        """The same in pico-dollars; an entry without any rate adds to the published price."""
        base = published
        if not self.has_no_rates:
            rates = [getattr(self, name) for name in _RATES]
            given, cached, made, image, minute, characters = (
                None if rate is None else _dollars_to_pico(rate) for rate in rates
            )
            base = Price(given, cached, made, image, minute, characters)
        if base is None:
            return None
        tiers = dict(base.service_tiers)
        tiers |= {name: scaled_tokens(base, Fraction(repr(float(factor)))) for name, factor in self.tiers.items()}
        calls = dict(base.per_call) | {name: _dollars_to_pico(rate) for name, rate in self.per_call.items()}
        return replace(base, service_tiers=tuple(tiers.items()), per_call=tuple(calls.items()))


_RATES = (
    "input_per_million",
    "cached_input_per_million",
    "output_per_million",
    "per_image",
    "audio_per_minute",
    "per_million_characters",
)


def _dollars_to_pico(dollars: float) -> int:
    return pico_dollars(Decimal(repr(float(dollars))))


def batch_price(price: Price) -> Price:
    """Return the price of the Batch API: the published one, else half of every rate. It has no service tiers."""
    if price.batch is not None:
        return replace(price.batch, per_call=price.per_call)
    half = Fraction(1, 2)
    return replace(
        scaled_tokens(price, half),
        per_image=_scaled(price.per_image, half),
        audio_per_minute=_scaled(price.audio_per_minute, half),
        per_million_characters=_scaled(price.per_million_characters, half),
        image_sizes=tuple((size, -(-rate // 2)) for size, rate in price.image_sizes),
    )


def scaled_tokens(price: Price, factor: Fraction) -> Price:
    """Return the price with a factor on every token rate, and without service tiers."""
    return replace(
        price,
        input_per_million=_scaled(price.input_per_million, factor),
        cached_input_per_million=_scaled(price.cached_input_per_million, factor),
        output_per_million=_scaled(price.output_per_million, factor),
        cache_write_per_million=_scaled(price.cache_write_per_million, factor),
        tiers=tuple(Tier(tier.start, *(_scaled(rate, factor) for rate in astuple(tier)[1:])) for tier in price.tiers),
        service_tiers=(),
        requested_tier=None,
    )


@lru_cache(maxsize=1024)
def tier_price(price: Price, tier: str | None) -> Price | None:
    """Return the price of the service tier that a reply names; None if it is unknown.

    A reply without a tier was served by the one that the request names, else by the standard one.
    """
    name = (tier or price.requested_tier or AUTOMATIC_TIER).lower()
    known = {each.lower(): at_tier for each, at_tier in price.service_tiers}
    if name in known:
        return known[name]
    is_standard = name in STANDARD_TIERS or (tier is None and name == AUTOMATIC_TIER)
    return price if is_standard else None


@lru_cache(maxsize=1024)
def possible_prices(price: Price) -> tuple[Price, ...]:
    """Return the prices at which a request may be billed, one for each service tier that may serve it."""
    if price.requested_tier not in (None, AUTOMATIC_TIER) and (
        (named := tier_price(price, price.requested_tier)) is not None
    ):
        return (named,)
    return (price, *(at_tier for _, at_tier in price.service_tiers))


def image_price(price: Price, size: str | None = None, quality: str | None = None) -> Price:
    """Return the price for images of one size and quality (None: the default); the highest for unlisted sizes."""
    name = size or "1024x1024"
    rate = dict(price.image_sizes).get(f"hd {name}" if quality == "hd" else name)
    return price if rate is None else replace(price, per_image=rate, image_sizes=())


def cost(price: Price | None, usage: BilledUsage) -> int | None:
    """Return the cost of an exchange in pico-dollars; None if a kind of its usage has no price, or none was counted.

    A service tier without a price costs as much as the most expensive one that may serve the request. If the reply
    states a cost, the exchange costs no less.
    """
    computed = _cost_at_tier(price, usage)
    if computed is not None and price is not None and usage.hosted_calls and not price.is_free:
        rates = dict(price.per_call)
        of_calls = [rates[kind] * count for kind, count in usage.hosted_calls if kind in rates]
        computed = computed + sum(of_calls) if len(of_calls) == len(usage.hosted_calls) else None
    if usage.reported_usd:
        return max(_dollars_to_pico(usage.reported_usd), computed or 0)
    return computed


def _cost_at_tier(price: Price | None, usage: BilledUsage) -> int | None:
    if price is None or (not price.service_tiers and price.requested_tier is None and usage.service_tier is None):
        return _usage_cost(price, usage)
    if (at_tier := tier_price(price, usage.service_tier)) is not None:
        return _usage_cost(at_tier, usage)
    costs = [_usage_cost(each, usage) for each in possible_prices(price)]
    return None if None in costs else max(each for each in costs if each is not None)


def _usage_cost(price: Price | None, usage: BilledUsage) -> int | None:
    """Return the cost of everything but tool calls at the price of one service tier.

    Tokens, images, characters and audio may measure the same thing: if only tokens have a price and tokens were
    counted, the rest is not charged again, and vice versa. OpenAI writes prompts of at least 1,024 tokens into its
    cache unasked; if that has a separate rate, it applies to all tokens that were not read from the cache, unless the
    reply counts those that were written.
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
            fresh, writes = read - cached, usage.cache_write_tokens
            if (write_rate := rates.cache_write_per_million) is not None:
                if writes is None:
                    writes = fresh if price.writes_cache_unasked and read >= CACHED_FROM else 0
                writes = min(writes, fresh)
                tokens += writes * (write_rate - rate)
            tokens += fresh * rate
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
    hosted_tools: Iterable[str] = (),
    max_tool_calls: int = 0,
) -> int | None:
    """Return the maximum cost of a request in pico-dollars; None if the price or a bound is not known.

    It assumes the most expensive service tier that may serve the request, that no token is read from the cache, that
    every token is written to a cache that charges for it, and that each of `max_tool_calls` calls is one of the most
    expensive hosted tool. A tier of long requests applies from half its start, since the provider may count more
    tokens than Rowmill.
    """
    if price is None:
        return None
    calls = [0 if price.is_free else dict(price.per_call).get(tool) for tool in hosted_tools]
    of_calls = max_tool_calls * max((rate for rate in calls if rate is not None), default=0)
    highest = 0
    for at_tier in (price,) if not price.service_tiers else possible_prices(price):
        at_most = _max_cost(at_tier, input_tokens, output_bound, audio_seconds, characters, images)
        if at_most is None or None in calls:
            return None
        highest = max(highest, at_most + of_calls)
    return highest


@lru_cache(maxsize=1024)
def most_token_rates(price: Price, has_output: bool = True) -> tuple[tuple[int, int], ...] | None:
    """Return (input, output) rates a million tokens whose highest sum is `max_cost` of a request of nothing but tokens.

    None if the rates depend on the request, or one of them is unknown. `has_output`: whether output can be billed.
    """
    found: list[tuple[int, int]] = []
    for each in possible_prices(price):
        made = each.output_per_million if has_output else 0
        if each.tiers or each.input_per_million is None or made is None:
            return None
        given = max(each.input_per_million, each.cached_input_per_million or 0, each.cache_write_per_million or 0)
        found.append((given, made))
    return tuple(
        one
        for one in dict.fromkeys(found)
        if not any(other != one and other[0] >= one[0] and other[1] >= one[1] for other in found)
    )


def tokens_cost(rates: Sequence[tuple[int, int]], inputs: int, outputs: int) -> int:
    """Return the most that so many tokens cost at one of these (input, output) rates, in pico-dollars."""
    return -(-max(inputs * given + outputs * made for given, made in rates) // _MILLION)


def _max_cost(
    price: Price,
    input_tokens: int,
    output_bound: int | None,
    audio_seconds: float | None,
    characters: int | None,
    images: int | None,
) -> int | None:
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


def _scaled(rate: int | None, factor: Fraction) -> int | None:
    return None if rate is None else ceil(rate * factor)


def pico_dollars(dollars: Decimal) -> int:
    """Convert dollars, rounded up."""
    return int((dollars * PICO).to_integral_value(ROUND_CEILING))
