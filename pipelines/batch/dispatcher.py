"""The fan-out by the provider's Batch API: requests gathered into files, submitted, polled, settled line by line."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from connectors.records import FATAL_ERROR_CLASSES, ROW_ERROR_CLASSES, TRANSIENT_ERROR_CLASSES, Request, RowError
from connectors.transport.client import HttpTransport, RequestError
from connectors.transport.token_usage import parse_count
from pipelines.batch.builder import Gathering, url_of
from pipelines.batch.files import BatchFolder
from pipelines.batch.lifecycle import (
    LONGEST_POLL,
    TOKEN_LIMIT,
    Carrier,
    Patience,
    TokenLimit,
    above_limit,
    token_limit,
)
from pipelines.batch.results import Lander
from pipelines.batch.store import Batch, BatchLedger, BatchLine
from pipelines.dispatch.dispatcher import OnlineDispatcher
from pipelines.dispatch.provider_routes import max_cost_function
from pipelines.dispatch.request_types import BatchStage, Outcome, RequestGroup, Route, total
from pipelines.ledger.entries import SettledExchange
from pipelines.pricing.prices import batch_price
from pipelines.runtime.provider_api import Item, ProviderApi, Refused


class BatchProgress:
    """Batches at the provider, and what of them is answered."""

    def __init__(self) -> None:
        self._answered: dict[str, tuple[int, int]] = {}

    def looked(self, batch: Batch, item: Item) -> None:
        """The provider has told how far a batch is."""
        told = item.get("request_counts")
        counts = told if isinstance(told, dict) else {}
        done = sum(parse_count(counts.get(name)) or 0 for name in ("completed", "failed"))
        self._answered[batch.mark] = (done, len(batch.lines))

    def forget(self, batch: Batch) -> None:
        """It is no longer under way."""
        self._answered.pop(batch.mark, None)

    def words(self) -> str | None:
        """What the run waits for; None where nothing is at the provider."""
        if not self._answered:
            return None
        done, lines = (sum(column) for column in zip(*self._answered.values(), strict=True))
        batches = f"{len(self._answered)} batch{'' if len(self._answered) == 1 else 'es'}"
        return f"{batches} at the provider: {done:,} of {lines:,} requests answered"


QUIET = 2.0
"""Seconds without a new request after which what was gathered is submitted; more where rows come slowly, up to
LONGEST_QUIET."""
LONGEST_QUIET = 60.0
HELD_BYTES = 256 << 20
"""Bodies of requests that wait for their answer: beyond this no further rows are read."""
NO_SUCH_API = frozenset({404, 405, 501})
"""What a server answers to a path that it does not know."""
SMALLEST_SPLIT = 100
"""Lines: a batch above an enqueued-token limit that the provider does not name is halved down to so many at once,
and further when longest_hold has passed: somebody else's batches may fill the provider's queue."""


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """What delivery by batches needs to know beside what every delivery needs."""

    batches: BatchLedger
    folder: Path
    """Where the files of batches under way lie; this job's alone."""
    transport: HttpTransport
    lanes: Sequence[tuple[Route, str, str]]
    """Each step's lane with its model and its kind of endpoint."""
    deadline: datetime | None
    """From then on the rest is asked online; None: never."""


class BatchDispatcher(OnlineDispatcher):
    """A FanOut whose requests travel in batches until the deadline, online afterwards."""

    def deliver(self, delivery: BatchOptions) -> None:
        """To be called once, before `start`."""
        self._delivery = delivery
        self._batches = delivery.batches
        self._folder = BatchFolder(delivery.folder)
        self._models = {lane.route_id: model for lane, model, _ in delivery.lanes}
        self._gathering = Gathering(self._batches.ledger, self._batches, self._folder, self._day_budget, self._launch)
        self._priced: dict[int, tuple[Route, Route]] = {}
        self._carriers: dict[asyncio.Task[None], Batch] = {}
        self._landing: set[asyncio.Task[Any] | None] = set()
        self._landed_at = 0.0
        self._others: list[asyncio.Task[None]] = []
        self._open: set[bytes] = set()
        self._asked: dict[bytes, tuple[Route, Request]] = {}
        self._held = 0
        self._past = asyncio.Event()
        self._online = False
        self._lander = Lander(self._batches, self._folder, self._purse, self._tally, self)
        self._progress = BatchProgress()

    def start(self) -> None:
        """Attach to the batches that earlier invocations left, then gather."""
        found = self._batches.open_batches()
        self._folder.keep_only(frozenset(batch.mark for batch in found))
        deadline = self._delivery.deadline
        if deadline is not None and deadline <= datetime.now(deadline.tzinfo):
            self._past.set()
        for batch in found:
            self._attach(batch)
        self._gatherer = asyncio.create_task(self._gather())
        self._others = [self._gatherer, asyncio.create_task(self._until_deadline())]
        for task in self._others:
            task.add_done_callback(self._broke)

    def _attach(self, batch: Batch) -> None:
        """A batch of an earlier invocation; one of a step that the job has no more is left where it is."""
        for lane, model, endpoint in self._delivery.lanes:
            if (lane.step, lane.provider.name, endpoint) == (batch.step, batch.provider, batch.endpoint):
                self._models[batch.leg] = model
                # As the API counts while it has not read them: a token for every four bytes.
                sent = self._folder.sent(batch.mark)
                batch.tokens = sent.stat().st_size // 4 if sent.exists() else 0
                self._launch(batch, self._at_batch_price(replace(lane, route_id=batch.leg)))
                # Earlier invocations made sure that it fits.
                self._purse.reserved += sum(line.reserved or 0 for line in batch.lines.values())
                return

    def stop(self, reason: str) -> None:
        """Submit nothing more. Batches that run are left to the next invocation, but for a spent budget: what was
        paid for lands first; as does what is being fetched."""
        if not reason.startswith("budget"):
            left = [task for task in self._carriers if task not in self._landing]
            if not self.left_running:
                self.left_running = sum(self._carriers[task].state == "created" for task in left)
            for task in (*left, *self._others):
                if task is not asyncio.current_task():
                    task.cancel()
        super().stop(reason)

    def cancel(self) -> None:
        """Wait for nothing any more."""
        for task in (*self._carriers, *self._others):
            task.cancel()
        super().cancel()

    async def close(self, grace: float) -> None:
        """Let what is being fetched land, at most `grace` seconds; what runs is left to the next invocation."""
        self.stop(self.stopped or "finished")
        tasks = [*self._carriers, *self._others]
        if self._carriers:
            await asyncio.wait(list(self._carriers), timeout=grace)
        await super().close(grace)
        await asyncio.gather(*tasks, return_exceptions=True)
        self._gathering.undone()

    def _let_go(self) -> None:
        if not self._carriers:
            super()._let_go()

    @property
    def hungry(self) -> bool:
        """Whether rows that wait may be told apart from rows that have their answer: not while answers are read."""
        return super().has_capacity if self._online else not self._landing

    async def hunger(self) -> None:
        """Wait until more rows can be held."""
        while not self._online and self._held >= HELD_BYTES and self.stopped is None:
            self._wanted.clear()
            await self._wanted.wait()
        if self._online:
            await super().wait_for_capacity()

    # Gathering: requests go line by line into a file, which is cut when it is full or no more of them come.

    async def _gather(self) -> None:
        quiet, last = QUIET, None
        while self.stopped is None and not self._past.is_set():
            try:
                pack = await asyncio.wait_for(self._ready.get(), quiet)
            except TimeoutError:
                if not self._landing and not await self._gathering.cut_all():
                    self.stop("budget_day")
                continue
            now = time.monotonic()
            if last is not None and self._landed_at < last:
                # No batch came back meanwhile: rows are slow to come, and are not to go in a batch for each few.
                quiet = min(LONGEST_QUIET, max(quiet, 3 * (now - last)))
            last = now
            await self._add(pack)

    async def _add(self, pack: RequestGroup) -> None:
        lane = self._at_batch_price(pack.route)
        for request in pack.requests:
            if request.fingerprint in self._waves and request.fingerprint not in self._asked:
                self._asked[request.fingerprint] = (pack.route, request)
                self._held += len(request.body)
        # What an open batch holds is waited for; what has landed while it stood in the queue is not asked at all.
        wanted = (r for r in pack.requests if r.fingerprint in self._waves and r.fingerprint not in self._open)
        pack = replace(pack, requests=tuple(wanted))
        if not pack.requests:
            return
        try:
            body = (await self._call(pack)).body or b"{}"
        except OSError as exc:
            self._tell_all(pack, RowError("input", f"a file of this row cannot be read any more: {exc.strerror}"))
            return
        pack = replace(pack, lane=lane)
        worst = total(lane.max_cost(request) for request in pack.requests)
        left = self._purse.remaining
        if left is not None and (worst is None or worst > left) and not await self._gathering.cut_all():
            self.stop("budget_day")
        elif not await self._purse.acquire(worst):
            self.stop("budget")
        elif not await self._gathering.add(pack, body, worst):
            self._purse.settle(worst, None)
            await self._gathering.cut_all()
            self.stop("budget_day")

    def _launch(self, batch: Batch, lane: Route) -> None:
        self._open.update(mark for line in batch.lines.values() for mark in line.fingerprints)
        self._tally.in_flight += len(batch.lines)
        task = asyncio.create_task(self._carry(batch, lane))
        self._carriers[task] = batch
        task.add_done_callback(self._carried)
        task.add_done_callback(self._broke)

    def _carried(self, task: asyncio.Task[None]) -> None:
        batch = self._carriers.pop(task)
        self._landing.discard(task)
        self._tally.in_flight -= len(batch.lines)
        self._progress.forget(batch)
        self.waiting_for = self._progress.words()
        self._let_go()

    # One batch: there and back.

    async def _carry(self, batch: Batch, lane: Route) -> None:
        longest_hold = self._tries.longest_hold
        api = ProviderApi(self._delivery.transport, lane.provider)
        carrier = Carrier(
            api, self._batches, self._folder, longest_hold, self._past, lambda stage: self._tell_stage(lane, stage)
        )
        try:
            item, counts = await self._ended(batch, lane, carrier)
            self._landing.add(asyncio.current_task())
            self._landed_at = time.monotonic()
            await self._lander.land_all(batch, lane, carrier, item, counts)
            await carrier.clean(batch, item)
        except Refused as exc:
            none = exc.error.http_status in NO_SUCH_API and batch.state != "created"
            hint = "; it seems to have no Batch API: write delivery: online" if none else ""
            self.stop(f"{exc.error.error_class}: {lane.provider.name} says of a batch: {exc.error.message}{hint}")
        except RequestError as exc:
            self.stop(f"{exc.error_class}: {lane.provider.name}: {exc}")
        except Patience as exc:
            self.stop(f"{lane.provider.name} has answered nothing of use for {longest_hold:.0f} s; last: {exc}")

    async def _ended(self, batch: Batch, lane: Route, carrier: Carrier) -> tuple[Item, bool]:
        """(the batch as it ended, whether its lines without an answer have had an attempt)."""
        sent = self._folder.sent(batch.mark)
        size = sent.stat().st_size if batch.state == "noted" and sent.exists() else 0
        pause = QUIET
        alone_since: float | None = None
        while True:
            try:
                submitted = await carrier.submit(batch, url_of(lane), lambda sent: self._tell_upload(lane, sent, size))
                item = await carrier.ended(batch, lambda item: self._tell_look(batch, item)) if submitted else None
                if item is None:
                    return {}, False
                if (limit := token_limit(item)) is None:
                    return item, not self._past.is_set()
                await carrier.again(batch)
                raise limit
            except TokenLimit as exc:
                others = [task for task, other in self._carriers.items() if other.state == "created"]
                if others:
                    alone_since = None
                else:
                    alone_since = alone_since or time.monotonic()
                    waited = time.monotonic() + pause - alone_since > self._tries.longest_hold
                    if (ended := self._above(batch, lane, exc, waited)) is not None:
                        return ended, len(batch.lines) == 1
                self.waiting_for = f"{lane.provider.name} takes no more enqueued tokens until other batches have ended"
                # One of ours that ends makes room; where none runs, somebody else's has to.
                late = asyncio.create_task(self._past.wait())
                await asyncio.wait(
                    (late, *others), timeout=None if others else pause, return_when=asyncio.FIRST_COMPLETED
                )
                late.cancel()
                pause = min(LONGEST_POLL, pause * 2)

    def _above(self, batch: Batch, lane: Route, told: TokenLimit, waited: bool) -> Item | None:
        """How a batch ends that is above the limit even alone: cut into smaller ones, or with the error of its only
        line. None: it may not be above; `waited` for longest_hold, it is where it might be."""
        limit, lines, tokens = told.limit, len(batch.lines), batch.tokens
        if limit is None:
            sure, above = False, waited or lines > SMALLEST_SPLIT
        else:
            # Counts differ: by ours it may be below a limit that it is above by the provider's.
            sure, above = tokens > limit, tokens > limit or (waited and 2 * tokens > limit)
        if not above:
            return None
        if lines == 1:
            return above_limit(told, sure)
        self._gathering.most_tokens[lane.route_id] = limit if sure and limit is not None else tokens // 2
        return {}

    def answered(
        self,
        pack: RequestGroup,
        line: BatchLine,
        ended: SettledExchange,
        answers: Sequence[bytes | RowError],
        error: RowError | None,
    ) -> None:
        """See LineTold."""
        self._count(pack.route, ended)
        if self.observer is not None:
            self.observer.record_exchange(pack.route, ended)
        self._open.difference_update(line.fingerprints)
        if error is not None:
            self._judge_line(pack, error)
            return
        for request, answer in zip(pack.requests, answers, strict=True):
            self._tell(pack, request, answer)

    def unanswered(self, pack: RequestGroup, line: BatchLine, error: RowError) -> None:
        """See LineTold."""
        self._open.difference_update(line.fingerprints)
        self._judge_line(pack, error)

    def _judge_line(self, pack: RequestGroup, error: RowError) -> None:
        """What follows from a line without an answer: the next batch, each of its rows alone, or an error."""
        # A batch of this line alone was above the limit: another would be as well.
        too_large = error.code == TOKEN_LIMIT
        if error.error_class in FATAL_ERROR_CLASSES:
            self._tell_all(pack, error)
            self.stop(f"{error.error_class}: {pack.route.provider.name} says: {error.message}")
        elif error.error_class in TRANSIENT_ERROR_CLASSES and not too_large and pack.attempts < self._tries.attempts:
            self._once_more(pack.requests, pack.attempts)
        elif (too_large or error.error_class in ROW_ERROR_CLASSES) and len(pack.requests) > 1:
            # Halving, as online, would take a batch a halving.
            for request in pack.requests:
                self._once_more((request,), 0)
        else:
            self._tell_all(pack, error)

    def _once_more(self, requests: Sequence[Request], attempts: int) -> None:
        """Ask again for what somebody waits for, as it was asked; the rest is asked when its rows come by."""
        asked = [self._asked[request.fingerprint] for request in requests if request.fingerprint in self._asked]
        if asked:
            self._again(RequestGroup(asked[0][0], tuple(request for _, request in asked), attempts, attempts))

    def _land(self, mark: bytes, outcome: Outcome) -> None:
        if (asked := self._asked.pop(mark, None)) is not None:
            self._held -= len(asked[1].body)
            self._wanted.set()
        super()._land(mark, outcome)

    # The deadline.

    async def _until_deadline(self) -> None:
        deadline = self._delivery.deadline
        if deadline is None:
            return
        # In short naps: a machine that slept is not late by its sleep.
        while (left := (deadline - datetime.now(deadline.tzinfo)).total_seconds()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._past.wait(), min(left, 30))
        self._past.set()
        await asyncio.wait([self._gatherer])
        for spool in self._gathering.undone():
            self._purse.settle(spool.reserved, None)
            for pack in spool.packs:
                self._once_more(pack.requests, pack.attempts)
        while self._carriers:
            await asyncio.wait(list(self._carriers))
        if self.stopped is None:
            # What stands in the queue may have been answered by a batch meanwhile.
            for pack in [self._ready.get_nowait() for _ in range(self._ready.qsize())]:
                if wanted := tuple(request for request in pack.requests if request.fingerprint in self._waves):
                    self._again(replace(pack, requests=wanted))
            self._online = True
            self._wanted.set()
            super().start()

    def _at_batch_price(self, lane: Route) -> Route:
        known = self._priced.get(lane.route_id)
        if known is None or known[0] is not lane:
            price = None if lane.price is None else batch_price(lane.price)
            known = (lane, replace(lane, price=price, max_cost=max_cost_function(price, self._models[lane.route_id])))
            self._priced[lane.route_id] = known
        return known[1]

    def _tell_upload(self, lane: Route, sent: int, size: int) -> None:
        self.waiting_for = f"uploading to {lane.provider.name}: {sent:,} of {size:,} bytes"

    def _tell_look(self, batch: Batch, item: Item) -> None:
        self._progress.looked(batch, item)
        self.waiting_for = self._progress.words()

    def _tell_stage(self, lane: Route, stage: BatchStage) -> None:
        if self.observer is not None:
            self.observer.record_batch_stage(lane, stage)
