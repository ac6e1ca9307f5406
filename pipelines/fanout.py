"""The fan-out: requests in, outcomes out; each is noted, sent, tried again or given up, and kept in the ledger."""

import asyncio
import random
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import orjson

from connectors.exchange import (
    RETRIED_CLASSES,
    STOPPING_CLASSES,
    Call,
    Reply,
    Request,
    RowError,
)
from connectors.ledger import Answer, Ledger, Settled, now_us
from connectors.limiter import Allowance
from connectors.replies import rate_limits, retry_after
from connectors.transport import RequestError, Transport
from pipelines.packs import (
    DayBudget,
    Lane,
    Observer,
    Outcome,
    Pack,
    Tries,
    Wave,
    expected,
    paid,
    read_reply,
    to_keep,
    total,
)
from pipelines.purse import Purse
from pipelines.tally import Tally


class FanOut:
    """Sends what it is asked for, at most `concurrency` exchanges at a time, and tells each one's outcome."""

    def __init__(
        self,
        ledger: Ledger,
        transport: Transport,
        purse: Purse,
        tally: Tally,
        tries: Tries,
        concurrency: int,
        run_id: str,
        day_budget: DayBudget | None = None,
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
        self._ready: asyncio.Queue[Pack] = asyncio.Queue()
        self._waves: dict[bytes, list[Wave]] = {}
        self._workers: list[asyncio.Task[None]] = []
        self._waiting: set[asyncio.Task[None]] = set()
        self._in_parts_now: set[asyncio.Task[None]] = set()
        self._wanted = asyncio.Event()
        self.stopped: str | None = None
        """Why nothing more is sent; None while all goes on."""
        self.waiting_for: str | None = None
        """What makes the run wait at this moment, in words, where it is no provider's limit."""
        self.left_running = 0
        """Batches that go on at the provider after the run was stopped."""
        self.observer: Observer | None = None
        """Is told of every exchange; None: nobody looks."""
        self.failure: Exception | None = None
        """What broke the fan-out itself: the ledger cannot be written, or a defect."""

    def start(self) -> None:
        """Let the senders begin."""
        self._workers = [asyncio.create_task(self._work()) for _ in range(self._concurrency)]
        self._waiting.update(self._workers)

    async def close(self, grace: float) -> None:
        """Wait for what is in flight, at most `grace` seconds; then cancel it, which settles it as unknown."""
        self.stop(self.stopped or "finished")
        if self._workers:
            await asyncio.wait(self._workers, timeout=grace)
        self.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

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
        self._let_go()

    def _let_go(self) -> None:
        if self.stopped is not None and self._tally.in_flight == 0:
            for waves in self._waves.values():
                for wave in waves:
                    wave.landed.set()
            self._waves.clear()

    @property
    def hungry(self) -> bool:
        """Whether fewer requests are ready than there are senders."""
        return self._ready.qsize() < self._concurrency

    async def hunger(self) -> None:
        """Wait until more requests are wanted."""
        while not self.hungry and self.stopped is None:
            self._wanted.clear()
            await self._wanted.wait()

    async def ask(self, lane: Lane, requests: Iterable[Request], usable: Callable[[Answer], bool]) -> Wave:
        """Look the requests up, then queue those without a usable answer; none is sent twice at the same time."""
        wave = Wave(set())
        fresh: dict[bytes, Request] = {}
        for request in requests:
            wave.missing.add(request.fingerprint)
            waiting = self._waves.setdefault(request.fingerprint, [])
            if not waiting:
                fresh[request.fingerprint] = request
            waiting.append(wave)
        if not wave.missing:
            wave.landed.set()
        # Others who want the same now wait in _waves: nobody can send it between this look-up and the queue.
        found = await asyncio.to_thread(self._ledger.lookup, list(fresh)) if fresh else {}
        for mark, answer in found.items():
            if usable(answer):
                del fresh[mark]
                self._land(mark, Outcome(answer.reply, answer.error, 1, answer.run_id, answer.at, False))
        whole = [request for request in fresh.values() if not request.parts]
        for some in lane.endpoint.packs(whole):
            self._ready.put_nowait(Pack(lane, some))
        for request in fresh.values():
            if request.parts:
                task = asyncio.create_task(self._in_parts(lane, request, usable))
                self._in_parts_now.add(task)
                task.add_done_callback(self._in_parts_now.discard)
        self._let_go()
        return wave

    async def _in_parts(self, lane: Lane, request: Request, usable: Callable[[Answer], bool]) -> None:
        """Ask for the parts of a request; the answer that they make together is kept as its own."""
        parts = tuple(replace(part, keys=request.keys) for part in request.parts)
        wave = await self.ask(lane, parts, usable)
        await wave.landed.wait()
        if wave.missing:
            return
        ended = [wave.outcomes[part.fingerprint] for part in parts]
        failed = next((outcome for outcome in ended if outcome.error is not None), None)
        if failed is None:
            joined = lane.endpoint.joined(request, [outcome.answer or b"" for outcome in ended])
            await self._ledger.keep(request.fingerprint, lane.leg, request.body, joined)
            sent = any(outcome.sent for outcome in ended)
            failed = Outcome(joined, None, max(o.attempts for o in ended), self._run_id, now_us(), sent)
        self._land(request.fingerprint, failed)

    # One sender: takes the next pack, sends it, tells the outcome.

    async def _work(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            while self.stopped is None:
                self._waiting.add(task)
                pack = await self._ready.get()
                if self._ready.qsize() < self._concurrency:
                    self._wanted.set()
                await self._send(pack, task)
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, OSError, sqlite3.Error) as exc:
            # A defect or a full disk: it ends the run, which raises it again.
            self.failure = self.failure or exc
            self.stop(f"{type(exc).__name__}: {exc}")

    async def _send(self, pack: Pack, task: asyncio.Task[None]) -> None:
        lane = pack.lane
        worst = total(lane.worst(request) for request in pack.requests)
        tokens = sum(request.input_tokens for request in pack.requests)
        tokens += round(sum(expected(request, lane.output_tokens) for request in pack.requests))
        if not await self._purse.reserve(worst):
            self.stop("budget")
            return
        taken: list[Allowance] = []
        ended: Settled | None = None
        used: int | None = None
        day = None if self._day_budget is None else self._day_budget.today()
        try:
            asked_at = time.monotonic()
            for allowance in lane.allowances:
                await allowance.take(tokens)
                taken.append(allowance)
            if self.observer is not None:
                self.observer.waited(lane, time.monotonic() - asked_at)
            self._waiting.discard(task)
            if self.stopped is not None:
                return
            self._tally.in_flight += 1
            try:
                ended = await self._exchange(pack, worst, day)
            finally:
                self._tally.in_flight -= 1
            if ended is not None and ended.usage.input_tokens is not None:
                used = ended.usage.input_tokens + (ended.usage.output_tokens or 0)
        finally:
            for allowance in taken:
                allowance.done(tokens, used)
            self._purse.settle(worst, None if ended is None else ended.cost)
            self._let_go()

    async def _exchange(self, pack: Pack, worst: int | None, day: str | None) -> Settled | None:
        lane = pack.lane
        try:
            call = await self._call(pack)
        except OSError as exc:
            self._tell_all(pack, RowError("input", f"a file of this row cannot be read any more: {exc.strerror}"))
            return None
        note = self._ledger.next_note()
        keys = orjson.dumps([key for request in pack.requests for key in request.keys])
        fingerprints = b"".join(request.fingerprint for request in pack.requests for _ in request.keys)
        started_at = now_us()
        limit = None if self._day_budget is None or day is None else (day, self._day_budget.limit)
        if not await self._ledger.note(note, lane.leg, pack.attempts + 1, keys, fingerprints, worst, started_at, limit):
            self.stop("budget_day")
            return None
        self._tally.requests += 1
        self._tally.retries += pack.exchanges > 0
        pack.exchanges += 1
        reply: Reply | None = None
        failure: RequestError | None = None
        seen = False
        try:
            reply = await self._transport.send(lane.provider, call)
            seen = True
        except RequestError as exc:
            failure = exc
            seen = True
        finally:
            if not seen:
                # Cancelled: whether the provider did its work is not known.
                await asyncio.shield(
                    self._ledger.settle(
                        Settled(
                            note, lane.leg, pack.attempts + 1, keys, fingerprints, started_at,
                            error_class="unknown", cost=worst, released=worst or 0,
                            message="sent, but the run was ended before its outcome was seen",
                        ),
                        day,
                    )
                )  # fmt: skip
                self._purse.spent += worst or 0
        answers, error, usage = read_reply(pack, reply, failure)
        spent = paid(lane, reply, failure, error, usage, worst)
        kept = to_keep(pack, answers, error)
        ended = Settled(
            note=note,
            leg=lane.leg,
            attempt=pack.attempts + 1,
            keys=keys,
            fingerprints=fingerprints,
            started_at=started_at,
            http_status=None if reply is None else reply.status,
            error_class=None if error is None else error.error_class,
            usage=usage,
            cost=spent,
            released=worst or 0,
            latency_ms=reply.latency_ms if reply is not None else failure.latency_ms if failure else None,
            first_token_ms=None if reply is None else reply.first_token_ms,
            request_id=None if reply is None else reply.headers.get("x-request-id"),
            message=None if error is None else error.message,
            answers=kept,
        )
        await self._ledger.settle(ended, day)
        self._count(lane, ended)
        if self.observer is not None:
            self.observer.settled(lane, ended)
        self._judge(pack, answers, error, reply)
        return ended

    async def _call(self, pack: Pack) -> Call:
        if any(request.media for request in pack.requests):
            return await asyncio.to_thread(pack.lane.endpoint.call, pack.requests)
        return pack.lane.endpoint.call(pack.requests)

    def _count(self, lane: Lane, ended: Settled) -> None:
        tally = self._tally
        tally.input_tokens += ended.usage.input_tokens or 0
        tally.output_tokens += ended.usage.output_tokens or 0
        if ended.cost is None:
            tally.unpriced += 1
        else:
            tally.cost += ended.cost
        if ended.usage.output_tokens is not None:
            lane.output_tokens += (
                ended.usage.output_tokens / max(1, len(ended.fingerprints) // 16) - lane.output_tokens
            ) / 20

    def _judge(
        self, pack: Pack, answers: Sequence[bytes | RowError], error: RowError | None, reply: Reply | None
    ) -> None:
        """What follows from how an exchange ended: outcomes, another try, halves of the pack, or the end."""
        lane = pack.lane
        own = lane.allowances[0]
        if reply is not None:
            limits = rate_limits(reply.headers)
            own.learn(limits.limit_requests, limits.limit_tokens)
        if error is None:
            own.succeeded()
            pack.attempts += 1
            for request, answer in zip(pack.requests, answers, strict=True):
                self._tell(pack, request, answer)
            return
        if error.error_class in STOPPING_CLASSES:
            pack.attempts += 1
            self._tell_all(pack, error)
            self.stop(f"{error.error_class}: {lane.provider.name} says: {error.message}")
            return
        pause = None if reply is None else retry_after(reply.headers, now_us() / 1e6)
        if error.error_class not in RETRIED_CLASSES:
            own.succeeded()
            pack.attempts += 1
            self._refuse(pack, error)
            return
        if error.error_class == "rate_limit":
            self._tally.refused += 1
            pack.refusals += 1
            own.refused(pause, pack.refusals)
            wait = 0.0
        elif own.failed():
            wait = 0.0
        else:
            pack.attempts += 1
            longest = min(self._tries.longest_wait, self._tries.first_wait * 2 ** (pack.attempts - 1))
            wait = pause if pause is not None else longest * random.uniform(0.5, 1)
        if max(wait, own.held_for) > self._tries.longest_hold:
            self._tell_all(pack, error)
            self.stop(f"{error.error_class}: {lane.provider.name} asks to come back in {max(wait, own.held_for):.0f} s")
        elif own.silent_for() > self._tries.longest_hold:
            self._tell_all(pack, error)
            self.stop(
                f"{error.error_class}: {lane.provider.name} has answered nothing for {own.silent_for():.0f} s; "
                f"last: {error.message}"
            )
        elif pack.attempts >= self._tries.attempts:
            self._tell_all(pack, error)
        elif wait:
            asyncio.get_running_loop().call_later(wait, self._again, pack)
        else:
            self._again(pack)

    def _again(self, pack: Pack) -> None:
        self._ready.put_nowait(pack)

    def _refuse(self, pack: Pack, error: RowError) -> None:
        """A request that never will be answered; in a pack, its halves are asked to find which one it is."""
        if len(pack.requests) == 1:
            self._tell(pack, pack.requests[0], error)
            return
        middle = len(pack.requests) // 2
        for half in (pack.requests[:middle], pack.requests[middle:]):
            self._again(Pack(pack.lane, half, exchanges=pack.exchanges))

    def _tell_all(self, pack: Pack, error: RowError) -> None:
        for request in pack.requests:
            self._tell(pack, request, error)

    def _tell(self, pack: Pack, request: Request, answer: bytes | RowError) -> None:
        if isinstance(answer, RowError):
            outcome = Outcome(None, answer, pack.attempts, self._run_id, now_us(), True)
            self.settled(len(request.keys), failed=len(request.keys))
        else:
            outcome = Outcome(answer, None, pack.attempts, self._run_id, now_us(), True)
            self.settled(len(request.keys) if pack.lane.last else 0, failed=0)
        self._land(request.fingerprint, outcome)

    def settled(self, rows: int, failed: int) -> None:
        """Count rows for `limits.failed_share`, and stop where too many have failed."""
        tally = self._tally
        tally.settled += rows
        tally.settled_failed += failed
        share = self._failed_share
        if share is not None and failed and tally.settled >= 100 and tally.settled_failed > share * tally.settled:
            self.stop(
                f"failed_share: {tally.settled_failed} of {tally.settled} rows failed, "
                f"more than limits.failed_share {share} allows"
            )

    def _land(self, mark: bytes, outcome: Outcome) -> None:
        for wave in self._waves.pop(mark, ()):
            wave.outcomes[mark] = outcome
            wave.missing.discard(mark)
            if not wave.missing:
                wave.landed.set()
