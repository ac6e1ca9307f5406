"""Ledger entries: a pending exchange whose outcome is unknown costs its maximum."""

from pipelines.ledger.entries import PendingExchange, SettledExchange


def test_an_exchange_of_unknown_outcome_keeps_its_identity_and_costs_its_maximum() -> None:
    pending = PendingExchange(7, 3, 2, b'["a"]', b"f" * 16, 17, 1000)
    assert pending.as_unknown() == SettledExchange(
        7, 3, 2, b'["a"]', b"f" * 16, 17,
        error_class="unknown", cost=1000, reserved=1000,
        message="sent, but the run ended before its outcome was seen",
    )  # fmt: skip


def test_an_unknown_maximum_leaves_the_cost_unknown_and_nothing_reserved() -> None:
    settled = PendingExchange(7, 3, 2, b'["a"]', b"f" * 16, 17, None).as_unknown()
    assert (settled.cost, settled.reserved) == (None, 0)
