"""Interpretation of replies: what an exchange came to, what it cost, and what the ledger stores of it."""

from collections.abc import Sequence

import orjson
from msgspec import Struct
from msgspec.structs import replace

from connectors.contracts import Endpoint, MalformedReply
from connectors.error_classes import ROW_ERROR_CLASSES, ErrorClass
from connectors.records import NO_USAGE, Reply, RowError, Usage, Values
from connectors.transport.bounded_json import parse_json
from connectors.transport.client import RequestError
from connectors.transport.error_replies import request_id, row_error
from connectors.transport.reply_body import has_answer, web_page
from connectors.transport.retry_after import retry_after_of
from connectors.transport.token_usage import token_usage
from pipelines.dispatch.request_types import RequestGroup, Route
from pipelines.ledger.entries import AnswerRecord, PendingExchange, SettledExchange, UnverifiedAnswer
from pipelines.pricing.prices import Price, cost, tier_price


class ExchangeOutcome(Struct):
    """What an exchange came to: an answer for each request, or one error for all of them.

    The error's class may still change, until it is known whose fault it is.
    """

    answers: Sequence[bytes | RowError | None]
    """One for each request of the group, in order; empty with `error`. None: the row of a pack without an answer."""
    error: RowError | None
    usage: Usage
    reply: Reply | None
    """None if no complete reply arrived: then `failure` says why."""
    failure: RequestError | None = None
    values: Sequence[Values | None] = ()
    """Of the answers, if they were read already; empty otherwise."""

    def retry_after(self, now: float) -> float | None:
        """Return the seconds after which the provider wants to be asked again; `now`: seconds since 1970."""
        return None if self.reply is None or self.error is None else retry_after_of(self.reply, now)

    @property
    def has_found_no_server(self) -> bool:
        """Whether the request cannot have reached a server."""
        failure = self.failure
        return failure is not None and failure.error_class == "connection" and not failure.is_billable


SMALL_ANSWER_BYTES = 4096
"""Up to this size an answer and its values wait together until its chunk is read."""

_UNSERVED: frozenset[ErrorClass] = frozenset({"rate_limit", "quota", "access_denied", "setup"})
"""Classes of requests that no model has read; what their replies call usage is that of the account."""

_REFUSALS: frozenset[ErrorClass] = _UNSERVED | {"bad_request"}
"""Classes of requests that were not served: without an answer they cost nothing, whatever the status is."""

_SCHEMA_REFUSALS = (400, 404, 422)
"""Statuses by which providers refuse a schema."""


def interpret(
    group: RequestGroup,
    reply: Reply | None,
    failure: RequestError | None,
    longest_hold: float = 0.0,
    now: float = 0.0,
) -> ExchangeOutcome:
    """Return what a reply, or the failure to get one, means for the requests of a group.

    `longest_hold`: seconds; a quota that is there again within this time is a rate limit. `now`: seconds since 1970.
    """
    outcome = _interpret(group, reply, failure)
    error = outcome.error
    if error is not None and error.error_class == "quota":
        wait = outcome.retry_after(now)
        if wait is not None and wait <= longest_hold:
            outcome.error = replace(error, error_class="rate_limit")
    if error is not None and error.error_class == "setup" and error.http_status in _SCHEMA_REFUSALS:
        # "Model x is not supported for structured outputs" denies the schema, not the model.
        refusal = replace(error, error_class="bad_request")
        if group.route.endpoint.fallback_mode(refusal) is not None:
            return replace(outcome, error=refusal)
    return outcome


def _interpret(group: RequestGroup, reply: Reply | None, failure: RequestError | None) -> ExchangeOutcome:
    if reply is None:
        assert failure is not None
        return ExchangeOutcome((), RowError(failure.error_class, str(failure)), NO_USAGE, None, failure)
    if not 200 <= reply.status < 300:
        error = row_error(reply)
        return ExchangeOutcome((), error, _usage_of_failure(reply, error), reply)
    if (page := web_page(reply)) is not None:
        return ExchangeOutcome((), page, NO_USAGE, reply)
    requests = group.requests
    endpoint, packing = group.route.endpoint, group.route.packing if group.is_packed else None
    try:
        if packing is None:
            single = _without_secrets(endpoint.answers(requests, reply), reply)
            usage = endpoint.usage(requests, reply)
            return ExchangeOutcome(single, None, usage, reply, values=_small_values(endpoint, single))
        found = packing.answers(requests, reply)
        answers = [None if one is None else one[0] for one in found]
        values = [None if one is None else one[1] for one in found]
        return ExchangeOutcome(answers, None, packing.usage(requests, reply), reply, values=values)
    except MalformedReply as exc:
        error = exc.error or RowError("malformed_reply", str(exc), reply.status, request_id=request_id(reply.headers))
        return ExchangeOutcome((), error, exc.usage, reply)


def _without_secrets(answers: Sequence[bytes | RowError], reply: Reply) -> Sequence[bytes | RowError]:
    """Return the answers of a reply without the secrets that its stream has split among events."""
    mask = reply.mask
    if mask is None:
        return answers
    return [
        replace(answer, message=mask(answer.message.encode()).decode())
        if isinstance(answer, RowError)
        else mask(answer)
        for answer in answers
    ]


def _usage_of_failure(reply: Reply, error: RowError) -> Usage:
    """Return the usage that an error reply states: some providers bill an answer that they then refuse to hand out."""
    if error.error_class in _UNSERVED or b'"usage"' not in reply.body:
        return NO_USAGE
    try:
        body = parse_json(reply.body)
    except orjson.JSONDecodeError:
        return NO_USAGE
    usage = token_usage(body, None) if isinstance(body, dict) else NO_USAGE
    return NO_USAGE if usage.input_tokens is None else usage


def _small_values(endpoint: Endpoint, answers: Sequence[bytes | RowError]) -> Sequence[Values | None]:
    """Return the values of a small answer, which is parsed at this moment; empty if they are to be read later."""
    if not endpoint.has_small_values or len(answers) != 1:
        return ()
    (answer,) = answers
    if isinstance(answer, RowError) or len(answer) > SMALL_ANSWER_BYTES:
        return ()
    values = endpoint.values(answer)
    return () if isinstance(values, RowError) else (values,)


def charged_cost(price: Price | None, outcome: ExchangeOutcome, max_cost: int | None) -> int | None:
    """Return what the exchange cost, in pico-dollars; its maximum if the provider may have billed an unseen answer."""
    if outcome.failure is not None:
        return max_cost if outcome.failure.is_billable else 0
    if outcome.reply is not None and outcome.reply.status >= 300 and outcome.usage is NO_USAGE:
        return 0
    if (
        outcome.error is not None
        and outcome.error.error_class in _REFUSALS
        and outcome.usage.input_tokens is None
        and outcome.reply is not None
        and not has_answer(outcome.reply.body)
    ):
        return 0
    if outcome.error is not None and outcome.usage is NO_USAGE:
        return max_cost
    # A reply without usage is not free, nor is one whose counts are all zero.
    charged = None if outcome.error is None and outcome.usage.is_all_zero else cost(price, outcome.usage)
    if charged is None and price is not None:
        return 0 if price.is_free else max_cost
    return charged


def billing_note(route: Route, outcome: ExchangeOutcome) -> str | None:
    """Return why an exchange costs what was reserved for it although its reply has usage; None if it does not."""
    price, usage, provider = route.price, outcome.usage, route.provider
    if price is None or price.is_free:
        return None
    if (tier := usage.service_tier) is not None and tier_price(price, tier) is None:
        model = provider.sent_model(route.model)
        return (
            f"no price is known for the service tier {tier} of {model}: counted as it was reserved; "
            f"add tiers: {{{tier}: FACTOR}} to its `prices:` in rowmill.yaml"
        )
    if outcome.error is None and usage.is_all_zero:
        model = provider.sent_model(route.model)
        return f"{provider.name} reports 0 tokens for answers of {model}: they count at their maximum cost"
    return None


def excess_note(route: Route) -> str:
    """Return what follows from a reply that has cost more than was reserved for it."""
    return (
        f"{route.provider.name} bills more for answers of {route.provider.sent_model(route.model)} than their worst "
        "case: requests reserve more since then, and those in flight may have led above the budget; "
        "does it ignore `max_tokens`?"
    )


def settled_exchange(
    pending: PendingExchange,
    outcome: ExchangeOutcome,
    charged: int | None,
    answers: Sequence[AnswerRecord],
    unverified: Sequence[UnverifiedAnswer] = (),
) -> SettledExchange:
    """Return what the ledger records of an exchange that has ended.

    `charged`: its cost in pico-dollars; `answers`: what is stored for good with it; `unverified`: the packed answers
    that begin or end to wait for single ones.
    """
    reply, failure, error = outcome.reply, outcome.failure, outcome.error
    return SettledExchange(
        pending.exchange_id, pending.route_id, pending.attempt, pending.keys, pending.fingerprints, pending.started_at,
        http_status=None if reply is None else reply.status,
        error_class=None if error is None else error.error_class,
        usage=outcome.usage,
        cost=charged,
        reserved=pending.max_cost or 0,
        latency_ms=reply.latency_ms if reply is not None else failure.latency_ms if failure else None,
        first_token_ms=None if reply is None else reply.first_token_ms,
        request_id=None if reply is None else request_id(reply.headers),
        message=None if error is None else error.message,
        answers=answers,
        unverified=unverified,
    )  # fmt: skip


def ledger_answers(group: RequestGroup, outcome: ExchangeOutcome) -> tuple[AnswerRecord, ...]:
    """Return what the ledger stores for good: answers, and errors that the row itself causes."""
    error, requests = outcome.error, group.requests
    if error is not None:
        # In a group it is not known yet which request causes the error.
        is_of_row = len(requests) == 1 and error.error_class in ROW_ERROR_CLASSES
        return ((requests[0].fingerprint, requests[0].body, None, error),) if is_of_row else ()
    if len(requests) == 1 and isinstance(answer := outcome.answers[0], bytes):
        return ((requests[0].fingerprint, requests[0].body, answer, None),)
    records: list[AnswerRecord] = [
        (request.fingerprint, request.body, None, answer)
        if isinstance(answer, RowError)
        else (request.fingerprint, request.body, answer, None)
        for request, answer in zip(requests, outcome.answers, strict=True)
        if answer is not None
    ]
    return tuple(records)
