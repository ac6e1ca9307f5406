"""What a run waits for, as displays and logs report it."""

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from pipelines.dispatch.dispatch_state import INTERRUPTED
from pipelines.limits.provider_limiter import ProviderLimiter
from pipelines.monitoring.run_view import RunView


@pytest.fixture
def limiter() -> ProviderLimiter:
    """A limiter without limits, whose clock does not advance."""
    return ProviderLimiter(None, None, None, 900, 60, lambda: 100.0)


def view_of(
    waiting_for: str | None = None,
    paused_since: datetime | None = None,
    stop_reason: str | None = None,
    **limiters: ProviderLimiter,
) -> RunView:
    state = SimpleNamespace(waiting_for=waiting_for, paused_since=paused_since, stop_reason=stop_reason)
    dispatcher = SimpleNamespace(state=state)
    return RunView(None, dispatcher, limiters)  # type: ignore[arg-type]


def test_a_run_that_sends_waits_for_nothing(limiter: ProviderLimiter) -> None:
    assert view_of(test=limiter).hold_reason() is None


def test_the_dispatcher_s_reason_comes_first(limiter: ProviderLimiter) -> None:
    limiter.record_refusal(0, 30.0)
    assert view_of("uploading", test=limiter).hold_reason() == "uploading"


def test_a_pause_comes_before_everything_else(limiter: ProviderLimiter) -> None:
    limiter.record_refusal(0, 30.0)
    view = view_of("uploading", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), test=limiter)
    assert view.hold_reason() == "paused since 03:04:05 UTC; resume it with: rowmill control JOB resume"


def test_an_interrupted_run_says_what_it_waits_for_and_how_to_leave_at_once(limiter: ProviderLimiter) -> None:
    limiter.record_refusal(0, 30.0)
    view = view_of("uploading", stop_reason=INTERRUPTED, test=limiter)
    assert view.hold_reason() == "interrupted: waiting for requests in flight; Ctrl-C again exits at once"


def test_a_provider_that_does_not_answer_is_reported_with_its_next_attempt(limiter: ProviderLimiter) -> None:
    for _ in range(30):
        limiter.record_failure(0)
    assert view_of(test=limiter).hold_reason() == "test has not answered for 0 s: next attempt in 0 s"


def test_a_provider_that_asks_to_wait_is_reported_with_its_pause(limiter: ProviderLimiter) -> None:
    limiter.record_refusal(0, 30.0)
    assert view_of(test=limiter).hold_reason() == "test asks to wait 30 s"


def test_excluded_members_of_a_pool_are_reported(limiter: ProviderLimiter) -> None:
    limiter.excluded_reason = "no such model"
    assert view_of(one=limiter).hold_reason() == "one is excluded (no such model)"
