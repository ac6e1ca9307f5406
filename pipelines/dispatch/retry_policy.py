"""What follows from how an exchange ended: outcomes, another try, halves of the pack, or the end of the run."""

import random
from collections.abc import Sequence

from connectors.records import FATAL_ERROR_CLASSES, TRANSIENT_ERROR_CLASSES, Reply, RowError, record
from connectors.transport.client import RequestError
from connectors.transport.error_replies import parse_rate_headers, retry_after_seconds
from pipelines.dispatch.request_types import RequestGroup, RetryLimits, Route
from pipelines.ledger.ledger import now_us
from pipelines.limits.provider_limiter import FIRST_REFUSAL_SECONDS, ProviderLimiter


def hear(allowance: ProviderLimiter, reply: Reply, leg: int) -> None:
    """What the reply's headers say of the key's limits; they may differ from model to model."""
    told = parse_rate_headers(reply.headers)
    if told.limit_requests is not None or told.limit_tokens is not None:
        allowance.update_from_headers(
            (told.limit_requests, told.limit_tokens), (told.remaining_requests, told.remaining_tokens), leg
        )


def wait_after(
    pack: RequestGroup,
    member: Route,
    permit: int,
    error: RowError,
    reply: Reply | None,
    failure: RequestError | None,
    tries: RetryLimits,
) -> float:
    """Seconds until the pack may be tried again, beside what holds the provider; counts the attempt where it is one."""
    own = member.limiters[0]
    pause = None if reply is None else retry_after_seconds(reply.headers, now_us() / 1e6)
    if error.error_class == "rate_limit":
        own.record_refusal(permit, pause)
        # Where nobody is held, as the pace is not the reason, this one alone waits.
        return 0.0 if own.pause_seconds else FIRST_REFUSAL_SECONDS
    no_server = failure is not None and error.error_class == "connection" and not failure.is_billable
    if own.record_failure(permit, no_server):
        return 0.0
    pack.attempts += 1
    longest = min(tries.longest_wait, tries.first_wait * 2.0 ** (pack.attempts - 1))
    return pause if pause is not None else longest * random.uniform(0.5, 1)


def given_up(members: Sequence[Route], member: Route, wait: float, error: RowError, tries: RetryLimits) -> str | None:
    """Why the run ends here: every provider that could be asked has been silent, or asks to wait, for too long."""
    reasons = [_dead(one, wait if one is member else 0.0, tries.longest_hold) for one in members]
    if None in reasons:
        return None
    return f"{error.error_class}: {', '.join(str(reason) for reason in reasons)}; last: {error.message}"


def _dead(member: Route, wait: float, longest_hold: float) -> str | None:
    own = member.limiters[0]
    if (wait := max(wait, own.pause_seconds)) > longest_hold:
        return f"{member.provider.name} asks to come back in {wait:.0f} s"
    if (silent := own.seconds_without_reply()) >= longest_hold:
        return f"{member.provider.name} has answered nothing for {silent:.0f} s"
    return None


@record
class Verdict:
    """To be carried out once the exchange is in the ledger, but for `stop`."""

    answers: Sequence[bytes | RowError] = ()
    """What each request of the pack is told; none where they are asked again."""
    again: Sequence[RequestGroup] = ()
    wait: float = 0.0
    """Seconds until they are asked again."""
    stop: str | None = None
    """Why nothing more is to be sent, from this moment on; None: all goes on."""


def verdict(
    pack: RequestGroup,
    member: Route,
    permit: int,
    answers: Sequence[bytes | RowError],
    error: RowError | None,
    reply: Reply | None,
    failure: RequestError | None,
    tries: RetryLimits,
) -> Verdict:
    """Judged as soon as the reply is there: its provider's allowance hears of it at once, and the pack counts it."""
    own = member.limiters[0]
    if reply is not None:
        hear(own, reply, member.route_id)
    if error is None:
        own.record_success(permit)
        pack.attempts += 1
        return Verdict(answers)
    to_all = [error] * len(pack.requests)
    pool = pack.route.pool
    pack.failed_member = member if pool is not None else None
    if error.error_class not in TRANSIENT_ERROR_CLASSES:
        own.record_success(permit)
        if error.error_class in FATAL_ERROR_CLASSES and pool is not None and pool.leave_out(member, error):
            return Verdict(again=(pack,))
        pack.attempts += 1
        if error.error_class in FATAL_ERROR_CLASSES:
            return Verdict(to_all, stop=f"{error.error_class}: {member.provider.name} says: {error.message}")
        return Verdict(to_all) if len(pack.requests) == 1 else Verdict(again=_halves(pack))
    wait = wait_after(pack, member, permit, error, reply, failure, tries)
    if (reason := given_up(pack.route.members, member, wait, error, tries)) is not None:
        return Verdict(to_all, stop=f"{reason}; run again when it is back, it goes on where it stopped")
    if pack.attempts >= tries.attempts:
        return Verdict(to_all)
    # Another member of a pool need not wait.
    return Verdict(again=(pack,), wait=wait if len(pack.route.members) == 1 else 0.0)


def _halves(pack: RequestGroup) -> Sequence[RequestGroup]:
    """To find which request it is that never will be answered."""
    middle = len(pack.requests) // 2
    halves = (pack.requests[:middle], pack.requests[middle:])
    return [RequestGroup(pack.route, half, exchanges=pack.exchanges) for half in halves]
