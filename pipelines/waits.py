"""What an exchange without an answer means for its provider: how long it waits, and when the run gives up."""

import random
from collections.abc import Sequence

from connectors.records import Reply, RowError
from connectors.transport.client import RequestError
from connectors.transport.error_replies import rate_limits, retry_after
from pipelines.ledger.ledger import now_us
from pipelines.limits.provider_limiter import FIRST_REFUSAL, Allowance
from pipelines.packs import Lane, Pack, Tries


def hear(allowance: Allowance, reply: Reply, leg: int) -> None:
    """What the reply's headers say of the key's limits; they may differ from model to model."""
    told = rate_limits(reply.headers)
    if told.limit_requests is not None or told.limit_tokens is not None:
        allowance.learn((told.limit_requests, told.limit_tokens), (told.remaining_requests, told.remaining_tokens), leg)


def wait_after(
    pack: Pack,
    member: Lane,
    permit: int,
    error: RowError,
    reply: Reply | None,
    failure: RequestError | None,
    tries: Tries,
) -> float:
    """Seconds until the pack may be tried again, beside what holds the provider; counts the attempt where it is one."""
    own = member.allowances[0]
    pause = None if reply is None else retry_after(reply.headers, now_us() / 1e6)
    if error.error_class == "rate_limit":
        own.refused(permit, pause)
        # Where nobody is held, as the pace is not the reason, this one alone waits.
        return 0.0 if own.held_for else FIRST_REFUSAL
    no_server = failure is not None and error.error_class == "connection" and not failure.billable
    if own.failed(permit, no_server):
        return 0.0
    pack.attempts += 1
    longest = min(tries.longest_wait, tries.first_wait * 2.0 ** (pack.attempts - 1))
    return pause if pause is not None else longest * random.uniform(0.5, 1)


def given_up(members: Sequence[Lane], member: Lane, wait: float, error: RowError, tries: Tries) -> str | None:
    """Why the run ends here: every provider that could be asked has been silent, or asks to wait, for too long."""
    reasons = [_dead(one, wait if one is member else 0.0, tries.longest_hold) for one in members]
    if None in reasons:
        return None
    return f"{error.error_class}: {', '.join(str(reason) for reason in reasons)}; last: {error.message}"


def _dead(member: Lane, wait: float, longest_hold: float) -> str | None:
    own = member.allowances[0]
    if (wait := max(wait, own.held_for)) > longest_hold:
        return f"{member.provider.name} asks to come back in {wait:.0f} s"
    if (silent := own.silent_for()) >= longest_hold:
        return f"{member.provider.name} has answered nothing for {silent:.0f} s"
    return None
