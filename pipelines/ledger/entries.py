"""Ledger entries: pending exchanges, settled exchanges and stored answers."""

from collections.abc import Sequence

from msgspec import Struct

from connectors.records import NO_USAGE, RowError, Usage

AnswerRecord = tuple[bytes, bytes, bytes | None, RowError | None]
"""An answer to store: (fingerprint, request as sent, reply, error that is the row's own fault)."""


UnverifiedAnswer = tuple[bytes, bytes | None]
"""(fingerprint, packed answer) of a row whose single answer is still to come; None: it has come."""


class StoredAnswer(Struct, frozen=True):
    """Answer of a request: the reply, or the error that is the row's own fault."""

    reply: bytes | None
    error: RowError | None
    run_id: str
    at: int
    """Microseconds since 1970, UTC."""
    request: bytes | None = None


class SettledExchange(Struct, frozen=True):
    """Outcome of an exchange: one row of the usage table, and its answers."""

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
    """Pico-dollars; None if no price is known."""
    reserved: int = 0
    """Pico-dollars that were reserved for it in the daily budget."""
    latency_ms: float | None = None
    first_token_ms: float | None = None
    request_id: str | None = None
    message: str | None = None
    answers: Sequence[AnswerRecord] = ()
    unverified: Sequence[UnverifiedAnswer] = ()


class PendingExchange(Struct, frozen=True):
    """An exchange that is about to be sent; its outcome is recorded under the same id."""

    exchange_id: int
    route_id: int
    attempt: int
    keys: bytes
    """As in SettledExchange."""
    fingerprints: bytes
    started_at: int
    max_cost: int | None
    """Pico-dollars reserved for it."""

    def as_unknown(self) -> SettledExchange:
        """Return it settled with an unknown outcome, which counts at its maximum cost."""
        return SettledExchange(
            self.exchange_id, self.route_id, self.attempt, self.keys, self.fingerprints, self.started_at,
            error_class="unknown", cost=self.max_cost, reserved=self.max_cost or 0,
            message="sent, but the run ended before its outcome was seen",
        )  # fmt: skip
