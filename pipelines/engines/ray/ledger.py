"""The ledger of a run on Ray: one actor on the driver's machine writes what the workers send in batches."""

import asyncio
import contextlib
import pickle
import time
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct

from pipelines.ledger.entries import PendingExchange, SettledExchange, StoredAnswer
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.ledger_file import Durability
from pipelines.runtime.event_loop import reduce_gc
from pipelines.runtime.locks import ray_writer_lock

LedgerCall = tuple[str, tuple[Any, ...]]
"""(method of Ledger, its arguments): see Ledger.write_batch."""

T = TypeVar("T")

EXCHANGES_PER_WORKER = 1 << 28
"""Exchanges that one worker may record: the numbers of the next worker begin after them."""

MIN_BATCH_SECONDS = 0.005
"""Time between the batches of one worker: each costs Ray about 1.5 ms of CPU time, whatever its size."""


def pack(calls: Sequence[LedgerCall], released: Sequence[bytes]) -> bytes:
    """Pickle a batch of calls, and the fingerprints of requests that have ended."""
    return pickle.dumps((calls, released), pickle.HIGHEST_PROTOCOL)


def unpack(batch: bytes) -> tuple[Sequence[LedgerCall], Sequence[bytes]]:
    """Return what `pack` was given."""
    unpacked: tuple[Sequence[LedgerCall], Sequence[bytes]] = pickle.loads(batch)
    return unpacked


class WorkerEntries(Struct):
    """Totals of what one worker has written, for the counters if it dies before it could report them."""

    requests: int = 0
    cost: int = 0
    unpriced: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    unknown: int = 0
    """Pico-dollars of exchanges whose outcome stays unknown; not part of `cost`."""

    def count(self, settled: SettledExchange) -> None:
        """Count an exchange that has ended."""
        self.cost += settled.cost or 0
        self.unpriced += settled.cost is None
        self.input_tokens += settled.usage.input_tokens or 0
        self.output_tokens += settled.usage.output_tokens or 0


class LedgerActor:
    """Writes for all workers, and assigns each request to one of them, so that no two workers send the same."""

    def __init__(self, path: Path, job: str, durability: Durability) -> None:
        """Hold a lock that the next run waits for: the actor may outlive the driver."""
        reduce_gc()
        self._closing = contextlib.ExitStack()
        self._closing.enter_context(ray_writer_lock(path.parent, job))
        self._ledger = Ledger(path, durability)
        self._closing.callback(self._ledger.close)
        self._entries: dict[int, WorkerEntries] = {}
        self._owners: dict[bytes, int] = {}
        """By fingerprint the worker that sends the request."""
        self._waiters: dict[bytes, list[asyncio.Future[None]]] = {}

    async def begin(self, worker: int) -> int:
        """Register a worker; return the number before its first exchange."""
        self._entries[worker] = WorkerEntries()
        return self._first(worker)

    async def write(self, worker: int, batch: bytes) -> Sequence[int]:
        """Write what `pack` has put together; return the indexes of the calls that the daily budget has refused."""
        entries = self._entries_of(worker)
        calls, released = unpack(batch)
        results = await self._ledger.write_batch(calls) if calls else ()
        refused: list[int] = []
        for index, ((name, arguments), result) in enumerate(zip(calls, results, strict=True)):
            if name == "settle":
                settled: SettledExchange = arguments[0]
                entries.count(settled)
                self._release(worker, [fingerprint for fingerprint, *_ in settled.answers])
            elif name == "record_pending":
                entries.requests += result
                if not result:
                    refused.append(index)
        self._release(worker, released)
        return refused

    async def lookup(
        self, worker: int, fingerprints: Sequence[bytes]
    ) -> tuple[dict[bytes, StoredAnswer], Sequence[bytes]]:
        """Return (stored answers, requests that other workers send); all others are this worker's to send."""
        self._entries_of(worker)
        owners = [self._owners.setdefault(fingerprint, worker) for fingerprint in fingerprints]
        answers = await asyncio.to_thread(self._ledger.lookup, fingerprints)
        self._release(worker, list(answers))
        elsewhere = [
            fingerprint
            for fingerprint, owner in zip(fingerprints, owners, strict=True)
            if owner != worker and fingerprint not in answers
        ]
        return answers, elsewhere

    async def settled(
        self, worker: int, fingerprints: Sequence[bytes]
    ) -> tuple[dict[bytes, StoredAnswer], Sequence[bytes]]:
        """Do the same as `lookup`, once no other worker sends any of these requests."""
        waits: list[asyncio.Future[None]] = []
        for fingerprint in fingerprints:
            if self._owners.get(fingerprint, worker) != worker:
                waits.append(asyncio.get_running_loop().create_future())
                self._waiters.setdefault(fingerprint, []).append(waits[-1])
        if waits:
            await asyncio.wait(waits)
        return await self.lookup(worker, fingerprints)

    async def register_route(self, worker: int, *names: str) -> int:
        """See Ledger."""
        self._entries_of(worker)
        return await asyncio.to_thread(self._ledger.register_route, *names)

    async def has_answers(self, worker: int, *names: str) -> tuple[bool, bool]:
        """See Ledger."""
        self._entries_of(worker)
        return await asyncio.to_thread(self._ledger.has_answers, *names)

    async def last_answers(self, worker: int, *arguments: Any) -> dict[tuple[bytes, str], bytes]:
        """See Ledger."""
        self._entries_of(worker)
        return await asyncio.to_thread(self._ledger.last_answers, *arguments)

    async def packed_answers(self, worker: int, fingerprints: Sequence[bytes]) -> dict[bytes, bytes]:
        """See Ledger."""
        self._entries_of(worker)
        return await asyncio.to_thread(self._ledger.packed_answers, fingerprints)

    async def remove(self, worker: int) -> WorkerEntries:
        """Remove a worker that has died, and return its totals.

        Its pending exchanges are settled as unknown, its requests may be sent by others, and it can write no more if it
        is alive after all.
        """
        entries = self._entries.pop(worker)
        first = self._first(worker)
        entries.unknown = sum(await self._ledger.recover_exchanges(first + 1, first + EXCHANGES_PER_WORKER))
        self._release(worker, [fingerprint for fingerprint, owner in self._owners.items() if owner == worker])
        return entries

    async def close(self) -> None:
        """Write what is queued, then close the file."""
        await asyncio.to_thread(self._closing.close)

    def _first(self, worker: int) -> int:
        return (self._ledger.writer << 40) + worker * EXCHANGES_PER_WORKER

    def _entries_of(self, worker: int) -> WorkerEntries:
        entries = self._entries.get(worker)
        if entries is None:
            raise OSError(f"worker {worker} was given up: others do its work")
        return entries

    def _release(self, worker: int, fingerprints: Sequence[bytes]) -> None:
        for fingerprint in fingerprints:
            if self._owners.get(fingerprint) == worker:
                del self._owners[fingerprint]
                for waiter in self._waiters.pop(fingerprint, ()):
                    if not waiter.done():
                        waiter.set_result(None)


class RemoteLedger:
    """The ledger as a worker sees it: calls that arrive while a batch is being written go with the next one."""

    def __init__(self, actor: Any, worker: int, first: int) -> None:
        """`actor`: the handle of a LedgerActor. `first`: what its `begin` returned. Needs a running event loop."""
        self._actor = actor
        self._worker = worker
        self._last_exchange_id = first
        self._loop = asyncio.get_running_loop()
        self._queue: list[tuple[LedgerCall, asyncio.Future[Any], float]] = []
        self.waited_seconds = 0.0
        """Time that calls took to be written, added up over all of them."""
        self._sending: asyncio.Task[None] | None = None
        self._next_batch_at = 0.0
        """By the clock of the loop."""
        self._released: list[bytes] = []
        self._owned: set[bytes] = set()
        self._elsewhere: set[bytes] = set()

    def next_exchange_id(self) -> int:
        """See pipelines.ledger.ledger.Ledger, as for all that follow."""
        self._last_exchange_id += 1
        return self._last_exchange_id

    def record_pending(self, pending: PendingExchange, day: tuple[str, int] | None = None) -> asyncio.Future[bool]:
        return self._enqueue(("record_pending", (pending, day)))

    def cancel_pending(self, pending: PendingExchange, day: str | None = None) -> asyncio.Future[None]:
        return self._enqueue(("cancel_pending", (pending, day)))

    def settle(self, settled: SettledExchange, day: str | None = None) -> asyncio.Future[None]:
        # The actor releases requests with an answer by itself.
        self._owned.difference_update([fingerprint for fingerprint, *_ in settled.answers])
        return self._enqueue(("settle", (settled, day)))

    async def store_answer(self, fingerprint: bytes, route_id: int, request: bytes, reply: bytes) -> None:
        await self._enqueue(("store_answer", (fingerprint, route_id, request, reply)))

    async def write_queued(self, sql: str, values: Sequence[Any]) -> None:
        await self._enqueue(("write_queued", (sql, values)))

    def lookup(self, fingerprints: Sequence[bytes]) -> dict[bytes, StoredAnswer]:
        """To be called in a thread, as `register_route`."""
        return self._from_thread(self._look_up("lookup", fingerprints))

    def register_route(self, run_id: str, job: str, step: str, provider: str, endpoint: str, model: str) -> int:
        names = (run_id, job, step, provider, endpoint, model)
        return int(self._from_thread(actor_result(self._actor.register_route.remote(self._worker, *names))))

    def has_answers(self, job: str, step: str, provider: str, model: str) -> tuple[bool, bool]:
        names = (job, step, provider, model)
        answers: tuple[bool, bool] = self._from_thread(
            actor_result(self._actor.has_answers.remote(self._worker, *names))
        )
        return answers

    def last_answers(self, job: str, step: str, requests: Sequence[bytes]) -> dict[tuple[bytes, str], bytes]:
        answers: dict[tuple[bytes, str], bytes] = self._from_thread(
            actor_result(self._actor.last_answers.remote(self._worker, job, step, requests))
        )
        return answers

    def packed_answers(self, fingerprints: Sequence[bytes]) -> dict[bytes, bytes]:
        answers: dict[bytes, bytes] = self._from_thread(
            actor_result(self._actor.packed_answers.remote(self._worker, fingerprints))
        )
        return answers

    # Requests that another worker sends.

    def take_elsewhere(self, fingerprints: Sequence[bytes]) -> frozenset[bytes]:
        """Return, once, those of the requests looked up last that other workers send."""
        elsewhere = self._elsewhere.intersection(fingerprints)
        self._elsewhere -= elsewhere
        return frozenset(elsewhere)

    async def settled(self, fingerprints: Sequence[bytes]) -> dict[bytes, StoredAnswer]:
        """Return the answers once no other worker sends the requests; those without are this worker's to send."""
        return await self._look_up("settled", fingerprints)

    def release(self, fingerprint: bytes) -> None:
        """Let others send a request that has ended, also without an answer to store."""
        if fingerprint in self._owned:
            self._owned.discard(fingerprint)
            self._released.append(fingerprint)
            self._start_sending()

    async def _look_up(self, method: str, fingerprints: Sequence[bytes]) -> dict[bytes, StoredAnswer]:
        answers: Mapping[bytes, StoredAnswer]
        answers, elsewhere = await actor_result(getattr(self._actor, method).remote(self._worker, fingerprints))
        self._elsewhere.update(elsewhere)
        self._owned.update(one for one in fingerprints if one not in answers and one not in self._elsewhere)
        return dict(answers)

    # The way to the actor: one batch at a time.

    def _enqueue(self, call: LedgerCall) -> asyncio.Future[Any]:
        future = self._loop.create_future()
        self._queue.append((call, future, time.monotonic()))
        self._start_sending()
        return future

    def _start_sending(self) -> None:
        if self._sending is None or self._sending.done():
            self._sending = self._loop.create_task(self._send_batches())

    async def _send_batches(self) -> None:
        while self._queue or self._released:
            # Tasks that run before this loop's next turn can add calls; under load they have more time.
            await asyncio.sleep(self._next_batch_at - self._loop.time())
            self._next_batch_at = self._loop.time() + MIN_BATCH_SECONDS
            queue, self._queue = self._queue, []
            released, self._released = self._released, []
            calls = [call for call, _, _ in queue]
            try:
                refused = await actor_result(self._actor.write.remote(self._worker, pack(calls, released)))
            except Exception as exc:  # noqa: BLE001 - raised where the results are awaited
                for _, future, _ in queue:
                    if not future.done():
                        future.set_exception(exc)
                continue
            written_at = time.monotonic()
            for index, ((name, _), future, queued_at) in enumerate(queue):
                self.waited_seconds += written_at - queued_at
                if not future.done():
                    future.set_result(index not in refused if name == "record_pending" else None)

    def _from_thread(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


async def actor_result(call: Any) -> Any:
    """Return what an actor returns; raise what it raised, and OSError if it has died."""
    from ray.exceptions import RayError, RayTaskError

    try:
        return await call
    except RayTaskError as exc:
        raise exc.cause from None
    except RayError as exc:
        raise OSError(f"an actor of the run on Ray is gone ({type(exc).__name__}); run again") from exc
