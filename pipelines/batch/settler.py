"""Settlement of a batch that has ended: each of its lines is settled in the ledger, and then resolved."""

import asyncio
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from msgspec.structs import replace

from connectors.records import RowError
from pipelines.batch.builder import line_group
from pipelines.batch.files import BatchFolder, RequestBodies, ResultLine
from pipelines.batch.final_status import ABANDONED, LOST, completed_lines, missing_answer, refused_lines
from pipelines.batch.lifecycle import BatchLifecycle
from pipelines.batch.store import Batch, BatchLedger, BatchLine
from pipelines.dispatch.counters import RunCounters
from pipelines.dispatch.dispatch_state import DispatchState
from pipelines.dispatch.reply_handling import (
    ExchangeOutcome,
    billing_note,
    charged_cost,
    excess_note,
    interpret,
    ledger_answers,
    settled_exchange,
)
from pipelines.dispatch.request_types import RequestGroup, Route
from pipelines.ledger.entries import PendingExchange, SettledExchange
from pipelines.pricing.run_budget import RunBudget
from pipelines.runtime.provider_api import Item, RequestRefused

LINES_AT_ONCE = 256
"""Lines whose outcomes are written to the ledger together."""


RESULT_FILES = ("output_file_id", "error_file_id")


class ResultReading:
    """What the files of an ended batch have shown: of which lines the cost is known, and why others have no answer."""

    def __init__(self, item: Item) -> None:
        self._item = item
        self._errors = refused_lines(item)
        self._listed: dict[str, set[int]] = {name: set() for name in RESULT_FILES}
        self._missing_files: dict[str, RowError] = {}
        self._unreadable: set[int] = set()
        self._has_unknown_lines = False

    def add(self, name: str, result: ResultLine) -> None:
        """Take note of a line of a file."""
        if result.place is None:
            self._has_unknown_lines = True
        elif not result.is_readable:
            self._unreadable.add(result.place)
        else:
            self._listed[name].add(result.place)
            if result.reply is None:
                self._errors[result.place] = missing_answer(self._item, result.code, result.message)

    def add_missing_file(self, name: str, error: RowError) -> None:
        """Take note of a file that the provider no longer has."""
        self._missing_files[name] = error

    def is_billable(self, place: int) -> bool:
        """Whether a line without an answer may have been answered, and billed, all the same."""
        if place in self._unreadable:
            return True
        if place in self._errors:
            return False
        is_complete = self._item.get("status") in ("completed", LOST, ABANDONED)
        is_short = completed_lines(self._item) > len(self._listed["output_file_id"])
        return is_complete or is_short or self._has_unknown_lines or "output_file_id" in self._missing_files

    def loss(self) -> RowError | None:
        """Return why the answers are out of reach for good; None if files of the batch were read."""
        if self._item.get("status") == LOST:
            return missing_answer(self._item, None, None)
        if (error := self._missing_files.get("output_file_id")) is not None:
            words = f"its output file {self._item['output_file_id']} cannot be downloaded: {error.message}"
            return RowError("malformed_reply", words, error.http_status, code="batch_file_missing")
        return None

    def error_of(self, place: int | None) -> RowError:
        """Return why a line has no answer; None: a line that may have been billed."""
        if place is None and (loss := self.loss()) is not None:
            return loss
        known = None if place is None else self._errors.get(place)
        if place is None and self._item.get("status") not in ("completed", ABANDONED):
            return RowError("malformed_reply", f"{self._item.get('id')} has an answer here that cannot be read")
        return known or missing_answer(self._item, None, None)

    def unread_files(self, has_unread_lines: bool) -> Collection[str]:
        """Return the ids of the files that must not be removed: nobody has read all that they should have."""
        names = RESULT_FILES if has_unread_lines else tuple(self._missing_files)
        return [str(self._item[name]) for name in names if self._item.get(name)]


class LineObserver(Protocol):
    """Is informed of each line that is settled."""

    def as_submitted(self, group: RequestGroup) -> RequestGroup:
        """Return a line's group with the rungs of its requests, which only those who wait for them know."""

    def on_answered(
        self,
        group: RequestGroup,
        line: BatchLine,
        settled: SettledExchange,
        answers: Sequence[bytes | RowError | None],
        error: RowError | None,
    ) -> None:
        """The line's exchange is in the ledger; `error`: of the whole exchange. An answer that is None: not there."""

    def on_unanswered(self, group: RequestGroup, line: BatchLine, error: RowError) -> None:
        """No answer came and none will: the line counts as not sent, and its group as sent as often as before."""

    def on_unreadable(self, batch: Batch, error: RowError, max_cost: int | None) -> None:
        """The answers of a batch are out of reach; its lines count at `max_cost`, and none of them is sent again."""


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

    async def settle(
        self, batch: Batch, route: Route, lifecycle: BatchLifecycle, item: Item, is_attempt: bool
    ) -> Collection[str]:
        """Settle every line, those with a result first; return the ids of files that were not read to their end.

        `is_attempt`: lines without a result have used an attempt.
        """
        reading = ResultReading(item)
        bodies = await asyncio.to_thread(self._folder.request_bodies, batch.mark)
        try:
            for name in RESULT_FILES if batch.lines else ():
                try:
                    results = await lifecycle.fetch_results(batch, item, name)
                except RequestRefused as exc:
                    if exc.error.http_status != 404:
                        raise
                    reading.add_missing_file(name, exc.error)
                    continue
                while some := await asyncio.to_thread(list, itertools.islice(results, LINES_AT_ONCE)):
                    for result in some:
                        reading.add(name, result)
                    await self._settle_results(batch, route, bodies, [one for one in some if one.reply is not None])
        finally:
            bodies.close()
        left, batch.lines = batch.lines, {}
        self._counters.in_flight -= len(left)
        billable = {place: line for place, line in left.items() if reading.is_billable(place)}
        if billable and (error := reading.loss()) is not None:
            costs = [line.max_cost for line in billable.values()]
            self._observer.on_unreadable(batch, error, None if None in costs else sum(cost or 0 for cost in costs))
        await self._settle_as_unknown(batch, route, billable, reading.error_of(None), is_attempt)
        unbilled = {place: line for place, line in left.items() if place not in billable}
        await self._batches.cancel_lines(batch, unbilled)
        for place, line in unbilled.items():
            self._budget.settle(line.max_cost, None)
            group = self._observer.as_submitted(line_group(route, line, None, line.attempt - (not is_attempt)))
            self._observer.on_unanswered(group, line, reading.error_of(place))
        return reading.unread_files(has_unread_lines=bool(billable))

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
                group = self._observer.as_submitted(line_group(route, line, None, line.attempt - (not is_attempt)))
                self._observer.on_answered(group, line, one, (), error)

    async def _settle_results(
        self, batch: Batch, route: Route, bodies: RequestBodies, results: Sequence[ResultLine]
    ) -> None:
        found = [
            (one, line)
            for one in results
            if one.place is not None and (line := batch.lines.pop(one.place, None)) is not None
        ]
        self._counters.in_flight -= len(found)
        settling = (self._settle_result(batch, route, bodies, line, result) for result, line in found)
        # All of them end before the first failure is raised: none writes after the ledger is closed.
        for failure in await asyncio.gather(*settling, return_exceptions=True):
            if failure is not None:
                raise failure

    async def _settle_result(
        self, batch: Batch, route: Route, bodies: RequestBodies, line: BatchLine, result: ResultLine
    ) -> None:
        assert result.place is not None
        group = self._observer.as_submitted(
            line_group(route, line, bodies.of(result.place, len(line.fingerprints)), line.attempt)
        )
        outcome = interpret(group, result.reply, None)
        is_suspect = self._judge(group, route, outcome)
        charged = charged_cost(route.price, outcome, line.max_cost)
        if self._budget.record_excess(line.max_cost, charged):
            self._counters.add_note(excess_note(route))
        if (note := billing_note(route, outcome)) is not None:
            self._counters.add_note(note)
        found = ledger_answers(group, outcome)
        answers = self._state.setup_faults.stored_answers(route, route, found, is_suspect)
        unverified = group.unverified_changes(answers)
        settled = settled_exchange(_pending(batch, line), outcome, charged, answers, unverified)
        # A line of a file has no latency.
        settled = replace(settled, latency_ms=None)
        await self._batches.ledger.settle(settled, batch.day)
        self._count(line, settled)
        self._observer.on_answered(group, line, settled, outcome.answers, outcome.error)

    def _judge(self, group: RequestGroup, route: Route, outcome: ExchangeOutcome) -> bool:
        """Stop if an error shows a fault of the set-up; return whether it may turn out to be one."""
        faults = self._state.setup_faults
        outcome.error = faults.confirm(route, None, outcome.error, is_pooled=False)
        is_suspect = faults.is_suspect(group, route, outcome)
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
