"""Whether requests are still sent, and what a run and its displays read about it."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

from pipelines.dispatch.faults.setup_faults import SetupFaults
from pipelines.dispatch.request_types import ExchangeObserver

DRAINED = "drained"
"""Stop reason of a run that a user has asked to end: everything in flight is answered, batches at the provider too."""
INTERRUPTED = "interrupted"
"""Stop reason of a run after Ctrl-C or SIGTERM: what is in flight may land within the grace period."""


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
        self.paused_since: datetime | None = None
        """Since when nothing new is sent because of a pause, in UTC; None while requests are sent."""
        self._on_stop: list[Callable[[str], None]] = []
        self._on_pause: list[Callable[[bool], None]] = []
        self._resumed = asyncio.Event()

    def on_stop(self, listener: Callable[[str], None]) -> None:
        """Call the listener with the reason each time the dispatch is stopped; it may be called more than once."""
        self._on_stop.append(listener)

    def stop(self, reason: str) -> None:
        """Send nothing more; the first reason stays the stop reason."""
        if self.stop_reason is None:
            self.stop_reason = reason
        self.resume()
        for listener in self._on_stop:
            listener(reason)

    @property
    def is_paused(self) -> bool:
        """Whether nothing new is sent until `resume`; what is in flight goes on."""
        return self.paused_since is not None

    def on_pause(self, listener: Callable[[bool], None]) -> None:
        """Call the listener whenever a pause begins (with True) or ends (with False)."""
        self._on_pause.append(listener)

    def pause(self) -> None:
        """Send nothing new until `resume` or `stop`."""
        if self.paused_since is None and self.stop_reason is None:
            self.paused_since = datetime.now(UTC)
            self._resumed.clear()
            for listener in self._on_pause:
                listener(True)

    def resume(self) -> None:
        """Send again after a pause."""
        if self.paused_since is not None:
            self.paused_since = None
            self._resumed.set()
            for listener in self._on_pause:
                listener(False)

    async def wait_while_paused(self) -> None:
        """Wait until the pause ends, also because the run is stopped."""
        while self.is_paused:
            await self._resumed.wait()

    def fail(self, failure: Exception) -> None:
        """Stop because of an exception, which the run raises again; the first one counts."""
        self.failure = self.failure or failure
        self.stop(f"{type(failure).__name__}: {failure}")

    def on_task_done(self, task: "asyncio.Task[None]") -> None:
        """Stop if a background task has failed: a defect or a full disk ends the run."""
        if not task.cancelled() and isinstance(failure := task.exception(), Exception):
            self.fail(failure)
