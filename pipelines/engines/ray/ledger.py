"""The ledger of a run on Ray: one actor beside the driver writes what each worker sends it in groups."""

import asyncio
import contextlib
import io
import pickle
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from connectors.records import Usage
from pipelines.ledger.entries import PendingExchange, SettledExchange, StoredAnswer
from pipelines.ledger.ledger import Ledger
from pipelines.runtime.event_loop import look_rarely
from pipelines.runtime.locks import ray_writer_lock

Asked = tuple[str, tuple[Any, ...]]
"""(method of Ledger, its arguments): see Ledger.write_batch."""


def packed(asked: Sequence[Asked], released: Sequence[bytes]) -> bytes:
    """A group to be written, and the fingerprints of requests that have ended."""
    whole = io.BytesIO()
    pickler = pickle.Pickler(whole, pickle.HIGHEST_PROTOCOL)
    # By itself a dataclass with slots goes with the names of its fields, and is put together field by field: two to
    # three times the work.
    pickler.dispatch_table = _TAKEN_APART
    pickler.dump((asked, released))
    return whole.getvalue()


def unpacked(group: bytes) -> tuple[Sequence[Asked], Sequence[bytes]]:
    """What `packed` was given."""
    told: tuple[Sequence[Asked], Sequence[bytes]] = pickle.loads(group)
    return told


def _taken_apart(kind: type[Any]) -> Callable[[Any], tuple[Callable[..., Any], tuple[Any, ...]]]:
    values = attrgetter(*(field.name for field in fields(kind)))
    return lambda one: (kind, values(one))


_KINDS: tuple[type, ...] = (PendingExchange, SettledExchange, Usage)
_TAKEN_APART = {kind: _taken_apart(kind) for kind in _KINDS}


T = TypeVar("T")

NOTES = 1 << 28
"""Notes that one worker may make: the numbers of the next worker begin after them."""

LINGER = 0.005
"""Seconds between groups of one worker at least: each costs Ray about 1.5 ms of CPU time, however much is in it."""


@dataclass(slots=True)
class Account:
    """What one worker has had written, to be counted where it dies before it could tell."""

    requests: int = 0
    cost: int = 0
    unpriced: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    unknown: int = 0
    """Pico-dollars of requests whose outcome will never be seen; not part of `cost`."""

    def count(self, ended: SettledExchange) -> None:
        """An exchange has ended."""
        self.cost += ended.cost or 0
        self.unpriced += ended.cost is None
        self.input_tokens += ended.usage.input_tokens or 0
        self.output_tokens += ended.usage.output_tokens or 0


class LedgerActor:
    """Writes for all workers, whose groups it commits together; says who asks which request, so that none is asked by
    two of them at the same time."""

    def __init__(self, path: Path, job: str) -> None:
        """On the machine of the driver, under a lock that the next run waits for: whoever outlives the driver."""
        look_rarely()
        self._closing = contextlib.ExitStack()
        self._closing.enter_context(ray_writer_lock(path.parent, job))
        self._ledger = Ledger(path)
        self._closing.callback(self._ledger.close)
        self._accounts: dict[int, Account] = {}
        self._claims: dict[bytes, int] = {}
        self._waiting: dict[bytes, list[asyncio.Future[None]]] = {}

    async def begin(self, worker: int) -> int:
        """A worker is about to write: the number before its first note."""
        self._accounts[worker] = Account()
        return self._first(worker)

    async def write(self, worker: int, group: bytes) -> Sequence[int]:
        """Write what `packed` made together; the places of what was not noted, as the day's budget has no room."""
        account = self._known(worker)
        asked, released = unpacked(group)
        results = await self._ledger.write_batch(asked) if asked else ()
        refused: list[int] = []
        for place, ((name, given), result) in enumerate(zip(asked, results, strict=True)):
            if name == "settle":
                ended: SettledExchange = given[0]
                account.count(ended)
                self._release(worker, [mark for mark, *_ in ended.answers])
            elif name == "record_pending":
                account.requests += result
                if not result:
                    refused.append(place)
        self._release(worker, released)
        return refused

    async def lookup(self, worker: int, marks: Sequence[bytes]) -> tuple[dict[bytes, StoredAnswer], Sequence[bytes]]:
        """(kept answers, requests that other workers ask at the moment): all others are this worker's to ask now."""
        self._known(worker)
        owners = [self._claims.setdefault(mark, worker) for mark in marks]
        found = await asyncio.to_thread(self._ledger.lookup, marks)
        self._release(worker, list(found))
        return found, [mark for mark, owner in zip(marks, owners, strict=True) if owner != worker and mark not in found]

    async def settled(self, worker: int, marks: Sequence[bytes]) -> tuple[dict[bytes, StoredAnswer], Sequence[bytes]]:
        """As `lookup`, once no other worker asks any of these."""
        waits: list[asyncio.Future[None]] = []
        for mark in marks:
            if self._claims.get(mark, worker) != worker:
                waits.append(asyncio.get_running_loop().create_future())
                self._waiting.setdefault(mark, []).append(waits[-1])
        if waits:
            await asyncio.wait(waits)
        return await self.lookup(worker, marks)

    async def leg(self, worker: int, *names: str) -> int:
        """See Ledger."""
        self._known(worker)
        return await asyncio.to_thread(self._ledger.register_route, *names)

    async def gone(self, worker: int) -> Account:
        """A worker has died: what it noted is settled as unknown, what it asked may be asked by others, and it writes
        nothing any more, should it live after all."""
        account = self._accounts.pop(worker)
        first = self._first(worker)
        account.unknown = sum(await self._ledger.recover_exchanges(first + 1, first + NOTES))
        self._release(worker, [mark for mark, owner in self._claims.items() if owner == worker])
        return account

    async def close(self) -> None:
        """Write what is queued, then close the file."""
        await asyncio.to_thread(self._closing.close)

    def _first(self, worker: int) -> int:
        return (self._ledger.writer << 40) + worker * NOTES

    def _known(self, worker: int) -> Account:
        account = self._accounts.get(worker)
        if account is None:
            raise OSError(f"worker {worker} was given up: others do its work")
        return account

    def _release(self, worker: int, marks: Sequence[bytes]) -> None:
        for mark in marks:
            if self._claims.get(mark) == worker:
                del self._claims[mark]
                for waits in self._waiting.pop(mark, ()):
                    if not waits.done():
                        waits.set_result(None)


class RemoteLedger:
    """Stands for the ledger in a worker: what is queued while a group is on its way goes with the next."""

    def __init__(self, actor: Any, worker: int, first: int) -> None:
        """`actor`: the handle of a LedgerActor. `first`: what its `begin` returned. In a running event loop."""
        self._actor = actor
        self._worker = worker
        self._notes = first
        self._loop = asyncio.get_running_loop()
        self._queue: list[tuple[Asked, asyncio.Future[Any], float]] = []
        self.waited = 0.0
        """Seconds that what was queued took to be written, added up over all of it."""
        self._sending: asyncio.Task[None] | None = None
        self._next = 0.0
        """When another group may leave, by the clock of the loop."""
        self._released: list[bytes] = []
        self._claimed: set[bytes] = set()
        self._elsewhere: set[bytes] = set()

    def next_exchange_id(self) -> int:
        """See pipelines.ledger.ledger.Ledger, as for all that follow."""
        self._notes += 1
        return self._notes

    def record_pending(self, noted: PendingExchange, day: tuple[str, int] | None = None) -> asyncio.Future[bool]:
        return self._queued(("record_pending", (noted, day)))

    def cancel_pending(self, noted: PendingExchange, day: str | None = None) -> asyncio.Future[None]:
        return self._queued(("cancel_pending", (noted, day)))

    def settle(self, ended: SettledExchange, day: str | None = None) -> asyncio.Future[None]:
        # With its answer a request has ended for whoever else wants it.
        self._claimed.difference_update([mark for mark, *_ in ended.answers])
        return self._queued(("settle", (ended, day)))

    async def store_answer(self, fingerprint: bytes, leg: int, request: bytes, reply: bytes) -> None:
        await self._queued(("store_answer", (fingerprint, leg, request, reply)))

    async def write_queued(self, sql: str, values: Sequence[Any]) -> None:
        await self._queued(("write_queued", (sql, values)))

    def lookup(self, fingerprints: Sequence[bytes]) -> dict[bytes, StoredAnswer]:
        """To be called in a thread, as `leg`."""
        return self._from_thread(self._looked_up("lookup", fingerprints))

    def register_route(self, run_id: str, job: str, step: str, provider: str, endpoint: str, model: str) -> int:
        names = (run_id, job, step, provider, endpoint, model)
        return int(self._from_thread(answered(self._actor.leg.remote(self._worker, *names))))

    # Requests that another worker asks.

    def take_elsewhere(self, marks: Sequence[bytes]) -> frozenset[bytes]:
        """Those among the requests looked up last that other workers ask; they are told once."""
        taken = self._elsewhere.intersection(marks)
        self._elsewhere -= taken
        return frozenset(taken)

    async def settled(self, marks: Sequence[bytes]) -> dict[bytes, StoredAnswer]:
        """The answers to these, once no other worker asks them; those without are this worker's to ask."""
        return await self._looked_up("settled", marks)

    def release(self, mark: bytes) -> None:
        """The request has ended, be it without an answer to keep."""
        if mark in self._claimed:
            self._claimed.discard(mark)
            self._released.append(mark)
            self._send_soon()

    async def _looked_up(self, how: str, marks: Sequence[bytes]) -> dict[bytes, StoredAnswer]:
        found: Mapping[bytes, StoredAnswer]
        found, elsewhere = await answered(getattr(self._actor, how).remote(self._worker, marks))
        self._elsewhere.update(elsewhere)
        self._claimed.update(mark for mark in marks if mark not in found and mark not in self._elsewhere)
        return dict(found)

    # The way to the actor: one group at a time.

    def _queued(self, asked: Asked) -> asyncio.Future[Any]:
        future = self._loop.create_future()
        self._queue.append((asked, future, time.monotonic()))
        self._send_soon()
        return future

    def _send_soon(self) -> None:
        if self._sending is None or self._sending.done():
            self._sending = self._loop.create_task(self._send_groups())

    async def _send_groups(self) -> None:
        while self._queue or self._released:
            # Whoever runs before this loop's next turn has the time to queue as well; where much is going on, others
            # have more.
            await asyncio.sleep(self._next - self._loop.time())
            self._next = self._loop.time() + LINGER
            group, self._queue = self._queue, []
            released, self._released = self._released, []
            asked = [one for one, _, _ in group]
            try:
                refused = await answered(self._actor.write.remote(self._worker, packed(asked, released)))
            except Exception as exc:  # noqa: BLE001 - whoever waits gets it
                for _, future, _ in group:
                    if not future.done():
                        future.set_exception(exc)
                continue
            written = time.monotonic()
            for place, ((name, _), future, queued) in enumerate(group):
                self.waited += written - queued
                if not future.done():
                    future.set_result(place not in refused if name == "record_pending" else None)

    def _from_thread(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


async def answered(call: Any) -> Any:
    """What an actor returns; what it raised is raised here as it was, its death as OSError."""
    from ray.exceptions import RayError, RayTaskError

    try:
        return await call
    except RayTaskError as exc:
        raise exc.cause from None
    except RayError as exc:
        raise OSError(f"an actor of the run on Ray is gone ({type(exc).__name__}); run again") from exc
