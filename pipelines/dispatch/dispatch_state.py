"""Whether requests are still sent, and what a run and its displays read about it."""

import asyncio
from collections.abc import Callable

from pipelines.dispatch.faults.setup_faults import SetupFaults
from pipelines.dispatch.request_types import ExchangeObserver


class DispatchState:
    """The state that dispatchers of one run share: the first failure or stop reason ends all of them."""

    def __init__(self, is_retrying: bool = False) -> None:
        """`is_retrying`: see SetupFaults."""
        self.setup_faults = SetupFaults(is_retrying)
        self.stop_reason: str | None = None
        """Why nothing more is sent; None while requests are sent."""
        self.failure: Exception | None = None
        """What broke the dispatch itself: the ledger cannot be written, or a defect."""
        self.waiting_for: str | None = None
        """What the run waits for at this moment, as text, if it is not a provider's limit."""
        self.left_running = 0
        """Batches that continue at the provider after the run was stopped."""
        self.observer: ExchangeObserver | None = None
        """Is informed of every exchange."""
        self._on_stop: list[Callable[[str], None]] = []

    def on_stop(self, listener: Callable[[str], None]) -> None:
        """Call the listener with the reason each time the dispatch is stopped; it may be called more than once."""
        self._on_stop.append(listener)

    def stop(self, reason: str) -> None:
        """Send nothing more; the first reason stays the stop reason."""
        if self.stop_reason is None:
            self.stop_reason = reason
        for listener in self._on_stop:
            listener(reason)

    def fail(self, failure: Exception) -> None:
        """Stop because of an exception, which the run raises again; the first one counts."""
        self.failure = self.failure or failure
        self.stop(f"{type(failure).__name__}: {failure}")

    def on_task_done(self, task: "asyncio.Task[None]") -> None:
        """Stop if a background task has failed: a defect or a full disk ends the run."""
        if not task.cancelled() and isinstance(failure := task.exception(), Exception):
            self.fail(failure)
