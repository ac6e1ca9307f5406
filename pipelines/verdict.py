"""What follows from how an exchange ended: outcomes, another try, halves of the pack, or the end of the run."""

from collections.abc import Sequence

from connectors.records import RETRIED_CLASSES, STOPPING_CLASSES, Reply, RowError, value
from connectors.transport.client import RequestError
from pipelines.packs import Lane, Pack, Tries
from pipelines.waits import given_up, hear, wait_after


@value
class Verdict:
    """To be carried out once the exchange is in the ledger, but for `stop`."""

    answers: Sequence[bytes | RowError] = ()
    """What each request of the pack is told; none where they are asked again."""
    again: Sequence[Pack] = ()
    wait: float = 0.0
    """Seconds until they are asked again."""
    stop: str | None = None
    """Why nothing more is to be sent, from this moment on; None: all goes on."""


def verdict(
    pack: Pack,
    member: Lane,
    permit: int,
    answers: Sequence[bytes | RowError],
    error: RowError | None,
    reply: Reply | None,
    failure: RequestError | None,
    tries: Tries,
) -> Verdict:
    """Judged as soon as the reply is there: its provider's allowance hears of it at once, and the pack counts it."""
    own = member.allowances[0]
    if reply is not None:
        hear(own, reply, member.leg)
    if error is None:
        own.succeeded(permit)
        pack.attempts += 1
        return Verdict(answers)
    to_all = [error] * len(pack.requests)
    pool = pack.lane.pool
    pack.avoid = member if pool is not None else None
    if error.error_class not in RETRIED_CLASSES:
        own.succeeded(permit)
        if error.error_class in STOPPING_CLASSES and pool is not None and pool.leave_out(member, error):
            return Verdict(again=(pack,))
        pack.attempts += 1
        if error.error_class in STOPPING_CLASSES:
            return Verdict(to_all, stop=f"{error.error_class}: {member.provider.name} says: {error.message}")
        return Verdict(to_all) if len(pack.requests) == 1 else Verdict(again=_halves(pack))
    wait = wait_after(pack, member, permit, error, reply, failure, tries)
    if (reason := given_up(pack.lane.members, member, wait, error, tries)) is not None:
        return Verdict(to_all, stop=f"{reason}; run again when it is back, it goes on where it stopped")
    if pack.attempts >= tries.attempts:
        return Verdict(to_all)
    # Another member of a pool need not wait.
    return Verdict(again=(pack,), wait=wait if len(pack.lane.members) == 1 else 0.0)


def _halves(pack: Pack) -> Sequence[Pack]:
    """To find which request it is that never will be answered."""
    middle = len(pack.requests) // 2
    halves = (pack.requests[:middle], pack.requests[middle:])
    return [Pack(pack.lane, half, exchanges=pack.exchanges) for half in halves]
