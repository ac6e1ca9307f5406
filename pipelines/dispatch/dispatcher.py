"""The fan-out: requests in, outcomes out; each is noted, sent, tried again or given up, and kept in the ledger."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import orjson

from connectors.records import Call, Reply, Request, RowError
from connectors.transport.client import RequestError, Transport
from pipelines.dispatch.counters import RunCounters
from pipelines.dispatch.held_requests import HeldRequests
from pipelines.dispatch.read_buffer import ReadBuffer
from pipelines.dispatch.request_types import (
    DailyBudget,
    Exchange,
    ExchangeObserver,
    Outcome,
    RequestGroup,
    RetryLimits,
    Route,
    RunLedger,
    Submission,
    expected,
    headed,
    paid,
    read_reply,
    settlement,
    total,
)  # fmt: skip
from pipelines.dispatch.retry_policy import Verdict, verdict
from pipelines.ledger.entries import PendingExchange, SettledExchange, StoredAnswer
from pipelines.ledger.ledger import now_us
from pipelines.pricing.run_budget import RunBudget


class OnlineDispatcher:
    """Sends what it is asked for, at most `concurrency` exchanges at a time, and tells each one's outcome."""

    def __init__(
        self,
        ledger: RunLedger,
        transport: Transport,
        purse: RunBudget,
        tally: RunCounters,
        tries: RetryLimits,
        concurrency: int,
        run_id: str,
        day_budget: DailyBudget | None = None,
        failed_share: float | None = None,
    ) -> None:
        self._ledger = ledger
        self._transport = transport
        self._purse = purse
        self._tally = tally
        self._tries = tries
        self._concurrency = concurrency
        self._run_id = run_id
        self._day_budget = day_budget
        self._failed_share = failed_share
        self.began = now_us()
        """Microseconds since 1970, UTC: whatever this run has in the ledger since then is of this invocation."""
        self._ready: asyncio.Queue[RequestGroup] = asyncio.Queue()
        self._waves: dict[bytes, list[Submission]] = {}
        self._workers: list[asyncio.Task[None]] = []
        self._waiting: set[asyncio.Task[None]] = set()
        self.read_buffer = ReadBuffer()
        self.held_requests = HeldRequests(self._again, self._waiting, self._broke)
        self._in_parts_now: set[asyncio.Task[None]] = set()
        self._wanted = asyncio.Event()
        self._settling: set[asyncio.Future[None]] = set()
        """Exchanges on their way into the ledger, which no sender waits for."""
        self._noted_now = 0
        """Exchanges that are noted and not settled yet."""
        self._day_moved = asyncio.Event()
        self.stopped: str | None = None
        """Why nothing more is sent; None while all goes on."""
        self.waiting_for: str | None = None
        """What makes the run wait at this moment, in words, where it is no provider's limit."""
        self.left_running = 0
        """Batches that go on at the provider after the run was stopped."""
        self.observer: ExchangeObserver | None = None
        """Is told of every exchange; None: nobody looks."""
        self.failure: Exception | None = None
        """What broke the fan-out itself: the ledger cannot be written, or a defect."""

    def start(self) -> None:
        """Let the senders begin."""
        self._workers = [asyncio.create_task(self._work()) for _ in range(self._concurrency)]
        self._waiting.update(self._workers)
        for worker in self._workers:
            worker.add_done_callback(self._broke)

    async def close(self, grace: float) -> None:
        """Wait for what is in flight, at most `grace` seconds; then cancel it, which settles it as unknown."""
        self.stop(self.stopped or "finished")
        if self._workers:
            await asyncio.wait(self._workers, timeout=grace)
        self.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        if self._settling:
            await asyncio.wait(self._settling)

    def cancel(self) -> None:
        """Wait for nothing any more: what is in flight is settled as unknown."""
        for worker in self._workers:
            worker.cancel()

    def stop(self, reason: str) -> None:
        """Send nothing more; what is in flight lands, and whoever waits for the rest is told that it is left."""
        if self.stopped is None:
            self.stopped = reason
        for worker in self._waiting:
            worker.cancel()
        self._wanted.set()
        self._day_moved.set()
        self._let_go()

    def _let_go(self) -> None:
        if self.stopped is not None and self._tally.in_flight == 0:
            for wave in [wave for waves in self._waves.values() for wave in waves]:
                wave.end()
            self._waves.clear()

    @property
    def has_capacity(self) -> bool:
        """Whether fewer requests are ready than there are senders."""
        return self._ready.qsize() < self._concurrency and not self.held_requests.is_full

    async def wait_for_capacity(self) -> None:
        """Wait until more requests are wanted."""
        while not self.has_capacity and self.stopped is None:
            self._wanted.clear()
            await self._wanted.wait()

    async def submit(
        self, lane: Route, requests: Iterable[Request], usable: Callable[[StoredAnswer], bool]
    ) -> Submission:
        """Look the requests up, then queue those without a usable answer; none is sent twice at the same time."""
        wave = Submission(set(), self.read_buffer)
        fresh: dict[bytes, Request] = {}
        for request in requests:
            wave.pending.add(request.fingerprint)
            waiting = self._waves.setdefault(request.fingerprint, [])
            if not waiting:
                fresh[request.fingerprint] = request
            else:
                self.passed(lane.step, len(request.keys))
            waiting.append(wave)
        if not wave.pending:
            wave.end()
        # Others who want the same now wait in _waves: nobody can send it between this look-up and the queue.
        found = await asyncio.to_thread(self._ledger.lookup, list(fresh)) if fresh else {}
        for mark, answer in found.items():
            if usable(answer):
                self.passed(lane.step, len(fresh.pop(mark).keys), failed=answer.error is not None)
                self._land(mark, Outcome(answer.reply, answer.error, 1, answer.run_id, answer.at, False))
        self._queue(lane, list(fresh.values()), usable)
        self._let_go()
        return wave

    def _queue(self, lane: Route, requests: Sequence[Request], usable: Callable[[StoredAnswer], bool]) -> None:
        self._tally.steps[lane.step].record_submitted(requests)
        for some in lane.endpoint.group_requests([request for request in requests if not request.parts]):
            self._ready.put_nowait(RequestGroup(lane, some))
        for request in requests:
            if request.parts:
                task = asyncio.create_task(self._in_parts(lane, request, usable))
                self._in_parts_now.add(task)
                task.add_done_callback(self._in_parts_now.discard)
                task.add_done_callback(self._broke)

    async def _in_parts(self, lane: Route, request: Request, usable: Callable[[StoredAnswer], bool]) -> None:
        """Ask for the parts of a request; the answer that they make together is kept as its own."""
        parts = tuple(replace(part, keys=request.keys) for part in request.parts)
        wave = await self.submit(lane, parts, usable)
        await wave.done.wait()
        self.read_buffer.release(wave.unread_bytes)
        if wave.pending:
            return
        ended = [wave.outcomes[part.fingerprint] for part in parts]
        failed = next((outcome for outcome in ended if outcome.error is not None), None)
        if failed is None:
            joined = lane.endpoint.merge_parts(request, [outcome.answer or b"" for outcome in ended])
            await self._ledger.store_answer(request.fingerprint, lane.route_id, request.body, joined)
            sent = any(outcome.was_sent for outcome in ended)
            failed = Outcome(joined, None, max(o.attempts for o in ended), self._run_id, now_us(), sent)
        self._land(request.fingerprint, failed)

    # One sender: takes the next pack, sends it, tells the outcome.

    async def _work(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        while self.stopped is None:
            self._waiting.add(task)
            await self.read_buffer.wait_for_space()
            pack = await self._ready.get()
            if self._ready.qsize() < self._concurrency:
                self._wanted.set()
            await self._send(pack, task)
            del pack  # It may be large, and the next one long in coming.

    def _broke(self, task: "asyncio.Task[None]") -> None:
        """A defect or a full disk in a task of ours, whatever it raised: it ends the run, which raises it again."""
        if not task.cancelled() and isinstance(failure := task.exception(), Exception):
            self._fail(failure)

    def _fail(self, failure: Exception) -> None:
        self.failure = self.failure or failure
        self.stop(f"{type(failure).__name__}: {failure}")

    async def _send(self, pack: RequestGroup, task: asyncio.Task[None]) -> None:
        lane = pack.route
        worst = total(lane.max_cost(request) for request in pack.requests)
        tokens = sum(request.input_tokens for request in pack.requests)
        tokens += round(sum(expected(request, lane.mean_output_tokens) for request in pack.requests))
        if not await self._purse.acquire(worst):
            self.stop("budget")
            return
        exchange = Exchange(pack, lane, tokens, worst)
        settling: asyncio.Future[None] | None = None
        try:
            asked_at = time.monotonic()
            permitted = await self.held_requests.acquire_permits(pack, tokens, exchange.taken)
            if permitted is None:
                return
            member, permit = permitted
            if member is not lane:
                # Set aside was what the dearest member may cost.
                cheaper = total(member.max_cost(request) for request in pack.requests)
                self._purse.settle(None if worst is None else worst - (cheaper or 0), None)
                exchange.member, exchange.worst = member, cheaper
            sent_at = time.monotonic()
            if self.observer is not None:
                self.observer.record_wait(member, sent_at - asked_at)
            self._waiting.discard(task)
            if self.stopped is not None:
                return
            self._tally.in_flight += 1
            exchange.in_flight = True
            try:
                settling = await self._exchange(exchange, permit)
            finally:
                self._tally.record_timing(lane.step, sent_at - asked_at, time.monotonic() - sent_at, exchange.settled)
        finally:
            if settling is None:
                self._give_back(exchange, None)
        if settling is not None and exchange.large:
            # Else as many of them would wait to be written as are in flight.
            await asyncio.wait([settling])

    async def _exchange(self, exchange: Exchange, permit: int) -> asyncio.Future[None] | None:
        """Send it; on its way into the ledger then, where its sender's next request is noted right behind it, so that
        no more than `concurrency` are ever without their answer there. None where nothing came of it."""
        pack, member, worst = exchange.pack, exchange.member, exchange.worst
        try:
            call = await self._call(pack)
        except OSError as exc:
            self._tell_all(pack, RowError("input", f"a file of this row cannot be read any more: {exc.strerror}"))
            return None
        keys = orjson.dumps([key for request in pack.requests for key in request.keys])
        fingerprints = b"".join(request.fingerprint for request in pack.requests for _ in request.keys)
        number = self._ledger.next_exchange_id()
        noted = PendingExchange(number, member.route_id, pack.attempts + 1, keys, fingerprints, now_us(), worst)
        day = None if self._day_budget is None else self._day_budget.today()
        if not await self._note(noted, day):
            return None
        self._tally.requests += 1
        self._tally.retries += pack.exchanges > 0
        pack.exchanges += 1
        reply: Reply | None = None
        failure: RequestError | None = None
        seen = False
        try:
            reply = await self._transport.send(member.provider, call)
            seen = True
        except RequestError as exc:
            failure = exc
            seen = True
        finally:
            if not seen:
                # Cancelled: whether the provider did its work is not known.
                await asyncio.shield(self._ledger.settle(noted.as_unknown(), day))
                self._purse.spent += worst or 0
                self._noted_now -= 1
                self._day_moved.set()
        answers, error, usage = read_reply(pack, reply, failure)
        reply = headed(reply)
        spent = paid(member, reply, failure, error, usage, worst)
        exchange.settled = settlement(noted, pack, reply, failure, answers, error, usage, spent)
        follows = verdict(pack, member, permit, answers, error, reply, failure, self._tries)
        if follows.stop is not None:
            self.stop(follows.stop)
        settling = self._ledger.settle(exchange.settled, day)
        self._settling.add(settling)
        settling.add_done_callback(partial(self._landed, exchange, follows))
        return settling

    def _landed(self, exchange: Exchange, follows: Verdict, settling: asyncio.Future[None]) -> None:
        """It is in the ledger, or that cannot be written: only now its rows are told, and its slots are free."""
        self._settling.discard(settling)
        ended: SettledExchange | None = None
        try:
            settling.result()
            ended = exchange.settled
            assert ended is not None
            self._noted_now -= 1
            self._day_moved.set()
            self._count(exchange.pack.route, ended)
            self._tally.rate_limited += ended.error_class == "rate_limit"
            if self.observer is not None:
                self.observer.record_exchange(exchange.member, ended)
            self._follow(exchange.pack, follows)
        except Exception as exc:  # noqa: BLE001 - whoever waits for the run gets it
            self._fail(exc)
        finally:
            self._give_back(exchange, ended)

    def _follow(self, pack: RequestGroup, follows: Verdict) -> None:
        for request, answer in zip(pack.requests, follows.answers, strict=bool(follows.answers)):
            self._tell(pack, request, answer)
        for one in follows.again:
            if follows.wait:
                asyncio.get_running_loop().call_later(follows.wait, self._again, one)
            else:
                self._again(one)

    def _give_back(self, exchange: Exchange, ended: SettledExchange | None) -> None:
        """What it held: its place, its permits, its money."""
        used = None if ended is None else ended.usage.tokens
        self._tally.in_flight -= exchange.in_flight
        for allowance, permit in exchange.taken:
            allowance.release(permit, exchange.tokens, used)
        self._purse.settle(exchange.worst, None if ended is None else ended.cost)
        self._let_go()

    async def _note(self, noted: PendingExchange, day: str | None) -> bool:
        """Note it in the ledger, with its money where there is a budget a day; False where that has no room for it."""
        limit = None if self._day_budget is None or day is None else (day, self._day_budget.limit)
        while not await self._ledger.record_pending(noted, limit):
            if self._noted_now == 0:
                self.stop("budget_day")
            if self.stopped is None:
                # Requests in flight may still give some of it back.
                self._day_moved.clear()
                await self._day_moved.wait()
            if self.stopped is not None:
                return False
        if self.stopped is not None:
            await self._ledger.cancel_pending(noted, day)
            return False
        self._noted_now += 1
        return True

    async def _call(self, pack: RequestGroup) -> Call:
        if any(request.media for request in pack.requests):
            return await asyncio.to_thread(pack.route.endpoint.call, pack.requests)
        return pack.route.endpoint.call(pack.requests)

    def passed(self, step: str, rows: int, failed: bool = False) -> None:
        """Count rows that needed no exchange in a step."""
        self._tally.steps[step].record_skipped(rows, failed)

    def _count(self, lane: Route, ended: SettledExchange) -> None:
        self._tally.record_exchange(lane.step, ended.usage, ended.cost)
        if ended.usage.output_tokens is not None:
            each = ended.usage.output_tokens / max(1, len(ended.fingerprints) // 16)
            lane.mean_output_tokens += (each - lane.mean_output_tokens) / 20

    def _again(self, pack: RequestGroup) -> None:
        self._ready.put_nowait(pack)

    def _tell_all(self, pack: RequestGroup, error: RowError) -> None:
        for request in pack.requests:
            self._tell(pack, request, error)

    def _tell(self, pack: RequestGroup, request: Request, answer: bytes | RowError) -> None:
        kept, error = (None, answer) if isinstance(answer, RowError) else (answer, None)
        rows, failed = len(request.keys), error is not None
        self._tally.steps[pack.route.step].record_outcome(request, failed=failed)
        self.settled(rows if failed or pack.route.is_last_step else 0, failed=rows if failed else 0)
        self._land(request.fingerprint, Outcome(kept, error, pack.attempts, self._run_id, now_us(), True))

    def settled(self, rows: int, failed: int) -> None:
        """Count rows for `limits.failed_share`, and stop where too many have failed."""
        tally = self._tally
        tally.settled += rows
        tally.settled_failed += failed
        if self._failed_share is not None and failed and (why := tally.too_many_failed(self._failed_share)) is not None:
            self.stop(why)

    def _land(self, mark: bytes, outcome: Outcome) -> None:
        for wave in self._waves.pop(mark, ()):
            wave.resolve(mark, outcome)
