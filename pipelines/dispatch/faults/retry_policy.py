"""The retry policy: what follows from an error. Pure functions of values; the dispatchers carry out the decision."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from msgspec import Struct

from connectors.error_classes import FATAL_ERROR_CLASSES, ROW_ERROR_CLASSES, TRANSIENT_ERROR_CLASSES
from connectors.records import RowError
from pipelines.dispatch.request_types import RetryLimits
from pipelines.limits.provider_limiter import FIRST_REFUSAL_SECONDS


class ProviderStatus(Struct, frozen=True):
    """How one provider that may be asked behaves at this moment."""

    name: str
    pause_seconds: float
    """Until it may be asked again, as it demands or as the circuit breaker decides."""
    silent_seconds: float
    """Since its last answer, if every request since then has failed; else 0."""


class Attempt(Struct, frozen=True):
    """The exchange that an error ended, as far as the decision depends on it."""

    provider: ProviderStatus
    """The one that was asked, after the error was reported to its limiter."""
    providers: Sequence[ProviderStatus]
    """All that may be asked: several for a pool."""
    requests: int
    """In the group."""
    is_packed: bool
    """Whether they share a conversation."""
    number: int
    """Of the attempts that count, this one included if it counts."""
    is_counted: bool = True
    """False for a 429, a probe of a provider that is down, and a pool member that was excluded."""
    retry_after: float | None = None
    """Seconds that the reply asks to wait."""
    now: float = 0.0
    """Seconds since 1970."""


class RetryDecision(Struct, frozen=True):
    """What follows from an exchange."""

    action: Literal["resolve", "retry", "split", "separate"] = "resolve"
    """Resolve the requests with their answers or the error; or send them again: together, in halves, or one by one."""
    wait_seconds: float = 0.0
    """Until they are sent again."""
    stop_reason: str | None = None
    """Why nothing more is sent, from this moment on."""


RESOLVE = RetryDecision()
RETRY_AT_ONCE = RetryDecision("retry")


def decide(error: RowError, attempt: Attempt, limits: RetryLimits, jitter: float) -> RetryDecision:
    """Decide what follows from an error of a whole exchange. `jitter`: 0.5 to 1, the part of the back-off to wait."""
    if error.error_class in FATAL_ERROR_CLASSES:
        # The other members of a pool have other keys.
        if not attempt.is_counted:
            return RETRY_AT_ONCE
        return _stop(error, attempt.provider.name, attempt.retry_after, attempt.now)
    if error.error_class not in TRANSIENT_ERROR_CLASSES:
        # In a group, halving finds the request that the provider refuses.
        return RESOLVE if attempt.requests == 1 else RetryDecision("split")
    if (reason := abort_reason(error, attempt, limits)) is not None:
        return RetryDecision(stop_reason=f"{reason}; run again when it is back to continue")
    if attempt.number >= limits.attempts:
        return RetryDecision("split") if _may_be_of_one_row(error, attempt.is_packed) else RESOLVE
    wait = backoff(error, attempt, limits, jitter)
    # The other members of a pool need not wait.
    return RetryDecision("retry", wait if len(attempt.providers) == 1 else 0.0)


def decide_batch_line(
    error: RowError,
    provider: str,
    requests: int,
    attempts: int,
    is_too_large: bool,
    limits: RetryLimits,
    is_packed: bool = False,
) -> RetryDecision:
    """Decide what follows from a line of a batch without an answer. `is_too_large`: no batch can hold the line."""
    if error.error_class in FATAL_ERROR_CLASSES:
        return _stop(error, provider)
    if error.error_class in TRANSIENT_ERROR_CLASSES and not is_too_large and attempts < limits.attempts:
        return RETRY_AT_ONCE
    is_of_one_row = error.error_class in ROW_ERROR_CLASSES or _may_be_of_one_row(error, is_packed)
    if requests > 1 and (is_too_large or is_of_one_row):
        # Halving, as in an online run, would take a batch for each halving.
        return RetryDecision("separate")
    return RESOLVE


def _may_be_of_one_row(error: RowError, is_packed: bool) -> bool:
    """Return whether a row's text may be the reason for a reply to a pack that cannot be read."""
    return is_packed and error.error_class == "malformed_reply"


def backoff(error: RowError, attempt: Attempt, limits: RetryLimits, jitter: float) -> float:
    """Return the seconds until the group may be sent again, besides what the provider's limiter imposes."""
    if error.error_class == "rate_limit":
        # If the limiter does not pause, since the rate is not the reason, this group alone waits.
        return 0.0 if attempt.provider.pause_seconds else FIRST_REFUSAL_SECONDS
    if not attempt.is_counted:
        return 0.0
    if attempt.retry_after is not None:
        return attempt.retry_after
    return min(limits.longest_wait, limits.first_wait * 2.0 ** (attempt.number - 1)) * jitter


def abort_reason(error: RowError, attempt: Attempt, limits: RetryLimits) -> str | None:
    """Return why the run ends: each provider has been silent, or asks to wait, for longer than `longest_hold`."""
    # Only what the reply asks: the back-off of one row says nothing about the provider. The limiter knows of a 429.
    is_asked = attempt.is_counted and error.error_class != "rate_limit"
    asked_wait = (attempt.retry_after or 0.0) if is_asked else 0.0
    reasons: list[str] = []
    for provider in attempt.providers:
        pause = max(provider.pause_seconds, asked_wait if provider.name == attempt.provider.name else 0.0)
        if pause > limits.longest_hold:
            reasons.append(f"{provider.name} asks to come back in {pause:.0f} s, at {_local_time(attempt.now + pause)}")
        elif provider.silent_seconds >= limits.longest_hold:
            reasons.append(f"{provider.name} has answered nothing for {provider.silent_seconds:.0f} s")
        else:
            return None
    return f"{error.error_class}: {', '.join(reasons)}; last: {error.message}"


def _stop(error: RowError, provider: str, wait: float | None = None, now: float = 0.0) -> RetryDecision:
    end = "" if wait is None else f"; it asks to come back at {_local_time(now + wait)}"
    return RetryDecision(stop_reason=f"{error.error_class}: {provider} says: {error.message}{end}")


def _local_time(timestamp: float) -> str:
    """Return a point in time in the local time zone, with its offset."""
    return datetime.fromtimestamp(timestamp).astimezone().isoformat(" ", "minutes")
