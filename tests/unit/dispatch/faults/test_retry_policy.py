"""The retry policy: a decision for every kind of error."""

from datetime import datetime
from typing import Any

import pytest

from connectors.records import RowError
from pipelines.dispatch.faults.retry_policy import (
    RESOLVE,
    RETRY_AT_ONCE,
    Attempt,
    ProviderStatus,
    RetryDecision,
    backoff,
    decide,
    decide_batch_line,
)
from pipelines.dispatch.request_types import RetryLimits

LIMITS = RetryLimits(attempts=3, longest_wait=60, longest_hold=900, first_wait=0.5)
HEALTHY = ProviderStatus("test", 0.0, 0.0)


def error_of(error_class: Any) -> RowError:
    return RowError(error_class, "why")


def attempt_of(number: int = 1, **changes: Any) -> Attempt:
    values: dict[str, Any] = {"provider": HEALTHY, "providers": [HEALTHY], "requests": 1, "is_packed": False}
    values["number"] = number
    return Attempt(**{**values, **changes})


@pytest.mark.parametrize("error_class", ["timeout", "connection", "server", "malformed_reply"])
def test_a_transient_error_is_retried_after_the_back_off(error_class: str) -> None:
    assert decide(error_of(error_class), attempt_of(2), LIMITS, 0.75) == RetryDecision("retry", 0.75)


def test_the_last_attempt_resolves_with_the_error() -> None:
    assert decide(error_of("server"), attempt_of(3), LIMITS, 1.0) == RESOLVE


@pytest.mark.parametrize(("number", "action"), [(2, "retry"), (3, "split")])
def test_a_pack_whose_replies_cannot_be_read_is_halved_after_the_last_attempt(number: int, action: str) -> None:
    attempt = attempt_of(number, requests=4, is_packed=True)
    assert decide(error_of("malformed_reply"), attempt, LIMITS, 1.0).action == action


@pytest.mark.parametrize("error_class", ["bad_request", "content_filter", "length", "invalid_answer", "input"])
def test_an_error_of_the_row_is_not_retried_and_in_a_group_its_request_is_searched(error_class: str) -> None:
    assert decide(error_of(error_class), attempt_of(), LIMITS, 1.0) == RESOLVE
    assert decide(error_of(error_class), attempt_of(requests=8), LIMITS, 1.0) == RetryDecision("split")


@pytest.mark.parametrize("error_class", ["access_denied", "quota"])
def test_an_error_of_the_account_stops_the_run_unless_another_member_of_the_pool_is_left(error_class: str) -> None:
    stop = RetryDecision(stop_reason=f"{error_class}: test says: why")
    assert decide(error_of(error_class), attempt_of(), LIMITS, 1.0) == stop
    assert decide(error_of(error_class), attempt_of(is_counted=False), LIMITS, 1.0) == RETRY_AT_ONCE


def test_a_429_waits_for_the_limiter_or_alone_if_the_limiter_does_not_pause() -> None:
    paused = attempt_of(0, provider=ProviderStatus("test", 3.0, 0.0), is_counted=False)
    assert decide(error_of("rate_limit"), paused, LIMITS, 1.0) == RETRY_AT_ONCE
    alone = attempt_of(0, is_counted=False)
    assert decide(error_of("rate_limit"), alone, LIMITS, 1.0) == RetryDecision("retry", 0.1)


@pytest.mark.parametrize(
    ("attempt", "seconds"),
    [
        (attempt_of(1), 0.25),
        (attempt_of(3), 1.0),
        (attempt_of(20), 30.0),
        (attempt_of(1, retry_after=7.0), 7.0),
        (attempt_of(0, is_counted=False), 0.0),
    ],
    ids=["first", "doubled", "bounded", "as the reply asks", "probe of a provider that is down"],
)
def test_the_back_off_doubles_up_to_its_bound(attempt: Attempt, seconds: float) -> None:
    assert backoff(error_of("server"), attempt, LIMITS, 0.5) == seconds


def test_the_other_members_of_a_pool_are_asked_without_a_wait() -> None:
    attempt = attempt_of(1, providers=[HEALTHY, ProviderStatus("other", 0.0, 0.0)])
    assert decide(error_of("server"), attempt, LIMITS, 1.0) == RETRY_AT_ONCE


def local(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp).astimezone().isoformat(" ", "minutes")


def test_a_quota_with_a_stated_wait_names_the_time_at_which_it_ends() -> None:
    decision = decide(error_of("quota"), attempt_of(retry_after=86400.0), LIMITS, 1.0)
    assert decision == RetryDecision(stop_reason=f"quota: test says: why; it asks to come back at {local(86400.0)}")


def test_a_provider_that_asks_to_wait_for_too_long_stops_the_run() -> None:
    decision = decide(error_of("rate_limit"), attempt_of(retry_after=1000.0), LIMITS, 1.0)
    assert decision == RetryDecision("retry", 0.1)
    decision = decide(error_of("server"), attempt_of(retry_after=1000.0), LIMITS, 1.0)
    assert decision.stop_reason == (
        f"server: test asks to come back in 1000 s, at {local(1000.0)}; last: why; "
        "run again when it is back to continue"
    )


def test_the_back_off_of_one_row_never_stops_the_run() -> None:
    limits = RetryLimits(attempts=6, longest_wait=60, longest_hold=2, first_wait=0.5)
    assert decide(error_of("server"), attempt_of(5), limits, 1.0) == RetryDecision("retry", 8.0)
    assert decide(error_of("server"), attempt_of(6), limits, 1.0) == RESOLVE


def test_a_pool_stops_the_run_only_if_all_of_its_members_are_silent_or_pause() -> None:
    silent, paused = ProviderStatus("test", 0.0, 950.0), ProviderStatus("other", 2000.0, 0.0)
    decision = decide(error_of("server"), attempt_of(provider=silent, providers=[silent, paused]), LIMITS, 1.0)
    assert decision.stop_reason == (
        f"server: test has answered nothing for 950 s, other asks to come back in 2000 s, at {local(2000.0)}; "
        "last: why; run again when it is back to continue"
    )
    decision = decide(error_of("server"), attempt_of(provider=silent, providers=[silent, HEALTHY]), LIMITS, 1.0)
    assert decision == RETRY_AT_ONCE


@pytest.mark.parametrize(
    ("error_class", "requests", "attempts", "is_too_large", "decision"),
    [
        ("access_denied", 1, 1, False, RetryDecision(stop_reason="access_denied: test says: why")),
        ("server", 1, 2, False, RETRY_AT_ONCE),
        ("server", 4, 3, False, RESOLVE),
        ("server", 1, 1, True, RESOLVE),
        ("server", 4, 1, True, RetryDecision("separate")),
        ("bad_request", 4, 1, False, RetryDecision("separate")),
        ("bad_request", 1, 1, False, RESOLVE),
    ],
)
def test_a_line_of_a_batch_goes_into_the_next_batch_or_is_separated_instead_of_halved(
    error_class: str, requests: int, attempts: int, is_too_large: bool, decision: RetryDecision
) -> None:
    assert decide_batch_line(error_of(error_class), "test", requests, attempts, is_too_large, LIMITS) == decision
