"""What a worker tells the ledger at once: groups that hold all that came together, and are told apart again."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from connectors.records import RowError, Usage
from pipelines.engines.ray.ledger import Asked, RemoteLedger, packed, unpacked
from pipelines.engines.ray.limits import JOB, Leasing, Renewed
from pipelines.ledger.entries import PendingExchange, SettledExchange
from pipelines.limits.provider_limiter import ProviderLimiter
from pipelines.pricing.run_budget import RunBudget


def noted(number: int) -> PendingExchange:
    return PendingExchange(number, 1, 1, b'["1"]', number.to_bytes(16, "big"), 17, 1000)


def settled(number: int) -> SettledExchange:
    mark = number.to_bytes(16, "big")
    usage = Usage(60, 0, 20, model_version="m", finish_reason="stop")
    answers = ((mark, b"sent", b"reply", None),)
    return SettledExchange(number, 1, 1, b'["1"]', mark, 17, 200, None, usage, 900, answers=answers)


class Actor:
    """Keeps the groups that it is sent, and answers when it is let."""

    def __init__(self, refused: tuple[int, ...] = ()) -> None:
        self.groups: list[tuple[list[Asked], list[bytes]]] = []
        self.asked = asyncio.Event()
        self.free = asyncio.Event()
        self._refused = refused
        self.write = SimpleNamespace(remote=self._write)

    async def _write(self, worker: int, group: bytes) -> tuple[int, ...]:
        asked, released = unpacked(group)
        self.groups.append((list(asked), list(released)))
        self.asked.set()
        await self.free.wait()
        return self._refused


def test_a_group_is_unpacked_as_it_was_packed() -> None:
    failed = SettledExchange(
        9, 1, 1, b"[]", b"", 17, error_class="server", answers=((b"m", b"s", None, RowError("input", "no")),)
    )
    asked: list[Asked] = [
        ("note", (noted(7), ("2026-11-24", 5_000))),
        ("settle", (settled(7), None)),
        ("settle", (failed, "2026-11-24")),
        ("keep", (b"mark", 1, b"sent", b"reply")),
        ("write_queued", ("insert into modes values (?, ?, ?)", ["p", "m", "json_schema"])),
    ]
    assert unpacked(packed(asked, [b"ended"])) == (asked, [b"ended"])


@pytest.mark.ray
async def test_the_note_behind_an_outcome_goes_with_the_same_group() -> None:
    actor = Actor()
    ledger = RemoteLedger(actor, 1, 0)
    first = ledger.record_pending(noted(1))
    await actor.asked.wait()
    outcome, second = ledger.settle(settled(1)), ledger.record_pending(noted(2))
    actor.free.set()
    await asyncio.gather(first, outcome, second)
    assert [asked for asked, _ in actor.groups] == [
        [("note", (noted(1), None))],
        [("settle", (settled(1), None)), ("note", (noted(2), None))],
    ]


@pytest.mark.ray
async def test_a_note_for_which_the_day_has_no_money_is_refused_alone() -> None:
    actor = Actor(refused=(1,))
    actor.free.set()
    ledger = RemoteLedger(actor, 1, 0)
    day = ("2026-11-24", 1_500)
    told = await asyncio.gather(*(ledger.record_pending(noted(number), day) for number in range(3)))
    assert told == [True, False, True]


@pytest.mark.ray
async def test_a_place_in_flight_goes_to_others_once_the_ledger_has_what_took_it() -> None:
    waiting, written = asyncio.Event(), asyncio.Event()
    told: list[int] = []

    async def renew(worker: int, of: Any, spent: int, returned: int) -> Renewed:
        told.append(of[JOB].in_flight)
        granted = {(JOB, "requests"): 1.0, (JOB, "tokens"): 1.0, (JOB, "slots"): 5.0}
        return Renewed(granted, {JOB: 0.0}, False, False)

    async def caught_up() -> None:
        waiting.set()
        await written.wait()

    allowance = ProviderLimiter(None, None, 10, 0.0, 0.0)
    actor = SimpleNamespace(renew=SimpleNamespace(remote=renew))
    leasing = Leasing(actor, 1, {JOB: allowance}, RunBudget(None, 0), caught_up)
    renewing = asyncio.create_task(leasing.renew())
    await waiting.wait()
    assert told == []
    written.set()
    await renewing
    assert told == [0]
