"""What requests will cost: at least, as expected and at most, added up request by request."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from math import floor
from typing import Self

import orjson

from connectors.records import Request, Usage
from connectors.tokens import count_tokens, has_known_tokenizer
from pipelines.config.batch_rules import BATCHED
from pipelines.dispatch.provider_routes import TEXT_BYTES, step_price
from pipelines.planning.answer_estimates import Likely
from pipelines.preparation.prepared_job import PreparedJob, PreparedStep
from pipelines.pricing.prices import CACHED_FROM, Price, batch_price, cost, max_cost

MORE_IF_EXACT = 1.1
"""A provider counts schemas, tools and what frames a dialogue in ways of its own: so much more than was counted."""
FRAME_TOKENS = 16
LESS_IF_EXACT = 0.9
LESS_IF_ESTIMATED = 0.5
MENDING_TOKENS = 200
"""The words that ask to mend an answer."""


class Passes(Enum):
    """Whether a row gets to a step."""

    YES = "yes"
    PERHAPS = "perhaps"
    """Only the run will tell; taken as expected."""
    NO = "no"
    """Only the run will tell; taken as not expected."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What a step's model charges, and how well its tokens are counted here."""

    model: str
    price: Price | None
    """None: nobody knows."""
    by_batch: Price | None
    """None: the Batch API does not take the endpoint, or no price is known."""
    exact: bool
    mends: bool
    """Whether an answer that does not fit is asked to be mended, which costs another turn."""

    @classmethod
    def of(cls, ready: PreparedJob, step: PreparedStep) -> Self:
        """The rates of one step."""
        price = step_price(ready, step)
        return cls(
            step.model.model,
            price,
            batch_price(price) if price is not None and step.model.endpoint in BATCHED else None,
            has_known_tokenizer(step.model.model),
            isinstance(getattr(step.model, "output", None), Mapping),
        )


@dataclass(slots=True)
class Bill:
    """The sums over a step's requests; money in pico-dollars, None where it is not known."""

    rates: Rates
    input_tokens: int = 0
    output_tokens: float = 0.0
    audio_seconds: float = 0.0
    characters: int = 0
    images: int = 0
    framed: int | None = None
    """Tokens of schemas and tools in each request, which not every provider bills; None: not looked at yet."""
    low: int | None = 0
    expected: int | None = 0
    high: int | None = 0
    batch: int | None = 0

    def add(self, request: Request, likely: Likely, passes: Passes) -> None:
        """One request more."""
        self.high = _plus(self.high, self._most(request))
        if passes is Passes.NO:
            return
        self.input_tokens += request.input_tokens
        self.output_tokens += likely.usual
        self.audio_seconds += request.audio_seconds or 0
        self.characters += request.characters or 0
        self.images += request.images or 0
        usual = _usage(request, request.input_tokens, round(likely.usual), cached=False)
        self.expected = _plus(self.expected, cost(self.rates.price, usual))
        self.batch = _plus(self.batch, cost(self.rates.by_batch, usual))
        if passes is Passes.YES:
            if self.framed is None:
                self.framed = _framed(request, self.rates.model)
            share = LESS_IF_EXACT if self.rates.exact else LESS_IF_ESTIMATED
            given = max(0, int((request.input_tokens - self.framed) * share))
            least = _usage(request, given, int(likely.fewest), cached=True)
            if least.audio_seconds is not None:
                # Some bill sound to the nearest second.
                least = replace(least, audio_seconds=float(floor(least.audio_seconds)))
            self.low = _plus(self.low, cost(self.rates.price, least))

    def _most(self, request: Request) -> int | None:
        """Its answer as long as it may be and, where it has a type, asked to be mended once."""
        tokens = request.input_tokens
        if self.rates.exact or len(request.body) > TEXT_BYTES:
            tokens = round(tokens * MORE_IF_EXACT) + (FRAME_TOKENS if request.output_bound != 0 else 0)
        else:
            tokens = max(tokens, len(request.body))
        bound = request.output_bound
        once = max_cost(
            self.rates.price,
            tokens if request.input_tokens else 0,
            bound,
            audio_seconds=request.audio_seconds,
            characters=request.characters,
            images=request.images,
        )
        if not self.rates.mends or bound is None:
            return once
        return _plus(once, max_cost(self.rates.price, tokens + bound + MENDING_TOKENS, bound))


def _framed(request: Request, model: str) -> int:
    if not request.input_tokens:
        return 0
    body = orjson.loads(request.body)
    told = [body[key] for key in ("tools", "response_format", "text") if body.get(key)]
    return sum(count_tokens(orjson.dumps(one).decode(), model) for one in told)


def _usage(request: Request, given: int, made: int, *, cached: bool) -> Usage:
    return Usage(
        input_tokens=given,
        cached_tokens=given if cached and given >= CACHED_FROM else 0,
        output_tokens=made,
        audio_seconds=request.audio_seconds,
        characters=request.characters,
        images=request.images,
    )


def _plus(so_far: int | None, more: int | None) -> int | None:
    return None if so_far is None or more is None else so_far + more
