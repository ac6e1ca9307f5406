"""Costs and latencies of answers, as they were when the answers were paid for."""

from collections.abc import Collection, Iterator
from statistics import median

from msgspec import Struct

from pipelines.ledger.ledger import Ledger

FINGERPRINT_BYTES = 16


class AnswerCosts(Struct, frozen=True):
    """What the exchanges of some requests cost, in whatever run they were sent."""

    cost: int | None
    """Pico-dollars; None if the price of an exchange is not known."""
    median_latency_ms: float | None
    """Of the exchanges that brought an answer; None without any."""
    exchanges: int
    """Retries included."""


def answer_costs(ledger: Ledger, fingerprints: Collection[bytes], job: str) -> AnswerCosts:
    """Return the costs of these requests, their retries included; of shared exchanges their part of the cost.

    `job`: the job that has sent requests without an answer.
    """
    wanted, cost, count, latencies = frozenset(fingerprints), 0, 0, list[float]()
    is_known = True
    for route_id in sorted(_routes(ledger, wanted, job)):
        exchanges = ledger.stream(
            "select fingerprints, cost, latency_ms, error_class from exchanges where leg = ?", (route_id,)
        )
        for sent, exchange_cost, latency_ms, error_class in exchanges:
            requests = len(sent) // FINGERPRINT_BYTES
            matched = sum(one in wanted for one in _split(sent))
            if not matched:
                continue
            count += 1
            if exchange_cost is None:
                is_known = False
            else:
                cost += exchange_cost * matched // requests
            if error_class is None and latency_ms is not None:
                latencies.append(latency_ms)
    return AnswerCosts(cost if is_known else None, median(latencies) if latencies else None, count)


def _routes(ledger: Ledger, fingerprints: Collection[bytes], job: str) -> set[int]:
    """Return the routes on which the requests may have been sent."""
    routes = {int(route_id) for (route_id,) in ledger.query("select id from legs where job = ?", (job,))}
    return routes.union(route_id for (route_id,) in ledger.select_answers("a.leg", sorted(fingerprints)))


def _split(fingerprints: bytes) -> Iterator[bytes]:
    return (fingerprints[start : start + FINGERPRINT_BYTES] for start in range(0, len(fingerprints), FINGERPRINT_BYTES))
