"""A batch that has ended: each of its lines settled in the ledger, and told with its answer or without one."""

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from connectors.records import RowError
from pipelines.batch.builder import line_pack
from pipelines.batch.files import BatchFolder, Bodies, Came
from pipelines.batch.lifecycle import LOST, Carrier, not_answered, refused_lines
from pipelines.batch.store import Batch, BatchLedger, BatchLine
from pipelines.dispatch.counters import RunCounters
from pipelines.dispatch.request_types import RequestGroup, Route, paid, read_reply, to_keep
from pipelines.ledger.entries import SettledExchange
from pipelines.pricing.run_budget import RunBudget
from pipelines.runtime.provider_api import Item

SETTLED_AT_ONCE = 256


class LineTold(Protocol):
    """Who is told of each line that is settled."""

    def answered(
        self,
        pack: RequestGroup,
        line: BatchLine,
        ended: SettledExchange,
        answers: Sequence[bytes | RowError],
        error: RowError | None,
    ) -> None:
        """An exchange is in the ledger; `error`: of the whole of it."""

    def unanswered(self, pack: RequestGroup, line: BatchLine, error: RowError) -> None:
        """None came and none will: the line counts as not sent, and its pack as asked so often as before."""


class Lander:
    """Settles the lines of one job's batches."""

    def __init__(
        self, batches: BatchLedger, folder: BatchFolder, purse: RunBudget, tally: RunCounters, told: LineTold
    ) -> None:
        self._batches = batches
        self._folder = folder
        self._purse = purse
        self._tally = tally
        self._told = told

    async def land_all(self, batch: Batch, lane: Route, carrier: Carrier, item: Item, counts: bool) -> None:
        """Settle every line: first those that came, then those that did not; `counts`: theirs was an attempt."""
        errors: dict[int, RowError] = dict(refused_lines(item))
        bodies = await asyncio.to_thread(self._folder.bodies, batch.mark)
        try:
            for name in ("output_file_id", "error_file_id"):
                lines = await carrier.fetched(batch, item, name) if batch.lines else iter(())
                while group := await asyncio.to_thread(list, itertools.islice(lines, SETTLED_AT_ONCE)):
                    for came in group:
                        if came.reply is None:
                            errors[came.place] = not_answered(item, came.code, came.message)
                    await self._settle_all(batch, lane, bodies, [came for came in group if came.reply is not None])
        finally:
            bodies.close()
        left, batch.lines = batch.lines, {}
        self._tally.in_flight -= len(left)
        if item.get("status") == LOST:
            await self._give_up(batch, lane, left, not_answered(item, None, None), counts)
            return
        await self._batches.release(batch, left)
        for place, line in left.items():
            self._purse.settle(line.reserved, None)
            error = errors.get(place) or not_answered(item, None, None)
            self._told.unanswered(line_pack(lane, line, None, line.attempt - (not counts)), line, error)

    async def _give_up(
        self, batch: Batch, lane: Route, lines: Mapping[int, BatchLine], error: RowError, counts: bool
    ) -> None:
        """They may be answered, and billed, where nobody sees it: they count as unknown, at their worst case."""
        left = iter(lines.values())
        while some := list(itertools.islice(left, SETTLED_AT_ONCE)):
            ends = [replace(_settled(batch, line), error_class="unknown", message=error.message) for line in some]
            await asyncio.gather(*(self._batches.ledger.settle(ended, batch.day) for ended in ends))
            for line, ended in zip(some, ends, strict=True):
                self._count(line, ended)
                pack = line_pack(lane, line, None, line.attempt - (not counts))
                self._told.answered(pack, line, ended, (), error)

    async def _settle_all(self, batch: Batch, lane: Route, bodies: Bodies, group: Sequence[Came]) -> None:
        taken = [(came, line) for came in group if (line := batch.lines.pop(came.place, None)) is not None]
        self._tally.in_flight -= len(taken)
        settling = (self.settle_line(batch, lane, bodies, line, came) for came, line in taken)
        # All of them come to their end before the first failure is told: none writes when the ledger is closed.
        for failure in await asyncio.gather(*settling, return_exceptions=True):
            if failure is not None:
                raise failure

    async def settle_line(self, batch: Batch, lane: Route, bodies: Bodies, line: BatchLine, came: Came) -> None:
        """The reply to one line, kept in the ledger before it is told."""
        reply = came.reply
        assert reply is not None
        pack = line_pack(lane, line, bodies.of(came.place, len(line.fingerprints)), line.attempt)
        answers, error, usage = read_reply(pack, reply, None)
        ended = replace(
            _settled(batch, line),
            http_status=reply.status,
            error_class=None if error is None else error.error_class,
            usage=usage,
            cost=paid(lane, reply, None, error, usage, line.reserved),
            request_id=reply.headers.get("x-request-id"),
            message=None if error is None else error.message,
            answers=to_keep(pack, answers, error),
        )
        await self._batches.ledger.settle(ended, batch.day)
        self._count(line, ended)
        self._told.answered(pack, line, ended, answers, error)

    def _count(self, line: BatchLine, ended: SettledExchange) -> None:
        self._purse.settle(line.reserved, ended.cost)
        self._tally.requests += 1
        self._tally.retries += line.attempt > 1


def _settled(batch: Batch, line: BatchLine) -> SettledExchange:
    """A line that is over, at its worst case: what came of it is to be filled in."""
    return SettledExchange(
        line.note,
        batch.leg,
        line.attempt,
        line.keys,
        line.row_fingerprints,
        batch.at,
        cost=line.reserved,
        reserved=line.reserved or 0,
    )
