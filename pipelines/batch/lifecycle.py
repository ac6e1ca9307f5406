"""One batch on its way: uploaded, created or found again, polled to its end, its files fetched and removed."""

import asyncio
import contextlib
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeVar

from connectors.records import TRANSIENT_ERROR_CLASSES, RowError
from connectors.transport.client import RequestError
from pipelines.batch.files import BatchFolder, Came, read_answers
from pipelines.batch.store import Batch, BatchLedger
from pipelines.dispatch.request_types import BatchStage, StageName
from pipelines.ledger.ledger import now_us
from pipelines.runtime.provider_api import Item, ProviderApi, Refused

FIRST_POLL = 2.0
"""Seconds between the first looks at a batch; the pause grows by half with each, up to LONGEST_POLL."""
LONGEST_POLL = 60.0
CANCEL_WAIT = 900.0
"""Seconds that a cancelled batch has to end; the API says that it takes up to ten minutes."""
MARK = "rowmill_mark"
"""The key of a batch's metadata under which its mark stands."""
FINAL = frozenset({"completed", "failed", "expired", "cancelled"})
LOST = "lost"
"""The status that we give a batch of which nothing more will be heard; what it may cost is not known."""
TOKEN_LIMIT = "token_limit_exceeded"
"""The code of a batch that is refused, or fails, as so many tokens may not be enqueued."""
CROWDED = "crowded"
"""The status that we give a batch of one line that the provider has not taken for as long as a job holds on."""
NO_MONEY = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
"""Codes of a failed batch that no other batch would fare better after."""
A_DAY = 86_400

T = TypeVar("T")


class Patience(Exception):
    """The provider has answered nothing of use for longer than the job holds on: the run stops."""


class TokenLimit(Exception):
    """The provider takes no more enqueued tokens now."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        told = re.search(r"limit:?\s*([\d,]{3,})", message, re.I)
        self.limit = int(told[1].replace(",", "")) if told else None
        """As the message tells it."""


class Carrier:
    """Takes batches of one provider there and back; every step is in the ledger before the next begins."""

    def __init__(
        self,
        api: ProviderApi,
        ledger: BatchLedger,
        folder: BatchFolder,
        longest_hold: float,
        past: asyncio.Event,
        told: Callable[[BatchStage], None],
    ) -> None:
        """`past`: set once the deadline has passed: what is not created yet stays so, what runs is cancelled. `told`
        hears of every stage that a batch has gone through."""
        self._api = api
        self._ledger = ledger
        self._folder = folder
        self._longest_hold = longest_hold
        self._past = past
        self._told = told

    async def submit(self, batch: Batch, path: str, told: Callable[[int], None]) -> bool:
        """See that the batch is created, once; False where it never will be: the deadline has passed, or its file is
        gone. May raise TokenLimit."""
        if batch.state == "created":
            return True
        if batch.state == "noted":
            if self._past.is_set():
                # What was uploaded all the same is to be removed.
                batch.file_id = await self._patiently(self._find_file, batch) if batch.unsure else None
                return False
            file_id = await self._patiently(self._find_file, batch) if batch.unsure else None
            if file_id is None and not self._folder.sent(batch.mark).exists():
                # Somebody has removed it: its requests are asked in other batches.
                return False
            batch.file_id = file_id or await self._patiently(self._upload, batch, told)
            batch.state, batch.unsure = "uploaded", False
            await self._ledger.moved(batch)
        if self._past.is_set():
            # What was never created stays so; what may have been is to be cancelled.
            item = await self._patiently(self._find_batch, batch) if batch.unsure else None
            if item is None:
                return False
        else:
            item = await self._patiently(self._create, batch, path)
        batch.batch_id, batch.state = str(item["id"]), "created"
        await self._ledger.moved(batch)
        return True

    async def _upload(self, batch: Batch, told: Callable[[int], None]) -> str:
        sent = self._folder.sent(batch.mark)
        with self._stage("upload", batch):
            return str((await self._api.upload(sent, _file_name(batch), "batch", told))["id"])

    async def _create(self, batch: Batch, path: str) -> Item:
        assert batch.file_id is not None
        if batch.unsure and (found := await self._find_batch(batch)) is not None:
            return found
        try:
            with self._stage("create", batch):
                return await self._api.create_batch(batch.file_id, path, {MARK: batch.mark})
        except Refused as exc:
            if exc.error.code == TOKEN_LIMIT:
                raise TokenLimit(exc.error.message) from exc
            batch.unsure = batch.unsure or exc.error.error_class in TRANSIENT_ERROR_CLASSES
            raise
        except RequestError as exc:
            batch.unsure = batch.unsure or exc.is_billable
            raise

    async def _find_batch(self, batch: Batch) -> Item | None:
        """A batch of ours that was created although we never heard of it. One that failed began nothing."""
        async for item in self._api.batches():
            metadata = item.get("metadata")
            if isinstance(metadata, Mapping) and metadata.get(MARK) == batch.mark and item.get("status") != "failed":
                return item
            # The newest come first; clocks may differ.
            if isinstance(created := item.get("created_at"), int | float) and created < batch.at / 1e6 - A_DAY:
                return None
        return None

    async def _find_file(self, batch: Batch) -> str | None:
        for item in await self._api.files("batch"):
            if item.get("filename") == _file_name(batch):
                return str(item["id"])
        return None

    async def ended(self, batch: Batch, told: Callable[[Item], None]) -> Item:
        """The batch once it has come to its end; LOST where it was to be cancelled and did not end in time, too."""
        with self._stage("wait", batch) as heard:
            item = await self._end_of(batch, told)
            heard["status"] = str(item.get("status"))
            return item

    async def _end_of(self, batch: Batch, told: Callable[[Item], None]) -> Item:
        assert batch.batch_id is not None
        pause = FIRST_POLL
        cancelled_at: float | None = None
        while True:
            try:
                item = await self._patiently(self._api.batch, batch.batch_id)
            except Refused as exc:
                if exc.error.http_status != 404:
                    raise
                # Who does not know it any more will not answer it.
                return {"status": LOST}
            told(item)
            if item.get("status") in FINAL:
                return item
            if self._past.is_set() and cancelled_at is None:
                cancelled_at, pause = time.monotonic(), FIRST_POLL
                await self._cancel(batch.batch_id)
                continue
            if cancelled_at is not None and time.monotonic() - cancelled_at > CANCEL_WAIT:
                return {"status": LOST}
            await self._wait(pause * random.uniform(0.8, 1), until_past=cancelled_at is None)
            pause = min(LONGEST_POLL, pause * 1.5)

    async def _cancel(self, batch_id: str) -> None:
        try:
            await self._patiently(self._api.cancel_batch, batch_id)
        except Refused:
            # It has ended in this very moment: the next look tells how.
            return

    async def fetched(self, batch: Batch, item: Item, name: str) -> Iterator[Came]:
        """What the file under `output_file_id` or `error_file_id` holds, which is put on the disk first."""
        file_id = item.get(name)
        if not file_id:
            return iter(())
        path = self._folder.came(batch.mark)

        async def fetch() -> None:
            with path.open("wb") as file:
                await self._api.download(str(file_id), file.write)

        try:
            with self._stage("fetch", batch):
                await self._patiently(fetch)
        except Refused as exc:
            if exc.error.http_status != 404:
                raise
            return iter(())
        return read_answers(path, batch.mark)

    async def clean(self, batch: Batch, item: Item | None) -> None:
        """Remove what the provider holds of the batch, then forget it here; what it does not let go of stays there."""
        ids = (
            [batch.file_id] if item is None else [batch.file_id, item.get("output_file_id"), item.get("error_file_id")]
        )
        with self._stage("clean", batch):
            for file_id in ids:
                if file_id:
                    try:
                        await self._patiently(self._api.delete_file, str(file_id))
                    except Refused:
                        continue
            await self._ledger.forget(batch)
            self._folder.remove(batch.mark)

    async def again(self, batch: Batch) -> None:
        """The batch failed before it began: it is to be created once more."""
        batch.state, batch.batch_id, batch.unsure = "uploaded", None, False
        await self._ledger.moved(batch)

    @contextlib.contextmanager
    def _stage(self, name: StageName, batch: Batch) -> Iterator[dict[str, str | None]]:
        """Tell of a stage when it is over, however it ends; the body may tell the `status` of the batch."""
        began, lines = now_us(), len(batch.lines)
        heard: dict[str, str | None] = {}
        try:
            yield heard
        except (Refused, RequestError) as exc:
            heard["error"] = exc.error.error_class if isinstance(exc, Refused) else exc.error_class
            raise
        except BaseException as exc:
            heard["error"] = type(exc).__name__
            raise
        finally:
            self._told(BatchStage(name, batch.mark, batch.batch_id, lines, batch.at, began, **heard))

    async def _patiently(self, call: Callable[..., Awaitable[T]], *given: Any) -> T:
        """What the call returns; failures that pass are waited out, at most `longest_hold` seconds of them."""
        began, pause = time.monotonic(), min(1.0, FIRST_POLL)
        while True:
            try:
                return await call(*given)
            except (RequestError, Refused) as exc:
                error = exc.error if isinstance(exc, Refused) else RowError(exc.error_class, str(exc))
                if error.error_class not in TRANSIENT_ERROR_CLASSES:
                    raise
                if time.monotonic() + pause - began > self._longest_hold:
                    raise Patience(f"{error.error_class}: {error.message}") from exc
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(LONGEST_POLL, pause * 2)

    async def _wait(self, seconds: float, until_past: bool) -> None:
        if not until_past:
            await asyncio.sleep(seconds)
            return
        try:
            await asyncio.wait_for(self._past.wait(), seconds)
        except TimeoutError:
            return


def token_limit(item: Item) -> TokenLimit | None:
    """Why a failed batch may be created once more; None where it failed for another reason, or not at all."""
    if item.get("status") != "failed":
        return None
    told = (error for error in _errors(item) if error.get("code") == TOKEN_LIMIT)
    return next((TokenLimit(str(error.get("message") or "too many enqueued tokens")) for error in told), None)


def above_limit(told: TokenLimit, sure: bool) -> Item:
    """How a batch ends whose only line is above the limit; where that is not `sure`, the next run asks it again."""
    error = {"code": TOKEN_LIMIT, "message": str(told), "line": 1 if sure else None}
    return {"status": "failed" if sure else CROWDED, "errors": {"data": [error]}}


def refused_lines(item: Item) -> dict[int, RowError]:
    """Of a failed batch, the places of the lines that it failed for."""
    return {
        error["line"] - 1: RowError(
            "bad_request",
            str(error.get("message") or "the provider refuses this line"),
            code=None if error.get("code") is None else str(error["code"]),
            param=None if error.get("param") is None else str(error["param"]),
        )
        for error in _errors(item)
        if isinstance(error.get("line"), int)
    }


def not_answered(item: Item, code: str | None, message: str | None) -> RowError:
    """Why a line has no answer, as its own error or the end of the batch tells it: it is asked again."""
    status = item.get("status")
    if status == LOST:
        return RowError("timeout", "the batch was created, and what became of it was never told", code="batch_lost")
    if code == "batch_expired" or (code is None and status == "expired"):
        return RowError("timeout", message or "the batch expired before it came to this line", code="batch_expired")
    if code is None and status == "completed":
        return RowError("malformed_reply", "the batch's files hold no line for this request")
    first = next(iter(_errors(item)), {})
    words = message or str(first.get("message") or f"the batch ended as {status} before it came to this line")
    named = code or str(first.get("code") or f"batch_{status}")
    if status == CROWDED:
        return RowError("rate_limit", words, code=named)
    return RowError("quota" if named in NO_MONEY else "server", words, code=named)


def _errors(item: Item) -> list[Mapping[str, Any]]:
    errors = item.get("errors")
    told = errors.get("data") if isinstance(errors, Mapping) else None
    return [error for error in told or () if isinstance(error, Mapping)]


def _file_name(batch: Batch) -> str:
    return f"rowmill-{batch.mark}.jsonl"
