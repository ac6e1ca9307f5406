"""The remote ledger of a Ray worker: calls that arrive together are written in one batch."""

import asyncio
from types import SimpleNamespace

import pytest

from connectors.records import RowError, Usage
from pipelines.engines.ray.ledger import LedgerCall, RemoteLedger, pack, unpack
from pipelines.ledger.entries import PendingExchange, SettledExchange


def pending_exchange(number: int) -> PendingExchange:
    return PendingExchange(number, 1, 1, b'["1"]', number.to_bytes(16, "big"), 17, 1000)


def settled_exchange(number: int) -> SettledExchange:
    fingerprint = number.to_bytes(16, "big")
    usage = Usage(60, 0, 20, model_version="m", finish_reason="stop")
    answers = ((fingerprint, b"sent", b"reply", None),)
    return SettledExchange(number, 1, 1, b'["1"]', fingerprint, 17, 200, None, usage, 900, answers=answers)


class ScriptedActor:
    """An actor that records the batches it gets, and answers when it is released."""

    def __init__(self, refused: tuple[int, ...] = ()) -> None:
        self.batches: list[tuple[list[LedgerCall], list[bytes]]] = []
        self.was_called = asyncio.Event()
        self.is_released = asyncio.Event()
        self._refused = refused
        self.write = SimpleNamespace(remote=self._write)

    async def _write(self, worker: int, batch: bytes) -> tuple[int, ...]:
        calls, released = unpack(batch)
        self.batches.append((list(calls), list(released)))
        self.was_called.set()
        await self.is_released.wait()
        return self._refused


def test_a_batch_is_unpacked_as_it_was_packed() -> None:
    failed = SettledExchange(
        9, 1, 1, b"[]", b"", 17, error_class="server", answers=((b"m", b"s", None, RowError("input", "no")),)
    )
    calls: list[LedgerCall] = [
        ("record_pending", (pending_exchange(7), ("2026-11-24", 5_000))),
        ("settle", (settled_exchange(7), None)),
        ("settle", (failed, "2026-11-24")),
        ("store_answer", (b"fingerprint", 1, b"sent", b"reply")),
        ("write_queued", ("insert into modes values (?, ?, ?)", ["p", "m", "json_schema"])),
    ]
    assert unpack(pack(calls, [b"ended"])) == (calls, [b"ended"])


@pytest.mark.ray
async def test_the_request_behind_an_outcome_is_recorded_in_the_same_batch() -> None:
    actor = ScriptedActor()
    ledger = RemoteLedger(actor, 1, 0)
    first = ledger.record_pending(pending_exchange(1))
    await actor.was_called.wait()
    outcome, second = ledger.settle(settled_exchange(1)), ledger.record_pending(pending_exchange(2))
    actor.is_released.set()
    await asyncio.gather(first, outcome, second)
    assert [calls for calls, _ in actor.batches] == [
        [("record_pending", (pending_exchange(1), None))],
        [("settle", (settled_exchange(1), None)), ("record_pending", (pending_exchange(2), None))],
    ]


@pytest.mark.ray
async def test_only_the_request_that_the_daily_budget_cannot_cover_is_refused() -> None:
    actor = ScriptedActor(refused=(1,))
    actor.is_released.set()
    ledger = RemoteLedger(actor, 1, 0)
    day = ("2026-11-24", 1_500)
    results = await asyncio.gather(*(ledger.record_pending(pending_exchange(number), day) for number in range(3)))
    assert results == [True, False, True]
