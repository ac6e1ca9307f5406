"""Cost estimates: lowest, expected and highest cost, summed request by request."""

from collections.abc import Mapping
from enum import Enum
from math import floor
from typing import Self

import orjson
from msgspec import Struct
from msgspec.structs import replace

from connectors.records import BillingTerms, Request, Usage
from connectors.tokens import count_tokens, has_known_tokenizer
from pipelines.config.batch_rules import BATCH_ENDPOINTS
from pipelines.dispatch.provider_routes import TEXT_BYTES, step_price, uncounted_input_tokens
from pipelines.planning.answer_estimates import AnswerEstimate
from pipelines.preparation.prepared_job import PreparedJob, PreparedStep
from pipelines.pricing.prices import CACHED_FROM, Price, batch_price, cost, max_cost

EXACT_COUNT_MARGIN = 1.1
"""Margin over an exact count, since providers count schemas, tools and message framing in their own ways."""
FRAME_TOKENS = 16
LESS_IF_EXACT = 0.9
LESS_IF_ESTIMATED = 0.5
REPAIR_TOKENS = 200
"""Tokens of the instruction in a repair turn."""


class WhenResult(Enum):
    """Whether a row passes the `when` of a step."""

    YES = "yes"
    PERHAPS = "perhaps"
    """Unknown before the run; counted in the expected cost."""
    NO = "no"
    """Unknown before the run; counted only in the highest cost."""


class Rates(Struct, frozen=True):
    """The prices of a step's model, and whether its tokens are counted exactly."""

    model: str
    price: Price | None
    """None if the price is unknown."""
    batch_price: Price | None
    """None if the Batch API does not support the endpoint, or no price is known."""
    is_exact: bool
    terms: BillingTerms
    """Hosted tools, and the service tier that the requests name."""
    repairs: int
    """Repair turns that an answer may take, each of which costs another request."""

    @classmethod
    def of(cls, ready: PreparedJob, step: PreparedStep) -> Self:
        """The rates of one step."""
        price = step_price(ready.workspace, step)
        return cls(
            step.context.sent_model(step.model.model),
            price,
            batch_price(price) if price is not None and step.model.endpoint in BATCH_ENDPOINTS else None,
            has_known_tokenizer(step.context.sent_model(step.model.model)),
            step.endpoint.billing_terms,
            step.repairs if step.model.check or isinstance(getattr(step.model, "output", None), Mapping) else 0,
        )


class CostEstimate(Struct):
    """The sums over a step's requests; money in pico-dollars, None if unknown."""

    rates: Rates
    input_tokens: int = 0
    output_tokens: float = 0.0
    audio_seconds: float = 0.0
    characters: int = 0
    images: int = 0
    overhead_tokens: int | None = None
    """Tokens of schemas and tools in each request, which not every provider bills; None before the first request."""
    low: int | None = 0
    expected: int | None = 0
    high: int | None = 0
    batch: int | None = 0

    def add_request(self, request: Request, likely: AnswerEstimate, passes: WhenResult) -> None:
        """Add one request."""
        self.add_highest(request)
        self.add_expected(request, likely, passes)

    def add_highest(self, request: Request, has_repairs: bool = True) -> None:
        """Add a request that may be sent to the highest cost; `has_repairs`: its repair turns, too."""
        self.high = _sum_or_none(self.high, self._highest_cost(request, self.rates.repairs if has_repairs else 0))

    def add_expected(self, request: Request, likely: AnswerEstimate, passes: WhenResult) -> None:
        """Add a request to all but the highest cost."""
        if passes is WhenResult.NO:
            return
        self.input_tokens += request.input_tokens
        self.output_tokens += likely.expected_tokens
        self.audio_seconds += request.audio_seconds or 0
        self.characters += request.characters or 0
        self.images += request.images or 0
        usual = _usage(request, request.input_tokens, round(likely.expected_tokens), cached=False)
        self.expected = _sum_or_none(self.expected, cost(self.rates.price, usual))
        self.batch = _sum_or_none(self.batch, cost(self.rates.batch_price, usual))
        if passes is WhenResult.YES:
            if self.overhead_tokens is None:
                self.overhead_tokens = _count_overhead_tokens(request, self.rates.model)
            share = LESS_IF_EXACT if self.rates.is_exact else LESS_IF_ESTIMATED
            given = max(0, int((request.input_tokens - self.overhead_tokens) * share))
            least = _usage(request, given, int(likely.min_tokens), cached=True)
            if least.audio_seconds is not None:
                # Some providers bill audio to the nearest second.
                least = replace(least, audio_seconds=float(floor(least.audio_seconds)))
            self.low = _sum_or_none(self.low, cost(self.rates.price, least))

    def _highest_cost(self, request: Request, repairs: int) -> int | None:
        """The cost of the longest answer and of the repair turns that may follow."""
        tokens = request.input_tokens
        if self.rates.is_exact or len(request.body) > TEXT_BYTES:
            tokens = round(tokens * EXACT_COUNT_MARGIN) + (FRAME_TOKENS if request.output_bound != 0 else 0)
        else:
            tokens = max(tokens, len(request.body))
        bound, terms, price = request.output_bound, self.rates.terms, self.rates.price
        if (terms.hosted_tools or terms.has_documents) and price is not None and not price.is_free:
            turns_tokens = uncounted_input_tokens(terms, self.rates.model)
            if turns_tokens is None:
                return None
            tokens = max(tokens, turns_tokens)
        once = max_cost(
            price,
            tokens if request.input_tokens else 0,
            bound,
            audio_seconds=request.audio_seconds,
            characters=request.characters,
            images=request.images,
            hosted_tools=terms.hosted_tools,
            max_tool_calls=terms.max_tool_calls or 0,
        )
        if bound is None:
            return once
        highest = once
        for turn in range(1, repairs + 1):
            again = max_cost(self.rates.price, tokens + turn * (bound + REPAIR_TOKENS), bound)
            highest = _sum_or_none(highest, again)
        return highest


def _count_overhead_tokens(request: Request, model: str) -> int:
    if not request.input_tokens:
        return 0
    body = orjson.loads(request.body)
    parts = [body[key] for key in ("tools", "response_format", "text") if body.get(key)]
    return sum(count_tokens(orjson.dumps(one).decode(), model) for one in parts)


def _usage(request: Request, given: int, made: int, *, cached: bool) -> Usage:
    return Usage(
        input_tokens=given,
        cached_tokens=given if cached and given >= CACHED_FROM else 0,
        output_tokens=made,
        audio_seconds=request.audio_seconds,
        characters=request.characters,
        images=request.images,
    )


def _sum_or_none(so_far: int | None, more: int | None) -> int | None:
    return None if so_far is None or more is None else so_far + more
