"""Settlement of a batch that has ended: each of its lines is settled in the ledger, and then resolved."""

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from connectors.records import RowError
from pipelines.batch.builder import line_group
from pipelines.batch.files import BatchFolder, RequestBodies, ResultLine
from pipelines.batch.lifecycle import LOST, BatchLifecycle, missing_answer, refused_lines
from pipelines.batch.store import Batch, BatchLedger, BatchLine
from pipelines.dispatch.counters import RunCounters
from pipelines.dispatch.dispatch_state import DispatchState
from pipelines.dispatch.reply_handling import ExchangeOutcome, charged_cost, interpret, settled_exchange
from pipelines.dispatch.request_types import RequestGroup, Route
from pipelines.ledger.entries import PendingExchange, SettledExchange
from pipelines.pricing.run_budget import RunBudget
from pipelines.runtime.provider_api import Item

LINES_AT_ONCE = 256
"""Lines whose outcomes are written to the ledger together."""


class LineObserver(Protocol):
    """Is informed of each line that is settled."""

    def on_answered(
        self,
        group: RequestGroup,
        line: BatchLine,
        settled: SettledExchange,
        answers: Sequence[bytes | RowError],
        error: RowError | None,
    ) -> None:
        """The line's exchange is in the ledger; `error`: of the whole exchange."""

    def on_unanswered(self, group: RequestGroup, line: BatchLine, error: RowError) -> None:
        """No answer came and none will: the line counts as not sent, and its group as sent as often as before."""


class BatchSettler:
    """Settles the lines of one job's batches."""

    def __init__(
        self,
        batches: BatchLedger,
        folder: BatchFolder,
        budget: RunBudget,
        counters: RunCounters,
        observer: LineObserver,
        state: DispatchState,
    ) -> None:
        self._batches = batches
        self._folder = folder
        self._budget = budget
        self._counters = counters
        self._observer = observer
        self._state = state

    async def settle(self, batch: Batch, route: Route, lifecycle: BatchLifecycle, item: Item, is_attempt: bool) -> None:
        """Settle every line, those with a result first. `is_attempt`: lines without one have used an attempt."""
        errors: dict[int, RowError] = dict(refused_lines(item))
        bodies = await asyncio.to_thread(self._folder.request_bodies, batch.mark)
        try:
            for name in ("output_file_id", "error_file_id"):
                results = await lifecycle.fetch_results(batch, item, name) if batch.lines else iter(())
                while some := await asyncio.to_thread(list, itertools.islice(results, LINES_AT_ONCE)):
                    for result in some:
                        if result.reply is None:
                            errors[result.place] = missing_answer(item, result.code, result.message)
                    await self._settle_results(batch, route, bodies, [one for one in some if one.reply is not None])
        finally:
            bodies.close()
        left, batch.lines = batch.lines, {}
        self._counters.in_flight -= len(left)
        if item.get("status") == LOST:
            await self._settle_as_unknown(batch, route, left, missing_answer(item, None, None), is_attempt)
            return
        await self._batches.cancel_lines(batch, left)
        for place, line in left.items():
            self._budget.settle(line.max_cost, None)
            error = errors.get(place) or missing_answer(item, None, None)
            self._observer.on_unanswered(line_group(route, line, None, line.attempt - (not is_attempt)), line, error)

    async def _settle_as_unknown(
        self, batch: Batch, route: Route, lines: Mapping[int, BatchLine], error: RowError, is_attempt: bool
    ) -> None:
        """They may be answered, and billed, without anybody seeing it: they count at their maximum cost."""
        left = iter(lines.values())
        while some := list(itertools.islice(left, LINES_AT_ONCE)):
            settled = [replace(_pending(batch, line).as_unknown(), message=error.message) for line in some]
            await asyncio.gather(*(self._batches.ledger.settle(one, batch.day) for one in settled))
            for line, one in zip(some, settled, strict=True):
                self._count(line, one)
                group = line_group(route, line, None, line.attempt - (not is_attempt))
                self._observer.on_answered(group, line, one, (), error)

    async def _settle_results(
        self, batch: Batch, route: Route, bodies: RequestBodies, results: Sequence[ResultLine]
    ) -> None:
        found = [(one, line) for one in results if (line := batch.lines.pop(one.place, None)) is not None]
        self._counters.in_flight -= len(found)
        settling = (self._settle_result(batch, route, bodies, line, result) for result, line in found)
        # All of them end before the first failure is raised: none writes after the ledger is closed.
        for failure in await asyncio.gather(*settling, return_exceptions=True):
            if failure is not None:
                raise failure

    async def _settle_result(
        self, batch: Batch, route: Route, bodies: RequestBodies, line: BatchLine, result: ResultLine
    ) -> None:
        group = line_group(route, line, bodies.of(result.place, len(line.fingerprints)), line.attempt)
        outcome = interpret(group, result.reply, None)
        is_suspect = self._judge(group, route, outcome)
        charged = charged_cost(route.price, outcome, line.max_cost)
        # A line of a file has no latency.
        settled = replace(settled_exchange(_pending(batch, line), group, outcome, charged, is_suspect), latency_ms=None)
        await self._batches.ledger.settle(settled, batch.day)
        self._count(line, settled)
        self._observer.on_answered(group, line, settled, outcome.answers, outcome.error)

    def _judge(self, group: RequestGroup, route: Route, outcome: ExchangeOutcome) -> bool:
        """Stop if an error shows a fault of the set-up; return whether it may turn out to be one."""
        faults = self._state.setup_faults
        outcome.error = faults.confirm(route, None, outcome.error, is_pooled=False)
        is_suspect = faults.is_suspect(route, outcome)
        is_settled = outcome.error is None or len(group.requests) == 1
        if is_settled and (reason := faults.settle_outcome(group, route, outcome)) is not None:
            self._state.stop(f"setup: {reason}")
        return is_suspect

    def _count(self, line: BatchLine, settled: SettledExchange) -> None:
        self._budget.settle(line.max_cost, settled.cost)
        self._counters.requests += 1
        self._counters.retries += line.attempt > 1


def _pending(batch: Batch, line: BatchLine) -> PendingExchange:
    return PendingExchange(
        line.exchange_id,
        batch.route_id,
        line.attempt,
        line.keys,
        line.row_fingerprints,
        batch.recorded_at,
        line.max_cost,
    )
