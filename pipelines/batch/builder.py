"""Batch files under construction: requests are added line by line, and a file is submitted when it is full."""

import asyncio
from collections.abc import Callable, Sequence

import orjson
from msgspec import Struct, field

from connectors.records import Request, compact_copy
from pipelines.batch.files import BatchFolder, BatchWriter
from pipelines.batch.store import Batch, BatchLedger, BatchLine, new_mark
from pipelines.dispatch.request_types import DailyBudget, RequestGroup, Route
from pipelines.ledger.ledger import Ledger, now_us

MAX_FILE_LINES = 50_000
"""Lines of one file; for embeddings also the inputs of all its lines."""
MAX_FILE_BYTES = 200_000_000
MAX_LINE_OVERHEAD_BYTES = 1024
"""Bytes that a line takes besides its body."""


class OpenBatchFile(Struct):
    """A batch that is being gathered."""

    batch: Batch
    route: Route
    writer: BatchWriter
    daily_budget_left: int | None
    """Pico-dollars that the daily budget had when the batch was begun."""
    groups: list[RequestGroup] = field(default_factory=list)
    inputs: int = 0
    reserved: int = 0


class BatchBuilder:
    """Writes one file at a time for each step."""

    def __init__(
        self,
        ledger: Ledger,
        batches: BatchLedger,
        folder: BatchFolder,
        daily_budget: DailyBudget | None,
        launch: Callable[[Batch, Route], None],
    ) -> None:
        """`launch` gets every batch that is complete and recorded."""
        self._ledger = ledger
        self._batches = batches
        self._folder = folder
        self._daily_budget = daily_budget
        self._launch = launch
        self._files: dict[tuple[int, int], OpenBatchFile] = {}
        """By route id and rung, which may share a route id."""
        self.max_tokens: dict[int, int] = {}
        """By route id: input tokens of one batch, if the provider was found to take no more."""

    async def add(self, group: RequestGroup, body: bytes, max_cost: int | None) -> bool:
        """Write one line, whose cost is reserved in the run's budget; False if the daily budget has no room for it."""
        route = group.route
        file = self._files.get((route.route_id, route.rung))
        if file is not None and not self._fits(file, group, len(body), max_cost):
            if not await self._submit(file):
                return False
            file = None
        file = file or self._open(route)
        if file.daily_budget_left is not None and file.reserved + (max_cost or 0) > file.daily_budget_left:
            return False
        place = len(file.batch.lines)
        file.batch.lines[place] = BatchLine(
            self._ledger.next_exchange_id(),
            compact_copy(orjson.dumps([key for request in group.requests for key in request.keys])),
            b"".join(request.fingerprint for request in group.requests for _ in request.keys),
            tuple(request.fingerprint for request in group.requests),
            group.attempts + 1,
            max_cost,
            group.pack_mode,
        )
        file.writer.add(place, body, [request.body for request in group.requests])
        file.groups.append(group)
        file.inputs += len(group.billed_requests)
        file.reserved += max_cost or 0
        file.batch.input_tokens += _input_tokens(group)
        return True

    async def submit_all(self) -> bool:
        """Submit all files; False if the daily budget has no room for one of them."""
        submitted = [await self._submit(file) for file in list(self._files.values()) if file.groups]
        return all(submitted)

    def discard(self) -> list[OpenBatchFile]:
        """Remove the files that were not submitted, and return what they held."""
        files = list(self._files.values())
        self._files.clear()
        for file in files:
            file.writer.close()
            self._folder.remove(file.batch.mark)
        return files

    def _fits(self, file: OpenBatchFile, group: RequestGroup, body_bytes: int, max_cost: int | None) -> bool:
        if not file.groups:
            return True
        tokens = file.batch.input_tokens + _input_tokens(group)
        return (
            len(file.batch.lines) < MAX_FILE_LINES
            and file.inputs + len(group.billed_requests) <= MAX_FILE_LINES
            and file.writer.size + body_bytes + MAX_LINE_OVERHEAD_BYTES <= MAX_FILE_BYTES
            and tokens <= self.max_tokens.get(file.route.route_id, tokens)
            and (file.daily_budget_left is None or file.reserved + (max_cost or 0) <= file.daily_budget_left)
        )

    def _open(self, route: Route) -> OpenBatchFile:
        mark = new_mark(self._ledger, self._ledger.next_exchange_id())
        day = left = None
        if self._daily_budget is not None:
            day = self._daily_budget.today()
            left = self._batches.remaining_daily_budget(day, self._daily_budget.limit)
        batch = Batch(mark, route.route_id, route.step, route.provider.name, "", now_us(), day)
        file = OpenBatchFile(batch, route, self._folder.open_writer(mark, batch_url(route)), left)
        self._files[route.route_id, route.rung] = file
        return file

    async def _submit(self, file: OpenBatchFile) -> bool:
        """Record the batch in the ledger, then launch it."""
        await asyncio.to_thread(file.writer.close)
        file.batch.recorded_at = now_us()
        limit = None if self._daily_budget is None else self._daily_budget.limit
        recording = asyncio.ensure_future(self._batches.record_pending(file.batch, limit))
        try:
            is_recorded = await asyncio.shield(recording)
        except asyncio.CancelledError:
            # What is in the ledger's queue is written all the same: then the next run needs the files.
            if await recording:
                del self._files[file.route.route_id, file.route.rung]
            raise
        if not is_recorded:
            return False
        del self._files[file.route.route_id, file.route.rung]
        self._launch(file.batch, file.route)
        return True


def batch_url(route: Route) -> str:
    """Return the URL of an endpoint as the Batch API writes it, whatever the provider's own address begins with."""
    return f"/v1{route.endpoint.path}"


def line_group(route: Route, line: BatchLine, bodies: Sequence[bytes] | None, attempts: int) -> RequestGroup:
    """Return the group of requests that a line was made of."""
    requests = tuple(
        Request(fingerprint, body, 0, None, keys)
        for fingerprint, body, keys in zip(
            line.fingerprints, bodies or [b""] * len(line.fingerprints), line.keys_by_request(), strict=True
        )
    )
    return RequestGroup(route, requests, attempts, pack_mode=line.pack_mode)


def _input_tokens(group: RequestGroup) -> int:
    return sum(request.input_tokens for request in group.billed_requests)
