"""The lifecycle of one batch: upload, create or find again, poll until it has ended, fetch its results, clean up."""

import asyncio
import contextlib
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeVar

from connectors.records import TRANSIENT_ERROR_CLASSES, RowError
from connectors.transport.client import RequestError
from pipelines.batch.files import BatchFolder, ResultLine, read_results
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
FINAL_STATUSES = frozenset({"completed", "failed", "expired", "cancelled"})
LOST = "lost"
"""Our status for a batch whose outcome, and therefore its cost, will stay unknown."""
TOKEN_LIMIT = "token_limit_exceeded"
"""The code of a batch that is refused, or fails, because it has too many tokens to be enqueued."""
CROWDED = "crowded"
"""Our status for a batch of one line that the provider has not accepted for longest_hold."""
QUOTA_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
"""Codes of a failed batch after which every other batch would fail too."""
_DAY_SECONDS = 86_400

T = TypeVar("T")


class ProviderTimeout(Exception):
    """The provider has answered nothing of use for longer than longest_hold: the run stops."""


class TokenLimitReached(Exception):
    """The provider takes no more enqueued tokens at this moment."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        stated = re.search(r"limit:?\s*([\d,]{3,})", message, re.I)
        self.limit = int(stated[1].replace(",", "")) if stated else None
        """As the message states it."""


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
    ) -> None:
        """After `deadline_passed` nothing is created, and what runs is cancelled. `on_stage` is called after every
        stage. `longest_hold`: seconds."""
        self._api = api
        self._ledger = ledger
        self._folder = folder
        self._longest_hold = longest_hold
        self._deadline_passed = deadline_passed
        self._on_stage = on_stage

    async def submit(self, batch: Batch, path: str, on_progress: Callable[[int], None]) -> bool:
        """Create the batch, once; TokenLimitReached if the provider's queue is full.

        Returns False if it will never be created: the deadline has passed, or its file is gone.
        """
        if batch.state == "created":
            return True
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
        if self._deadline_passed.is_set():
            # If it was created all the same, it must be cancelled.
            item = await self._retry(self._find_batch, batch) if batch.is_uncertain else None
            if item is None:
                return False
        else:
            item = await self._retry(self._create, batch, path)
        batch.batch_id, batch.state = str(item["id"]), "created"
        await self._ledger.record_state(batch)
        return True

    async def _upload(self, batch: Batch, on_progress: Callable[[int], None]) -> str:
        path = self._folder.upload_path(batch.mark)
        with self._stage("upload", batch):
            return str((await self._api.upload_file(path, _file_name(batch), "batch", on_progress))["id"])

    async def _create(self, batch: Batch, path: str) -> Item:
        assert batch.file_id is not None
        if batch.is_uncertain and (item := await self._find_batch(batch)) is not None:
            return item
        try:
            with self._stage("create", batch):
                return await self._api.create_batch(batch.file_id, path, {MARK_KEY: batch.mark})
        except RequestRefused as exc:
            if exc.error.code == TOKEN_LIMIT:
                raise TokenLimitReached(exc.error.message) from exc
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
        """Return the batch once it has ended; with status LOST if it did not end in time after it was cancelled."""
        with self._stage("wait", batch) as details:
            item = await self._poll_until_ended(batch, on_poll)
            details["status"] = str(item.get("status"))
            return item

    async def _poll_until_ended(self, batch: Batch, on_poll: Callable[[Item], None]) -> Item:
        assert batch.batch_id is not None
        pause = FIRST_POLL_SECONDS
        cancelled_at: float | None = None
        while True:
            try:
                item = await self._retry(self._api.get_batch, batch.batch_id)
            except RequestRefused as exc:
                if exc.error.http_status != 404:
                    raise
                # A provider that does not know the batch any more will not answer it.
                return {"status": LOST}
            on_poll(item)
            if item.get("status") in FINAL_STATUSES:
                return item
            if self._deadline_passed.is_set() and cancelled_at is None:
                cancelled_at, pause = time.monotonic(), FIRST_POLL_SECONDS
                await self._cancel(batch.batch_id)
                continue
            if cancelled_at is not None and time.monotonic() - cancelled_at > CANCEL_WAIT_SECONDS:
                return {"status": LOST}
            await self._pause(pause * random.uniform(0.8, 1), until_deadline=cancelled_at is None)
            pause = min(MAX_POLL_SECONDS, pause * 1.5)

    async def _cancel(self, batch_id: str) -> None:
        # A refusal means that the batch has ended in this very moment: the next poll shows how.
        with contextlib.suppress(RequestRefused):
            await self._retry(self._api.cancel_batch, batch_id)

    async def fetch_results(self, batch: Batch, item: Item, name: str) -> Iterator[ResultLine]:
        """Download the file that `output_file_id` or `error_file_id` names, and return its lines."""
        file_id = item.get(name)
        if not file_id:
            return iter(())
        path = self._folder.results_path(batch.mark)

        async def download() -> None:
            with path.open("wb") as file:
                await self._api.download_file(str(file_id), file.write)

        try:
            with self._stage("fetch", batch):
                await self._retry(download)
        except RequestRefused as exc:
            if exc.error.http_status != 404:
                raise
            return iter(())
        return read_results(path, batch.mark)

    async def clean(self, batch: Batch, item: Item | None) -> None:
        """Remove the batch's files at the provider, then the batch here; files that it refuses to remove stay."""
        results = () if item is None else (item.get("output_file_id"), item.get("error_file_id"))
        with self._stage("clean", batch):
            for file_id in (batch.file_id, *results):
                if file_id:
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

    async def _retry(self, call: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Return what the call returns; retry transient failures for at most `longest_hold` seconds."""
        began, pause = time.monotonic(), min(1.0, FIRST_POLL_SECONDS)
        while True:
            try:
                return await call(*arguments)
            except (RequestError, RequestRefused) as exc:
                error = exc.error if isinstance(exc, RequestRefused) else RowError(exc.error_class, str(exc))
                if error.error_class not in TRANSIENT_ERROR_CLASSES:
                    raise
                if time.monotonic() + pause - began > self._longest_hold:
                    raise ProviderTimeout(f"{error.error_class}: {error.message}") from exc
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(MAX_POLL_SECONDS, pause * 2)

    async def _pause(self, seconds: float, until_deadline: bool) -> None:
        if not until_deadline:
            await asyncio.sleep(seconds)
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._deadline_passed.wait(), seconds)


def token_limit(item: Item) -> TokenLimitReached | None:
    """Return why a failed batch may be created again; None if it failed for another reason, or did not fail."""
    if item.get("status") != "failed":
        return None
    for error in _errors(item):
        if error.get("code") == TOKEN_LIMIT:
            return TokenLimitReached(str(error.get("message") or "too many enqueued tokens"))
    return None


def above_limit(exc: TokenLimitReached, is_sure: bool) -> Item:
    """Return how a batch ends whose only line is above the limit; unless `is_sure`, the next run requests it again."""
    error = {"code": TOKEN_LIMIT, "message": str(exc), "line": 1 if is_sure else None}
    return {"status": "failed" if is_sure else CROWDED, "errors": {"data": [error]}}


def refused_lines(item: Item) -> dict[int, RowError]:
    """Return the places of the lines that made a batch fail, with their errors."""
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


def missing_answer(item: Item, code: str | None, message: str | None) -> RowError:
    """Return why a line has no answer: by its own error (`code`, `message`), or by how the batch ended."""
    status = item.get("status")
    if status == LOST:
        return RowError("timeout", "the batch was created, but its outcome is unknown", code="batch_lost")
    if code == "batch_expired" or (code is None and status == "expired"):
        return RowError("timeout", message or "the batch expired before it came to this line", code="batch_expired")
    if code is None and status == "completed":
        return RowError("malformed_reply", "the batch's files hold no line for this request")
    first = next(iter(_errors(item)), {})
    message = message or str(first.get("message") or f"the batch ended as {status} before it came to this line")
    code = code or str(first.get("code") or f"batch_{status}")
    if status == CROWDED:
        return RowError("rate_limit", message, code=code)
    return RowError("quota" if code in QUOTA_CODES else "server", message, code=code)


def _errors(item: Item) -> list[Mapping[str, Any]]:
    errors = item.get("errors")
    data = errors.get("data") if isinstance(errors, Mapping) else None
    return [error for error in data or () if isinstance(error, Mapping)]


def _file_name(batch: Batch) -> str:
    return f"rowmill-{batch.mark}.jsonl"
