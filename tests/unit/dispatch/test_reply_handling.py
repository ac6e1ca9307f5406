"""Interpretation of replies: outcome, cost, and what the ledger records."""

from typing import Any

import pytest

from connectors.contracts import MalformedReply
from connectors.records import NO_USAGE, Reply, RowError, Usage
from connectors.transport.client import RequestError
from pipelines.dispatch.reply_handling import (
    ExchangeOutcome,
    charged_cost,
    interpret,
    ledger_answers,
    settled_exchange,
)
from pipelines.dispatch.request_types import RequestGroup
from pipelines.ledger.entries import PendingExchange, SettledExchange
from pipelines.pricing.prices import FREE, Price
from tests.unit.dispatch.conftest import make_requests, make_route

PRICE = Price(input_per_million=1_000_000, output_per_million=2_000_000)
DISCONNECTED = RequestError("connection", "connection lost", 12.0, True)
BEGUN = b'data: {"choices":[{"delta":{"content":"Hel"}}]}\n\ndata: {"error": "slow down"}\n\n'
UNSENT = RequestError("connection", "connection refused", 3.0, False)


def group_of(requests: int) -> RequestGroup:
    return RequestGroup(make_route(), tuple(make_requests(requests)))


def reply_of(status: int, body: bytes = b"{}", **headers: str) -> Reply:
    return Reply(status, {name.replace("_", "-"): value for name, value in headers.items()}, body, 8.0)


def test_an_answer_is_what_the_endpoint_reads() -> None:
    reply = reply_of(200, b"hello")
    assert interpret(group_of(2), reply, None) == ExchangeOutcome([b"hello", b"hello"], None, NO_USAGE, reply)


def test_a_failure_is_an_error_of_the_whole_exchange() -> None:
    outcome = interpret(group_of(1), None, DISCONNECTED)
    assert outcome == ExchangeOutcome((), RowError("connection", "connection lost"), NO_USAGE, None, DISCONNECTED)
    assert not outcome.has_found_no_server
    assert interpret(group_of(1), None, UNSENT).has_found_no_server
    assert outcome.retry_after(0.0) is None


def test_an_error_reply_is_an_error_of_the_whole_exchange() -> None:
    outcome = interpret(group_of(1), reply_of(429, retry_after="7"), None)
    assert outcome.error is not None
    assert (outcome.error.error_class, outcome.error.http_status) == ("rate_limit", 429)
    assert outcome.retry_after(0.0) == 7.0


@pytest.mark.parametrize(
    ("status", "code", "cost"),
    [(400, "json_validate_failed", 20), (500, "server_error", 20), (429, "rate_limit_exceeded", 0)],
)
def test_an_error_reply_that_states_usage_costs_that_unless_no_model_has_read_the_request(
    status: int, code: str, cost: int
) -> None:
    usage = b'"usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}'
    outcome = interpret(group_of(1), reply_of(status, b'{"error": {"code": "%s"}, %s}' % (code.encode(), usage)), None)
    assert charged_cost(PRICE, outcome, 99) == cost
    assert outcome.usage.output_tokens == (5 if cost else None)


@pytest.mark.parametrize(("status", "error_class"), [(404, "bad_request"), (400, "bad_request"), (409, "setup")])
def test_a_refused_schema_is_no_fault_of_the_set_up(
    status: int, error_class: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = b'{"error": {"message": "model m is not supported for json_schema", "code": "model_not_found"}}'
    group = group_of(1)
    assert interpret(group, reply_of(status, words), None).error == RowError(
        "setup", "model m is not supported for json_schema", status, code="model_not_found"
    )
    monkeypatch.setattr(group.route.endpoint, "fallback_mode", lambda problem: "json_object")
    error = interpret(group, reply_of(status, words), None).error
    assert error is not None
    assert error.error_class == error_class


@pytest.mark.parametrize("own", [None, RowError("quota", "no money")])
def test_a_reply_that_the_api_does_not_describe_is_malformed_or_the_error_that_it_holds(
    own: RowError | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(*arguments: object) -> Any:
        raise MalformedReply("no choices", own)

    group = group_of(1)
    monkeypatch.setattr(group.route.endpoint, "answers", answers)
    outcome = interpret(group, reply_of(200, x_request_id="r1"), None)
    assert outcome.error == (own or RowError("malformed_reply", "no choices", 200, request_id="r1"))


@pytest.mark.parametrize("page", [b"<!doctype html><p>Gateway", b"\n<HTML><body>", b"<!-- x -->\n<!DOCTYPE HTML>"])
def test_a_web_page_is_no_answer_but_a_fault_of_the_set_up(page: bytes) -> None:
    error = RowError("setup", "the reply is a web page, not an answer", 200)
    assert interpret(group_of(1), reply_of(200, page), None).error == error
    assert interpret(group_of(1), reply_of(200, b"<p>hello"), None).error is None


@pytest.mark.parametrize(
    ("outcome", "price", "cost"),
    [
        (ExchangeOutcome([b""], None, Usage(10, 0, 5), reply_of(200)), PRICE, 20),
        (ExchangeOutcome([b""], None, Usage(10, 0, 5), reply_of(200)), None, None),
        (ExchangeOutcome([b""], None, NO_USAGE, reply_of(200)), PRICE, 99),
        (ExchangeOutcome((), RowError("malformed_reply", ""), NO_USAGE, reply_of(200)), None, 99),
        (ExchangeOutcome((), RowError("server", ""), NO_USAGE, reply_of(503)), PRICE, 0),
        (ExchangeOutcome((), RowError("rate_limit", ""), NO_USAGE, reply_of(200, b'{"choices": null}')), PRICE, 0),
        (ExchangeOutcome((), RowError("rate_limit", ""), NO_USAGE, reply_of(200, BEGUN)), PRICE, 99),
        (ExchangeOutcome((), RowError("quota", ""), Usage(10, 0, 0), reply_of(200)), PRICE, 10),
        (ExchangeOutcome((), RowError("server", ""), Usage(), reply_of(200)), PRICE, 99),
        (ExchangeOutcome((b"{}",), None, Usage(0, 0, 0), reply_of(200)), PRICE, 99),
        (ExchangeOutcome((b"{}",), None, Usage(0, 0, 0), reply_of(200)), FREE, 0),
        (ExchangeOutcome((b"{}",), None, Usage(0, 0, 0, reported_usd=0.0), reply_of(200)), PRICE, 0),
        (ExchangeOutcome((), RowError("server", ""), Usage(0, 0, 0), reply_of(200)), PRICE, 0),
        (ExchangeOutcome((), RowError("connection", ""), NO_USAGE, None, DISCONNECTED), PRICE, 99),
        (ExchangeOutcome((), RowError("connection", ""), NO_USAGE, None, UNSENT), PRICE, 0),
    ],
    ids=[
        "usage",
        "no price",
        "no usage",
        "malformed",
        "error reply",
        "refused with 200",
        "refused in the middle of an answer",
        "refused with usage",
        "failed with 200",
        "counts of zero",
        "counts of zero of a free model",
        "counts and a cost of zero",
        "failed with counts of zero",
        "billable failure",
        "not sent",
    ],
)
def test_an_exchange_costs_its_usage_or_its_maximum_if_the_provider_may_have_billed_more(
    outcome: ExchangeOutcome, price: Price | None, cost: int | None
) -> None:
    assert charged_cost(price, outcome, 99) == cost


def test_only_errors_of_a_single_row_and_answers_are_stored() -> None:
    one, two = group_of(1), group_of(2)
    refused = RowError("bad_request", "no")
    assert ledger_answers(one, ExchangeOutcome((), refused, NO_USAGE, None)) == (
        (one.requests[0].fingerprint, b"0", None, refused),
    )
    assert ledger_answers(two, ExchangeOutcome((), refused, NO_USAGE, None)) == ()
    assert ledger_answers(one, ExchangeOutcome((), RowError("server", "down"), NO_USAGE, None)) == ()
    assert ledger_answers(two, ExchangeOutcome([b"yes", refused], None, NO_USAGE, None)) == (
        (two.requests[0].fingerprint, b"0", b"yes", None),
        (two.requests[1].fingerprint, b"1", None, refused),
    )


def test_the_settled_exchange_has_the_numbers_of_the_pending_one_and_the_details_of_the_reply() -> None:
    pending = PendingExchange(7, 3, 2, b'["0"]', b"f" * 16, 17, 500)
    group = group_of(1)
    outcome = interpret(group, reply_of(200, b"hello", x_request_id="r1"), None)
    answers = ledger_answers(group, outcome)
    assert settled_exchange(pending, outcome, 120, answers) == SettledExchange(
        7, 3, 2, b'["0"]', b"f" * 16, 17, http_status=200, cost=120, reserved=500, latency_ms=8.0, request_id="r1",
        answers=((group.requests[0].fingerprint, b"0", b"hello", None),),
    )  # fmt: skip
    failed = settled_exchange(pending, interpret(group, None, DISCONNECTED), 500, ())
    assert (failed.http_status, failed.error_class, failed.message, failed.latency_ms) == (
        None, "connection", "connection lost", 12.0,
    )  # fmt: skip
