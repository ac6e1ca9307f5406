"""What stands in the ledger: an exchange as it is noted, how it ended, and the answer that is kept."""

from collections.abc import Sequence

from connectors.records import NO_USAGE, RowError, Usage, record

AnswerRecord = tuple[bytes, bytes, bytes | None, RowError | None]
"""(fingerprint, request as sent, reply, error of the row's own) of an answer that is to be kept."""


@record
class StoredAnswer:
    """What the ledger keeps of a settled request: the reply, or why the row itself is at fault."""

    reply: bytes | None
    error: RowError | None
    run_id: str
    at: int
    """Microseconds since 1970, UTC."""
    request: bytes | None = None


@record
class SettledExchange:
    """How an exchange ended: one row of the usage table, and the answers it brought."""

    exchange_id: int
    route_id: int
    attempt: int
    keys: bytes
    """JSON list of the rows' keys as text."""
    fingerprints: bytes
    """The requests' fingerprints, 16 bytes each, in the order of `keys`."""
    started_at: int
    http_status: int | None = None
    error_class: str | None = None
    usage: Usage = NO_USAGE
    cost: int | None = None
    """Pico-dollars; None where no price is known."""
    reserved: int = 0
    """Pico-dollars that were reserved for it in the day's budget."""
    latency_ms: float | None = None
    first_token_ms: float | None = None
    request_id: str | None = None
    message: str | None = None
    answers: Sequence[AnswerRecord] = ()


@record
class PendingExchange:
    """An exchange that is about to be sent: how it ends is to be told under its number."""

    exchange_id: int
    route_id: int
    attempt: int
    keys: bytes
    """As those of Settled."""
    fingerprints: bytes
    started_at: int
    max_cost: int | None
    """Pico-dollars set aside for it."""

    def as_unknown(self) -> SettledExchange:
        """It was sent, and what came of it will never be seen: it counts at its worst case."""
        return SettledExchange(
            self.exchange_id, self.route_id, self.attempt, self.keys, self.fingerprints, self.started_at,
            error_class="unknown", cost=self.max_cost, reserved=self.max_cost or 0,
            message="sent, but the run ended before its outcome was seen",
        )  # fmt: skip
