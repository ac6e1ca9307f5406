"""Stated waits: in headers of any form, by keys of a body, and in words."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.records import Reply
from connectors.transport.retry_after import parse_duration, retry_after_of, retry_after_seconds

NOW = 1445412470.0
"""2015-10-21 07:27:50 UTC"""


def wait(body: Any, status: int = 429, **headers: str) -> float | None:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return retry_after_of(
        Reply(status, {name.replace("_", "-"): value for name, value in headers.items()}, raw, 1.0), NOW
    )


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"x-ms-retry-after-ms": "250"}, 0.25),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "8s"}, 8.0),
        ({"retry-after": "1m30s"}, 90.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 10.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:27:00 GMT"}, 0.0),
        ({"retry-after": "1445412475"}, 5.0),
        ({"ratelimit-reset": "12"}, 12.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_a_wait_in_headers_is_a_number_a_date_or_a_duration(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(headers, NOW) == seconds


def test_a_reset_in_the_future_counts_only_for_a_refusal() -> None:
    assert wait({}, 429, x_ratelimit_reset="1445412473000") == 3.0
    assert wait({}, 500, x_ratelimit_reset="1445412473000") is None


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ([{"error": {"details": [{"@type": "x/google.rpc.RetryInfo", "retryDelay": "8s"}]}}], 8.0),
        ({"error": {"details": [{"retryDelay": {"seconds": 2, "nanos": 500000000}}]}}, 2.5),
        ({"error": {"retry_after": 12}}, 12.0),
        ({"retry_after_ms": 300}, 0.3),
        ({"error": {"metadata": {"headers": {"X-RateLimit-Reset": "1445412480000"}}}}, 10.0),
        ({"error": {"metadata": {"raw": '{"error": {"retry_after": 7}}'}}}, 7.0),
        ({"error": {"message": "Please try again in 13s."}}, 13.0),
        ({"error": {"message": "Please try again in 6m0s. Visit the docs."}}, 360.0),
        ({"error": {"message": "Please try again in 20ms."}}, 0.02),
        ({"error": {"message": "Please try again in 1h2m3.5s"}}, 3723.5),
        ({"error": {"message": "Please retry after 30 seconds."}}, 30.0),
        ({"error": {"message": "please try again after 1 seconds"}}, 1.0),
        ({"error": {"message": "Retry in 8.5s"}}, 8.5),
        ({"error": "Rate limited. Wait 2 minutes and 5 seconds"}, 125.0),
        ({"detail": "Limit reached, resets in 1 hour"}, 3600.0),
        ({"message": "You will regain access on 2015-10-22 at 07:27:50 UTC."}, 86400.0),
        (b"Too many requests, retry after 4 seconds", 4.0),
        ({"error": {"message": "Limit 30000, Used 200, Requested 5 in 60s windows"}}, None),
        ({"error": {"message": 'Could not parse "try again in 5s"'}}, None),
        ({"error": {"message": "Try again later."}}, None),
        ({"error": {"message": "Try again with 5 messages"}}, None),
        ({"error": {"retry_after": "later"}}, None),
        ({}, None),
        (b"<p>try again in 5s</p>", None),
    ],
)
def test_a_wait_in_a_body_counts_like_the_header(body: Any, seconds: float | None) -> None:
    assert wait(body) == seconds


def test_the_text_of_an_answer_states_no_wait() -> None:
    answer = {"choices": [{"message": {"content": 5}, "detail": "try again in 9s"}], "retry_after": 3}
    assert wait(answer, 200) is None
    assert wait({"error": {"message": "busy, try again in 9s"}}, 200) == 9.0


def test_no_wait_is_longer_than_a_year() -> None:
    assert wait({}, retry_after="1e30") == 365 * 86400.0


@pytest.mark.parametrize(("text", "seconds"), [("6m0s", 360.0), ("20ms", 0.02), ("7", 7.0), ("1.5s", 1.5), ("x", None)])
def test_a_duration_has_its_unit(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


@given(st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms", "x-ratelimit-reset"]), st.text()), st.binary())
def test_any_header_and_any_body_can_be_read(headers: dict[str, str], body: bytes) -> None:
    pause = retry_after_of(Reply(429, headers, body, 1.0), 0.0)
    assert pause is None or pause >= 0
