"""The dispatcher of single exchanges: each is recorded, sent, interpreted, retried or given up, and stored."""

import asyncio
import random
import time
from collections import deque
from collections.abc import Coroutine
from functools import partial
from typing import Any

import orjson
from msgspec.structs import replace

from connectors.error_classes import FATAL_ERROR_CLASSES, TRANSIENT_ERROR_CLASSES
from connectors.records import Call, Reply, RowError
from connectors.transport.client import RequestError, Transport
from connectors.transport.error_replies import parse_rate_headers
from pipelines.dispatch.faults.optional_parameters import OptionalParameters
from pipelines.dispatch.faults.retry_policy import (
    RESOLVE,
    RETRY_AT_ONCE,
    Attempt,
    ProviderStatus,
    RetryDecision,
    decide,
)
from pipelines.dispatch.held_requests import HeldRequests
from pipelines.dispatch.pending_requests import PendingRequests
from pipelines.dispatch.reply_handling import (
    ExchangeOutcome,
    billing_note,
    charged_cost,
    excess_note,
    interpret,
    ledger_answers,
    settled_exchange,
)
from pipelines.dispatch.request_rendering import with_sent_model
from pipelines.dispatch.request_types import (
    DailyBudget,
    Exchange,
    RequestGroup,
    RetryLimits,
    Route,
    RunLedger,
    expected_group_tokens,
    expected_output_tokens,
    total_cost,
)
from pipelines.ledger.entries import PendingExchange, SettledExchange
from pipelines.ledger.ledger import now_us
from pipelines.limits.provider_limiter import ProviderLimiter
from pipelines.pricing.run_budget import BudgetExhausted, Reservation, RunBudget


class RequestQueue(asyncio.Queue[RequestGroup]):
    """Groups that wait for a sender. Those whose rows were sent before come first, and those that a budget has divided.

    Their chunks end sooner, verified rows decide on the pack size before more packs are sent, and a divided group shows
    whether a single row still fits before all others are divided.
    """

    _queue: deque[RequestGroup]
    _urgent = 0
    """So many, at the front."""

    def _put(self, item: RequestGroup) -> None:
        if item.exchanges or item.is_verification or item.is_divided:
            self._queue.insert(self._urgent, item)
            self._urgent += 1
        else:
            self._queue.append(item)

    def _get(self) -> RequestGroup:
        self._urgent = max(0, self._urgent - 1)
        return self._queue.popleft()


class OnlineDispatcher:
    """Sends queued requests, at most `concurrency` exchanges at a time, and resolves them."""

    def __init__(
        self,
        pending: PendingRequests,
        ledger: RunLedger,
        transport: Transport,
        budget: RunBudget,
        retry_limits: RetryLimits,
        concurrency: int,
        daily_budget: DailyBudget | None = None,
        releases_job_limit_early: bool = False,
    ) -> None:
        """`releases_job_limit_early`: free a request's place among the job's as soon as its reply is there, if the
        ledger writes the next request of that place together with this one's outcome."""
        self.pending = pending
        self.state = pending.state
        self._ledger = ledger
        self._transport = transport
        self._budget = budget
        self._counters = pending.counters
        self._retry_limits = retry_limits
        self._concurrency = concurrency
        self._daily_budget = daily_budget
        self._releases_job_limit_early = releases_job_limit_early
        self._queue = RequestQueue()
        self._senders: list[asyncio.Task[None]] = []
        self._idle_tasks: set[asyncio.Task[None]] = set()
        """Senders without an exchange in flight, and other tasks that end as soon as the run stops."""
        self._optional_parameters = OptionalParameters()
        self._held_requests = HeldRequests(self.enqueue, self._idle_tasks, self.state.on_task_done)
        self._capacity_changed = asyncio.Event()
        self._recordings: set[asyncio.Future[None]] = set()
        """Outcomes on their way into the ledger, for which no sender waits."""
        self._unsettled: dict[int, tuple[Reservation, int]] = {}
        """Exchanges that are recorded as pending: what may come of each reservation, and what the ledger reserves."""
        self._daily_budget_changed = asyncio.Event()
        self.state.on_stop(self._stop_sending)
        pending.enqueue = self.enqueue

    def start(self) -> None:
        """See Dispatcher, as for all public methods without a description."""
        self._start_senders()

    def _start_senders(self) -> None:
        for _ in range(self._concurrency - len(self._senders)):
            sender = asyncio.create_task(self._send_queued())
            sender.add_done_callback(self.state.on_task_done)
            self._senders.append(sender)
            self._idle_tasks.add(sender)

    @property
    def _has_surplus_senders(self) -> bool:
        """Whether `set_concurrency` has left more senders than may send: those that come to send next end instead."""
        return len(self._senders) > self._concurrency

    async def close(self, grace: float) -> None:
        self.stop(self.state.stop_reason or "finished")
        if self._senders:
            await asyncio.wait(self._senders, timeout=grace)
        self.cancel()
        await asyncio.gather(*self._senders, return_exceptions=True)
        await self.wait_until_recorded()

    def cancel(self) -> None:
        for sender in self._senders:
            sender.cancel()

    def stop(self, reason: str) -> None:
        self.state.stop(reason)

    def set_concurrency(self, concurrency: int) -> None:
        """Send at most so many exchanges at a time from now on; those in flight go on."""
        has_begun, self._concurrency = bool(self._senders), concurrency
        if has_begun and self.state.stop_reason is None:
            self._start_senders()
        self._capacity_changed.set()

    async def wait_until_recorded(self) -> None:
        """Wait until the exchanges that have ended by now are in the ledger."""
        if self._recordings:
            await asyncio.wait(set(self._recordings))

    def register_route(self, route: Route) -> None:
        self._held_requests.register_provider(route)

    @property
    def has_capacity(self) -> bool:
        return self._queue.qsize() < self._concurrency and not self._held_requests.is_full

    async def wait_for_capacity(self) -> None:
        while not self.has_capacity and self.state.stop_reason is None:
            self._capacity_changed.clear()
            await self._capacity_changed.wait()

    def enqueue(self, group: RequestGroup) -> None:
        """Queue a group for the next free sender."""
        self._queue.put_nowait(group)

    def _stop_sending(self, reason: str) -> None:
        for task in self._idle_tasks:
            task.cancel()
        self._capacity_changed.set()
        self._daily_budget_changed.set()

    # One sender: takes the next group, sends it, resolves it.

    async def _send_queued(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        while self.state.stop_reason is None and not self._has_surplus_senders:
            self._idle_tasks.add(task)
            if self.pending.read_buffer.is_full:
                await self.pending.read_buffer.wait_for_space()
            group = self._queue.get_nowait() if self._queue.qsize() else await self._queue.get()
            if self._queue.qsize() < self._concurrency:
                self._capacity_changed.set()
            if self.state.is_paused:
                await self.state.wait_while_paused()
            if self._has_surplus_senders:
                self.enqueue(group)
            elif self.state.setup_faults.admit(group):
                is_simple = group.route.group_limits is None and not group.is_above_pack_size
                try:
                    await (self._send_group(group, task) if is_simple else self._send_parts(group, task))
                finally:
                    for waiting in self.state.setup_faults.leave(group):
                        self.enqueue(waiting)
            # It may be large, and the next one may take long to come.
            del group
        if self.state.stop_reason is None:
            self._senders.remove(task)
            self._idle_tasks.discard(task)

    async def _send_parts(self, group: RequestGroup, task: asyncio.Task[None]) -> None:
        """Send a group, if the provider takes so many requests; else queue it in parts, or after the first group."""
        limits = group.route.group_limits
        if group.is_above_pack_size or limits is None:
            for part in group.route.groups(group.requests):
                self.enqueue(part)
        elif len(parts := limits.parts(group.requests)) > 1:
            for requests in parts:
                self.enqueue(RequestGroup(group.route, requests, exchanges=group.exchanges))
            for waiting in limits.end_split(group):
                self.enqueue(waiting)
        elif limits.begin(group):
            try:
                await self._send_group(group, task)
            finally:
                for waiting in limits.end(group):
                    self.enqueue(waiting)

    async def _send_group(self, group: RequestGroup, task: asyncio.Task[None]) -> None:
        route, mean = group.route, group.route.mean_output_tokens
        if len(group.requests) == 1:
            (request,) = group.requests
            tokens = request.input_tokens + round(expected_output_tokens(request, mean))
            max_cost = route.max_cost(request)
        else:
            tokens = sum(request.input_tokens for request in group.billed_requests)
            tokens += expected_group_tokens(group.requests, mean)
            max_cost = total_cost(map(route.max_cost, group.billed_requests))
        try:
            async with self._budget.reserve(max_cost) as reservation:
                await self._send_reserved(Exchange(group, route, tokens, reservation), task)
        except BudgetExhausted as exc:
            if self.state.is_paused:
                # The budget may be raised before the run goes on.
                self.enqueue(group)
            elif len(group.requests) > 1:
                # What is left may suffice for some of them.
                for half in group.halves(group.attempts):
                    half.is_divided = True
                    self.enqueue(half)
            else:
                self.stop(exc.name)

    async def _send_reserved(self, exchange: Exchange, task: asyncio.Task[None]) -> None:
        route = exchange.group.route
        recording: asyncio.Future[None] | None = None
        try:
            asked_at = time.monotonic()
            permitted = await self._held_requests.acquire_permits(exchange.group, exchange.tokens, exchange.permits)
            if permitted is None:
                return
            member, permit = permitted
            if member is not route:
                # Reserved was the cost at the most expensive member.
                exchange.member = member
                exchange.reservation.change_to(total_cost(map(member.max_cost, exchange.group.billed_requests)))
            sent_at = time.monotonic()
            if self.state.observer is not None:
                self.state.observer.record_wait(member, sent_at - asked_at)
            self._idle_tasks.discard(task)
            if self.state.stop_reason is not None:
                return
            if self.state.is_paused or self._has_surplus_senders or self._budget.is_overdrawn:
                # Without its permits, which other jobs may use meanwhile.
                for limiter, _ in exchange.permits:
                    limiter.cancel(exchange.tokens)
                self.enqueue(exchange.group)
                return
            self._counters.in_flight += 1
            exchange.is_in_flight = True
            try:
                recording = await self._exchange(exchange, permit)
            finally:
                self._counters.record_timing(
                    route.step, sent_at - asked_at, time.monotonic() - sent_at, exchange.settled
                )
        finally:
            if recording is None:
                self._release(exchange, None)
        if recording is not None and exchange.is_large:
            # Otherwise as many large answers would wait to be written as requests are in flight.
            await asyncio.wait([recording])

    async def _exchange(self, exchange: Exchange, permit: int) -> asyncio.Future[None] | None:
        """Send one exchange and queue its outcome for the ledger; None if nothing was sent.

        The sender's next request is recorded right behind the outcome, so that at most `concurrency` exchanges are
        ever without a recorded outcome.
        """
        group, member, reservation = exchange.group, exchange.member, exchange.reservation
        try:
            call = endpoint_call(group) if not group.has_media else await build_call(group)
            call = with_sent_model(call, member.provider)
            call = self._optional_parameters.without_refused(member, call)
            if member.provider.key_source is not None:
                # Each exchange has a row in the usage table, so the transport repeats none.
                call = replace(call, on_refused_key="return" if group.has_renewed_key else "renew")
        except OSError as exc:
            self.pending.resolve_with_error(group, unreadable_file(exc))
            return None
        if len(group.requests) == 1:
            (request,) = group.requests
            keys, fingerprints = orjson.dumps(request.keys), request.fingerprint * len(request.keys)
        else:
            keys = orjson.dumps([key for request in group.requests for key in request.keys])
            fingerprints = b"".join([request.fingerprint for request in group.requests for _ in request.keys])
        number, max_cost = self._ledger.next_exchange_id(), reservation.max_cost
        pending = PendingExchange(number, member.route_id, group.attempts + 1, keys, fingerprints, now_us(), max_cost)
        is_recorded, day = await self._record_pending(pending, reservation)
        if not is_recorded:
            if self.state.stop_reason is None:
                self.enqueue(group)
            return None
        self._counters.requests += 1
        self._counters.retries += group.exchanges > 0
        group.exchanges += 1
        reply: Reply | None = None
        failure: RequestError | None = None
        reservation.mark_sent()
        try:
            reply = await self._transport.send(member.provider, call)
        except RequestError as exc:
            failure = exc
        except BaseException:
            # Cancelled: it is unknown whether the provider did its work.
            await asyncio.shield(self._ledger.settle(pending.as_unknown(), day))
            self._end_unsettled(number)
            raise
        outcome = interpret(group, reply, failure, self._retry_limits.longest_hold, now_us() / 1e6)
        setup_faults = self.state.setup_faults
        outcome.error = setup_faults.confirm(member, call, outcome.error, is_pooled=group.route.pool is not None)
        is_suspect = setup_faults.is_suspect(group, member, outcome)
        charged = charged_cost(member.price, outcome, max_cost)
        if reservation.record_cost(charged):
            self._counters.add_note(excess_note(member))
        if (note := billing_note(member, outcome)) is not None:
            self._counters.add_note(note)
        if outcome.error is not None and self._optional_parameters.learn(member, call, outcome.error):
            member.limiters[0].record_success(permit)
            decision = RETRY_AT_ONCE
        else:
            decision = self._decide(group, member, permit, outcome)
        if decision.action == "resolve":
            decision = self._settle(group, member, outcome, decision)
        elif decision.action == "split":
            setup_faults.begin_split(group)
        # The error of a row that is sent again is not its last.
        records = () if decision.action == "retry" else ledger_answers(group, outcome)
        answers = setup_faults.stored_answers(group.route, member, records, is_suspect)
        exchange.settled = settled_exchange(pending, outcome, charged, answers, group.unverified_changes(answers))
        if decision.stop_reason is not None:
            self.stop(decision.stop_reason)
        if outcome.error is not None:
            outcome.answers = [outcome.error] * len(group.requests)
        reservation.keep_open()
        exchange.is_answered = True
        self._counters.answered += 1
        recording = self._ledger.settle(exchange.settled, day)
        self._recordings.add(recording)
        recording.add_done_callback(partial(self._on_recorded, exchange, outcome, decision))
        if self._releases_job_limit_early:
            self._release_job_limit(exchange)
        return recording

    def _decide(self, group: RequestGroup, member: Route, permit: int, outcome: ExchangeOutcome) -> RetryDecision:
        """Report an outcome to the provider's limiter, count the attempt, and decide what follows."""
        limiter, error = member.limiters[0], outcome.error
        group.has_renewed_key = outcome.reply is not None and outcome.reply.is_key_renewed
        if outcome.reply is not None:
            _apply_rate_headers(limiter, outcome.reply, member.route_id)
        if error is None:
            limiter.record_success(permit)
            group.attempts += 1
            if group.route.group_limits is not None:
                self._write(group.route.group_limits.record_accepted(group))
            if group.is_packed and group.route.packing is not None:
                self._write(group.route.packing.record_accepted())
            return RESOLVE
        if group.has_renewed_key:
            limiter.record_success(permit)
            return RETRY_AT_ONCE
        if group.route.group_limits is not None and error.error_class == "bad_request":
            is_sent_again, write = group.route.group_limits.record_refused(group, error)
            self._write(write)
            if is_sent_again:
                limiter.record_success(permit)
                return RETRY_AT_ONCE
        if error.error_class == "bad_request" and group.repack(error):
            limiter.record_success(permit)
            return RETRY_AT_ONCE
        pool = group.route.pool
        now = now_us() / 1e6
        is_counted, retry_after = True, outcome.retry_after(now)
        if error.error_class == "rate_limit":
            is_counted = False
            limiter.record_refusal(permit, retry_after)
        elif error.error_class in TRANSIENT_ERROR_CLASSES:
            is_counted = not limiter.record_failure(permit, outcome.has_found_no_server)
        else:
            limiter.record_success(permit)
            if error.error_class in FATAL_ERROR_CLASSES and pool is not None:
                is_counted = not pool.exclude(member, error)
        group.attempts += is_counted
        group.failed_member = member if pool is not None else None
        attempt = Attempt(
            _status(member),
            [_status(one) for one in group.route.members],
            len(group.requests),
            group.is_packed,
            group.attempts,
            is_counted,
            retry_after,
            now,
        )
        return decide(error, attempt, self._retry_limits, random.uniform(0.5, 1))

    def _settle(
        self, group: RequestGroup, member: Route, outcome: ExchangeOutcome, decision: RetryDecision
    ) -> RetryDecision:
        """Record how rows end; if all first rows met the same fault, stop, or leave this member of a pool out.

        A row that a member refuses before it has answered any goes to another one, once.
        """
        is_moved = self._goes_to_another(group, member, outcome.error)
        reason = self.state.setup_faults.settle_outcome(group, member, outcome)
        error, pool = outcome.error, group.route.pool
        if error is not None and error.error_class == "setup" and pool is not None and pool.exclude(member, error):
            reason = None
        if is_moved and reason is None:
            group.is_moved = True
            return RETRY_AT_ONCE
        return decision if reason is None else replace(decision, stop_reason=f"setup: {reason}")

    def _goes_to_another(self, group: RequestGroup, member: Route, error: RowError | None) -> bool:
        """Whether a refused row may be answered by another member: this one has answered none, and it is the first."""
        if error is None or error.error_class != "bad_request" or group.is_moved or group.route.pool is None:
            return False
        has_others = any(other is not member for other in group.route.pool.active_members)
        return has_others and not self.state.setup_faults.is_proven_member(member)

    def _write(self, write: Coroutine[Any, Any, None] | None) -> None:
        """Write to the ledger what was learned; no sender waits for it."""
        if write is not None:
            recording = asyncio.create_task(write)
            self._recordings.add(recording)
            recording.add_done_callback(self._recordings.discard)
            recording.add_done_callback(self.state.on_task_done)

    def _on_recorded(
        self,
        exchange: Exchange,
        outcome: ExchangeOutcome,
        decision: RetryDecision,
        recording: asyncio.Future[None],
    ) -> None:
        """Carry out the decision, now that the outcome is in the ledger; or stop, if it cannot be written."""
        self._recordings.discard(recording)
        settled: SettledExchange | None = None
        try:
            recording.result()
            settled = exchange.settled
            assert settled is not None
            self._end_unsettled(settled.exchange_id)
            exchange.group.route.record_exchange(self._counters, settled)
            self._counters.rate_limited += settled.error_class == "rate_limit"
            if self.state.observer is not None:
                self.state.observer.record_exchange(exchange.member, settled)
            self._apply(exchange.group, outcome, decision)
        except Exception as exc:  # noqa: BLE001 - the run raises it again
            self.state.fail(exc)
        finally:
            exchange.reservation.settle(None if settled is None else settled.cost)
            self._release(exchange, settled)

    def _apply(self, group: RequestGroup, outcome: ExchangeOutcome, decision: RetryDecision) -> None:
        if decision.action == "resolve":
            self.pending.resolve(group, outcome.answers, outcome.values)
            for again in group.unanswered(outcome.answers):
                self.enqueue(again)
            return
        for again in self.state.setup_faults.split(group) if decision.action == "split" else (group,):
            if decision.wait_seconds:
                asyncio.get_running_loop().call_later(decision.wait_seconds, self.enqueue, again)
            else:
                self.enqueue(again)

    def _release(self, exchange: Exchange, settled: SettledExchange | None) -> None:
        """Give back the place and the permits of an exchange that has ended."""
        used = None if settled is None else settled.usage.tokens
        self._counters.in_flight -= exchange.is_in_flight
        self._counters.answered -= exchange.is_answered
        for limiter, permit in exchange.permits:
            limiter.release(permit, exchange.tokens, used)
        self.pending.end_abandoned()

    def _release_job_limit(self, exchange: Exchange) -> None:
        assert exchange.settled is not None
        job_limiter = exchange.group.route.limiters[1]
        for limiter, permit in exchange.permits:
            if limiter is job_limiter:
                job_limiter.release(permit, exchange.tokens, exchange.settled.usage.tokens)
        exchange.permits = [one for one in exchange.permits if one[0] is not job_limiter]

    async def _record_pending(self, pending: PendingExchange, reservation: Reservation) -> tuple[bool, str | None]:
        """Record an exchange that is about to be sent; False if the run has stopped or was paused meanwhile.

        Also returns the date of the daily budget in which it is reserved: the one after midnight, if it has waited so
        long. BudgetExhausted if the daily budget has no room.
        """
        had_unsettled = bool(self._unsettled)
        day = self._today()
        while not await self._ledger.record_pending(pending, self._daily_limit(day)):
            if not had_unsettled and not self._unsettled and day == self._today():
                raise BudgetExhausted("budget_day")
            had_unsettled = bool(self._unsettled)
            if self.state.stop_reason is None and had_unsettled:
                # Requests in flight may still give some of the budget back.
                self._daily_budget_changed.clear()
                await self._daily_budget_changed.wait()
            if self.state.stop_reason is not None:
                return False, day
            day = self._today()
        if self.state.stop_reason is not None or self.state.is_paused:
            await self._ledger.cancel_pending(pending, day)
            return False, day
        self._unsettled[pending.exchange_id] = (reservation, pending.max_cost or 0)
        return True, day

    def _today(self) -> str | None:
        return None if self._daily_budget is None else self._daily_budget.today()

    def _daily_limit(self, day: str | None) -> tuple[str, int] | None:
        """Return the limit of the day, without what requests in flight may cost above what the ledger has reserved."""
        if self._daily_budget is None or day is None:
            return None
        if not self._budget.is_raised:
            return day, self._daily_budget.limit
        excess = sum((reservation.max_cost or 0) - recorded for reservation, recorded in self._unsettled.values())
        return day, self._daily_budget.limit - excess

    def _end_unsettled(self, exchange_id: int) -> None:
        del self._unsettled[exchange_id]
        self._daily_budget_changed.set()


async def build_call(group: RequestGroup) -> Call:
    """Return the HTTP call for a group; OSError if a file of its rows cannot be read any more."""
    return await asyncio.to_thread(endpoint_call, group) if group.has_media else endpoint_call(group)


def endpoint_call(group: RequestGroup) -> Call:
    """Return the same; it reads the files of the rows."""
    limits = group.route.group_limits
    if group.is_packed and group.route.packing is not None:
        return group.route.packing.call(group.packed)
    return (group.route.endpoint if limits is None else limits.endpoint).call(group.requests)


def unreadable_file(exc: OSError) -> RowError:
    """Return the error of a row whose file has disappeared since it was rendered."""
    return RowError("input", f"a file of this row cannot be read any more: {exc.strerror}")


def _apply_rate_headers(limiter: ProviderLimiter, reply: Reply, route_id: int) -> None:
    """Pass the limits that a reply states to the limiter; they may differ from model to model."""
    rates = parse_rate_headers(reply.headers)
    if rates.limit_requests is not None or rates.limit_tokens is not None:
        remaining = (rates.remaining_requests, rates.remaining_tokens)
        limiter.update_from_headers((rates.limit_requests, rates.limit_tokens), remaining, route_id)


def _status(route: Route) -> ProviderStatus:
    limiter = route.limiters[0]
    return ProviderStatus(route.provider.name, limiter.pause_seconds, limiter.seconds_without_reply())
