"""Requests gathered into the files of batches, line by line, and cut where a file is full or a budget ends."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import orjson

from connectors.records import Request, compact_copy
from pipelines.batch.files import BatchFolder, BatchWriter
from pipelines.batch.store import Batch, BatchLedger, BatchLine, new_mark
from pipelines.dispatch.request_types import DailyBudget, RequestGroup, Route
from pipelines.ledger.ledger import Ledger, now_us

LINES = 50_000
"""Of one file, at most; for embeddings so many inputs in all as well."""
BYTES = 200_000_000
FRAME = 1024
"""Bytes that a line takes beside its body, at most."""


@dataclass(slots=True)
class Spool:
    """A batch that is being gathered."""

    batch: Batch
    lane: Route
    writer: BatchWriter
    day_left: int | None
    """Pico-dollars that the day's budget had when it was begun."""
    packs: list[RequestGroup] = field(default_factory=list)
    inputs: int = 0
    reserved: int = 0


class Gathering:
    """The files that are being written: one at a time for each step."""

    def __init__(
        self,
        ledger: Ledger,
        batches: BatchLedger,
        folder: BatchFolder,
        day_budget: DailyBudget | None,
        launch: Callable[[Batch, Route], None],
    ) -> None:
        """`launch` gets every batch that is complete and noted."""
        self._ledger = ledger
        self._batches = batches
        self._folder = folder
        self._day_budget = day_budget
        self._launch = launch
        self._spools: dict[int, Spool] = {}
        self.most_tokens: dict[int, int] = {}
        """By leg: input tokens that one batch may hold, where the provider was found to take no more."""

    async def add(self, pack: RequestGroup, body: bytes, worst: int | None) -> bool:
        """Write one line, its money reserved in the purse already; False where the day's budget has no room for it."""
        lane = pack.route
        spool = self._spools.get(lane.route_id)
        if spool is not None and not self._fits(spool, pack, len(body), worst):
            if not await self._cut(spool):
                return False
            spool = None
        spool = spool or self._begun(lane)
        if spool.day_left is not None and spool.reserved + (worst or 0) > spool.day_left:
            return False
        place = len(spool.batch.lines)
        spool.batch.lines[place] = BatchLine(
            self._ledger.next_exchange_id(),
            compact_copy(orjson.dumps([key for request in pack.requests for key in request.keys])),
            b"".join(request.fingerprint for request in pack.requests for _ in request.keys),
            tuple(request.fingerprint for request in pack.requests),
            pack.attempts + 1,
            worst,
        )
        spool.writer.add(place, body, [request.body for request in pack.requests])
        spool.packs.append(pack)
        spool.inputs += len(pack.requests)
        spool.reserved += worst or 0
        spool.batch.tokens += _tokens(pack)
        return True

    async def cut_all(self) -> bool:
        """Send off what there is; False where the day's budget has no room for it."""
        cut = [await self._cut(spool) for spool in list(self._spools.values()) if spool.packs]
        return all(cut)

    def undone(self) -> list[Spool]:
        """What was not sent off; its files are gone."""
        spools = list(self._spools.values())
        self._spools.clear()
        for spool in spools:
            spool.writer.close()
            self._folder.remove(spool.batch.mark)
        return spools

    def _fits(self, spool: Spool, pack: RequestGroup, size: int, worst: int | None) -> bool:
        if not spool.packs:
            return True
        tokens = spool.batch.tokens + _tokens(pack)
        return (
            len(spool.batch.lines) < LINES
            and spool.inputs + len(pack.requests) <= LINES
            and spool.writer.size + size + FRAME <= BYTES
            and tokens <= self.most_tokens.get(spool.lane.route_id, tokens)
            and (spool.day_left is None or spool.reserved + (worst or 0) <= spool.day_left)
        )

    def _begun(self, lane: Route) -> Spool:
        mark = new_mark(self._ledger, self._ledger.next_exchange_id())
        day = left = None
        if self._day_budget is not None:
            day = self._day_budget.today()
            left = self._batches.left_of_day(day, self._day_budget.limit)
        batch = Batch(mark, lane.route_id, lane.step, lane.provider.name, "", now_us(), day)
        spool = Spool(batch, lane, self._folder.writing(mark, url_of(lane)), left)
        self._spools[lane.route_id] = spool
        return spool

    async def _cut(self, spool: Spool) -> bool:
        """The batch is complete: noted in the ledger, and on its way."""
        await asyncio.to_thread(spool.writer.close)
        spool.batch.at = now_us()
        limit = None if self._day_budget is None else self._day_budget.limit
        noting = asyncio.ensure_future(self._batches.note(spool.batch, limit))
        try:
            noted = await asyncio.shield(noting)
        except asyncio.CancelledError:
            # What is in the ledger's queue is written all the same: then the next run needs the files.
            if await noting:
                del self._spools[spool.lane.route_id]
            raise
        if not noted:
            return False
        del self._spools[spool.lane.route_id]
        self._launch(spool.batch, spool.lane)
        return True


def url_of(lane: Route) -> str:
    """As the Batch API writes an endpoint, whatever the provider's own address begins with."""
    return f"/v1{lane.endpoint.path}"


def line_pack(lane: Route, line: BatchLine, bodies: Sequence[bytes] | None, attempts: int) -> RequestGroup:
    """A line as the pack that it came from."""
    each = bodies or [b""] * len(line.fingerprints)
    requests = tuple(
        Request(fingerprint, body, 0, None, keys)
        for fingerprint, body, keys in zip(line.fingerprints, each, line.rows(), strict=True)
    )
    return RequestGroup(lane, requests, attempts)


def _tokens(pack: RequestGroup) -> int:
    return sum(request.input_tokens for request in pack.requests)
