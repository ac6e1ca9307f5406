"""The dispatcher for the Batch API: requests are gathered into files, submitted, polled, and settled line by line."""

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from connectors.endpoints.conversation.conversation_endpoint import ConversationEndpoint
from connectors.error_classes import ROW_ERROR_CLASSES
from connectors.records import Request, RowError
from connectors.transport.client import HttpTransport, RequestError
from connectors.transport.token_usage import parse_count
from pipelines.batch.builder import BatchBuilder, batch_url
from pipelines.batch.files import BatchFolder
from pipelines.batch.final_status import (
    TOKEN_LIMIT,
    Refusals,
    TokenLimitReached,
    above_limit,
    batch_errors,
    of_no_line,
    refused,
    token_limit,
)
from pipelines.batch.lifecycle import MAX_POLL_SECONDS, BatchLifecycle, BatchRefused, ProviderTimeout
from pipelines.batch.settler import BatchSettler
from pipelines.batch.store import Batch, BatchLedger, BatchLine
from pipelines.dispatch.dispatch_state import DRAINED
from pipelines.dispatch.faults.retry_policy import decide_batch_line
from pipelines.dispatch.online_dispatcher import OnlineDispatcher, build_call, unreadable_file
from pipelines.dispatch.packing.packing import Packing
from pipelines.dispatch.provider_routes import max_cost_function
from pipelines.dispatch.request_rendering import with_sent_model
from pipelines.dispatch.request_types import (
    BatchStage,
    DailyBudget,
    RequestGroup,
    RetryLimits,
    Route,
    total_cost,
)
from pipelines.formatting import format_money
from pipelines.ledger.entries import SettledExchange
from pipelines.pricing.prices import batch_price, usd
from pipelines.pricing.run_budget import BudgetExhausted, RunBudget
from pipelines.runtime.provider_api import Item, ProviderApi, RequestRefused

QUIET_SECONDS = 2.0
"""Time without a new request after which the gathered ones are submitted; more if rows arrive slowly, up to
MAX_QUIET_SECONDS."""
MAX_QUIET_SECONDS = 60.0
MAX_UNANSWERED_BYTES = 256 << 20
"""Size of the requests without an answer from which on no further rows are read."""
NO_SUCH_API = frozenset({404, 405, 501})
"""The status of a server's reply to a path that it does not know."""
MIN_SPLIT_LINES = 100
"""A batch above an enqueued-token limit that the provider does not state is halved at once down to this many lines, and
further after longest_hold: the batches of others may fill the provider's queue."""


class BatchProgress:
    """The batches at the provider, and how many of their requests are answered."""

    def __init__(self) -> None:
        self._answered: dict[str, tuple[int, int]] = {}

    def update(self, batch: Batch, item: Item) -> None:
        """Read how far a batch is, as the provider reports it."""
        counts = item.get("request_counts")
        counts = counts if isinstance(counts, dict) else {}
        done = sum(parse_count(counts.get(name)) or 0 for name in ("completed", "failed"))
        self._answered[batch.mark] = (done, len(batch.lines))

    def remove(self, batch: Batch) -> None:
        """Remove a batch that has ended."""
        self._answered.pop(batch.mark, None)

    def format(self) -> str | None:
        """Describe what the run waits for; None if no batch is at the provider."""
        if not self._answered:
            return None
        done, lines = (sum(column) for column in zip(*self._answered.values(), strict=True))
        batches = f"{len(self._answered)} batch{'' if len(self._answered) == 1 else 'es'}"
        return f"{batches} at the provider: {done:,} of {lines:,} requests answered"


class BatchOptions(Struct, frozen=True):
    """What the Batch API needs besides what every dispatcher needs."""

    batches: BatchLedger
    folder: Path
    """For the files of unfinished batches; this job's alone."""
    transport: HttpTransport
    routes: Sequence[tuple[Route, str, str]]
    """Each step's route with its model and its kind of endpoint."""
    deadline: datetime | None
    """From then on the remaining requests are sent online; None: never."""


class BatchDispatcher:
    """Sends requests in batches until the deadline, and through an online dispatcher afterwards."""

    def __init__(
        self,
        online: OnlineDispatcher,
        budget: RunBudget,
        retry_limits: RetryLimits,
        daily_budget: DailyBudget | None,
        options: BatchOptions,
    ) -> None:
        self.pending = online.pending
        self.state = online.state
        self._online = online
        self._counters = self.pending.counters
        self._budget = budget
        self._retry_limits = retry_limits
        self._options = options
        self._batches = options.batches
        self._folder = BatchFolder(options.folder)
        self._models = {route.route_id: model for route, model, _ in options.routes}
        self._builder = BatchBuilder(self._batches.ledger, self._batches, self._folder, daily_budget, self._launch)
        self._settler = BatchSettler(self._batches, self._folder, budget, self._counters, self, self.state)
        self._progress = BatchProgress()
        self._refusals = Refusals()
        self._queue: asyncio.Queue[RequestGroup] = asyncio.Queue()
        self._batch_price_routes: dict[int, tuple[Route, Route]] = {}
        """By route id: a route, and the same at the price of the Batch API."""
        self._batch_tasks: dict[asyncio.Task[None], Batch] = {}
        self._settling: set[asyncio.Task[Any] | None] = set()
        """The tasks of batches that have ended and are being settled."""
        self._last_settled_at = 0.0
        self._other_tasks: list[asyncio.Task[None]] = []
        self._batched: set[bytes] = set()
        """Fingerprints of the requests in open batches."""
        self._unanswered: dict[bytes, tuple[Route, Request]] = {}
        self._unanswered_bytes = 0
        self._capacity_changed = asyncio.Event()
        self._deadline_passed = asyncio.Event()
        self._is_online = False
        self.pending.enqueue = self._queue.put_nowait
        self.pending.on_resolved = self._on_resolved
        self.state.on_stop(self._stop_batches)

    def start(self) -> None:
        """Attach to the batches that earlier invocations left, then gather requests."""
        open_batches = self._batches.open_batches()
        self._folder.keep_only(frozenset(batch.mark for batch in open_batches))
        deadline = self._options.deadline
        if deadline is not None and deadline <= datetime.now(deadline.tzinfo):
            self._deadline_passed.set()
        for batch in open_batches:
            self._attach(batch)
        self._gatherer = asyncio.create_task(self._gather())
        self._other_tasks = [self._gatherer, asyncio.create_task(self._run_until_deadline())]
        for task in self._other_tasks:
            task.add_done_callback(self.state.on_task_done)

    def _attach(self, batch: Batch) -> None:
        """Follow a batch of an earlier invocation, unless the job no longer has its step."""
        # A rung may have another model; a step whose model was changed since then takes what it had asked for.
        for route, model, endpoint in sorted(self._options.routes, key=lambda one: one[1] != batch.model):
            if (route.step, route.provider.name, endpoint) == (batch.step, batch.provider, batch.endpoint):
                self._models[batch.route_id] = model
                # The API counts in the same way before it has read the file: a token for every four bytes.
                upload = self._folder.upload_path(batch.mark)
                batch.input_tokens = upload.stat().st_size // 4 if upload.exists() else 0
                route = replace(route, route_id=batch.route_id)
                if route.packing is not None:
                    alone = [line.fingerprints[0] for line in batch.lines.values() if len(line.fingerprints) == 1]
                    route.packing.restore(self._batches.ledger.packed_answers(alone))
                elif isinstance(route.endpoint, ConversationEndpoint):
                    # Its lines may be packs, although the step has no `pack` any more.
                    route = replace(route, packing=Packing(route.endpoint))
                self._launch(batch, self._at_batch_price(route))
                # The earlier invocation has checked that it fits.
                self._budget.reserved += sum(line.max_cost or 0 for line in batch.lines.values())
                return

    def stop(self, reason: str) -> None:
        """Submit nothing more. Open batches are left to the next invocation, except if the budget is spent or the run
        is drained: then those at the provider are awaited. Results that are being fetched are always settled."""
        self.state.stop(reason)

    def _stop_batches(self, reason: str) -> None:
        self._capacity_changed.set()
        if reason.startswith("budget"):
            return
        is_landing = reason == DRAINED
        left = [
            task
            for task, batch in self._batch_tasks.items()
            if task not in self._settling and not (is_landing and batch.is_created)
        ]
        if not self.state.left_running:
            self.state.left_running = sum(self._batch_tasks[task].is_created for task in left)
        for task in (*left, *self._other_tasks):
            if task is not asyncio.current_task():
                task.cancel()

    def cancel(self) -> None:
        """Wait for nothing any more."""
        for task in (*self._batch_tasks, *self._other_tasks):
            task.cancel()
        self._online.cancel()

    async def close(self, grace: float) -> None:
        """Settle what is being fetched, in at most `grace` seconds; open batches are left to the next invocation."""
        self.stop(self.state.stop_reason or "finished")
        tasks = [*self._batch_tasks, *self._other_tasks]
        if self._batch_tasks:
            await asyncio.wait(list(self._batch_tasks), timeout=grace)
        for task in tasks:
            task.cancel()
        await self._online.close(grace)
        await asyncio.gather(*tasks, return_exceptions=True)
        self._builder.discard()

    def register_route(self, route: Route) -> None:
        """See Dispatcher."""
        self._online.register_route(route)

    @property
    def has_capacity(self) -> bool:
        """Whether rows with an answer may go on without the others of their chunk: not while answers are read."""
        return self._online.has_capacity if self._is_online else not self._settling

    async def wait_for_capacity(self) -> None:
        """Wait until more rows fit into memory."""
        while not self._is_online and self._unanswered_bytes >= MAX_UNANSWERED_BYTES and self.state.stop_reason is None:
            self._capacity_changed.clear()
            await self._capacity_changed.wait()
        if self._is_online:
            await self._online.wait_for_capacity()

    # Gathering: requests go line by line into a file, which is submitted when it is full or no more of them arrive.

    async def _gather(self) -> None:
        quiet, last = QUIET_SECONDS, None
        while self.state.stop_reason is None and not self._deadline_passed.is_set():
            try:
                group = await asyncio.wait_for(self._queue.get(), quiet)
            except TimeoutError:
                if not self._settling and not await self._builder.submit_all():
                    self.stop("budget_day")
                continue
            now = time.monotonic()
            if last is not None and self._last_settled_at < last:
                # No batch ended meanwhile: rows arrive slowly, and should not go in a batch for every few.
                quiet = min(MAX_QUIET_SECONDS, max(quiet, 3 * (now - last)))
            last = now
            await self._add(group)

    async def _add(self, group: RequestGroup) -> None:
        for request in group.requests:
            if request.fingerprint in self.pending and request.fingerprint not in self._unanswered:
                self._unanswered[request.fingerprint] = (group.route, request)
                self._unanswered_bytes += len(request.body)
        # Requests in open batches are awaited; those that were resolved in the queue are not sent at all.
        route = group.route
        group = replace(
            group,
            route=self._at_batch_price(route),
            requests=tuple(
                request
                for request in group.requests
                if request.fingerprint in self.pending and request.fingerprint not in self._batched
            ),
        )
        if not group.requests:
            return
        try:
            body = with_sent_model(await build_call(group), group.route.provider).body or b"{}"
        except OSError as exc:
            self.pending.resolve_with_error(group, unreadable_file(exc))
            return
        max_cost = total_cost(map(group.route.max_cost, group.billed_requests))
        # Only batches that are submitted can give money back.
        if not self._budget.fits(max_cost) and not await self._builder.submit_all():
            self.stop("budget_day")
            return
        short = "budget_day"
        try:
            async with self._budget.reserve(max_cost) as reservation:
                if await self._builder.add(group, body, max_cost):
                    # Settled with the line.
                    reservation.keep_open()
                    return
        except BudgetExhausted as exc:
            short = exc.name
        if len(group.requests) > 1:
            # What is left may suffice for some of them.
            for half in group.halves(group.attempts):
                if self.state.stop_reason is None:
                    await self._add(replace(half, route=route))
            return
        if short == "budget_day":
            await self._builder.submit_all()
        self.stop(short)

    def _launch(self, batch: Batch, route: Route) -> None:
        self._batched.update(fingerprint for line in batch.lines.values() for fingerprint in line.fingerprints)
        self._counters.in_flight += len(batch.lines)
        self.pending.open_batches += 1
        task = asyncio.create_task(self._run_batch(batch, route))
        self._batch_tasks[task] = batch
        task.add_done_callback(self._on_batch_done)
        task.add_done_callback(self.state.on_task_done)

    def _on_batch_done(self, task: asyncio.Task[None]) -> None:
        batch = self._batch_tasks.pop(task)
        self._settling.discard(task)
        self._counters.in_flight -= len(batch.lines)
        self.pending.open_batches -= 1
        self._progress.remove(batch)
        self.state.waiting_for = self._progress.format()
        self.pending.end_abandoned()

    # One batch, from submission to settlement.

    async def _run_batch(self, batch: Batch, route: Route) -> None:
        max_hold = self._retry_limits.longest_hold
        api = ProviderApi(self._options.transport, route.provider)
        lifecycle = BatchLifecycle(
            api,
            self._batches,
            self._folder,
            max_hold,
            self._deadline_passed,
            lambda stage: self._observe_stage(route, stage),
            self._wait_while_paused,
        )
        name = route.provider.name
        try:
            try:
                item, is_attempt = await self._wait_until_ended(batch, route, lifecycle)
            except BatchRefused as exc:
                item, is_attempt = refused(exc.error), False
            self._settling.add(asyncio.current_task())
            self._last_settled_at = time.monotonic()
            # Before its lines are settled: those without an answer are left to the next run.
            if (reason := self._stop_reason(batch, name, lifecycle, item)) is not None:
                self.stop(reason)
                item = of_no_line(item)
            unread = await self._settler.settle(batch, route, lifecycle, item, is_attempt)
            await lifecycle.clean(batch, item, unread)
        except RequestRefused as exc:
            self.stop(f"{exc.error.error_class}: {name} says of a batch: {exc.error.message}")
        except RequestError as exc:
            self.stop(f"{exc.error_class}: {name}: {exc}")
        except ProviderTimeout as exc:
            self.stop(f"{name}: {exc}")

    def _stop_reason(self, batch: Batch, provider: str, lifecycle: BatchLifecycle, item: Item) -> str | None:
        """Return why nothing more is submitted after a batch that ended like this; None if the run goes on."""
        lines, name = len(batch.lines), batch.batch_id or "a batch"
        if item.get("status") == "cancelled" and not lifecycle.is_cancelled_here(batch):
            words = "".join(f" ({error.message})" for error in batch_errors(item)[:1])
            return (
                f"{provider}: {name} was cancelled outside of this job{words}; its answers are kept, "
                "and the next run submits the rest"
            )
        error = self._refusals.of_whole_batch(item, lines)
        if error is None:
            return None
        is_of_model = "model" in f"{error.code} {error.message}".lower()
        has_no_api = error.http_status in NO_SUCH_API and not batch.is_created and not is_of_model
        hint = "; it seems to have no Batch API: write delivery: online" if has_no_api else ""
        return f"{error.error_class}: {provider} says: {error.message}; {name} was refused as a whole{hint}"

    async def _wait_until_ended(self, batch: Batch, route: Route, lifecycle: BatchLifecycle) -> tuple[Item, bool]:
        """Return (the batch as it ended, whether its lines without an answer have used an attempt)."""
        upload = self._folder.upload_path(batch.mark)
        size = upload.stat().st_size if batch.state == "noted" and upload.exists() else 0
        provider = route.provider.name

        def show_upload(sent: int) -> None:
            self.state.waiting_for = f"uploading to {provider}: {sent:,} of {size:,} bytes"

        pause = QUIET_SECONDS
        alone_since: float | None = None
        while True:
            try:
                if not await lifecycle.submit(batch, batch_url(route), show_upload):
                    return {}, False
                item = await lifecycle.wait_until_ended(batch, lambda item: self._show_progress(batch, item))
                if (limit := token_limit(item)) is None:
                    return item, not self._deadline_passed.is_set()
                await lifecycle.reset(batch)
                raise limit
            except TokenLimitReached as exc:
                others = [task for task, other in self._batch_tasks.items() if other.is_created]
                if others:
                    alone_since = None
                else:
                    alone_since = alone_since or time.monotonic()
                    has_waited = time.monotonic() + pause - alone_since > self._retry_limits.longest_hold
                    if (ended := self._end_above_limit(batch, route, exc, has_waited)) is not None:
                        return ended, len(batch.lines) == 1
                self.state.waiting_for = f"{provider} takes no more enqueued tokens until other batches have ended"
                if self.state.is_paused:
                    await self._wait_while_paused()
                    # The provider got no request meanwhile.
                    alone_since = None
                # One of this run's batches that ends makes room; if none is open, somebody else's has to end.
                deadline = asyncio.create_task(self._deadline_passed.wait())
                await asyncio.wait(
                    (deadline, *others), timeout=None if others else pause, return_when=asyncio.FIRST_COMPLETED
                )
                deadline.cancel()
                pause = min(MAX_POLL_SECONDS, pause * 2)

    def _end_above_limit(self, batch: Batch, route: Route, error: TokenLimitReached, has_waited: bool) -> Item | None:
        """Return how a batch ends that exceeds the enqueued-token limit even alone; None if it may not exceed it.

        It is split into smaller batches, or ends with the error of its only line. After `has_waited` (for longest_hold)
        a batch that might exceed the limit counts as exceeding it.
        """
        limit, lines, tokens = error.limit, len(batch.lines), batch.input_tokens
        if limit is None:
            is_sure, is_above = False, has_waited or lines > MIN_SPLIT_LINES
        else:
            # Counts differ: a batch that is below the limit by ours may be above it by the provider's.
            is_sure, is_above = tokens > limit, tokens > limit or (has_waited and 2 * tokens > limit)
        if not is_above:
            return None
        if lines == 1:
            return above_limit(error, is_sure)
        self._builder.max_tokens[route.route_id] = limit if is_sure and limit is not None else tokens // 2
        return {}

    def on_answered(
        self,
        group: RequestGroup,
        line: BatchLine,
        settled: SettledExchange,
        answers: Sequence[bytes | RowError | None],
        error: RowError | None,
    ) -> None:
        """See LineObserver."""
        group.route.record_exchange(self._counters, settled)
        if self.state.observer is not None:
            self.state.observer.record_exchange(group.route, settled)
        self._batched.difference_update(line.fingerprints)
        if error is None:
            self.pending.resolve(group, answers)
            if group.is_packed and group.route.packing is not None:
                self._write(group.route.packing.record_accepted())
            for again in group.unanswered(answers):
                self._send_again(again.requests, 0)
        else:
            self._on_line_failed(group, error)

    def as_submitted(self, group: RequestGroup) -> RequestGroup:
        """See LineObserver."""
        known = [self._unanswered.get(request.fingerprint) for request in group.requests]
        requests = tuple(
            one if waiting is None else replace(one, rung=waiting[1].rung, rescued_classes=waiting[1].rescued_classes)
            for one, waiting in zip(group.requests, known, strict=True)
        )
        return replace(group, requests=requests)

    def on_unanswered(self, group: RequestGroup, line: BatchLine, error: RowError) -> None:
        """See LineObserver."""
        self._batched.difference_update(line.fingerprints)
        self._on_line_failed(group, error)

    def on_unreadable(self, batch: Batch, error: RowError, max_cost: int | None) -> None:
        """See LineObserver."""
        cost = "" if max_cost is None else f", {format_money(usd(max_cost), 4)}"
        self.stop(
            f"{batch.provider}: the answers of {batch.batch_id} are out of reach ({error.message}); "
            f"they count at their worst case{cost}, and the next run requests them again"
        )

    def _on_line_failed(self, group: RequestGroup, error: RowError) -> None:
        if self.state.stop_reason is not None and error.error_class not in ROW_ERROR_CLASSES:
            # The next run requests it.
            return
        if self._is_refusal_of_group(group, error):
            return
        if error.error_class == "bad_request" and group.repack(error):
            self._send_again(group.requests, 0)
            return
        # A batch of this line alone was above the limit: another one would be too.
        is_too_large = error.code == TOKEN_LIMIT
        decision = decide_batch_line(
            error,
            group.route.provider.name,
            len(group.requests),
            group.attempts,
            is_too_large,
            self._retry_limits,
            group.is_packed,
        )
        if decision.action == "retry":
            self._send_again(group.requests, group.attempts)
        elif decision.action == "separate" and group.is_packed:
            for half in group.halves():
                self._send_again(half.requests, 0)
        elif decision.action == "separate":
            for request in group.requests:
                self._send_again((request,), 0)
        else:
            self.pending.resolve_with_error(group, error)
        if decision.stop_reason is not None:
            self.stop(decision.stop_reason)

    def _is_refusal_of_group(self, group: RequestGroup, error: RowError) -> bool:
        """Whether the words of a refusal name the size of the group or its encoding; then it is sent again as allowed.

        In the next batch, since halving as in an online run would take a batch for each step.
        """
        limits = group.route.group_limits
        write = (
            None if limits is None or error.error_class != "bad_request" else limits.record_stated_refusal(group, error)
        )
        if limits is None or write is None:
            return False
        self._write(write)
        for part in limits.parts(group.requests):
            self._send_again(part, 0)
        return True

    def _write(self, write: Coroutine[Any, Any, None] | None) -> None:
        """Write to the ledger what was learned."""
        if write is not None:
            task = asyncio.create_task(write)
            task.add_done_callback(self.state.on_task_done)
            self._other_tasks.append(task)

    def _send_again(self, requests: Sequence[Request], attempts: int) -> None:
        """Queue the requests that somebody waits for, as they were submitted."""
        again = [self._unanswered[one.fingerprint] for one in requests if one.fingerprint in self._unanswered]
        if not again:
            return
        route, waiting = again[0][0], tuple(request for _, request in again)
        # Packs of an earlier run, when the step had `pack`, are requested one by one.
        is_shared = route.packing is not None or route.group_limits is not None
        for group in [waiting] if is_shared else [(request,) for request in waiting]:
            self._queue.put_nowait(RequestGroup(route, group, attempts, attempts))

    def _on_resolved(self, fingerprint: bytes) -> None:
        if (unanswered := self._unanswered.pop(fingerprint, None)) is not None:
            self._unanswered_bytes -= len(unanswered[1].body)
            self._capacity_changed.set()

    # The deadline.

    async def _wait_while_paused(self) -> None:
        """Wait until a pause ends, or until the deadline, which creates no batch."""
        resumed = asyncio.create_task(self.state.wait_while_paused())
        deadline = asyncio.create_task(self._deadline_passed.wait())
        try:
            await asyncio.wait((resumed, deadline), return_when=asyncio.FIRST_COMPLETED)
        finally:
            resumed.cancel()
            deadline.cancel()

    async def _run_until_deadline(self) -> None:
        deadline = self._options.deadline
        if deadline is None:
            return
        # In short waits: a machine that slept is not late by its sleep.
        while (left := (deadline - datetime.now(deadline.tzinfo)).total_seconds()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._deadline_passed.wait(), min(left, 30))
        self._deadline_passed.set()
        await asyncio.wait([self._gatherer])
        for file in self._builder.discard():
            self._budget.settle(file.reserved, None)
            for group in file.groups:
                self._send_again(group.requests, group.attempts)
        while self._batch_tasks:
            await asyncio.wait(list(self._batch_tasks))
        if self.state.stop_reason is None:
            self._go_online()

    def _go_online(self) -> None:
        self.pending.enqueue = self._online.enqueue
        while not self._queue.empty():
            group = self._queue.get_nowait()
            # A batch may have resolved some of them meanwhile.
            if requests := tuple(request for request in group.requests if request.fingerprint in self.pending):
                self._online.enqueue(replace(group, requests=requests))
        self._is_online = True
        self._capacity_changed.set()
        self._online.start()

    def _at_batch_price(self, route: Route) -> Route:
        known = self._batch_price_routes.get(route.route_id)
        if known is None or known[0] is not route:
            price = None if route.price is None else batch_price(route.price)
            max_cost = max_cost_function(
                price,
                route.provider.sent_model(self._models[route.route_id]),
                terms=route.endpoint.billing_terms,
            )
            known = (route, replace(route, price=price, max_cost=max_cost))
            self._batch_price_routes[route.route_id] = known
        return known[1]

    def _show_progress(self, batch: Batch, item: Item) -> None:
        self._progress.update(batch, item)
        self.state.waiting_for = self._progress.format()

    def _observe_stage(self, route: Route, stage: BatchStage) -> None:
        if self.state.observer is not None:
            self.state.observer.record_batch_stage(route, stage)
