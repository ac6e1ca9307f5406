"""Error replies, Retry-After and rate-limit headers."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.records import Reply, RowError
from connectors.transport.error_replies import (
    NO_RATE_HEADERS,
    RateHeaders,
    is_error_body,
    parse_rate_headers,
    row_error,
)
from connectors.transport.retry_after import retry_after_seconds


def error_of(status: int, body: Any, **headers: str) -> RowError:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return row_error(Reply(status, {name.replace("_", "-"): value for name, value in headers.items()}, raw, 1.0))


def error(message: str = "no", **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None, **more}}


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, None, "bad_request"),
        (400, "context_length_exceeded", "bad_request"),
        (400, "content_filter", "content_filter"),
        (400, "content_policy_violation", "content_filter"),
        (400, "ResponsibleAIPolicyViolation", "content_filter"),
        (401, "invalid_api_key", "access_denied"),
        (402, None, "quota"),
        (403, None, "access_denied"),
        (404, "model_not_found", "setup"),
        (408, None, "timeout"),
        (409, None, "server"),
        (413, None, "bad_request"),
        (422, None, "bad_request"),
        (429, "rate_limit_exceeded", "rate_limit"),
        (429, "insufficient_quota", "quota"),
        (500, None, "server"),
        (503, None, "server"),
        (529, None, "server"),
    ],
)
def test_status_and_code_decide_the_class(status: int, code: str | None, expected: str) -> None:
    assert error_of(status, error(code=code)).error_class == expected


def test_the_providers_message_is_used_and_all_else_becomes_details() -> None:
    # Section 2.11.1 of the reference.
    body = error("m", type="validation_error", param="p", code="c", details={"missing_fields": ["summary"]})
    assert error_of(400, body, x_request_id="req-1") == RowError(
        "bad_request", "m", 400, "validation_error", "p", "c", '{"details":{"missing_fields":["summary"]}}', "req-1"
    )


def test_azure_reports_its_filter_in_an_inner_error() -> None:
    inner = {"code": "ResponsibleAIPolicyViolation"}
    found = error_of(400, {"error": {"message": "m", "innererror": inner}}, apim_request_id="a-1")
    details = '{"innererror":{"code":"ResponsibleAIPolicyViolation"}}'
    assert found == RowError("content_filter", "m", 400, None, None, "ResponsibleAIPolicyViolation", details, "a-1")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "status 502 with an empty body"),
        (b"<html><style>p{}</style><h1>502 Bad\n Gateway</h1></html>", "502 Bad Gateway"),
        (b"x" * 300, "x" * 200 + "..."),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"detail": [{"loc": ["body"], "msg": "field required"}]}', "field required"),
        (b'{"error": "no such model"}', "no such model"),
        (b'[{"error": {"message": "in a list"}}]', "in a list"),
        (b'{"object": "error", "message": "flat"}', "flat"),
    ],
)
def test_every_shape_of_body_gets_a_short_message(body: bytes, message: str) -> None:
    assert error_of(502, body).message == message


@pytest.mark.parametrize(
    ("code", "expected"),
    [(429, "rate_limit"), ("502", "server"), ("invalid_api_key", "access_denied"), (None, "bad_request")],
)
def test_an_error_in_a_200_has_the_class_of_the_status_it_should_have_had(code: Any, expected: str) -> None:
    body = error(code=code)
    assert is_error_body(body)
    assert error_of(200, body).error_class == expected


def test_an_object_of_type_error_is_an_error() -> None:
    body = b'{"object": "error", "message": "too long", "type": "BadRequestError", "param": null, "code": 400}'
    assert is_error_body(orjson.loads(body))
    assert (error_of(200, body).error_class, error_of(200, body).message) == ("bad_request", "too long")


def test_a_reply_with_choices_is_not_an_error() -> None:
    assert not is_error_body({"choices": [{}], "error": {"message": "x"}})
    assert not is_error_body({"error": None})


@pytest.mark.parametrize(
    ("status", "header", "expected"),
    [(500, "false", "bad_request"), (500, "true", "server"), (400, "true", "server"), (401, "true", "access_denied")],
)
def test_x_should_retry_overrides_the_status(status: int, header: str, expected: str) -> None:
    assert error_of(status, error(), x_should_retry=header).error_class == expected


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 10.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:27:00 GMT"}, 0.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_the_pause_is_read_in_milliseconds_seconds_or_as_a_date(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(headers, 1445412470.0) == seconds


def test_the_tighter_of_the_projects_and_the_organisations_limits_counts() -> None:
    headers = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "20ms",
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-tokens": "149984",
        "x-ratelimit-reset-tokens": "6m0s",
        "x-ratelimit-limit-project-tokens": "1000",
        "x-ratelimit-remaining-project-tokens": "7",
        "x-ratelimit-reset-project-tokens": "1h2m3.5s",
    }
    assert parse_rate_headers(headers) == RateHeaders(60, 59, 0.02, 1000, 7, 3723.5)


def test_invalid_rate_headers_count_as_missing() -> None:
    headers = {
        "x-ratelimit-limit-requests": "unlimited",
        "x-ratelimit-remaining-requests": "-1",
        "x-ratelimit-reset-requests": "1m garbage",
        "x-ratelimit-limit-tokens": "0",
    }
    assert parse_rate_headers(headers) == NO_RATE_HEADERS
    assert parse_rate_headers({}) == NO_RATE_HEADERS


@given(status=st.integers(300, 599), body=st.binary(max_size=200))
def test_any_error_body_can_be_read(status: int, body: bytes) -> None:
    found = row_error(Reply(status, {}, body, 1.0))
    assert found.message
    assert found.http_status == status


@given(st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms", "x-ratelimit-reset-tokens"]), st.text()))
def test_any_header_can_be_read(headers: dict[str, str]) -> None:
    pause = retry_after_seconds(headers, 0.0)
    assert pause is None or pause >= 0
    assert (parse_rate_headers(headers).reset_tokens_s or 0) >= 0
