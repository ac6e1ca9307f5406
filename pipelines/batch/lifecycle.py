"""The lifecycle of one batch: upload, create or find again, poll until it has ended, fetch its results, clean up."""

import asyncio
import contextlib
import random
import re
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

from connectors.error_classes import FATAL_ERROR_CLASSES, TRANSIENT_ERROR_CLASSES
from connectors.records import RowError
from connectors.transport.awake_clock import AWAKE_CLOCK
from connectors.transport.client import RequestError
from pipelines.batch.files import BatchFolder, ResultLine, has_lines, read_results
from pipelines.batch.final_status import (
    ABANDONED,
    FINAL_STATUSES,
    LOST,
    TokenLimitReached,
    completed_lines,
    is_token_limit,
    status_of,
)
from pipelines.batch.store import Batch, BatchLedger
from pipelines.dispatch.request_types import BatchStage, StageName
from pipelines.ledger.ledger import now_us
from pipelines.runtime.provider_api import Item, ProviderApi, RequestRefused

FIRST_POLL_SECONDS = 2.0
"""Pause after the first poll of a batch; each pause is half as long again as the one before, up to MAX_POLL_SECONDS."""
MAX_POLL_SECONDS = 60.0
CANCEL_WAIT_SECONDS = 900.0
"""Time that a cancelled batch has to end; the API documents up to ten minutes."""
MARK_KEY = "rowmill_mark"
"""The key in a batch's metadata that holds its mark."""
NOT_FOUND_SECONDS = 600.0
"""Time for which a 404 on a batch or its file is passing: not every node of a provider knows it at once."""
MAX_WAIT_SECONDS = 26 * 3600.0
"""Time for a batch to end, more than its completion window; then the run stops, and the next one looks again."""
EARLY_READS = 4
"""Times that a finished batch, or its output file, is read if it shows fewer answers than the provider counts."""
_DAY_SECONDS = 86_400
_PENDING = re.compile(r"not (yet )?(been )?(ready|processed|uploaded|found|available)|pending|processing|no such", re.I)

T = TypeVar("T")


class ProviderTimeout(Exception):
    """The provider has not done its part in time: the run stops, and the next one continues."""


class BatchRefused(Exception):
    """The provider will never create a batch of this file: nothing of it is sent."""

    def __init__(self, error: RowError) -> None:
        super().__init__(error.message)
        self.error = error


class BatchLifecycle:
    """Takes batches of one provider from upload to clean-up; each step is in the ledger before the next begins."""

    def __init__(
        self,
        api: ProviderApi,
        ledger: BatchLedger,
        folder: BatchFolder,
        longest_hold: float,
        deadline_passed: asyncio.Event,
        on_stage: Callable[[BatchStage], None],
        wait_while_paused: Callable[[], Awaitable[None]],
    ) -> None:
        """After `deadline_passed` nothing is created, and what runs is cancelled. `on_stage` is called after every
        stage. `longest_hold`: seconds. `wait_while_paused` returns when a file may be uploaded or a batch created."""
        self._api = api
        self._ledger = ledger
        self._folder = folder
        self._longest_hold = longest_hold
        self._deadline_passed = deadline_passed
        self._on_stage = on_stage
        self._wait_while_paused = wait_while_paused

    def is_cancelled_here(self, batch: Batch) -> bool:
        """Whether this job cancelled the batch, in this invocation or an earlier one."""
        return batch.state == "cancelled" or self._deadline_passed.is_set()

    async def submit(self, batch: Batch, path: str, on_progress: Callable[[int], None]) -> bool:
        """Create the batch, once; TokenLimitReached if the provider's queue is full.

        Returns False if it will never be created: the deadline has passed, or its file is gone.
        """
        if batch.is_created:
            return True
        await self._wait_while_paused()
        if batch.state == "noted":
            if self._deadline_passed.is_set():
                # If it was uploaded all the same, the file must be removed.
                batch.file_id = await self._retry(self._find_file, batch) if batch.is_uncertain else None
                return False
            file_id = await self._retry(self._find_file, batch) if batch.is_uncertain else None
            if file_id is None and not self._folder.upload_path(batch.mark).exists():
                # Somebody has removed it: its requests go into other batches.
                return False
            batch.file_id = file_id or await self._retry(self._upload, batch, on_progress)
            batch.state, batch.is_uncertain = "uploaded", False
            await self._ledger.record_state(batch)
            await self._wait_while_paused()
        if self._deadline_passed.is_set():
            # If it was created all the same, it must be cancelled.
            item = await self._retry(self._find_batch, batch) if batch.is_uncertain else None
            if item is None:
                return False
        else:
            item = await self._retry(self._create, batch, path, file_id=batch.file_id)
        batch.batch_id, batch.state = str(item["id"]), "created"
        await self._ledger.record_state(batch)
        return True

    async def _upload(self, batch: Batch, on_progress: Callable[[int], None]) -> str:
        path = self._folder.upload_path(batch.mark)
        try:
            with self._stage("upload", batch):
                return _id_of(await self._api.upload_file(path, _file_name(batch), "batch", on_progress))
        except RequestRefused as exc:
            if _is_final(exc.error):
                raise BatchRefused(exc.error) from exc
            raise

    async def _create(self, batch: Batch, path: str) -> Item:
        assert batch.file_id is not None
        if batch.is_uncertain and (item := await self._find_batch(batch)) is not None:
            return item
        try:
            with self._stage("create", batch):
                item = await self._api.create_batch(batch.file_id, path, {MARK_KEY: batch.mark})
                _id_of(item)
                return item
        except RequestRefused as exc:
            if is_token_limit(exc.error.code, exc.error.message):
                raise TokenLimitReached(exc.error.message) from exc
            if _is_final(exc.error) and not _is_file_pending(exc.error, batch.file_id):
                raise BatchRefused(exc.error) from exc
            batch.is_uncertain = batch.is_uncertain or exc.error.error_class in TRANSIENT_ERROR_CLASSES
            raise
        except RequestError as exc:
            batch.is_uncertain = batch.is_uncertain or exc.is_billable
            raise

    async def _find_batch(self, batch: Batch) -> Item | None:
        """Return a batch that was created although no reply confirmed it. One that failed has begun nothing."""
        async for item in self._api.list_batches():
            metadata = item.get("metadata")
            has_mark = isinstance(metadata, Mapping) and metadata.get(MARK_KEY) == batch.mark
            if has_mark and item.get("status") != "failed":
                return item
            # The newest come first; clocks may differ.
            created = item.get("created_at")
            if isinstance(created, int | float) and created < batch.recorded_at / 1e6 - _DAY_SECONDS:
                return None
        return None

    async def _find_file(self, batch: Batch) -> str | None:
        for item in await self._api.list_files("batch"):
            if item.get("filename") == _file_name(batch):
                return str(item["id"])
        return None

    async def wait_until_ended(self, batch: Batch, on_poll: Callable[[Item], None]) -> Item:
        """Return the batch once it has ended; LOST if the provider does not know it any more,
        ABANDONED if it did not end in time after it was cancelled."""
        with self._stage("wait", batch) as details:
            item = await self._poll_until_ended(batch, on_poll)
            details["status"] = str(item.get("status"))
            return item

    async def _poll_until_ended(self, batch: Batch, on_poll: Callable[[Item], None]) -> Item:
        assert batch.batch_id is not None
        pause, began, early_reads = FIRST_POLL_SECONDS, AWAKE_CLOCK.now(), 0
        cancelled_at: float | None = None
        while True:
            try:
                # What is settled is not needed any more.
                item = await self._retry(self._api.get_batch, batch.batch_id, has_patience=bool(batch.lines))
            except RequestRefused as exc:
                if exc.error.http_status != 404:
                    raise
                # It may run on all the same.
                await self._cancel(batch.batch_id)
                return {"id": batch.batch_id, "status": LOST, "errors": {"data": [{"message": exc.error.message}]}}
            item["status"] = status_of(item)
            on_poll(item)
            if item["status"] in FINAL_STATUSES:
                early_reads += 1
                if item.get("output_file_id") or not completed_lines(item) or early_reads > EARLY_READS:
                    return item
            elif self._deadline_passed.is_set() and cancelled_at is None:
                cancelled_at, pause = AWAKE_CLOCK.now(), FIRST_POLL_SECONDS
                batch.state = "cancelled"
                await self._ledger.record_state(batch)
                await self._cancel(batch.batch_id)
                continue
            elif cancelled_at is not None and AWAKE_CLOCK.now() - cancelled_at > CANCEL_WAIT_SECONDS:
                return {"id": batch.batch_id, "status": ABANDONED}
            elif AWAKE_CLOCK.now() - began > MAX_WAIT_SECONDS:
                hours = MAX_WAIT_SECONDS / 3600
                raise ProviderTimeout(
                    f"{batch.batch_id} has not ended in {hours:.0f} hours, it is in the state {item['status']}; "
                    "run again to wait for it, or cancel it with `rowmill batches cancel`"
                )
            await self._pause(pause * random.uniform(0.8, 1), until_deadline=cancelled_at is None)
            pause = min(MAX_POLL_SECONDS, pause * 1.5)

    async def _cancel(self, batch_id: str) -> None:
        # A refusal means that the batch has ended in this very moment: the next poll shows how.
        with contextlib.suppress(RequestRefused):
            await self._retry(self._api.cancel_batch, batch_id)

    async def fetch_results(self, batch: Batch, item: Item, name: str) -> Iterator[ResultLine]:
        """Download the file that `output_file_id` or `error_file_id` names, and return its lines.

        RequestRefused with a status of 404 if the provider no longer has the file.
        """
        file_id = item.get(name)
        if not file_id:
            return iter(())
        path = self._folder.results_path(batch.mark)
        expected = completed_lines(item) if name == "output_file_id" else 0

        async def download() -> None:
            with path.open("wb") as file:
                await self._api.download_file(str(file_id), file.write)

        with self._stage("fetch", batch):
            for read in range(EARLY_READS):
                await self._retry(download, has_patience=True)
                if await asyncio.to_thread(has_lines, path, batch.mark, expected) or read == EARLY_READS - 1:
                    break
                await asyncio.sleep(min(MAX_POLL_SECONDS, FIRST_POLL_SECONDS * 2.0**read))
        return read_results(path, batch.mark)

    async def clean(self, batch: Batch, item: Item | None, unread: Collection[str] = ()) -> None:
        """Remove the batch's files at the provider, except `unread` ones, then the batch here.

        Files that the provider refuses to remove stay. Of a batch whose outcome is unknown, all files stay.
        """
        results = () if item is None else (item.get("output_file_id"), item.get("error_file_id"))
        is_lost = item is not None and item.get("status") == LOST
        with self._stage("clean", batch):
            for file_id in () if is_lost else (batch.file_id, *results):
                if file_id and file_id not in unread:
                    with contextlib.suppress(RequestRefused):
                        await self._retry(self._api.delete_file, str(file_id))
            await self._ledger.delete(batch)
            self._folder.remove(batch.mark)

    async def reset(self, batch: Batch) -> None:
        """Return a batch that failed before it began to the state before its creation."""
        batch.state, batch.batch_id, batch.is_uncertain = "uploaded", None, False
        await self._ledger.record_state(batch)

    @contextlib.contextmanager
    def _stage(self, name: StageName, batch: Batch) -> Iterator[dict[str, str | None]]:
        """Report a stage when it is over, however it ends; the block may set the `status` of the batch."""
        began, lines = now_us(), len(batch.lines)
        details: dict[str, str | None] = {}
        try:
            yield details
        except (RequestRefused, RequestError) as exc:
            details["error"] = exc.error.error_class if isinstance(exc, RequestRefused) else exc.error_class
            raise
        except BaseException as exc:
            details["error"] = type(exc).__name__
            raise
        finally:
            self._on_stage(BatchStage(name, batch.mark, batch.batch_id, lines, batch.recorded_at, began, **details))

    async def _retry(
        self,
        call: Callable[..., Awaitable[T]],
        *arguments: Any,
        has_patience: bool = False,
        file_id: str | None = None,
    ) -> T:
        """Return what the call returns; retry transient failures for at most `longest_hold` seconds.

        A 404 is retried for NOT_FOUND_SECONDS if the call `has_patience`, or if the provider does not find `file_id`.
        """
        began, pause = AWAKE_CLOCK.now(), min(1.0, FIRST_POLL_SECONDS)
        while True:
            try:
                return await call(*arguments)
            except (RequestError, RequestRefused) as exc:
                error = exc.error if isinstance(exc, RequestRefused) else RowError(exc.error_class, str(exc))
                is_missing = has_patience and error.http_status == 404
                is_missing = is_missing or (file_id is not None and _is_file_pending(error, file_id))
                seconds = AWAKE_CLOCK.now() + pause - began
                if is_missing:
                    if seconds > NOT_FOUND_SECONDS:
                        raise
                elif error.error_class not in TRANSIENT_ERROR_CLASSES:
                    raise
                elif seconds > self._longest_hold:
                    raise ProviderTimeout(
                        f"nothing of use for {self._longest_hold:.0f} s; last: {error.error_class}: {error.message}"
                    ) from exc
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(MAX_POLL_SECONDS, pause * 2)

    async def _pause(self, seconds: float, until_deadline: bool) -> None:
        if not until_deadline:
            await asyncio.sleep(seconds)
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._deadline_passed.wait(), seconds)


def _id_of(item: Item) -> str:
    """Return the id of a new object; RequestRefused if the reply has none: it may exist all the same."""
    if not isinstance(item.get("id"), str | int):
        raise RequestRefused(RowError("malformed_reply", "the reply names no id"))
    return str(item["id"])


def _is_final(error: RowError) -> bool:
    """Whether the provider refuses the batch for a reason of its own, and not the account, nor for a while."""
    is_of_account = error.error_class in FATAL_ERROR_CLASSES and error.error_class != "setup"
    return error.error_class not in TRANSIENT_ERROR_CLASSES and not is_of_account


def _is_file_pending(error: RowError, file_id: str) -> bool:
    """Whether the provider does not know, or has not yet processed, a file that it has just accepted."""
    if error.http_status not in (400, 404, 409) or not (error.param == "input_file_id" or file_id in error.message):
        return False
    return error.http_status == 404 or _PENDING.search(error.message) is not None


def _file_name(batch: Batch) -> str:
    return f"rowmill-{batch.mark}.jsonl"
